"""The topology: one file that describes a deployment, as frozen pydantic models. Pure (reading the file is `load`'s caller's).

Budgets by GPU type, groups (one model each) with their pools, the cluster that they run in, the arbiter's rhythm and the
router. Where a value could stand both here and in a pool's planner settings, the topology wins; a contradiction is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pool_planner.types import Role

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GpuBudget(Section):
    """`max`: never charge more GPUs of this type than this (absent: unlimited)."""

    max: PositiveInt | None = None
    min_total: NonNegativeInt = 0
    price_per_hour: NonNegativeFloat | None = None


class BudgetConfig(Section):
    gpus: dict[str, GpuBudget] = Field(min_length=1)


class ClusterConfig(Section):
    """Where the replicas run. `virtual`: local processes that serve the mock engine."""

    kind: Literal["virtual"] = "virtual"
    namespace: Name = "demo"
    cold_start_s: NonNegativeFloat = 45.0
    termination_s: NonNegativeFloat = 5.0


class ArbiterConfig(Section):
    round_interval_s: PositiveFloat = 10.0
    objective: Literal["goodput", "max_min", "proportional", "first_come"] = "goodput"
    hold_s: NonNegativeFloat = 60.0
    move_horizon_s: PositiveFloat = 300.0
    drain_deadline_s: PositiveFloat = 300.0
    start_limit_s: PositiveFloat = 300.0
    journal_max_mb: PositiveInt = 64


class RouterConfig(Section):
    """The public endpoint. Port 0: any free port. `admin_port` serves metrics and the planner's protocol, on loopback."""

    host: str = "127.0.0.1"
    port: NonNegativeInt = 0
    admin_port: NonNegativeInt = 0
    queue_deadline_s: PositiveFloat = 30.0
    queue_limit: PositiveInt = 1000
    request_timeout_s: PositiveFloat = 600.0


class Sla(Section):
    ttft_ms: PositiveFloat
    itl_ms: PositiveFloat


class PoolConfig(Section):
    """One pool. `dgd` and `component` say where it runs; pools that share a `dgd` are planned by one planner.
    `isl_max_tokens`: among prefill (or agg) pools of a group, prompts up to this length come here (absent: any length)."""

    name: Name
    role: Role
    gpu_type: str
    gpus_per_replica: PositiveInt = 1
    min_replicas: NonNegativeInt = 1
    max_replicas: PositiveInt | None = None
    dgd: Name | None = None
    component: str | None = None
    isl_max_tokens: PositiveInt | None = None
    profile: str
    planner: dict[str, Any] = Field(default_factory=dict)


class EngineConfig(Section):
    """What the mock engine of a group can hold, beside its pools' profiles."""

    max_model_len: PositiveInt = 131_072
    tokens_per_chunk: PositiveInt = 4
    prefill_chunk_tokens: PositiveInt = 8192
    max_num_seqs: PositiveInt = 256
    kv_transfer_ms: NonNegativeFloat = 50.0


class GroupConfig(Section):
    name: Name
    model: str
    sla: Sla
    priority: int = 0
    weight: PositiveFloat = 1.0
    engine: EngineConfig = EngineConfig()
    pools: tuple[PoolConfig, ...] = Field(min_length=1)


class Topology(Section):
    name: Name
    budget: BudgetConfig
    cluster: ClusterConfig = ClusterConfig()
    arbiter: ArbiterConfig = ArbiterConfig()
    router: RouterConfig = RouterConfig()
    groups: tuple[GroupConfig, ...] = Field(min_length=1)
