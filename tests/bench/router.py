"""What the router costs: `python -m tests.bench.router --json FILE [--peer NAME=COMMAND …]`.

The router runs alone on one core; two engines that answer at once (a small C server) and the load run on another. Three
questions, each asked of everybody in turn, several rounds, medians kept: how many requests a second when saturated (wrk, 64
connections), how much later an answer comes at 100 and 300 requests a second (open loop) than straight from the engine, and
what 50 streams of 200 chunks, 20 ms apart, cost in TTFT and CPU. `direct` is the engine itself; `ours` an aggregated pool
with a default configuration, `ours_pd` the hand-off from prefill to decode.

A peer's COMMAND is started on the router's core; {port}, {engine1} and {engine2} in it are replaced. It must serve
POST /v1/chat/completions for model "m".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello there, how are you today?"}], "max_tokens": 16}
CHUNKS, INTERVAL_MS, STREAMS = 200, 20, 50
TICKS = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).parent


# ---- the machine ----------------------------------------------------------------------------------------------------


def on_core(core: int) -> Callable[[], None]:
    """For a child process: to that core, and to die with us."""

    def before_exec() -> None:
        os.sched_setaffinity(0, {core})
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)

    return before_exec


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.1)
    sys.exit(f"{process.args!r} does not listen on {port}:\n{log.read_text()[-2000:]}")


@dataclass
class Target:
    """Something that answers on `port`; `process` is what its CPU is counted for (None: not counted)."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None

    def cpu_s(self) -> float:
        """CPU seconds of the process and its children so far."""
        if self.process is None:
            return 0.0
        return sum(_cpu_s(pid) for pid in _family(self.process.pid))

    def rss_mb(self) -> float | None:
        if self.process is None:
            return None
        kilobytes = 0
        for pid in _family(self.process.pid):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        return kilobytes / 1024


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ---- the load -------------------------------------------------------------------------------------------------------


class Call(asyncio.Protocol):
    """One connection that sends one request at a time and notes when its answer's first and last body bytes came."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.got = b""
        self.first: float | None = None
        self.done: asyncio.Future[None] | None = None
        self.length: int | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, payload: bytes) -> asyncio.Future[None]:
        self.got, self.first, self.length = b"", None, None
        self.done = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(payload)
        return self.done

    def data_received(self, data: bytes) -> None:
        if self.first is None:
            self.got += data
            head, found, body = self.got.partition(b"\r\n\r\n")
            if not found or not body:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._end(RuntimeError(head.decode("latin-1")))
                return
            self.first = time.perf_counter()
            at = head.lower().find(b"content-length:")
            self.length = int(head[at + 15 :].split(b"\r\n")[0]) if at >= 0 else None
            self.got = body
        else:
            self.got = (self.got + data) if self.length is not None else (self.got[-8:] + data)
        if len(self.got) >= self.length if self.length is not None else self.got.endswith(b"0\r\n\r\n"):
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(RuntimeError(f"the connection was lost: {exc}"))

    def _end(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


def payload(stream: bool) -> bytes:
    # Without spaces, as the openai client sends it.
    body = json.dumps({**BODY, "stream": True} if stream else BODY, separators=(",", ":")).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nauthorization: Bearer x\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def open_loop(port: int, rate: float, seconds: float) -> list[float]:
    """Latencies in ms of requests sent at a fixed rate, counted from when each was due."""
    loop = asyncio.get_running_loop()
    idle = [(await loop.create_connection(Call, "127.0.0.1", port))[1] for _ in range(16)]
    request = payload(False)
    latencies: list[float] = []

    async def one(due: float) -> None:
        call = idle.pop() if idle else (await loop.create_connection(Call, "127.0.0.1", port))[1]
        await call.send(request)
        latencies.append((time.perf_counter() - due) * 1000.0)
        idle.append(call)

    tasks = []
    start = time.perf_counter() + 0.05
    for i in range(int(rate * seconds)):
        due = start + i / rate
        # The timer is coarse: sleep until just before, then give way until it is time.
        if (rest := due - time.perf_counter() - 0.0015) > 0:
            await asyncio.sleep(rest)
        while time.perf_counter() < due:  # noqa: ASYNC110
            await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(one(due)))
    await asyncio.gather(*tasks)
    return latencies


async def streams(port: int) -> list[float]:
    """TTFT in ms of streams that run side by side, begun one after the other within the interval of their chunks."""
    loop = asyncio.get_running_loop()
    request = payload(True)
    ttfts: list[float] = []

    async def one(delay: float) -> None:
        call = (await loop.create_connection(Call, "127.0.0.1", port))[1]
        await asyncio.sleep(delay)
        began = time.perf_counter()
        await call.send(request)
        assert call.first is not None
        ttfts.append((call.first - began) * 1000.0)

    await asyncio.gather(*(one(0.2 + i * INTERVAL_MS / 1000.0 / STREAMS * 7) for i in range(STREAMS)))
    return ttfts


def saturate(port: int, seconds: float, core: int, script: Path) -> float:
    """Requests a second at 64 connections. Exits when answers are not 200."""
    command = ["wrk", "-t1", "-c64", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{port}/v1/chat/completions"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=on_core(core)).stdout
    if "Non-2xx" in out:
        sys.exit(out)
    [line] = [line for line in out.splitlines() if line.startswith("Requests/sec")]
    return float(line.split()[1])


# ---- measuring ------------------------------------------------------------------------------------------------------


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def measure(target: Target, arguments: argparse.Namespace, script: Path | None) -> dict[str, float]:
    """One round: absolute values; what is added to `direct` is worked out when all rounds are there."""
    result: dict[str, float] = {}
    if script is not None:
        result["rps_saturation"] = saturate(target.port, arguments.seconds, arguments.load_core, script)
    for rate in (100, 300):
        latencies = uvloop.run(open_loop(target.port, rate, arguments.seconds))
        result[f"p50_ms_{rate}"], result[f"p99_ms_{rate}"] = quantile(latencies, 0.5), quantile(latencies, 0.99)
    before = target.cpu_s()
    ttfts = uvloop.run(streams(target.port))
    result["stream_ttft_p50_ms"], result["stream_ttft_p99_ms"] = quantile(ttfts, 0.5), quantile(ttfts, 0.99)
    if target.process is not None:
        result["cpu_ms_per_1k_chunks"] = (target.cpu_s() - before) * 1000.0 / (STREAMS * CHUNKS / 1000.0)
        result["rss_mb"] = target.rss_mb() or 0.0
    return result


def summary(rounds: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds; added latencies are differences to `direct` of the same round."""
    out: dict[str, dict[str, float]] = {}
    for name, results in rounds.items():
        values: dict[str, float] = {}
        for key in results[0]:
            values[key] = statistics.median(result[key] for result in results)
        if name != "direct":
            for key in [key for key in values if key.startswith(("p50", "p99", "stream_ttft"))]:
                added = [one[key] - direct[key] for one, direct in zip(results, rounds["direct"], strict=True)]
                values[key.replace("stream_", "stream_added_") if "stream" in key else f"added_{key}"] = statistics.median(
                    added
                )
        out[name] = {key: round(value, 3) for key, value in values.items()}
    return out


