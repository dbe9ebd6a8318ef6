"""The records of the arbiter: budget, holdings, allocation, steps, round. Pure: no I/O, no clock, no randomness.

GPU amounts are whole GPUs by GPU type. `None` means unknown, or unlimited where the docstring says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pool_planner.records import quick
from pool_planner.types import PlannerStatus, Report, Role

ReplicaState = Literal["starting", "ready", "draining", "terminating"]
Mode = Literal["act", "approve", "observe"]
Objective = Literal["goodput", "max_min", "proportional", "first_come"]


# ---- what is configured -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`max_gpus[gpu_type]`: hard limit; a type that is absent is unlimited. `min_total_gpus[gpu_type]`: the fleet of that
    type is not shrunk below it (absent: no floor)."""

    max_gpus: Mapping[str, int]
    min_total_gpus: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """One pool as the topology describes it, for the arbiter. `max_replicas` None: limited by the budget alone. `growth_cap`:
    more than this it cannot become now, whatever is configured for it (it backs off after failed starts; None: it can)."""

    name: str
    group: str
    role: Role
    gpu_type: str
    gpus_per_replica: int
    dgd: str
    component: str
    namespace: str
    min_replicas: int = 1
    max_replicas: int | None = None
    guarantee_replicas: int = 0
    mode: Mode = "act"
    start_limit_s: float = 600.0
    growth_cap: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """The pools that together serve one model. Higher `priority_class` is served first; `weight` scales value within it."""

    name: str
    model: str
    priority_class: int = 0
    weight: float = 1.0
    ttft_ms: float = 500.0
    itl_ms: float = 50.0
    pools: tuple[str, ...] = ()


# ---- what is observed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One engine endpoint. `in_flight` and `pending_kv` come from the router (None: no router process has answered for it).
    `drain_acked` is true when every router process knows that it drains. `progress_at_s`: when its start last made visible
    progress (weights pulled, layers loaded), where the cluster can tell. `rank`: the place in which the cluster removes it when
    it chooses itself, 0 first (None: it does not, or nobody can tell). `nodes`: those that it runs on, where the cluster tells
    them."""

    id: str
    state: ReplicaState
    url: str | None = None
    since_s: float | None = None
    in_flight: int | None = None
    pending_kv: int | None = None
    drain_acked: bool = False
    unschedulable: str | None = None
    progress_at_s: float | None = None
    rank: int | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRoom:
    """One node of the cluster: its GPUs of one type, and how many of them nobody uses or has been promised."""

    node: str
    gpu_type: str
    gpus: int
    free_gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a pool has now. `spec` is the ordered replica count, `version` the version it was read at (writes carry it).

    `surge` counts extra replicas of a rolling update. `last_write` is our own last ordered count when it is not yet
    observed. Unknown (`spec` or `gpus_per_replica` None) is never zero: such a pool is held.

    `terminating_hidden`: the cluster cannot show replicas that are ending; `lingering` then counts those that may still be
    there. `last_known_gpus` is what the pool was last charged. The round fills `last_write`, `lingering` and
    `last_known_gpus` from its memory; adapters leave them alone.

    `least_replicas`: fewer the workload cannot have. `victims`: who chooses the replica that goes: `named` (we do), `last` (the
    cluster, by the replicas' `rank`), `unknown` (the cluster, and nobody can tell whom). `foreign`: another controller that
    sets the replicas too, and `foreign_at_s` when it last did. `nodes_per_replica`: a replica needs an equal part of its GPUs
    on each of so many nodes.
    """

    pool: str
    at_s: float
    spec: int | None
    adapter_spec: int | None = None
    version: str | None = None
    replicas: tuple[Replica, ...] = ()
    gpus_per_replica: int | None = None
    surge: int = 0
    last_write: int | None = None
    updating: bool = False
    cold_start_s: float | None = None
    unknown: str | None = None
    terminating_hidden: bool = False
    lingering: int = 0
    last_known_gpus: int | None = None
    least_replicas: int = 0
    victims: Literal["named", "last", "unknown"] = "named"
    foreign: str | None = None
    foreign_at_s: float | None = None
    nodes_per_replica: int = 1


