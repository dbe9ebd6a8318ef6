"""The topology: one file that describes a deployment, as frozen pydantic models. Pure: `topology_file` reads the file.

Budgets by GPU type, groups (one model each) with their pools, the cluster that they run in, the arbiter's rhythm and the
router. All durations are model seconds. Where a value could stand both here and in a pool's planner settings (SLA, minimum,
GPU budget, mode), the topology wins; a contradiction is refused. What no single section can know (names, minima against the
budget, prompts without a pool) is checked in `topology_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pool_planner.types import Role

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Port = Annotated[int, Field(ge=0, le=65535, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ModelName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^\S+$")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GpuBudget(Section):
    """`max`: never charge more GPUs of this type than this (absent: unlimited). `min_total`: the fleet of this type is not
    shrunk below it; `surplus_pools` take, in this order, what of it nobody asks for. `price_per_hour` of one GPU, in any one
    currency."""

    max: PositiveInt | None = None
    min_total: NonNegativeInt = 0
    surplus_pools: tuple[Name, ...] = ()
    price_per_hour: NonNegativeFloat | None = None


class BudgetConfig(Section):
    gpus: dict[str, GpuBudget] = Field(min_length=1)


class ClusterConfig(Section):
    """Where the replicas run. `virtual`: local processes that serve the mock engine.

    A replica is ready `cold_start_s` after it was ordered at the earliest; the minima that stand when the cluster starts take
    `initial_cold_start_s`. A replica that was told to end is killed after `termination_s`.
    """

    kind: Literal["virtual"] = "virtual"
    namespace: Name = "demo"
    cold_start_s: NonNegativeFloat = 45.0
    initial_cold_start_s: NonNegativeFloat = 0.0
    termination_s: NonNegativeFloat = 5.0


class ArbiterConfig(Section):
    """The rhythm and the temper of the arbiter. `hold_s`: how long a smaller number must have sufficed before a pool is
    lowered. `move_horizon_s`: taking from another group must pay off within it. `drain_deadline_s`: a release whose requests
    have not ended by then is postponed. `start_limit_s`: a replica that is not ready by then is cancelled.
    `admission_burst_s`: the router lets so many seconds' worth of a group's admitted rate through at once (one request at
    least): engines absorb a short burst sooner than its requests would come to their turn."""

    round_interval_s: PositiveFloat = 10.0
    objective: Literal["goodput", "max_min", "proportional", "first_come"] = "goodput"
    hold_s: NonNegativeFloat = 60.0
    move_horizon_s: PositiveFloat = 300.0
    drain_deadline_s: PositiveFloat = 300.0
    start_limit_s: PositiveFloat = 300.0
    admission_burst_s: NonNegativeFloat = 20.0
    journal_max_mb: PositiveInt = 64


class RouterConfig(Section):
    """The public endpoint. Port 0: any free port. `admin_port` serves metrics and the planner's protocol, on loopback always.
    A `host` that other machines can reach needs `allow_remote: true`."""

    host: str = "127.0.0.1"
    allow_remote: Flag = False
    port: Port = 0
    admin_port: Port = 0
    queue_deadline_s: PositiveFloat = 30.0
    queue_limit: PositiveInt = 1000
    request_timeout_s: PositiveFloat = 600.0


class Sla(Section):
    """Time to first token, from arrival at the router, and time between tokens: model milliseconds."""

    ttft_ms: PositiveFloat
    itl_ms: PositiveFloat


class PoolConfig(Section):
    """One pool. `dgd` and `component` say where it runs (absent: a DGD of the pool's own name, a component of its role's);
    pools that share a `dgd` are planned by one planner: one pool, or one prefill and one decode pool.

    `isl_max_tokens`: among the pools of one role, prompts up to this length come here (absent: any length). `profile`: a
    directory of profile data, relative to the topology file. `planner`: settings of this pool's planner, over the group's and
    the topology's. `guarantee_replicas` are reserved like the minimum, but lent to others while unused. `max_in_flight`
    bounds the requests that the router sends to one replica at a time.
    """

    name: Name
    role: Role
    gpu_type: str
    gpus_per_replica: PositiveInt = 1
    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt | None = None
    guarantee_replicas: NonNegativeInt = 0
    mode: Literal["act", "approve", "observe"] = "act"
    dgd: Name | None = None
    component: str | None = None
    isl_max_tokens: PositiveInt | None = None
    max_in_flight: PositiveInt | None = None
    profile: str
    planner: dict[str, Any] = Field(default_factory=dict)

    @property
    def dgd_name(self) -> str:
        return self.dgd or self.name

    @property
    def component_name(self) -> str:
        return self.component or self.role


class EngineConfig(Section):
    """What the mock engine of a group can hold, beside its pools' profiles. `max_kv_tokens` absent: what the profile says."""

    max_model_len: PositiveInt = 131_072
    max_kv_tokens: PositiveInt | None = None
    tokens_per_chunk: PositiveInt = 4
    prefill_chunk_tokens: PositiveInt = 8192
    max_num_seqs: PositiveInt = 256
    kv_transfer_ms: NonNegativeFloat = 50.0
    kv_hold_s: NonNegativeFloat = 120.0


class GroupConfig(Section):
    """The pools that together serve one model: one prefill and one decode stage, or aggregated pools. Groups of a higher
    `priority` are served first; within one priority, `weight` is what a request is worth. `planner`: settings of all its
    pools' planners."""

    name: Name
    model: ModelName
    sla: Sla
    priority: Annotated[int, Field(strict=True)] = 0
    weight: PositiveFloat = 1.0
    engine: EngineConfig = EngineConfig()
    planner: dict[str, Any] = Field(default_factory=dict)
    pools: tuple[PoolConfig, ...] = Field(min_length=1)


class Topology(Section):
    """The whole deployment. `planner`: settings of every pool's planner, unless its group or itself says otherwise."""

    name: Name
    budget: BudgetConfig
    cluster: ClusterConfig = ClusterConfig()
    arbiter: ArbiterConfig = ArbiterConfig()
    router: RouterConfig = RouterConfig()
    planner: dict[str, Any] = Field(default_factory=dict)
    groups: tuple[GroupConfig, ...] = Field(min_length=1)

    def placed_pools(self) -> Iterator[tuple[GroupConfig, PoolConfig]]:
        """Every pool with its group, in the order of the file."""
        for group in self.groups:
            for pool in group.pools:
                yield group, pool
