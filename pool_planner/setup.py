"""What a planner plans: the pools of one deployment, with their limits, SLA and profile. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pool_planner.config import COMPONENTS, PlannerConfig
from pool_planner.performance.profile import Profile
from pool_planner.performance.work import Engine
from pool_planner.types import Role


class SetupError(ValueError):
    """Pools and configuration that do not fit together; the text names the pool, the field and what is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSetup:
    """One pool. `max_replicas` bounds the demand curve: the pool's own maximum, or what the whole budget could hold.

    `cold_start_s`: from order to ready, until it was measured. `ttft_offset_ms`: what a request is known to pay between its
    prefill and the first token at the client (KV transfer, first decode step), before live correction learns the rest.
    `isl_max_tokens`: longer prompts are sent elsewhere (None: all come here).
    `max_num_seqs`, `prefill_chunk_tokens`: most sequences at once and most prompt tokens in one step of the engine.
    `shortest_first`: the door in front lets in no more than engines begin in time, the shortest prompts first.
    """

    name: str
    role: Role
    ttft_ms: float
    itl_ms: float
    gpus_per_replica: int = 1
    min_replicas: int = 1
    max_replicas: int = 64
    profile: Profile | None = None
    cold_start_s: float = 60.0
    ttft_offset_ms: float = 0.0
    isl_max_tokens: int | None = None
    max_num_seqs: int = 256
    prefill_chunk_tokens: int = 8192
    shortest_first: bool = False

    def expected_isl(self, usual: float) -> float:
        """Prompt tokens to plan for before any were measured, where prompts of the deployment usually have `usual`."""
        return usual if self.isl_max_tokens is None else min(usual, self.isl_max_tokens / 2.0)

    @property
    def engine(self) -> Engine | None:
        """The model of one replica; None without the curves that the role needs."""
        prefill = self.profile.prefill if self.profile is not None else None
        decode = self.profile.decode if self.profile is not None else None
        if (self.role != "decode" and prefill is None) or (self.role != "prefill" and decode is None):
            return None
        return Engine(
            role=self.role,
            gpus=self.gpus_per_replica,
            ttft_ms=self.ttft_ms,
            itl_ms=self.itl_ms,
            prefill=prefill,
            decode=decode,
            max_num_seqs=self.max_num_seqs,
            step_tokens=self.prefill_chunk_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSetup:
    """The pools that one planner plans together. `max_gpus`, `min_gpus`: limits of their sum (None: none; a budget shared
    with other planners is the arbiter's, not given here)."""

    config: PlannerConfig
    pools: tuple[PoolSetup, ...]
    max_gpus: int | None = None
    min_gpus: int | None = None

    def __post_init__(self) -> None:
        names = [pool.name for pool in self.pools]
        for name in names:
            if names.count(name) > 1:
                raise SetupError(f"pool {name!r} is given {names.count(name)} times")
        for pool in self.pools:
            if not 0 <= pool.min_replicas <= pool.max_replicas or pool.max_replicas < 1:
                raise SetupError(
                    f"pool {pool.name!r}: min_replicas {pool.min_replicas} and max_replicas {pool.max_replicas} "
                    "must satisfy 0 <= min <= max and 1 <= max"
                )
            if self.config.enable_throughput_scaling and pool.engine is None:
                raise SetupError(
                    f"pool {pool.name!r}: throughput scaling of a {pool.role} pool needs "
                    f"{'prefill' if pool.role == 'prefill' else 'decode' if pool.role == 'decode' else 'prefill and decode'} "
                    "profile data (or turn enable_throughput_scaling off)"
                )

    @property
    def tick_s(self) -> float:
        """Seconds between two observations."""
        return self.config.tick_s

    @property
    def samples_per_tick(self) -> int:
        """How often the workers' gauges are read within a tick."""
        return self.config.load_metric_samples if self.config.enable_load_scaling else 1


ROLES: Mapping[str, tuple[Role, ...]] = {
    "disagg": ("prefill", "decode"),
    "prefill": ("prefill",),
    "decode": ("decode",),
    "agg": ("agg",),
}


def setup_from_config(config: PlannerConfig, profile: Profile | None, *, gpus_per_replica: Mapping[Role, int]) -> PlannerSetup:
    """The setup of a planner that stands alone, one pool for each role of its mode, named as the backend names its workers.

    `gpus_per_replica`: as observed on the cluster, by role; the configuration's engine GPU counts win. Raises SetupError.
    """
    pools = []
    for role in ROLES[config.mode]:
        given = config.prefill_engine_num_gpu if role == "prefill" else config.decode_engine_num_gpu
        gpus = given if given is not None else gpus_per_replica.get(role)
        if gpus is None:
            field = "prefill_engine_num_gpu" if role == "prefill" else "decode_engine_num_gpu"
            raise SetupError(f"{field}: not given, and the GPUs of a {role} replica were not observed")
        most = 64 if config.max_gpu_budget is None else config.max_gpu_budget // gpus
        if most < max(1, config.min_endpoint):
            raise SetupError(
                f"max_gpu_budget: {config.max_gpu_budget} does not hold min_endpoint {config.min_endpoint} {role} replicas "
                f"of {gpus} GPUs"
            )
        pools.append(
            PoolSetup(
                name=COMPONENTS[config.backend][role],
                role=role,
                gpus_per_replica=gpus,
                min_replicas=config.min_endpoint,
                max_replicas=most,
                ttft_ms=config.ttft,
                itl_ms=config.itl,
                profile=profile,
                cold_start_s=config.extensions.cold_start_s,
            )
        )
    return PlannerSetup(config=config, pools=tuple(pools), max_gpus=config.max_gpu_budget, min_gpus=config.min_gpu_budget)
