"""[I/O] What a driver notices of the system that it runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from global_planner.system import System
from global_planner.types import ArbiterSnapshot


@dataclass(slots=True)
class Watch:
    """What the driver has noticed of the running system: the arbiter's and planners' restarts, and engines that died."""

    notes: list[tuple[float, str]] = field(default_factory=list)
    snapshot: ArbiterSnapshot | None = None
    peak_gpus: Mapping[str, int] = field(default_factory=dict)
    _planners: dict[str, int] = field(default_factory=dict)
    _gone: bool = False
    _noted_s: float = -1.0
    _event: int = 0

    def look(self, system: System) -> None:
        """Take what is new: the arbiter's notes, its absence, planners' new processes, and the cluster's events."""
        found = system.snapshot()
        if found is None:
            if self.snapshot is not None and not self._gone:
                text = "the arbiter does not answer; pools and router go on with what they have"
                self.notes.append((system.clock.now(), text))
            self._gone = self.snapshot is not None
        else:
            self._gone = False
            self.snapshot = found
            self.notes += [note for note in found.notes if note[0] > self._noted_s]
            self._noted_s = max([self._noted_s, *(at_s for at_s, _ in found.notes)])
            # Told here and not by the arbiter, which may have been restarted in between and knows no earlier process.
            for dgd, pid in found.planner_pids.items():
                if self._planners.setdefault(dgd, pid) != pid:
                    self.notes.append((system.clock.now(), f"the planner of {dgd} came back as process {pid}"))
                    self._planners[dgd] = pid
        self.peak_gpus = system.peak_gpus() or self.peak_gpus
        for event in system.cluster_events(self._event):
            self._event = max(self._event, event.no)
            if event.what.startswith(("died", "killed", "replaces")):
                self.notes.append((event.at_s, f"engine {event.replica} {event.what}"))


@contextmanager
def quiet_raylet() -> Iterator[None]:
    """Drop what Ray prints about workers that died: the arbiter's notes say it in our words, once."""

    class Filter(io.TextIOBase):
        def __init__(self, out: TextIO) -> None:
            self.out = out

        def write(self, text: str) -> int:
            return len(text) if "(raylet)" in text else self.out.write(text)

        def flush(self) -> None:
            self.out.flush()

        def isatty(self) -> bool:
            return self.out.isatty()

        def fileno(self) -> int:
            return self.out.fileno()

    before = sys.stdout
    sys.stdout = Filter(before)
    try:
        yield
    finally:
        sys.stdout = before
