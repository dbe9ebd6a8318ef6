"""What the virtual cluster is told, what it keeps of a replica, and what its process shell is told to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "ready", "terminating"]


class StaleVersion(Exception):
    """The order was decided on a state that is no longer there. Nothing was changed."""


class Nonsense(ValueError):
    """An order that no state could fulfil. Nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualPool:
    """A pool as the cluster is told of it. `replicas` stand when the cluster starts. A replica needs an equal part of its GPUs
    on each of `nodes_per_replica` nodes."""

    name: str
    gpu_type: str
    gpus_per_replica: int
    replicas: int
    nodes_per_replica: int = 1

    @property
    def gpus_on_a_node(self) -> int:
        return -(-self.gpus_per_replica // self.nodes_per_replica)


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualNode:
    """A node and its GPUs. A cluster without nodes has room for every replica."""

    name: str
    gpu_type: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start a process for the replica; report `healthy` and `exited`."""

    pool: str
    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate:
    """Ask the replica's process to end."""

    replica: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """The grace is over: end the replica's process by force."""

    replica: str


Command = Launch | Terminate | Kill


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterEvent:
    """One line of the log. `no` counts from 1."""

    no: int
    at_s: float
    pool: str
    replica: str | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Troubles of a pool that tests order: `hang` keeps starting replicas from becoming ready, `unschedulable` keeps new
    ones from being started at all, with this reason."""

    hang: bool = False
    unschedulable: str | None = None


@dataclass(slots=True, kw_only=True)
class Replica:
    """One replica. `launch_at_s` None: it waits for a place; `launched`: it has a process. `measured`: its cold start counts
    (that of one which stood from the start, or had to wait for a place, says nothing about the next)."""

    id: str
    number: int
    pool: str
    state: State
    since_s: float
    ordered_at_s: float
    cold_start_s: float
    launch_at_s: float | None
    measured: bool
    launched: bool = False
    healthy: bool = False
    ready_at_s: float | None = None
    kill_at_s: float | None = None
    progress_at_s: float | None = None
    url: str | None = None
    unschedulable: str | None = None
    nodes: tuple[str, ...] = ()
