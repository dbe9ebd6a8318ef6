"""[I/O] Nothing of a local Ray outlives the process that started it, even where that one was killed: a small process waits.

    driver ──pipe──► ward        the pipe breaks: end whoever still has a file open in Ray's folder, and remove the folder

Ray's own agents notice within seconds that they are orphans, but stay for a minute while they try to report it to a head that
is gone as well. The ward runs as a script on the standard library alone, so that it costs a few milliseconds and megabytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

END_WITHIN_S = 10.0
_RAY_PROGRAMS = "/ray/core/src/ray/"


class Ward:
    """The ward of one folder, as the driver sees it."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self) -> None:
        """Have the folder cleared now, and wait for that."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(END_WITHIN_S + 5.0)


def holders(folder: Path) -> Iterator[int]:
    """Processes of this user that have a file open below `folder` and run this Python or a program of Ray's: nobody's editor
    or `tail`, and not the driver, which ends its Ray and lives on."""
    own = os.path.realpath("/proc/self/exe")
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            program = os.path.realpath(f"/proc/{entry}/exe")
            if program != own and _RAY_PROGRAMS not in program:
                continue
            if any(os.readlink(file.path).startswith(f"{folder}/") for file in os.scandir(f"/proc/{entry}/fd")):
                yield int(entry)


def clear(folder: Path) -> None:
    """End all holders of `folder`, and remove it."""
    deadline = time.monotonic() + END_WITHIN_S
    while (left := list(holders(folder))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    clear(Path(sys.argv[1]))
