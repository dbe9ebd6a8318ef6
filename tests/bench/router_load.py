"""The load of `tests.bench.router`: an open-loop generator, streams side by side, and wrk for saturation."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.router_targets import CHUNK_INTERVAL_MS, on_core

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello there, how are you today?"}], "max_tokens": 16}
STREAMS = 50


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
        if (rest := due - time.perf_counter() - 0.0011) > 0:
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

    await asyncio.gather(*(one(0.2 + i * CHUNK_INTERVAL_MS / 1000.0 / STREAMS * 7) for i in range(STREAMS)))
    return ttfts


def saturate(port: int, seconds: int, core: int, script: Path) -> float:
    """Requests a second at 64 connections. Exits when answers are not 200."""
    command = ["wrk", "-t1", "-c64", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}/v1/chat/completions"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=on_core(core), timeout=60)
    out = ran.stdout + ran.stderr
    if ran.returncode:
        sys.exit(f"wrk failed: {out}")
    if "Non-2xx" in out:
        sys.exit(out)
    [line] = [line for line in out.splitlines() if line.startswith("Requests/sec")]
    return float(line.split()[1])