def backends(folder: Path, core: int, log: Path) -> list[int]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("a C compiler (cc) is needed for the engines behind the router; install gcc")
    binary = folder / "engine"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(HERE / "engine.c")], check=True)
    ports = [free_port(), free_port()]
    for port in ports:
        command = [str(binary), str(port), str(CHUNKS), str(INTERVAL_MS)]
        wait_for(port, subprocess.Popen(command, preexec_fn=on_core(core), stderr=log.open("ab")), log)
    return ports


def targets(arguments: argparse.Namespace, folder: Path, engines: list[int], log: Path) -> Iterator[Target]:
    yield Target("direct", engines[0], None)
    urls = [f"http://127.0.0.1:{port}" for port in engines]
    ours = {
        "ours": [{"name": "a", "role": "agg", "endpoints": urls}],
        "ours_pd": [
            {"name": "p", "role": "prefill", "endpoints": urls[:1]},
            {"name": "d", "role": "decode", "endpoints": urls[1:]},
        ],
    }
    commands = {}
    for name, pools in ours.items():
        config = folder / f"{name}.json"
        config.write_text(json.dumps({"models": [{"model": "m", "pools": pools}]}))
        commands[name] = f"{sys.executable} -m router --config {config} --port {{port}} --admin-port 0"
    commands |= dict(peer.split("=", 1) for peer in arguments.peer)
    for name, command in commands.items():
        port = free_port()
        words = shlex.split(command.format(port=port, engine1=urls[0], engine2=urls[1]))
        process = subprocess.Popen(
            words, preexec_fn=on_core(arguments.router_core), stdout=log.open("ab"), stderr=log.open("ab")
        )
        wait_for(port, process, log)
        yield Target(name, port, process)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="another router to measure in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each saturation and open-loop run")
    parser.add_argument("--router-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the router, one for the load")
    os.sched_setaffinity(0, {arguments.load_core})
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        log.touch()
        script: Path | None = None
        if shutil.which("wrk"):
            script = folder / "post.lua"
            body = json.dumps(BODY, separators=(",", ":"))
            script.write_text(f"wrk.method='POST'\nwrk.headers['Content-Type']='application/json'\nwrk.body=[[{body}]]\n")
        else:
            print("wrk is not installed: no rps_saturation", file=sys.stderr)
        engines = backends(folder, arguments.load_core, log)
        everybody = list(targets(arguments, folder, engines, log))
        rounds: dict[str, list[dict[str, float]]] = {target.name: [] for target in everybody}
        for number in range(arguments.rounds):
            for target in everybody:
                rounds[target.name].append(measure(target, arguments, script))
                print(f"round {number + 1}: {target.name}: {rounds[target.name][-1]}", file=sys.stderr)
        result = summary(rounds)
        for target in everybody:
            if target.process is not None:
                target.process.terminate()
        print(json.dumps(result, indent=2))
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
