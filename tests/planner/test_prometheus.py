"""Observations through a real Prometheus (Debian's, where it is installed) and from one that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pool_planner.metrics.names import PoolSeries
from pool_planner.metrics.prometheus import PrometheusAccess, PrometheusSource
from pool_planner.metrics.scrape import RouterScrape
from pool_planner.types import MetricsUnavailable
from tests.planner.test_metrics import POOL, Router

BINARY = os.environ.get("PROMETHEUS_BINARY") or shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(BINARY is None, reason="no prometheus (apt-get install prometheus)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The server dies with the test run even when that is killed.
WITH_PARENT = "import ctypes,os,signal,sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); os.execv(sys.argv[1], sys.argv[1:])"


class Server:
    """A Prometheus that scrapes two router instances several times a second."""

    def __init__(self, folder: Path) -> None:
        self.target_ports = (free_port(), free_port())
        targets = [f"127.0.0.1:{port}" for port in self.target_ports]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = {
            "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
            "scrape_configs": [
                {
                    "job_name": "routers",
                    "metrics_path": "/metrics",
                    "static_configs": [{"targets": targets}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        assert BINARY is not None
        self.command = [
            *(sys.executable, "-c", WITH_PARENT, BINARY),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=error",
        ]
        self.restart()

    def restart(self) -> None:
        """Start it, with whatever it has stored."""
        self.process = subprocess.Popen(self.command)
        until = time.time() + 20
        while time.time() < until:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=1):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise RuntimeError("prometheus did not become ready")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def up(self) -> int:
        """How many targets the server found up at their last scrape."""
        with urllib.request.urlopen(f"{self.url}/api/v1/query?query=up", timeout=2) as answer:
            return sum(float(one["value"][1]) == 1.0 for one in json.load(answer)["data"]["result"])


class Targets:
    """Two router processes on the ports that the server scrapes, which the test can take down."""

    def __init__(self) -> None:
        self.routers = [Router(), Router()]
        self.up = [True, True]
        self.runners: list[web.AppRunner] = []
        self.addresses: list[str] = []

    async def begin(self, server: Server) -> None:
        for index, port in enumerate(server.target_ports):

            async def answer(_: web.Request, index: int = index) -> web.Response:
                return web.Response(text=self.routers[index].text()) if self.up[index] else web.Response(status=503)

            app = web.Application()
            app.router.add_get("/metrics", answer)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.runners.append(runner)
            self.addresses.append(f"127.0.0.1:{port}")
        for _ in range(150):  # its service discovery starts only seconds after the server
            if await asyncio.to_thread(server.up) == 2:
                break
            await asyncio.sleep(0.1)

    async def end(self) -> None:
        for runner in self.runners:
            await runner.cleanup()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("prometheus"))
    yield running
    running.stop()


@pytest.fixture
async def targets(server: Server) -> AsyncIterator[Targets]:
    found = Targets()
    await found.begin(server)
    yield found
    await found.end()


async def scraped() -> None:
    """Long enough for every target to be scraped several times."""
    await asyncio.sleep(1.0)


@needs_prometheus
async def test_two_frontends_an_outage_a_restart_and_a_counter_reset(targets: Targets, server: Server) -> None:
    source = PrometheusSource(PrometheusAccess(endpoint=server.url), [POOL], first_interval_s=0.3, stale_s=5.0)
    try:
        for router in targets.routers:
            router.serve(100)
        await asyncio.sleep(1.0)
        first = (await source.observe(time.time()))["chat-decode"]
        assert first.requests == pytest.approx(0.0), "the past is known: nothing happened in the first interval"
        assert first.front_door_up is True

        targets.routers[0].serve(60, isl=100.0)
        targets.routers[1].serve(20, isl=2000.0)
        await scraped()
        seen = (await source.observe(time.time()))["chat-decode"]
        # Each instance is read at its own scrapes, so counts are rates times the interval, not whole numbers.
        assert seen.requests == pytest.approx(80.0, rel=0.5)
        assert seen.isl_tokens == pytest.approx((60 * 100 + 20 * 2000) / 80, rel=0.4)
        assert seen.isl_histogram is not None
        assert seen.queued_requests == 4.0

        again = (await source.observe(time.time()))["chat-decode"]
        assert again.at_s <= time.time()

        targets.up[1] = False
        await scraped()
        part = (await source.observe(time.time()))["chat-decode"]
        assert part.front_door_up is False, "one of two does not answer"

        targets.routers[1] = Router().serve(7)
        targets.up[1] = True
        await scraped()
        back = (await source.observe(time.time()))["chat-decode"]
        assert back.front_door_up is True
        assert back.requests is not None
        assert 0.0 <= back.requests <= 7.0, "a restarted router counts from zero, not from minus a hundred"
    finally:
        await source.close()


@needs_prometheus
async def test_labels_in_other_spellings_and_worker_gauges_from_the_router_itself(targets: Targets, server: Server) -> None:
    targets.routers[0].serve(5).blocks.labels(worker_id="w1", pool="chat-decode").set(12)
    targets.routers[1].serve(5)
    series = PoolSeries(
        pool="chat-decode", role="decode", match={"dynamo_namespace": "demo-chat-main", "model": "Demo/Chat", "role": "decode"}
    )
    scrape = RouterScrape([f"http://{address}/metrics" for address in targets.addresses], [series])
    source = PrometheusSource(PrometheusAccess(endpoint=server.url), [series], first_interval_s=0.3, scrape=scrape)
    try:
        await asyncio.sleep(1.0)
        await source.sample()
        seen = (await source.observe(time.time()))["chat-decode"]
        assert seen.requests is not None
        assert seen.workers is not None
        assert [(worker.worker_id, worker.active_decode_blocks) for worker in seen.workers] == [("w1", 12.0)]
        targets.up[0] = False
        assert (await source.observe(time.time() + 0.1))["chat-decode"] is not None, "worker gauges fail alone"
    finally:
        await source.close()


@needs_prometheus
async def test_missing_series_and_a_server_that_goes_away(targets: Targets, server: Server) -> None:
    unknown = PoolSeries(pool="other", role="decode", match={"pool": "no-such-pool"})
    source = PrometheusSource(PrometheusAccess(endpoint=server.url), [unknown], first_interval_s=0.5)
    try:
        await asyncio.sleep(0.6)
        with pytest.raises(MetricsUnavailable, match="no instance exposes dynamo_component_router_"):
            await source.observe(time.time())
        server.stop()  # the last test that needs it
        with pytest.raises(MetricsUnavailable, match=server.url):
            await source.observe(time.time())
    finally:
        await source.close()


ANSWERS: list[tuple[Any, str]] = [
    ((500, "boom"), "HTTP Status Code 500"),
    ((401, "who are you"), "HTTP Status Code 401"),
    ((200, "<html>"), "JSONDecodeError"),
    ((200, '{"status":"error","error":"no"}'), "not the answer of a Prometheus"),
    ((200, '{"data":{"result":[{"metric":{},"value":[1,"many"]}]}}'), "not the answer of a Prometheus"),
    ((200, '{"data":{"result":[{"metric":{}}]}}'), "not the answer of a Prometheus"),
    ((200, '{"data":{"result":[]}}'), "no instance exposes"),
    ("slow", "no answer within"),
]


@pytest.mark.parametrize(("answer", "text"), ANSWERS, ids=[text + str(i) for i, (_, text) in enumerate(ANSWERS)])
async def test_every_failure_of_the_server_says_what_and_where(answer: Any, text: str, tmp_path: Path) -> None:
    asked: list[str | None] = []

    async def respond(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        if answer == "slow":
            await asyncio.sleep(1.0)
            return web.Response()
        return web.Response(status=answer[0], text=answer[1], content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/api/v1/query", respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = "http://{}:{}".format(*runner.addresses[0][:2])
    token = tmp_path / "token"
    token.write_text("secret\n")
    access = PrometheusAccess(endpoint=url, token_file=token, timeout_s=0.3 if answer == "slow" else 10.0)
    source = PrometheusSource(access, [POOL], first_interval_s=10.0)
    try:
        with pytest.raises(MetricsUnavailable, match=text) as caught:
            await source.observe(time.time())
        assert url in str(caught.value)
        assert asked[0] == "Bearer secret"
        token.unlink()
        with pytest.raises(MetricsUnavailable, match="token cannot be read"):
            await source.observe(time.time())
    finally:
        await source.close()
        await runner.cleanup()
