"""The command: start-up, port file, refusal of a bad configuration, graceful end, and no orphan."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from global_planner.ports import Endpoint, PoolEndpoints
from global_planner.router_client import RouterClient
from pool_planner.types import ClusterUnavailable
from router.__main__ import main
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


def refusal(tmp_path: Path, text: str) -> str:
    """What the command says of a configuration that it refuses. No process: it ends before it listens."""
    path = tmp_path / "router.yaml"
    path.write_text(text)
    told = CliRunner().invoke(main, ["--config", str(path)])
    assert told.exit_code == 2
    return told.output


def test_a_bad_configuration_is_refused_with_every_problem(tmp_path: Path) -> None:
    told = refusal(tmp_path, "models:\n- {model: m, pools: [{name: a, rol: agg}]}\nlistn: {}\n")
    assert "router.yaml: models[0].pools[0].rol: unknown key; did you mean 'role'?" in told
    assert "router.yaml: listn: unknown key; did you mean 'listen'?" in told


async def test_workers_share_a_port_and_all_acknowledge_a_drain(start: Start, start_engine: StartEngine) -> None:
    """Two processes: both serve, both are told, one is killed and comes back on its admin port knowing nothing, is told
    again, and SIGTERM ends all."""
    one, two = await start_engine("one", tokens=1), await start_engine("two", tokens=1)
    text = json.dumps({"models": [{"model": MODEL, "own_admitted_rps": 100, "pools": [{"name": "a", "role": "agg"}]}]})
    process, ports = await start(text, "--workers", "2", "--metrics-port", "0")
    admin_urls = [f"http://127.0.0.1:{port}" for port in ports["admin_ports"]]  # type: ignore[attr-defined]
    endpoints = tuple(Endpoint(id=engine.name, url=engine.url, state="ready") for engine in (one, two))
    url = f"http://127.0.0.1:{ports['port']}/v1/chat/completions"
    async with RouterClient(admin_urls, admission_valid_s=60.0) as client, aiohttp.ClientSession() as session:
        await client.put_endpoints([PoolEndpoints(name="a", role="agg", endpoints=endpoints)])

        async def ask(times: int) -> None:
            for _ in range(times):
                # A connection each: the kernel chooses the process.
                async with session.post(url, json={"model": MODEL, "messages": []}, headers={"Connection": "close"}) as answer:
                    assert answer.status == 200

        await ask(40)
        served = []
        pids = []
        for admin in admin_urls:
            async with session.get(admin + "/metrics") as answer:
                text = await answer.text()
            served.append(float(text.split("\ndynamo_component_router_requests_total{")[1].split("} ")[1].split()[0]))
            async with session.get(admin + "/admin/state") as answer:
                state = await answer.json()
                assert state["admission"]["admitted_rps"] == {MODEL: 50.0}
                pids.append(state["pid"])
        assert sum(served) == 40
        assert min(served) > 0
        merged = f"http://127.0.0.1:{ports['metrics_port']}/metrics"
        async with session.get(merged) as answer:
            text = await answer.text()
        families = {family.name: family for family in text_string_to_metric_families(text)}
        [total] = [one for one in families["dynamo_component_router_requests"].samples if one.name.endswith("_total")]
        assert total.value == 40
        counts = [one for one in families["dynamo_frontend_request_duration_seconds"].samples if one.name.endswith("_count")]
        assert [one.value for one in counts] == [40]
        assert families["global_planner_router_clock_speed"].samples[0].value == 1

        await client.drain("a", ["one"], 60.0)
        state = await client.state()
        assert (state.processes, state.endpoints["one"].state) == (2, "draining")
        before = len(one.calls)
        await ask(10)
        assert len(one.calls) == before

        os.kill(pids[1], signal.SIGKILL)
        for _ in range(100):
            await asyncio.sleep(0.1)
            with contextlib.suppress(ClusterUnavailable):
                await client.state()
                break
        state = await client.state()
        assert {name: load.state for name, load in state.endpoints.items()} == {"one": "draining", "two": "ready"}
        await ask(10)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not _alive(pids[0])


def test_an_open_door_must_be_meant(tmp_path: Path) -> None:
    text = config("http://127.0.0.1:9").replace('{"models"', '{"listen": {"host": "0.0.0.0"}, "models"')
    assert "listen.without_keys" in refusal(tmp_path, text)


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


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody has reaped yet has ended too.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 10_500, reason="needs 10,500 open files")
async def test_ten_thousand_idle_connections(start: Start, start_engine: StartEngine) -> None:
    """They cost memory, a bounded amount, and nothing else: a request among them is answered as ever."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    engine = await start_engine()
    process, ports = await start(config(engine.url))
    idle: list[socket.socket] = []
    try:
        for number in range(10_000):
            # Several source addresses: one alone could run out of ports.
            idle.append(socket.create_connection(("127.0.0.1", ports["port"]), source_address=(f"127.0.0.{1 + number % 4}", 0)))
            if number % 500 == 0:
                await asyncio.sleep(0)
        url = f"http://127.0.0.1:{ports['port']}/v1/chat/completions"
        async with aiohttp.ClientSession() as session:
            for _ in range(20):
                async with session.post(url, json={"model": MODEL, "messages": []}) as answer:
                    assert answer.status == 200
        assert _rss_mb(process.pid) < 160
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