# ---- what is decided ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """Who would have got the next GPU, and what it was worth to them."""

    pool: str
    value_per_gpu: float


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGrant:
    """One line of an allocation. `reason` is a sentence; `binding` names the limit that bound (None: nothing bound);
    `marginal_value` is weight x requests/s gained per GPU by the next step up (None: no next step). `rules`: sentences that
    name the selectors, schedules and overrides in force for it. `needed`: of what is wanted, the replicas for the load that is
    expected in the mean; the others are only for a doubt (None: nobody doubts, or the objective does not ask).
    `marginal_sure`: likewise, of the load that is expected (None: as `marginal_value`)."""

    pool: str
    wanted: int | None
    granted: int
    before: int | None
    held: bool = False
    reason: str = ""
    binding: str | None = None
    marginal_value: float | None = None
    runner_up: RunnerUp | None = None
    rules: tuple[str, ...] = ()
    needed: int | None = None
    marginal_sure: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityRate:
    """Requests of one priority of a group: `load_rps` is their offered load, `admitted_rps` what may be admitted of them beside
    the load of all that are more important."""

    priority: int
    load_rps: float
    admitted_rps: float


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGrant:
    """What a group attains with its grant, and the rate the router may admit for it now (None: unlimited). `rules`: sentences
    that name the selectors in force for it. `in_flight`: how many requests may be under way at once (None: any number);
    `in_flight_by_pool`: with single pools of its stages (one that is absent: any number). `by_priority`: its rate by request
    priority, the most important first (empty: it is unlimited, or nobody tells the priorities)."""

    group: str
    load_rps: float
    attainment: float
    admitted_rps: float | None = None
    in_flight: float | None = None
    value: float = 0.0
    rules: tuple[str, ...] = ()
    by_priority: tuple[PriorityRate, ...] = ()
    in_flight_by_pool: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The result of one arbitration. `infeasible` names pools whose minima do not fit together (then nothing grows).
    `gap` is the proven relative distance to the relaxation's bound (0: optimal)."""

    pools: tuple[PoolGrant, ...]
    groups: tuple[GroupGrant, ...]
    objective: Objective
    value: float
    gap: float
    solver: str
    infeasible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Tell every router process to stop sending to these endpoints; the deadline is in model time."""

    pool: str
    replicas: tuple[str, ...]
    deadline_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrain:
    """The drained endpoints are wanted again before they were removed."""

    pool: str
    replicas: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """Order fewer replicas: `victims` are drained (or never started) and go."""

    pool: str
    before: int
    after: int
    victims: tuple[str, ...]
    version: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Grow:
    """Order more replicas, against GPUs that are free now."""

    pool: str
    before: int
    after: int
    version: str | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Replicas that did not start within their limit: order them away; the pool backs off until `backoff_until_s`."""

    pool: str
    before: int
    after: int
    victims: tuple[str, ...]
    version: str | None
    backoff_until_s: float
    reason: str


Step = Drain | Undrain | Shrink | Grow | Cancel


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What became of a step: applied, or the error that the adapter gave. `conflict`: the object had moved on and certainly
    nothing was written; after any other error of an order it may have been, and stays charged until observed."""

    step: Step
    applied: bool
    error: str | None = None
    conflict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """What a person set for one pool at run time. `pin`: exactly `replicas`; `cap`: at most `replicas`; `hold`: leave it alone.
    In force until `expires_at_s` (None: until it is taken back). `by` and `reason` are told wherever it decides."""

    pool: str
    kind: Literal["pin", "cap", "hold"]
    replicas: int | None = None
    expires_at_s: float | None = None
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A person's word on what a pool in mode `approve` is to do: its steps towards `replicas` granted ones may be applied
    (or are refused) until `expires_at_s`. A round that grants another number asks again."""

    pool: str
    replicas: int
    verdict: Literal["approve", "refuse"]
    expires_at_s: float
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """A person stopped all writes; until it is taken back nothing is ordered and nothing is drained."""

    at_s: float
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Custody:
    """A person's word on who sets the replicas of a pool: `ours` although another controller did so until `at_s`, or `theirs`:
    we only watch."""

    pool: str
    whose: Literal["ours", "theirs"]
    at_s: float
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A known event: while it lasts, the matched pools have at least `min_replicas`, or their load counts `load_factor` times.

    It starts at `start` ("HH:MM", local time in `timezone`) on the `days` (0 Monday .. 6 Sunday; empty: every day) or on the
    one `date` ("YYYY-MM-DD"), and lasts `duration_s`. It takes effect `lead_s` earlier, so that replicas are warm in time.
    """

    name: str
    start: str
    duration_s: float
    timezone: str = "UTC"
    days: tuple[int, ...] = ()
    date: str | None = None
    lead_s: float = 0.0
    pool: str | None = None
    group: str | None = None
    min_replicas: int | None = None
    load_factor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundInputs:
    """Everything that a round decided on: with the state before it, enough to reproduce the decision. `schedules`: those that
    were set at run time, beside the configured ones. `nodes`: the GPUs of single nodes (None: the cluster does not tell)."""

    round_no: int
    at_s: float
    budget: Budget
    groups: tuple[GroupSpec, ...]
    pools: tuple[PoolSpec, ...]
    holdings: tuple[Holding, ...]
    reports: tuple[Report, ...]
    overrides: tuple[Override, ...] = ()
    approvals: tuple[Approval, ...] = ()
    freeze: Freeze | None = None
    schedules: tuple[Schedule, ...] = ()
    nodes: tuple[NodeRoom, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One journal record: inputs, decision, steps and what became of them. `charged_gpus` by GPU type as observed."""

    inputs: RoundInputs
    allocation: Allocation
    steps: tuple[Step, ...]
    outcomes: tuple[StepOutcome, ...]
    charged_gpus: Mapping[str, int]
    conditions: tuple[str, ...] = ()
    decide_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterSnapshot:
    """What a running arbiter shows of itself: the last round, every planner's status, and what happened lately.

    `planner_pids` by DGD; `rounds` counts the rounds of the whole journal, restarts included. `notes` are sentences with the
    model time at which they became true.
    """

    pid: int
    started_at_s: float
    rounds: int
    last_round: Round | None = None
    statuses: tuple[PlannerStatus, ...] = ()
    planner_pids: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[tuple[float, str], ...] = ()
