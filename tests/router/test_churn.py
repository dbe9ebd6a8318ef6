"""Pools that scale up and down all the time, and nothing is lost: the promise that the router exists for.

A controller drains and removes replicas, and starts others, while clients keep asking. Every answer must be whole, correct
(engines answer with what they were asked), and from a replica that was allowed to work. It lasts a minute, at least a thousand
requests; five minutes in the nightly profile, and as long as `CHURN_S` says.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random

import pytest

from global_planner.ports import Endpoint, PoolEndpoints
from global_planner.router_client import RouterClient
from pool_planner.types import Role
from tests.router.conftest import MODEL, Running, StartEngine, StartRouter
from tests.router.engines import DONE, SSE_HEAD, FakeEngine, Script, Seen, chat_chunk, chunk, plain

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
CHURN_S = float(os.environ.get("CHURN_S") or {"nightly": "300", "quick": "3"}.get(PROFILE, "60"))
WORDS = 12
THINK_S = 0.6


def working(rng: random.Random) -> Script:
    """Prefill hands over what was asked; decode refuses to answer without it and says it back, word by word."""

    async def script(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        text = seen.body["messages"][0]["content"]
        if engine.role == "prefill":
            await asyncio.sleep(rng.uniform(0.0, 0.02))
            writer.write(plain(200, {"kv_transfer_params": {"remote_engine_id": engine.name, "asked": text}}))
            return
        if seen.body["kv_transfer_params"]["asked"] != text:
            writer.write(plain(400, {"error": {"message": "the KV blocks are another request's"}}))
            return
        writer.write(SSE_HEAD)
        for word in range(WORDS):
            writer.write(chunk(chat_chunk(f"{text}/{word} ")))
            await asyncio.sleep(rng.uniform(0.0, 0.01))
        writer.write(chunk(DONE) + b"0\r\n\r\n")

    return script


def said(stream: bytes) -> str:
    events = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n") if event]
    assert events[-1] == b"[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"]["content"] for event in events[:-1])


class Controller:
    """Scales two pools at random between 1 and 4 replicas: the victim is drained, waited for, and only then killed."""

    def __init__(self, client: RouterClient, start_engine: StartEngine, rng: random.Random) -> None:
        self._client = client
        self._start = start_engine
        self._rng = rng
        self._names = itertools.count()
        self.pools: dict[str, tuple[Role, list[FakeEngine]]] = {"p": ("prefill", []), "d": ("decode", [])}
        self.draining: set[str] = set()
        self.scale_downs = 0

    async def grow(self, name: str) -> None:
        role, engines = self.pools[name]
        engines.append(await self._start(f"{name}{next(self._names)}", role, script=working(self._rng)))
        await self.tell()

    def _endpoint(self, engine: FakeEngine) -> Endpoint:
        return Endpoint(id=engine.name, url=engine.url, state="draining" if engine.name in self.draining else "ready")

    async def tell(self) -> None:
        await self._client.put_endpoints(
            [
                PoolEndpoints(
                    name=name,
                    role=role,
                    endpoints=tuple(self._endpoint(engine) for engine in engines),
                )
                for name, (role, engines) in self.pools.items()
            ]
        )

    async def shrink(self, name: str) -> None:
        """Least work in flight goes first."""
        _, engines = self.pools[name]
        state = await self._client.state()
        victim = min(engines, key=lambda e: state.endpoints[e.name].outstanding_tokens)
        self.draining.add(victim.name)
        await self._client.drain(name, [victim.name], 60.0)
        for _ in range(2000):
            load = (await self._client.state()).endpoints[victim.name]
            if not load.in_flight and not load.pending_kv:
                break
            await asyncio.sleep(0.005)
        assert victim.running == 0
        engines.remove(victim)
        await self.tell()
        await victim.kill()
        self.draining.discard(victim.name)
        self.scale_downs += 1

    async def churn(self) -> None:
        while True:
            for name in ("p", "d"):
                many = len(self.pools[name][1]) >= 4
                few = len(self.pools[name][1]) <= 1
                if few or (not many and self._rng.random() < 0.5):
                    await self.grow(name)
                else:
                    await self.shrink(name)
            await asyncio.sleep(self._rng.uniform(0.0, 0.5))


@pytest.mark.parametrize("seed", [1])
async def test_nothing_is_lost_while_pools_scale(start_router: StartRouter, start_engine: StartEngine, seed: int) -> None:
    rng = random.Random(seed)
    router: Running = await start_router([{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}])
    async with RouterClient([router.admin], admission_valid_s=60.0) as client:
        controller = Controller(client, start_engine, rng)
        for name in ("p", "d"):
            await controller.grow(name)
        churn = asyncio.ensure_future(controller.churn())
        numbers = itertools.count()
        end = asyncio.get_running_loop().time() + CHURN_S

        async def ask() -> int:
            count = 0
            while asyncio.get_running_loop().time() < end:
                text = f"q{next(numbers)}"
                answer = await router.stream(text)
                assert said(answer) == "".join(f"{text}/{word} " for word in range(WORDS))
                count += 1
                # Clients that think leave the cores to other tests: a minute of this is long.
                await asyncio.sleep(rng.uniform(0.0, THINK_S))
            return count

        counts = await asyncio.gather(*(ask() for _ in range(12)))
        churn.cancel()
        outcomes = router.app.models[MODEL].outcomes
        assert outcomes.total("completed") == sum(counts) == outcomes.total("offered")
        # Not one was even tried twice: a drained replica had nothing in flight.
        assert [outcomes.total(one) for one in ("failed", "shed", "retried", "cancelled")] == [0, 0, 0, 0]
        assert sum(counts) > 17 * CHURN_S
        assert controller.scale_downs > CHURN_S / 3


async def test_nothing_is_lost_while_replicas_are_killed_before_they_answer(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    """Every 50 ms one of three prefill replicas is killed, without a word to the router, and another is started in its
    place."""
    rng = random.Random(3)
    router = await start_router(
        [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}], retry={"ratio": 1.0, "attempts": 10}
    )
    async with RouterClient([router.admin], admission_valid_s=60.0) as client:
        controller = Controller(client, start_engine, rng)
        for name in ("p", "p", "p", "d"):
            await controller.grow(name)

        async def kill() -> None:
            while True:
                await asyncio.sleep(0.05)
                engines = controller.pools["p"][1]
                await engines.pop(rng.randrange(len(engines))).kill()
                await controller.grow("p")

        killing = asyncio.ensure_future(kill())
        for round_no in range(15):
            answers = await asyncio.gather(*(router.stream(f"k{round_no}-{i}") for i in range(8)))
            assert [said(answer).split("/")[0] for answer in answers] == [f"k{round_no}-{i}" for i in range(8)]
        killing.cancel()
        outcomes = router.app.models[MODEL].outcomes
        assert (outcomes.total("completed"), outcomes.total("failed")) == (120, 0)
