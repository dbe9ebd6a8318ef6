"""[I/O] Engine replicas as child processes: started, watched until they can serve, ended, and never left behind.

A child runs in a session of its own, so that Ctrl-C in a terminal does not reach it, and the kernel kills it when this
process dies. Its end is told through a pidfd as it happens; nothing polls for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

# Wall seconds between two looks at a child that is starting: often at first, seldom at one that is stuck.
POLL_S = 0.05
POLL_GROWTH = 1.2
MAX_POLL_S = 1.0
PROBE_TIMEOUT_S = 2.0
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class _Child:
    popen: subprocess.Popen[bytes]
    pidfd: int
    watch: asyncio.Task[None]


class EngineProcesses:
    """Children by replica id; made on a running event loop, on which `on_healthy(replica, url)` and `on_exit(replica, how)`
    are called."""

    def __init__(
        self,
        *,
        folder: Path,
        environment: Mapping[str, str],
        on_healthy: Callable[[str, str], None],
        on_exit: Callable[[str, str], None],
    ) -> None:
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._on_healthy = on_healthy
        self._on_exit = on_exit
        self._children: dict[str, _Child] = {}
        # One connection a probe: a kept one would hold up an engine that waits for its clients before it ends.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S), connector=aiohttp.TCPConnector(force_close=True)
        )
        folder.mkdir(parents=True, exist_ok=True)

    def pids(self) -> dict[str, int]:
        return {replica: child.popen.pid for replica, child in self._children.items()}

    def port_file(self, replica: str) -> Path:
        return self._folder / f"{replica}.ports.json"

    def launch(self, replica: str, command: Sequence[str]) -> None:
        """Start `command` for a replica; it writes {"port": …} into `port_file(replica)` and answers GET /health."""
        self.port_file(replica).unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        try:
            with (self._folder / f"{replica}.log").open("ab") as log:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),
                )
        except OSError as error:
            loop.call_soon(self._on_exit, replica, f"could not be started: {error}")
            return
        pidfd = os.pidfd_open(popen.pid)
        self._children[replica] = _Child(popen, pidfd, loop.create_task(self._until_healthy(replica)))
        loop.add_reader(pidfd, self._gone, replica)

    def terminate(self, replica: str) -> None:
        self._signal(replica, signal.SIGTERM)

    def kill(self, replica: str) -> None:
        self._signal(replica, signal.SIGKILL)

    async def close(self, grace_s: float) -> None:
        """End every child: SIGTERM, and after `grace_s` wall seconds SIGKILL. Returns when all are gone."""
        loop = asyncio.get_running_loop()
        for replica in tuple(self._children):
            self.terminate(replica)
        deadline = loop.time() + grace_s
        while self._children:
            if loop.time() >= deadline:
                for replica in tuple(self._children):
                    self.kill(replica)
            await asyncio.sleep(POLL_S / 2)
        await self._session.close()

    def _signal(self, replica: str, number: signal.Signals) -> None:
        child = self._children.get(replica)
        if child is not None:
            child.popen.send_signal(number)

    def _gone(self, replica: str) -> None:
        child = self._children.pop(replica)
        asyncio.get_running_loop().remove_reader(child.pidfd)
        os.close(child.pidfd)
        child.watch.cancel()
        self.port_file(replica).unlink(missing_ok=True)
        status = child.popen.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        self._on_exit(replica, how)

    async def _until_healthy(self, replica: str) -> None:
        port, pause_s = None, POLL_S
        while True:
            port = port or _port_in(self.port_file(replica))
            if port is not None:
                url = f"http://127.0.0.1:{port}"
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with self._session.get(f"{url}/health") as answer:
                        if answer.status == 200:
                            self._on_healthy(replica, url)
                            return
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_POLL_S, pause_s * POLL_GROWTH)


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the engine: the kernel is to kill it when its parent dies, even by SIGKILL."""

    def before_exec() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return before_exec


def _port_in(path: Path) -> int | None:
    """The port in a port file; None while it is not there or only half written."""
    try:
        told = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    port = told.get("port") if isinstance(told, dict) else None
    return port if isinstance(port, int) else None
