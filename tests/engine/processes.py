"""Mock engines as real processes, and a client that notes when things came."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from global_planner.replay.engine_spec import EngineSpec, raw_spec
from pool_planner.clock import SpeedClock


@dataclass
class Engine:
    """A started engine process."""

    popen: subprocess.Popen[bytes]
    port: int
    clock: SpeedClock

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def command(spec_file: Path, port_file: Path, *more: str) -> list[str]:
    module = "global_planner.mocker.engine"
    return [sys.executable, "-m", module, "--spec", str(spec_file), "--port-file", str(port_file), *more]


@contextlib.contextmanager
def engine(
    folder: Path, spec: EngineSpec, *, name: str = "e", speed: float = 50.0, ready_in_s: float = 0.0, grace_s: float = 120.0
) -> Iterator[Engine]:
    """Start an engine on the clock of now, and end it."""
    clock = SpeedClock(origin=time.time(), speed=speed)
    spec_file, port_file = folder / f"{name}.json", folder / f"{name}.ports.json"
    spec_file.write_text(json.dumps(raw_spec(spec)))
    arguments = command(
        spec_file, port_file, "--replica-id", name, "--ready-at", str(clock.now() + ready_in_s), "--grace", str(grace_s)
    )
    popen = subprocess.Popen(arguments, env={**os.environ, **clock.environment()}, stderr=subprocess.PIPE)
    try:
        yield Engine(popen, wait_for_port(port_file), clock)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.communicate(timeout=5)
        port_file.unlink(missing_ok=True)


def wait_for_port(port_file: Path) -> int:
    for _ in range(500):
        if port_file.exists():
            return int(json.loads(port_file.read_text())["port"])
        time.sleep(0.02)
    raise TimeoutError(f"{port_file} was not written")


@dataclass
class Told:
    """A streamed answer: wall times since it was sent, at which text came, and what it was."""

    status: int
    headers: dict[str, str]
    at_s: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, int] | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Told:
    """Send a streamed completion and read it to the end mark."""
    began = time.perf_counter()
    async with session.post(f"{url}/v1/completions", json={"stream": True, **body}) as answer:
        told = Told(answer.status, dict(answer.headers))
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]\n":
                return told
            event = json.loads(line[6:])
            told.usage = event.get("usage", told.usage)
            if event["choices"]:
                told.last = event
                told.texts.append(event["choices"][0]["text"])
                told.at_s.append(time.perf_counter() - began)
    return told


async def state(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(f"{url}/mock/state") as answer:
        return dict(await answer.json())


async def until(session: aiohttp.ClientSession, url: str, **wanted: object) -> dict[str, Any]:
    """The state as soon as it is as wanted; an assertion with the last state after 5 s."""
    for _ in range(250):
        now = await state(session, url)
        if wanted.items() <= now.items():
            return now
        await asyncio.sleep(0.02)
    raise AssertionError(f"wanted {wanted}, still {now}")
