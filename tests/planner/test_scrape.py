"""The scrape of the front door over real sockets: sums, routers that are away, and failures that say where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from pool_planner.metrics.scrape import RouterScrape
from pool_planner.types import MetricsUnavailable
from tests.planner.test_metrics import POOL, Router


class Served:
    """Two router instances behind one real server; each answers with whatever the test sets."""

    def __init__(self) -> None:
        self.routers = [Router(), Router()]
        self.broken: dict[int, object] = {}
        self.base = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        index = int(request.match_info["index"])
        wrong = self.broken.get(index)
        if wrong == "slow":
            await asyncio.sleep(5.0)
        if isinstance(wrong, int):
            return web.Response(status=wrong)
        if isinstance(wrong, bytes):
            return web.Response(body=wrong)
        return web.Response(text=self.routers[index].text())

    def urls(self) -> list[str]:
        return [f"{self.base}/{index}/metrics" for index in range(len(self.routers))]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    state = Served()
    app = web.Application()
    app.router.add_get("/{index}/metrics", state.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    state.base = f"http://{host}:{port}"
    yield state
    await runner.cleanup()


async def test_scrapes_two_routers_and_sums(served: Served) -> None:
    scrape = RouterScrape(served.urls(), [POOL])
    try:
        for router in served.routers:
            router.serve(100)
        first = (await scrape.observe(0.0))["chat-decode"]
        assert first.requests is None, "counters without a begin say nothing"
        served.routers[0].serve(30)
        served.routers[1].serve(12)
        seen = (await scrape.observe(10.0))["chat-decode"]
        assert (seen.requests, seen.interval_s, seen.front_door_up) == (42.0, 10.0, True)
        idle = (await scrape.observe(20.0))["chat-decode"]
        assert idle.requests == 0.0
        assert idle.isl_tokens is None
    finally:
        await scrape.close()


async def test_one_router_away_and_back(served: Served) -> None:
    scrape = RouterScrape(served.urls(), [POOL], timeout_s=1.0)
    try:
        for router in served.routers:
            router.serve(1)
        await scrape.observe(0.0)
        served.broken[1] = "slow"
        served.routers[0].serve(10)
        served.routers[1].serve(10)
        part = (await scrape.observe(10.0))["chat-decode"]
        assert (part.requests, part.front_door_up, part.workers) == (10.0, False, None)
        with pytest.raises(MetricsUnavailable, match=r"/1/metrics: no answer within 1 s"):
            await scrape.sample()
        served.broken.clear()
        served.routers[0].serve(10)
        served.routers[1].serve(10)
        back = (await scrape.observe(20.0))["chat-decode"]
        assert back.front_door_up is True
        assert back.requests == 10.0 + 20.0 / 2, "its arrivals of the outage are not this interval's"
    finally:
        await scrape.close()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (500, "HTTP 500"),
        (404, "HTTP 404"),
        (b"", "none of the series"),
        (b"dynamo_frontend_requests_total{ 3", "malformed metrics: line 1"),
        (b"\xff\xfe", "not UTF-8"),
        ("slow", "no answer within"),
    ],
)
async def test_every_failure_is_unavailable_and_says_where(served: Served, wrong: object, text: str) -> None:
    served.broken = {0: wrong, 1: wrong}
    scrape = RouterScrape(served.urls(), [POOL], timeout_s=0.2 if wrong == "slow" else 10.0)
    try:
        with pytest.raises(MetricsUnavailable) as caught:
            await scrape.observe(0.0)
        assert text in str(caught.value)
        assert "/0/metrics" in str(caught.value)
        assert "/1/metrics" in str(caught.value)
    finally:
        await scrape.close()


async def test_an_outage_loses_no_arrivals(served: Served) -> None:
    scrape = RouterScrape(served.urls(), [POOL])
    try:
        for router in served.routers:
            router.serve(1)
        await scrape.observe(0.0)
        served.broken = {0: 503, 1: 503}
        served.routers[0].serve(20)
        with pytest.raises(MetricsUnavailable):
            await scrape.observe(10.0)
        served.broken = {}
        seen = (await scrape.observe(30.0))["chat-decode"]
        assert (seen.requests, seen.interval_s) == (20.0, 30.0)
    finally:
        await scrape.close()


async def test_nobody_listens() -> None:
    scrape = RouterScrape(["http://127.0.0.1:9/metrics"], [POOL])
    try:
        with pytest.raises(MetricsUnavailable, match=r"127.0.0.1:9"):
            await scrape.observe(0.0)
    finally:
        await scrape.close()
