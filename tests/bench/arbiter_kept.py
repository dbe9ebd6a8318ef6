"""[I/O] What the arbiter's benchmark has measured of a run that is not whole yet: an instance a line, so a stop loses only one.

It is used again while the arbiter's sources and the benchmark's own are as they were.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from global_planner.compiled_sets import ARBITER


class Kept:
    """Figures by instance in a file (None: nothing is kept). `how`: what else they depend on."""

    def __init__(self, path: Path | None, how: str) -> None:
        self._path = path
        own = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("arbiter*.py")))
        self._how = f"{ARBITER.folder().name}, {hashlib.sha256(own).hexdigest()[:16]}, {how}"

    def get(self, instance: tuple[float, ...]) -> dict[str, Any] | None:
        """Its figures, or None: they are not there, or were measured otherwise."""
        if self._path is None or not self._path.exists():
            return None
        for line in self._path.read_text().splitlines():
            told = json.loads(line)
            if told["how"] == self._how and told["instance"] == list(instance):
                return dict(told["figures"])
        return None

    def put(self, instance: tuple[float, ...], figures: dict[str, Any]) -> None:
        """Keep the figures of an instance."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"how": self._how, "instance": instance, "figures": figures}) + "\n")

    def forget(self) -> None:
        """Remove what is kept."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
