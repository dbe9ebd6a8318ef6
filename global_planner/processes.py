"""[I/O] Child processes of a system: started with the system's clock, found through a port file, ended by process id.

Children run in a session of their own, so that Ctrl-C in a terminal reaches only the parent, which then ends them in order.
They write to one log file each. Each is told by the kernel (SIGTERM) when its parent ends in a way that it could not act on.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from global_planner.stopping import go_on
from pool_planner.types import WorldError

LOG_TAIL_LINES = 15
START_WALL_S = 30.0
PR_SET_PDEATHSIG = 1
# Loaded before any fork: the child may do next to nothing between fork and exec.
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessFailed(WorldError):
    """A child process did not start, or ended by itself; the text carries the end of its log."""


@dataclass(slots=True)
class ChildProcess:
    """A running child. `listening` is what it wrote to its port file (port, admin_port, pid …), once `wait` has returned."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]
    ports: Path | None = None
    listening: Mapping[str, object] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def running(self) -> bool:
        return self.popen.poll() is None

    def port(self, key: str = "port") -> int:
        value = self.listening.get(key)
        if not isinstance(value, int):
            raise ProcessFailed(f"{self.name} did not tell its {key}: {dict(self.listening)}")
        return value

    def wait(self, timeout_s: float = START_WALL_S) -> None:
        """Until it has written its port file (when it has one). Raises ProcessFailed when it ends first or `timeout_s` wall
        seconds pass; whatever is raised, the child is ended."""
        if self.ports is None:
            return
        try:
            self.listening = _wait_for_ports(self, self.ports, timeout_s)
        except BaseException:  # Ctrl-C above all
            self.stop(2.0)
            raise

    def log_tail(self) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s` wall seconds. Harmless when it has ended already."""
        if self.running():
            self.popen.terminate()
            try:
                self.popen.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.popen.send_signal(signal.SIGKILL)
                self.popen.wait(5)


def start(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    port_file: bool = True,
    timeout_s: float = START_WALL_S,
) -> ChildProcess:
    """Start `python -m module arguments…` and wait until it has written its port file (when it has one).

    Raises ProcessFailed when the child ends first or `timeout_s` wall seconds pass; whatever is raised, no child is left.
    """
    child = begin(name, module, arguments, folder=folder, environment=environment, port_file=port_file)
    child.wait(timeout_s)
    return child


def begin(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    port_file: bool = True,
) -> ChildProcess:
    """Start `python -m module arguments…`, and leave the waiting to `ChildProcess.wait`: other things can start meanwhile.

    The log is `folder/NAME.log`. Call it from the main thread: the kernel ends children with the thread that made them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    ports = folder / f"{name}.ports.json"
    ports.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, *arguments]
    if port_file:
        command += ["--port-file", str(ports)]
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )
    return ChildProcess(name=name, log=log, popen=popen, ports=ports if port_file else None)


def _wait_for_ports(child: ChildProcess, ports: Path, timeout_s: float) -> Mapping[str, object]:
    """What the child wrote to its port file. Raises ProcessFailed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        go_on()
        if not child.running():
            status = child.popen.returncode
            raise ProcessFailed(f"{child.name} ended with status {status} while starting; its log says:\n{child.log_tail()}")
        if ports.exists():
            found: Mapping[str, object] = json.loads(ports.read_text())
            return found
        time.sleep(0.02)
    raise ProcessFailed(f"{child.name} was not ready after {timeout_s:.0f} s; its log says:\n{child.log_tail()}")


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the program."""

    def ask() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it ended between fork and prctl
            os._exit(1)

    return ask
