"""A real Prometheus that scrapes real router processes in front of real mock engines, and the planner that reads it.

What users of other planners report (idle, restarts, outages, missing series, two frontends), on the real way of the numbers.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest

from pool_planner.metrics.names import PoolSeries, by_pool
from pool_planner.metrics.prometheus import PrometheusAccess, PrometheusSource
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import start
from pool_planner.types import Grant, Hold, MetricsUnavailable, Observation, Proposal, Report
from tests.engine.engines import spec
from tests.engine.processes import engine
from tests.planner.story import config, pool
from tests.planner.test_prometheus import Server, needs_prometheus

MODEL = "demo/chat"
PROMPT_TOKENS, CHARS = 320, 4
pytestmark = needs_prometheus


class World:
    """Two routers at the addresses that Prometheus scrapes, each in front of both engines."""

    def __init__(self, folder: Path, server: Server, engines: Sequence[str]) -> None:
        self.server = server
        self._folder = folder
        self._session = aiohttp.ClientSession()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ports: dict[int, int] = {}
        pools = [{"name": "chat", "role": "agg", "dynamo_namespace": "demo-chat", "endpoints": list(engines)}]
        (folder / "router.yaml").write_text(json.dumps({"models": [{"model": MODEL, "pools": pools}]}))

    async def start_router(self, which: int) -> None:
        ports = self._folder / f"router-{which}.json"
        ports.unlink(missing_ok=True)
        self._launch(which, ports)
        await within(30.0, ports.exists)
        self._ports[which] = json.loads(ports.read_text())["port"]

    def _launch(self, which: int, ports: Path) -> None:
        command = [sys.executable, "-m", "router", "--config", str(self._folder / "router.yaml"), "--die-with-parent"]
        command += ["--port", "0", "--admin-port", str(self.server.target_ports[which]), "--port-file", str(ports)]
        self._processes[which] = subprocess.Popen(command)

    def kill_router(self, which: int) -> None:
        process = self._processes.pop(which)
        process.kill()
        process.wait()

    async def ask(self, which: int, times: int) -> None:
        """Requests with one prompt, one after the other, so that the second finds what the first left in a cache."""
        body = {"model": MODEL, "prompt": "abcd" * PROMPT_TOKENS, "max_tokens": 8}
        for _ in range(times):
            url = f"http://127.0.0.1:{self._ports[which]}/v1/completions"
            async with self._session.post(url, json=body) as answer:
                assert answer.status == 200, await answer.text()

    async def end(self) -> None:
        await self._session.close()
        for which in list(self._processes):
            self.kill_router(which)


async def within(seconds: float, true: object) -> None:
    until = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < until, f"not within {seconds} s"
        await asyncio.sleep(0.05)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    server = Server(tmp_path)
    with ExitStack() as stack:
        engines = [
            stack.enter_context(engine(tmp_path, spec(model=MODEL, prefix_cache_tokens=65536), name=name))
            for name in ("a", "b")
        ]
        made = World(tmp_path, server, [each.url for each in engines])
        try:
            await asyncio.gather(made.start_router(0), made.start_router(1))
            await within(30.0, lambda: server.up() == 2)
            yield made
        finally:
            await made.end()
            server.stop()


class Planner:
    """One pool, planned from what Prometheus says; a tick is a second of the wall."""

    def __init__(self, server: Server) -> None:
        settings = config(
            throughput_adjustment_interval=1,
            load_predictor="kalman",
            ttft=3000.0,
            extensions={"hold_s": 1.0, "idle_hold_s": 1.0, "cold_start_s": 1.0},
        )
        self.setup = PlannerSetup(config=settings, pools=(pool("agg", name="chat"),))
        series = [by_pool(each) for each in self.setup.pools]
        access = PrometheusAccess(endpoint=server.url, timeout_s=2.0)
        self.source = PrometheusSource(access, series, first_interval_s=1.0, stale_s=3.0)
        self.state = start(self.setup, now=time.time())
        self.have = 6
        self.seen: Observation | None = None

    async def tick(self) -> Report:
        """Observe and plan; who cannot be asked leaves nothing to plan on. The cluster follows at once."""
        now = time.time()
        observations: Mapping[str, Observation] = {}
        try:
            observations = await self.source.observe(now)
        except MetricsUnavailable as error:
            self.trouble = str(error)
        self.seen = observations.get("chat")
        grant = Grant(pool="chat", at_s=now, replicas_spec=self.have, replicas_ready=self.have, replicas_starting=0)
        self.state, (report,) = plan(self.state, observations, {"chat": grant}, now, self.setup)
        if isinstance(report, Proposal):
            self.have = report.wanted
        return report

    async def until(self, seconds: float, true: object) -> Report:
        """Tick every half second until `true(report)`."""
        until = time.monotonic() + seconds
        while True:
            report = await self.tick()
            if true(report):  # type: ignore[operator]
                return report
            assert time.monotonic() < until, f"still {report}"
            await asyncio.sleep(0.5)


async def nobody_has(world: World) -> None:
    """Series whose label matches nothing: loud, not idle."""
    stranger = PoolSeries(pool="chat", role="agg", match={"pool": "chta"})
    source = PrometheusSource(PrometheusAccess(endpoint=world.server.url), [stranger], first_interval_s=1.0)
    try:
        with pytest.raises(MetricsUnavailable, match=r"no instance exposes dynamo_component_router_\* with .*chta"):
            await source.observe(time.time())
    finally:
        await source.close()


async def test_two_frontends_a_restart_an_outage_and_idleness(world: World) -> None:
    """One day of a deployment; starting the servers is what it costs."""
    planner = Planner(world.server)
    try:
        # Two frontends: what both count is the pool's traffic, and means are over requests, not over frontends.
        await planner.until(20.0, lambda _: planner.seen is not None)
        await asyncio.gather(world.ask(0, 24), world.ask(1, 8))
        await asyncio.sleep(0.6)  # two scrapes
        report = await planner.tick()
        assert planner.seen is not None
        assert planner.seen.requests == pytest.approx(32.0, rel=0.6), "rates of each one's own scrapes times the interval"
        assert planner.seen.isl_tokens == pytest.approx(PROMPT_TOKENS, rel=0.1)
        assert planner.seen.prefix_hit_rate == pytest.approx(0.9, abs=0.1), "the prompt is always the same one"
        assert planner.seen.isl_histogram is not None
        assert planner.seen.front_door_up is True
        assert isinstance(report, Proposal)
        assert "found in prefix caches" in "; ".join(report.reasons)
        await nobody_has(world)

        # A frontend is restarted: its counters begin at zero, which is no negative traffic.
        world.kill_router(0)
        report = await planner.until(20.0, lambda r: isinstance(r, Hold))
        assert "front door" in report.reason  # type: ignore[union-attr]
        held = planner.have
        await world.start_router(0)
        await world.ask(0, 5)
        report = await planner.until(30.0, lambda r: isinstance(r, Proposal) and planner.seen.front_door_up)  # type: ignore[union-attr]
        assert planner.seen is not None and planner.seen.requests is not None
        assert 0.0 <= planner.seen.requests <= 60.0
        assert planner.have >= min(held, 1)

        # Nobody asks any more, and the front door is known to be up: down to the minimum, in steps.
        seen = {planner.have}
        await planner.until(40.0, lambda r: seen.add(planner.have) or planner.have == 1)
        assert planner.seen is not None and planner.seen.requests == 0.0
        assert planner.seen.isl_tokens is None, "a mean of nothing is unknown, not zero"

        # Somebody adds replicas by hand: what is there is believed, and what is needed is said again.
        planner.have = 5
        report = await planner.tick()
        assert isinstance(report, Proposal) and report.wanted == 1

        # Prometheus goes away: held with the reason, and nothing moves. When it is back, planning goes on.
        world.server.stop()
        before = planner.have
        report = await planner.tick()
        assert isinstance(report, Hold) and report.reason == "no observation"
        assert world.server.url in planner.trouble
        assert planner.have == before
        world.server.restart()
        await planner.until(40.0, lambda r: isinstance(r, Proposal))
    finally:
        await planner.source.close()
