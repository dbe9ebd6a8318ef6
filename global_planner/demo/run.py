"""[I/O] The demo: the whole system on mock engines, a load against its public endpoint, a live view, and a report at the end.

    check everything ─► claim a folder ─► start the system ─► play the load, show it ─► stop ─► summary.json, index.html

The exit status is 0 only when no request was lost and the budget was never exceeded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from global_planner.config import Topology
from global_planner.system import System
from global_planner.types import ArbiterSnapshot

POLL_WALL_S = 0.5
LINE_WALL_S = 5.0
SETTLE_ROUNDS = 2


class Stopped(Exception):
    """Ctrl-C or SIGTERM arrived; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What a user can set. `minutes` (model time) and `scale` (of the rate) apply to a trace and to the built-in workload
    alike; `trace` None plays the built-in workload, drawn from `seed`."""

    topology: Topology
    out: Path
    trace: Path | None = None
    minutes: float = 40.0
    speed: float = 20.0
    scale: float = 1.0
    seed: int = 1


@dataclass(slots=True)
class Watch:
    """What the driver has seen of the running system: the newest snapshot, and what happened, in order."""

    notes: list[tuple[float, str]] = field(default_factory=list)
    snapshot: ArbiterSnapshot | None = None
    _arbiter_pid: int | None = None
    _arbiter_gone: bool = False
    _noted_s: float = -1.0
    _event: int = 0

    def look(self, system: System) -> None:
        """Take what is new: the arbiter's snapshot and notes, its restarts, and the cluster's events."""
        now = system.clock.now()
        snapshot = system.snapshot()
        if snapshot is None:
            if self.snapshot is not None and not self._arbiter_gone:
                self.notes.append((now, "the arbiter does not answer; pools and router go on with what they have"))
            self._arbiter_gone = self.snapshot is not None
        else:
            self._arbiter_gone = False
            self.snapshot = snapshot
            self.notes += [note for note in snapshot.notes if note[0] > self._noted_s]
            self._noted_s = max([self._noted_s, *(at_s for at_s, _ in snapshot.notes)])
        for event in system.cluster_events(self._event):
            self._event = max(self._event, event.no)
            if event.what.startswith(("died", "killed")):
                self.notes.append((event.at_s, f"engine {event.replica} {event.what}"))
