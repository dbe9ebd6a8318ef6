"""What a round needs of the world, as narrow protocols. Pure: the shells and adapters implement them.

Every method raises only the three errors of `pool_planner.types` (MetricsUnavailable, ClusterUnavailable, Conflict).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from global_planner.types import Approval, Cancel, Custody, Freeze, Grow, Holding, NodeRoom, Override, Schedule, Shrink
from pool_planner.types import Report, Role, WorldError


class Clock(Protocol):
    """The one clock, in model seconds. Live: wall time x SPEED since the system's origin; replay: virtual."""

    def now(self) -> float: ...

    async def sleep(self, duration_s: float) -> None: ...


class Cluster(Protocol):
    """Where replicas run: Kubernetes, the virtual cluster, or replay's."""

    async def observe(self) -> tuple[Holding, ...]:
        """Holdings of every pool that the cluster knows, with replicas in the states starting, ready or terminating
        (draining is the router's knowledge, merged in by the round). Raises ClusterUnavailable."""
        ...

    async def apply(self, step: Shrink | Grow | Cancel) -> None:
        """Order `step.after` replicas of `step.pool`, naming the victims. Raises Conflict when the object is no longer at
        `step.version` or a victim is no longer there (nothing was written), ClusterUnavailable when the outcome is unknown or
        refused.

        A write that succeeds always moves the version on, also when the count stays what it was (a Shrink whose `before`
        and `after` are equal does nothing else: no earlier write on that version can take effect any more). Replicas that
        must go beyond the victims are those that never were ready, the youngest first."""
        ...


@runtime_checkable
class Together(Protocol):
    """A cluster that takes several orders at once, because pools of it are parts of one object."""

    def batches(self, steps: Sequence[Shrink | Grow | Cancel]) -> Sequence[Sequence[Shrink | Grow | Cancel]]:
        """All the steps, in groups that may be applied at once."""
        ...

    async def apply_together(self, steps: Sequence[Shrink | Grow | Cancel]) -> Sequence[WorldError | None]:
        """As `Cluster.apply`, for a batch: what each would have raised, None where it is done."""
        ...


class Nodes(Protocol):
    """The nodes that the replicas run on, where the cluster shows them."""

    async def nodes(self) -> tuple[NodeRoom, ...] | None:
        """The GPUs of every node; None: they are not told, so nobody can say whether a replica will find a place. Raises
        ClusterUnavailable.

        The arbiter reckons with these facts, so an adapter that tells nodes tells all of them:
        - one `NodeRoom` for every node that a new replica could be scheduled on (not cordoned, no taint that our pods do not
          tolerate); a node left out has no room. `gpu_type` is the topology's name of the type;
        - `free_gpus`: allocatable GPUs less the requests of every pod that is bound to the node and has not ended, whoever owns
          it, ours that start, drain or end included. The arbiter adds back what replicas that are ending, or that it lets go,
          leave on their `Replica.nodes`, so a GPU that is subtracted here twice is lost to it;
        - in each `Holding`: `nodes_per_replica` (of a multi-node replica: the nodes it needs at the same time, with an equal
          part of `gpus_per_replica` on each), `Replica.nodes` (the nodes of its bound pods, each once; empty while unbound),
          and `victims` and `Replica.rank` where the cluster chooses who goes: what nobody can foretell is not counted as free;
        - a round observes the holdings first, then the nodes: what was bound in between is missing from what is free, which
          costs a round, and never a place that is not there. Nodes from a cache may not be older than the holdings.
        """
        ...


class Journal(Protocol):
    """Append-only memory of rounds."""

    def append(self, record: object) -> None: ...


class Pools(Protocol):
    """The newest report of every pool; a pool that never reported is absent."""

    def reports(self) -> Mapping[str, Report]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One engine endpoint as the router is told of it."""

    id: str
    url: str
    state: Literal["starting", "ready", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEndpoints:
    name: str
    role: Role
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdmission:
    """The rate that the plan admits for a model now, requests/s of model time; None: unlimited. `by_priority` bounds single
    request priorities within it, `in_flight` how many may be under way at once, `in_flight_by_pool` with single pools."""

    model: str
    admitted_rps: float | None
    burst: float | None = None
    in_flight: float | None = None
    in_flight_by_pool: Mapping[str, float] = field(default_factory=dict)
    by_priority: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLoad:
    """What a router process knows of one endpoint."""

    id: str
    state: Literal["starting", "ready", "draining"]
    in_flight: int
    outstanding_tokens: int
    pending_kv: int = 0
    healthy: bool = True
    last_ttft_ms: float | None = None
    last_itl_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterState:
    """Merged over all router processes: in-flight counts add up; an endpoint that any process still treats as ready is
    ready. `processes` is the number that answered; an unreachable process makes the whole unavailable."""

    processes: int
    endpoints: Mapping[str, EndpointLoad]
    queued: Mapping[str, int] = field(default_factory=dict)
    shed: Mapping[str, int] = field(default_factory=dict)


class Router(Protocol):
    """The admin side of every router process (interfaces: planner and router). Raises ClusterUnavailable."""

    async def state(self) -> RouterState: ...

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None: ...

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None: ...

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What operators set at run time."""

    freeze: Freeze | None = None
    approvals: tuple[Approval, ...] = ()
    overrides: tuple[Override, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    custody: tuple[Custody, ...] = ()


class Operators(Protocol):
    """What operators set at run time, wherever it lives: a folder, or objects of the API server. Raises ClusterUnavailable."""

    async def controls(self) -> Controls: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Replicas that an order decided on `version` may bring about in a pool. It counts until that version has moved on."""

    pool: str
    replicas: int
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservations:
    """The whole ledger at one version."""

    version: str
    entries: tuple[Reservation, ...] = ()


class Ledger(Protocol):
    """One object that all leaders share, changed by compare-and-swap: who wants to grow reserves first. Raises
    ClusterUnavailable."""

    async def read(self) -> Reservations: ...

    async def swap(self, version: str, entries: Sequence[Reservation]) -> None:
        """Replace the entries if the ledger is still at `version`; raises Conflict otherwise (nothing was changed)."""
        ...
