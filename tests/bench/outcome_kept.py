"""[I/O] Runs of the judge side by side, each in its own process, and each kept as it ends: a stop loses nothing but what ran.

What was kept is used again while every source file that made it is as it was then, and Python and its libraries are the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from tests.bench.outcome_play import ROOT, digest, versions

Job = tuple[str, str]  # (scenario, policy)
KEPT = ROOT / ".cache/outcome"


class Kept:
    """Figures by scenario and policy in a folder, a file each."""

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder = folder
        self._quick = quick

    def _file(self, job: Job) -> Path:
        name, who = job
        return self._folder / f"{name}.{who.replace(':', '-')}{'.quick' if self._quick else ''}.json"

    def get(self, job: Job) -> dict[str, Any] | None:
        """Its figures, or None: they are not there, or something has changed since."""
        try:
            told = json.loads(self._file(job).read_text())
        except FileNotFoundError:
            return None
        same = told["versions"] == versions() and all(_now(place) == was for place, was in told["sources"].items())
        return dict(told["figures"]) if same else None

    def forget(self) -> None:
        """Play everything again."""
        for file in self._folder.glob("*.quick.json" if self._quick else "*.json"):
            if self._quick or not file.name.endswith(".quick.json"):
                file.unlink()

    def put(self, job: Job, told: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(job)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(told, indent=1) + "\n")
        part.replace(file)


@cache
def _now(place: str) -> str:
    path = ROOT / place
    return digest(path) if path.exists() else ""


class Runs:
    """The jobs of one benchmark, `at_once` of them at a time. `told(job, share)` hears of every one that goes on, in some
    thread."""

    def __init__(
        self,
        *,
        quick: bool,
        compiled: bool,
        at_once: int,
        told: Callable[[Job, float], None],
        peer_limit_s: float | None = None,
    ) -> None:
        self._options = [*(["--quick"] if quick else []), *(["--compiled"] if compiled else [])]
        self._options += [] if peer_limit_s is None else ["--limit", str(peer_limit_s)]
        self._at_once = at_once
        self._told = told
        self._lock = Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._over = False

    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Any] | None]]:
        """(job, what its process told) as they end, in any order; None: it failed, and has said why on standard error.
        Whatever ends this early ends those that run."""
        with ThreadPoolExecutor(max_workers=self._at_once) as pool:
            doing = {pool.submit(self._run, job): job for job in jobs}
            try:
                for done in as_completed(doing):
                    yield doing[done], done.result()
            finally:
                self._end()
                pool.shutdown(wait=True, cancel_futures=True)

    def _end(self) -> None:
        with self._lock:
            self._over = True
            for process in self._running:
                process.terminate()

    def _run(self, job: Job) -> dict[str, Any] | None:
        command = [sys.executable, "-m", "tests.bench.outcome_play", *job, *self._options]
        with self._lock:
            if self._over:
                return None
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            self._running.add(process)
        last: dict[str, Any] = {}
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                last = json.loads(line)
                if "done" in last:
                    self._told(job, last["done"])
        with self._lock:
            self._running.discard(process)
        return last if process.returncode == 0 else None
