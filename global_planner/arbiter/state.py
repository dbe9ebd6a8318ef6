"""What the arbiter remembers from round to round, and what people set for it. Pure: records that the wire codec can carry.

Nothing in the state is needed for a correct allocation: it is what stability needs (how long a smaller number would have
sufficed, who borrowed, how much was moved lately). A lost state costs a hold, never a budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from global_planner.types import Objective, Schedule
from pool_planner.records import quick
from pool_planner.types import Role

__all__ = ["ArbiterPolicy", "ArbiterState", "DemandHistory", "Limit", "Schedule", "Selector"]

# ---- remembered ------------------------------------------------------------------------------------------------------


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class DemandHistory:
    """What one pool said lately.

    `said_at_s`, `load_rps`, `attainment`, `capacity_rps`, `by_priority` are of its last believable proposal: what a held pool
    is thought to carry (None: it never made one). `needs` are (at_s, replicas that 1.1 x the load needed) of the hold window,
    falling from entry to entry: every entry that a later and larger one covers was dropped. `since_s`: since when they are
    known without a gap; None: not known now.
    """

    said_at_s: float | None = None
    load_rps: float = 0.0
    attainment: tuple[float, ...] = ()
    capacity_rps: tuple[float, ...] | None = None
    by_priority: Mapping[str, float] = field(default_factory=dict)
    needs: tuple[tuple[float, int], ...] = ()
    since_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterState:
    """`pools` by pool. `debts` by group: GPU-seconds used beyond guarantees while others went short, decaying. `moves`:
    (at_s, groups that were raised with GPUs taken from another) of the last hour. `under_way` by pool: (replicas in force,
    granted) of moves that were decided and have not taken effect yet, on both sides."""

    at_s: float | None = None
    pools: Mapping[str, DemandHistory] = field(default_factory=dict)
    debts: Mapping[str, float] = field(default_factory=dict)
    moves: tuple[tuple[float, int], ...] = ()
    under_way: Mapping[str, tuple[int, int]] = field(default_factory=dict)


# ---- set by people ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """One line that sets values for many pools. A matcher is a name or a pattern with `*`; None matches anything.

    The most specific line that sets a value wins (see `effective`); equally specific ones: the later. `priority_class` and
    `weight` belong to groups, so a line that sets them may match by `group`, `model` and `namespace` only.
    """

    name: str
    pool: str | None = None
    group: str | None = None
    model: str | None = None
    namespace: str | None = None
    role: Role | None = None
    gpu_type: str | None = None
    min_replicas: int | None = None
    guarantee_replicas: int | None = None
    max_replicas: int | None = None
    priority_class: int | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if (self.priority_class is not None or self.weight is not None) and (self.pool or self.role or self.gpu_type):
            raise ValueError(
                f"selector {self.name!r} sets the priority class or weight of groups, so it may match by group, model and "
                "namespace, not by pool, role or GPU type"
            )
        if self.weight is not None and not self.weight > 0:
            raise ValueError(f"selector {self.name!r}: weight {self.weight} is not above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit beside the budget: GPUs or cost per hour (by `ArbiterPolicy.prices`) of the pools in a namespace and of a GPU
    type; None matches all."""

    name: str
    namespace: str | None = None
    gpu_type: str | None = None
    max_gpus: int | None = None
    max_cost_per_hour: float | None = None

    def __post_init__(self) -> None:
        if (self.max_gpus is None) == (self.max_cost_per_hour is None):
            raise ValueError(f"limit {self.name!r}: set either max_gpus or max_cost_per_hour")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterPolicy:
    """How the arbiter decides.

    `stability` False: every round is solved from nothing, without holds, costs of moves or memory (for what-if questions).
    `hold_s`: a pool is lowered of its own accord only after so long a time in which fewer replicas would have carried 1.1 x
    its load; with `hold_least_s` it is as long as the pool takes to start (twice that, up to `hold_least_s`).
    `move_horizon_s`: GPUs are taken from another group only where the gain over this time exceeds the cost: the cold start
    (`cold_start_s` where none was measured) for the load that moves, and, for `cache_loss_s`, the hit rate that was reported
    of the load whose prefixes die with a replica. `max_moves_per_hour` bounds the groups raised in this way.
    `trust_s`: so long a held pool is thought to carry what it last said. `debt_half_life_s`: how fast borrowing is forgotten.
    `prices`: cost of one GPU-hour by GPU type. `surplus_pools` take, in this order, what `min_total_gpus` asks for beyond
    demand. `unix_at_zero_s`: Unix time at model time 0, which schedules need.
    """

    objective: Objective = "goodput"
    stability: bool = True
    hold_s: float = 60.0
    hold_least_s: float | None = None
    move_horizon_s: float = 300.0
    cold_start_s: float = 60.0
    cache_loss_s: float = 60.0
    max_moves_per_hour: int | None = None
    trust_s: float = 900.0
    debt_half_life_s: float = 3600.0
    prices: Mapping[str, float] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    selectors: tuple[Selector, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    surplus_pools: tuple[str, ...] = ()
    unix_at_zero_s: float = 0.0
