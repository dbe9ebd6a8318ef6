"""[I/O] Where a run of the demo writes: a folder of its own, locked while it is in use, so that two runs do not meet."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

MAX_FOLDERS = 50
MARKER = ".global-planner-demo"
"""In every folder that a demo made, and locked while it runs; what stands beside it may be cleared."""


class OutputTaken(RuntimeError):
    """No folder is free, or the one that was asked for is not ours to write."""


@dataclass(frozen=True, slots=True)
class Output:
    """`folder` is what the user sees (summary.json, index.html); `run` below it holds journal, load records and logs."""

    folder: Path
    lock: int

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def release(self) -> None:
        os.close(self.lock)


def claim(wanted: Path) -> Output:
    """Lock `wanted`, or `wanted-2`, `wanted-3` … when other runs are using it, and clear what an earlier run left in it.

    Only a folder that is empty, new, or made by this function (it holds our marker) is cleared. Raises OutputTaken.
    """
    try:
        return _claim(wanted)
    except OSError as error:
        raise OutputTaken(f"{error.filename or wanted} cannot be written: {error.strerror}; name another folder") from error


def _claim(wanted: Path) -> Output:
    for number in range(1, MAX_FOLDERS + 1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        marker = folder / MARKER
        if folder.exists() and not folder.is_dir():
            raise OutputTaken(f"{folder} is a file; name another folder")
        if folder.exists() and not marker.exists() and any(folder.iterdir()):
            raise OutputTaken(f"{folder} holds files that no demo wrote; name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(marker, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        for left in folder.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif left != marker:
                left.unlink()
        return Output(folder=folder, lock=lock)
    raise OutputTaken(f"{wanted} and {MAX_FOLDERS - 1} folders beside it are in use")
