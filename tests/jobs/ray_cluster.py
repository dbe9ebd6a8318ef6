"""A real Ray cluster on loopback, with token authentication and a job server, that belongs to one test alone."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from global_planner.ray_ward import clear, holders

ROOT = Path(__file__).resolve().parents[2]
RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


START_LIMIT_S = 240.0
"""How long a head may take; on a busy machine its Python processes alone take half a minute to import."""


class HeadFailed(AssertionError):
    """Ray did not start."""


class RayHead:
    """`folder` is short, because Ray puts sockets below it. `redis`: HOST:PORT of the Redis that outlives the head."""

    def __init__(self, *, redis: str | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gpt-", dir="/tmp"))
        self.port, self.dashboard = free_port(), free_port()
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self.environment = {
            **clean,
            "PATH": f"{RAY.parent}:{clean.get('PATH', '')}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "GLOBAL_PLANNER_HOME": str(self.folder / "home"),
            # How long one question waits for the node to have registered. `ray start` gives up at the first that is answered
            # "not yet" after 30 s, so with Ray's own 30 s there is one question only, and a busy machine is too slow for it.
            "RAY_raylet_start_wait_time_s": f"{START_LIMIT_S - 30.0:.0f}",
            **({"RAY_REDIS_ADDRESS": redis} if redis else {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def jobs_url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self) -> None:
        """Raises HeadFailed."""
        log = (self.folder / "head.log").open("ab")
        self._process = subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "tests.jobs.lean_ray",
                    "start",
                    "--head",
                    "--disable-usage-stats",
                    f"--temp-dir={self.folder / 'ray'}",
                ),
                *("--node-ip-address=127.0.0.1", f"--port={self.port}", "--num-cpus=2", "--object-store-memory=80000000"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"),
                # What nobody here uses costs processor time at the start: the autoscaler, and logs sent to drivers.
                *("--no-monitor", "--include-log-monitor=false", f"--ray-client-server-port={free_port()}"),
            ],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        # Not with --block: that ends the whole cluster when any part of it ends, also one that nobody uses.
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() in (None, 0):
            # The job server listens before the node has registered, which is what a busy machine is too slow for.
            if self._process.poll() == 0:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.dashboard), timeout=1.0):
                    return
            time.sleep(0.2)
        said = (self.folder / "head.log").read_text()[-2000:]
        if self._process.poll() is None:
            said += f"\nstill at it after {START_LIMIT_S:.0f} s"
        self.kill()
        raise HeadFailed(f"no Ray head: {said}")

    def kill(self) -> None:
        """As a machine that loses power: every process of the cluster at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None  # what it started is found by the folder
        deadline = time.monotonic() + 20
        while (left := list(holders(self.folder))) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def end(self) -> None:
        self.kill()
        clear(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(self, *arguments: str, timeout_s: float = 240) -> str:
        """`ray job submit … -- python -m global_planner run ARGUMENTS`; what it printed. The job has to succeed; where the job
        server of a head that has just started drops the connection, it is submitted again, which is safe."""
        command = [str(RAY), "job", "submit", "--address", self.jobs_url, "--working-dir", str(ROOT)]
        for attempt in range(1, 13):
            done = subprocess.run(
                [*command, "--", "python", "-m", "global_planner", "run", *arguments],
                env={**self.environment, "NO_COLOR": "1"},
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
            text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
            if done.returncode == 0:
                return text
            if attempt == 12 or not any(each in text for each in ("Server disconnected", "No available agent", "timed out")):
                log = (self.folder / "head.log").read_text(errors="replace")[-1500:]
                raise AssertionError(f"{text}\nthe head's log says:\n{log}")
            time.sleep(5.0)
        raise AssertionError("unreachable")

    def processes(self, title: str) -> set[int]:
        """Processes of this cluster whose title begins so."""
        found = set()
        for pid in holders(self.folder):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                    found.add(pid)
        return found


@contextlib.contextmanager
def ray_head(*, redis: str | None = None) -> Iterator[RayHead]:
    """A running head. Raises HeadFailed with what it said."""
    head = RayHead(redis=redis)
    try:
        head.start()
    except HeadFailed:
        head.end()
        raise
    try:
        yield head
    finally:
        head.end()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """HOST:PORT of a Redis of our own that keeps everything in memory."""
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
