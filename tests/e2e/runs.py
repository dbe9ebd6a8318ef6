"""A command of ours as a user starts it: its output as it comes, the processes that belong to it, and its end.

Everything that a run starts inherits a mark in its environment; what renames itself (Ray's workers do) is known by its
parents. Nothing else is ever signalled.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pty
import re
import secrets
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOPOLOGY = ROOT / "examples" / "two-models" / "topology.yaml"
MARK = "GLOBAL_PLANNER_TEST_RUN"
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Process:
    """One process: `started` tells it from a later one with the same id."""

    pid: int
    started: int
    parent: int
    title: str

    def alive(self) -> bool:
        found = look(self.pid)
        return found is not None and found.started == self.started

    def kill(self) -> None:
        """SIGKILL, to this one only."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)


def look(pid: int) -> Process | None:
    """A process that lives; None when there is none, or only what its parent has not asked about yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, int(fields[19]), int(fields[1]), title.replace(b"\0", b" ").decode(errors="replace").strip())


def everybody() -> list[Process]:
    found = (look(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


class Run:
    """A started command. `arguments` as after `python`; `terminal`: on a pseudo terminal of its own, as its foreground job."""

    def __init__(self, *arguments: str, folder: Path, terminal: bool = False) -> None:
        self.mark = secrets.token_hex(8)
        self.text = ""
        self._seen: dict[int, Process] = {}
        master, slave = pty.openpty() if terminal else os.pipe()
        if terminal:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
        self._master = master
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            stdin=slave if terminal else subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            env={**os.environ, MARK: self.mark, "PYTHONUNBUFFERED": "1", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)},
            start_new_session=True,
            preexec_fn=_before(terminal),
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # a terminal whose last user has gone
            while piece := os.read(self._master, 65536):
                self.text += piece.decode(errors="replace")

    @property
    def pid(self) -> int:
        return self.popen.pid

    def wait_for(self, pattern: str, timeout_s: float = 60.0, *, after: int = 0) -> re.Match[str]:
        """The first match of `pattern` in the output beyond `after` characters, as soon as it is there."""
        found: list[re.Match[str]] = []

        def there() -> bool:
            match = re.search(pattern, self.text[after:])
            found.extend([match] if match else [])
            return match is not None

        ended = False
        deadline = time.monotonic() + timeout_s
        while not there():
            assert not ended, f"ended with status {self.popen.returncode} without {pattern!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {timeout_s} s:\n{self.text}"
            ended = self.popen.poll() is not None
            time.sleep(0.05)
        return found[0]

    def end(self, timeout_s: float = 60.0) -> int:
        """The exit status, once it has ended."""
        try:
            status = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.text}") from None
        self._reader.join(5)
        return status

    def ctrl_c(self) -> None:
        """What the terminal does when somebody presses Ctrl-C: SIGINT to its foreground job."""
        os.write(self._master, b"\x03")

    def processes(self) -> list[Process]:
        """All that belong to the run and live, itself included; those seen once are remembered if they lose their parent."""
        there = everybody()
        children: dict[int, list[Process]] = {}
        for process in there:
            children.setdefault(process.parent, []).append(process)
        ours = {process.pid for process in there if process.pid == self.pid or self._marked(process.pid)}
        ours |= {process.pid for process in self._seen.values() if process.alive()}
        queue = list(ours)
        while queue:
            more = [child.pid for child in children.get(queue.pop(), ()) if child.pid not in ours]
            ours.update(more)
            queue.extend(more)
        found = [process for process in there if process.pid in ours]
        self._seen.update((process.pid, process) for process in found)
        return found

    def _marked(self, pid: int) -> bool:
        try:
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def titled(self, title: str) -> list[Process]:
        return [process for process in self.processes() if title in process.title]

    def wait_gone(self, timeout_s: float) -> None:
        """Every process of the run has ended."""
        deadline = time.monotonic() + timeout_s
        while left := self.processes():
            assert time.monotonic() < deadline, f"after {timeout_s} s there are still {left}"
            time.sleep(0.1)

    def finish(self) -> None:
        """End whatever is left of it."""
        deadline = time.monotonic() + 20.0
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                process.kill()
            time.sleep(0.1)
        self.popen.wait(5)
        self._reader.join(5)
        os.close(self._master)


def _before(terminal: bool) -> Callable[[], None]:
    parent = os.getpid()

    def ask() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    return ask


@contextlib.contextmanager
def started(*arguments: str, folder: Path, terminal: bool = False) -> Iterator[Run]:
    """A run of `python -m global_planner ARGUMENTS` in `folder`, ended at the latest when the context is left."""
    run = Run("-m", "global_planner", *arguments, folder=folder, terminal=terminal)
    try:
        yield run
    finally:
        run.finish()


def console(name: str) -> str:
    """The console script beside the interpreter that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def finished(*command: str, folder: Path, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)


# ---- looking into a running system -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Inside:
    """What a system says of itself, asked at the addresses in its folder."""

    folder: Path

    def cluster(self) -> dict[str, Any]:
        return self._get(f"{self._port('cluster')}/v1/pools")

    def engines(self, pool: str) -> list[dict[str, Any]]:
        """The replicas of a pool, with id, state, url and pid."""
        return list(next(view["items"] for view in self.cluster()["pools"] if view["name"] == pool))

    def router(self) -> dict[str, Any]:
        return self._get(f"{self._port('router', 'admin_port')}/admin/state")

    def in_flight(self, pool: str) -> dict[str, int]:
        """Requests on their way by replica, as the router counts them."""
        endpoints = next(view["endpoints"] for view in self.router()["pools"] if view["name"] == pool)
        return {endpoint["id"]: endpoint["in_flight"] for endpoint in endpoints}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a series of the router's over everything that has these labels."""
        token = (self.folder / "admin-token").read_text()
        request = urllib.request.Request(
            f"{self._port('router', 'admin_port')}/metrics", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        matching = [line for line in lines if line.startswith(f"{name}{{") and all(pair in line for pair in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in matching)

    def _port(self, name: str, key: str = "port") -> str:
        return f"http://127.0.0.1:{json.loads((self.folder / f'{name}.ports.json').read_text())[key]}"

    def _get(self, url: str) -> dict[str, Any]:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {(self.folder / 'admin-token').read_text()}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found


def until(true: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


def busiest(in_flight: dict[str, int], among: Sequence[str]) -> str:
    """The replica with most requests on their way."""
    return max(among, key=lambda name: in_flight.get(name, 0))
