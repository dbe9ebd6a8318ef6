"""Scale-downs under load, counted: `python -m tests.bench.drain --scale-downs 20 [--json FILE]`.

A real router, engines over real sockets, clients that never stop asking. A controller picks the replica with the least work,
drains it through the planner's client, waits until nothing is in flight and no KV block is pending, and deletes it. Counted
are the replicas that were drained, those that were deleted, and every request that did not get a whole and correct answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from global_planner.router_client import RouterClient
from pool_planner.clock import SpeedClock
from router.app import RouterApp
from router.config import validate
from tests.router.conftest import MODEL, Running
from tests.router.engines import FakeEngine
from tests.router.test_churn import WORDS, Controller, said

POOLS = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}]


async def start_engine(name: str, role: Any, **more: Any) -> FakeEngine:
    return await FakeEngine(name=name, role=role, **more).start()


async def measure(scale_downs: int, clients: int, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    config = validate({"listen": {"port": 0}, "admin": {"port": 0}, "models": [{"model": MODEL, "pools": POOLS}]})
    app = RouterApp(config, SpeedClock(origin=time.time()), asyncio.get_running_loop())
    port, admin_port = await app.start()
    lost = asked = 0
    waits: list[float] = []
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
        RouterClient([f"http://127.0.0.1:{admin_port}"], admission_valid_s=60.0) as planner,
    ):
        router = Running(app, port, admin_port, session)
        controller = Controller(planner, start_engine, rng)
        for name in ("p", "d", "p", "d"):
            await controller.grow(name)
        numbers = itertools.count()
        stop = asyncio.Event()

        async def ask() -> None:
            nonlocal lost, asked
            while not stop.is_set():
                text = f"q{next(numbers)}"
                asked += 1
                try:
                    whole = said(await router.stream(text)) == "".join(f"{text}/{word} " for word in range(WORDS))
                except (aiohttp.ClientError, AssertionError, TimeoutError):
                    whole = False
                lost += not whole

        asking = [asyncio.ensure_future(ask()) for _ in range(clients)]
        drained = 0
        for number in range(scale_downs):
            name = "pd"[number % 2]
            await controller.grow(name)
            began = time.monotonic()
            await controller.shrink(name)
            drained += 1
            waits.append(time.monotonic() - began)
        stop.set()
        await asyncio.gather(*asking)
    await app.stop()
    for _, engines in controller.pools.values():
        for engine in engines:
            await engine.kill()
    return {
        "scale_downs": scale_downs,
        "drained": drained,
        "deleted": controller.scale_downs,
        "requests": asked,
        "lost": lost,
        "retried": app.models[MODEL].outcomes.total("retried"),
        "drain_p50_s": sorted(waits)[len(waits) // 2],
        "drain_max_s": max(waits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale-downs", type=int, default=20)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.scale_downs, arguments.clients, arguments.seed))
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if result["lost"] == 0 and result["drained"] == result["deleted"] == arguments.scale_downs else 1)


if __name__ == "__main__":
    main()
