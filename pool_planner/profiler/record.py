"""[I/O] The record of what was measured: one JSON line for each finished point, so that a run goes on where it stopped.

The first line names what is measured; a record of something else is refused, never mixed. A last line that is torn (the run was
killed while it was written) counts as not measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FORMAT = 1


class RecordError(ValueError):
    """A record that belongs to another measurement, or is none."""


class Record:
    """Finished points by name. Each has `values` (ms, one a repetition), `median`, `half_width`, `outliers`, and `tight`."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Opens or begins the record. Raises RecordError and OSError."""
        self._path = path
        self.points: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read(identity)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"format": FORMAT, "identity": identity}) + "\n")

    def add(self, point: str, content: dict[str, Any]) -> None:
        self.points[point] = content
        with self._path.open("a") as file:
            file.write(json.dumps({"point": point, **content}) + "\n")

    def _read(self, identity: dict[str, Any]) -> None:
        lines = self._path.read_text().splitlines()
        head = _object(lines[0]) if lines else None
        if head is None or head.get("format") != FORMAT:
            raise RecordError(f"{self._path}: is no record of measurements; remove it, or write elsewhere with --out")
        if head.get("identity") != identity:
            was, now = head.get("identity") or {}, identity
            differ = [f"{k}: {was.get(k)!r}, now {now.get(k)!r}" for k in sorted({*was, *now}) if was.get(k) != now.get(k)]
            raise RecordError(
                f"{self._path}: was measured of something else ({'; '.join(differ)}); remove it, or write elsewhere with --out"
            )
        whole = []
        for line in lines[1:]:
            entry = _object(line)
            if entry is None or not isinstance(entry.get("point"), str):
                break
            whole.append(line)
            self.points[entry.pop("point")] = entry
        if len(whole) != len(lines) - 1:
            self._path.write_text("\n".join([lines[0], *whole]) + "\n")


def _object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
