"""[I/O] Joins what the journal, the load and the driver know into snapshots for the view."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import orjson
from pydantic import TypeAdapter

from global_planner.compile import budget_of, group_specs, pool_specs
from global_planner.demo.plan import Plan
from global_planner.demo.snapshot import Known, Snapshot, learn, snapshot
from global_planner.demo.view import View
from global_planner.journal_reader import JournalTail
from global_planner.mocker.load_record import LoadProgress
from global_planner.system import System
from global_planner.watch import Watch

_PROGRESS = TypeAdapter(LoadProgress)


@dataclass(slots=True)
class Show:
    """Joins what the journal, the load and the driver know into the view's snapshots."""

    system: System
    plan: Plan
    view: View
    progress_file: Path
    watch: Watch = field(default_factory=Watch)
    known: Known = field(default_factory=Known)
    _told: int = 0
    _tail: JournalTail | None = None

    def step(self) -> LoadProgress | None:
        """Look once, and draw."""
        if self._tail is None:
            self._tail = JournalTail(self.system.journal_folder)
        for record in self._tail.poll():
            self.known = learn(self.known, record)
        self.watch.look(self.system)
        for at_s, text in self.watch.notes[self._told :]:
            self.view.say(f"[{at_s:8.1f} s] {text}")
        self._told = len(self.watch.notes)
        progress = read_progress(self.progress_file)
        self.view.show(self._snapshot(progress))
        return progress

    def _snapshot(self, progress: LoadProgress | None) -> Snapshot:
        topology = self.system.topology
        return snapshot(
            title=f"{topology.name}: {self.plan.source}",
            groups=group_specs(topology),
            pools=pool_specs(topology),
            budget=budget_of(topology),
            known=self.known,
            load=progress,
            notes=self.watch.notes,
            at_s=self.system.clock.now(),
            span_s=self.plan.span_s,
            speed=self.system.clock.speed,
        )


def read_progress(path: Path) -> LoadProgress | None:
    """The load's newest progress; None before its first."""
    return _PROGRESS.validate_python(orjson.loads(path.read_bytes())) if path.exists() else None
