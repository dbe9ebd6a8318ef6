"""[I/O: one file] Whose turn it is to decide, among arbiters of one deployment that share a folder: the newest generation
named.

One takes over from another without a gap: the successor is started and waits, then it is named in the file; the one before
sees that between two rounds, closes the journal, and the successor opens it and goes on. Either may be killed at any point: who
starts again looks here first.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pool_planner.types import ClusterUnavailable

FILE = "turn.json"


def turn(folder: Path) -> int:
    """The generation whose turn it is; 0: nobody's yet. Raises ClusterUnavailable when the file cannot be read."""
    path = folder / FILE
    try:
        found = json.loads(path.read_text())
        return int(found["generation"])
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterUnavailable(f"{path} cannot be read: {error}") from error


def give_turn(folder: Path, generation: int) -> None:
    """Name the generation that decides from now on. Raises ClusterUnavailable."""
    path = folder / FILE
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"generation": generation}) + "\n")
        beside.replace(path)
    except OSError as error:
        raise ClusterUnavailable(f"{path} cannot be written: {error}") from error
