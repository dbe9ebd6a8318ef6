"""The command: start-up, port file, refusal of a bad configuration, graceful end, and no orphan."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tests.router.conftest import MODEL, StartEngine, until
from tests.router.engines import DONE, SSE_HEAD, chat_chunk, chunk, sending

Start = Callable[..., Awaitable[tuple[asyncio.subprocess.Process, dict[str, int]]]]


def config(url: str) -> str:
    return json.dumps({"models": [{"model": MODEL, "pools": [{"name": "a", "role": "agg", "endpoints": [url]}]}]})


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    processes: list[asyncio.subprocess.Process] = []

    async def begin(text: str, *options: str) -> tuple[asyncio.subprocess.Process, dict[str, int]]:
        (tmp_path / "router.yaml").write_text(text)
        ports = tmp_path / "ports.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router", "--config", str(tmp_path / "router.yaml"), "--die-with-parent"),
            *("--port", "0", "--admin-port", "0", "--port-file", str(ports), *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
        await until(lambda: ports.exists() or process.returncode is not None, within_s=20)
        return process, json.loads(ports.read_text()) if ports.exists() else {}

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_sigterm_finishes_running_answers(start: Start, start_engine: StartEngine) -> None:
    engine = await start_engine(script=sending(SSE_HEAD, chunk(chat_chunk("x")), 0.4, chunk(DONE), b"0\r\n\r\n"))
    process, ports = await start(config(engine.url), "--access-log", "-")
    assert ports["pid"] == process.pid
    base = f"http://127.0.0.1:{ports['port']}"
    body = {"model": MODEL, "messages": [], "stream": True}
    async with aiohttp.ClientSession() as session, session.post(base + "/v1/chat/completions", json=body) as answer:
        assert await answer.content.readuntil(b"\n\n") == chat_chunk("x")
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", ports["port"])
        assert await answer.content.read() == DONE
    out, _ = await asyncio.wait_for(process.communicate(), 5)
    assert process.returncode == 0
    line = json.loads(out)
    assert (line["model"], line["outcome"], line["status"], line["pool"]) == (MODEL, "completed", 200, "a")


async def test_a_bad_configuration_is_refused_with_every_problem(start: Start) -> None:
    process, _ = await start("models:\n- {model: m, pools: [{name: a, rol: agg}]}\nlistn: {}\n")
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"router.yaml: models[0].pools[0].rol: unknown key; did you mean 'role'?" in err
    assert b"router.yaml: listn: unknown key; did you mean 'listen'?" in err


async def test_an_open_door_must_be_meant(start: Start) -> None:
    text = config("http://127.0.0.1:9").replace('{"models"', '{"listen": {"host": "0.0.0.0"}, "models"')
    process, _ = await start(text)
    _, err = await process.communicate()
    assert process.returncode == 2
    assert b"listen.without_keys" in err


async def test_the_router_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """A shell starts the router and is killed; the router goes too."""
    (tmp_path / "r.yaml").write_text(config("http://127.0.0.1:9"))
    ports = tmp_path / "ports.json"
    options = f"--config {tmp_path / 'r.yaml'} --port 0 --admin-port 0 --port-file {ports} --die-with-parent"
    command = f"{sys.executable} -m router {options}"
    shell = await asyncio.create_subprocess_exec("/bin/sh", "-c", command + " & wait", stderr=subprocess.DEVNULL)
    await until(ports.exists, within_s=20)
    pid = json.loads(ports.read_text())["pid"]
    shell.kill()
    await shell.wait()
    await until(lambda: not _alive(pid), within_s=5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has reaped yet has ended too.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
