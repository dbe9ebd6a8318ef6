"""A router in this process, on free ports of loopback, and clients for it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import uvloop

from pool_planner.clock import SpeedClock
from router.app import RouterApp
from router.config import validate
from tests.router.engines import FakeEngine

MODEL = "demo/chat"


@dataclass
class Running:
    """A started router. `session` talks to it."""

    app: RouterApp
    port: int
    admin_port: int
    session: aiohttp.ClientSession

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    async def chat(self, text: str = "hello", **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        """(status, JSON body, headers with lower-case names) of a plain chat completion."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
        async with self.session.post(self.base + "/v1/chat/completions", json=body) as answer:
            return answer.status, await answer.json(), {name.lower(): value for name, value in answer.headers.items()}

    async def stream(self, text: str = "hello", **more: Any) -> bytes:
        """The whole body of a streamed chat completion."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": True, **more}
        async with self.session.post(self.base + "/v1/chat/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def state(self) -> dict[str, Any]:
        async with self.session.get(self.admin + "/admin/state") as answer:
            return await answer.json()

    async def endpoint(self, name: str) -> dict[str, Any]:
        pools = (await self.state())["pools"]
        return next(one for pool in pools for one in pool["endpoints"] if one["id"] == name)

    async def put_endpoints(
        self, version: int, pools: dict[str, tuple[str, list[FakeEngine]]], **states: str
    ) -> dict[str, Any]:
        """Tell the router of engines: pool name -> (role, engines); states by engine name, default ready."""
        message = {
            "version": version,
            "pools": [
                {
                    "name": name,
                    "role": role,
                    "endpoints": [{"id": e.name, "url": e.url, "state": states.get(e.name, "ready")} for e in engines],
                }
                for name, (role, engines) in pools.items()
            ],
        }
        async with self.session.put(self.admin + "/admin/endpoints", json=message) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def metrics(self) -> str:
        async with self.session.get(self.admin + "/metrics") as answer:
            return await answer.text()


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The loop that runs in production; its sockets behave differently from asyncio's own."""
    return uvloop.EventLoopPolicy()


StartRouter = Callable[..., Awaitable[Running]]
StartEngine = Callable[..., Awaitable[FakeEngine]]


@pytest.fixture
async def start_router() -> AsyncIterator[StartRouter]:
    """start_router(pools, speed=…, model=…, **sections): pools as in the configuration. An exception that nobody in the
    router waited for fails the test."""
    started: list[Running] = []
    strays: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: strays.append(context))

    async def start(
        pools: list[dict[str, Any]], *, speed: float = 1.0, model: dict[str, Any] | None = None, **more: Any
    ) -> Running:
        config = validate(
            {
                "listen": {"port": 0},
                "admin": {"port": 0},
                "models": [{"model": MODEL, "pools": pools, **(model or {})}],
                **more,
            }
        )
        app = RouterApp(config, SpeedClock(origin=time.time(), speed=speed), asyncio.get_running_loop())
        port, admin_port = await app.start()
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        running = Running(app, port, admin_port, session)
        started.append(running)
        return running

    yield start
    for running in started:
        await running.session.close()
        await running.app.stop()
    gc.collect()
    assert not [stray for stray in strays if "engines.py" not in repr(stray)]


@pytest.fixture
async def start_engine() -> AsyncIterator[StartEngine]:
    engines: list[FakeEngine] = []

    async def start(name: str = "e", role: str = "agg", **more: Any) -> FakeEngine:
        engine = await FakeEngine(name=name, role=role, **more).start()  # type: ignore[arg-type]
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        await engine.kill()


async def until(condition: Callable[[], bool], *, within_s: float = 3.0) -> None:
    """Wait for a condition; an assertion error when it does not come."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.005)
