"""A model that sleeps at zero replicas, from the first request to its answer: our router asks the arbiter's API, the arbiter
orders a replica from a real API server, and the request that waited is answered by the engine in its pod."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from global_planner.api import ApiServer as ArbiterApi
from global_planner.inbox import Inbox
from global_planner.journal import Journal
from global_planner.live import ArbiterLoop
from global_planner.round import Ports, RoundConfig
from global_planner.surroundings import surroundings
from global_planner.system_clock import REAL_TIME
from global_planner.topology_file import parse_topology
from tests.kube.leader import PLANNER_RULES
from tests.kube.manifests import ADAPTERS, create
from tests.kube.operator import Operator
from tests.kube.server import ApiServer
from tests.router.conftest import MODEL, StartEngine, StartRouter
from tests.router.conftest import start_engine as start_engine
from tests.router.conftest import start_router as start_router
from tests.standalone.process import PROFILE

TOKEN = "the-routers-own"


@pytest.fixture
def operator(server: ApiServer, namespace: str) -> Iterator[Operator]:
    """Its pods are at this machine's own address, where the engine of the test listens."""
    working = Operator(server.api(), namespace, time.time, cold_start_s=0.5, termination_s=0.0, pod_ip="127.0.0.1")
    with working.working(0.2):
        yield working


def topology(namespace: str, kubeconfig: Path, token: Path, engine_port: int) -> dict[str, Any]:
    pool = {"name": "sleepy", "role": "agg", "dgd": "sleepy", "component": "agg", "gpu_type": "h100", "min_replicas": 0}
    kubernetes = {
        "access": "kubeconfig",
        "kubeconfig": str(kubeconfig),
        "context": "test",
        "engine_port": engine_port,
        "operator_managers": ["manager"],
        "write_spacing_s": 0.2,
    }
    return {
        "name": "sleepers",
        "budget": {"gpus": {"h100": {"max": 4}}},
        "cluster": {"kind": "kubernetes", "namespace": namespace, "cold_start_s": 1, "kubernetes": kubernetes},
        "arbiter": {"round_interval_s": 2, "hold_s": 0},
        "api": {"port": 0, "credentials": [{"name": "router", "token_file": str(token), "wake": True}]},
        "groups": [
            {
                "name": "sleepy",
                "model": MODEL,
                "sla": {"ttft_ms": 6000, "itl_ms": 500},
                "pools": [{**pool, "profile": str(PROFILE), "planned": "outside"}],
            }
        ],
    }


@pytest.mark.usefixtures("operator")
async def test_a_request_to_a_model_at_zero_is_answered(
    server: ApiServer, namespace: str, tmp_path: Path, start_router: StartRouter, start_engine: StartEngine
) -> None:
    create(server, namespace, "sleepy", "v1beta1", {"agg": (0, 2)}, adapters=True)
    server.role(namespace, "planner", PLANNER_RULES)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    engine = await start_engine("engine")
    raw = topology(namespace, server.kubeconfig(tmp_path / "kubeconfig", "planner"), token, engine.port)
    plan = parse_topology(json.dumps(raw), source="test", folder=tmp_path)
    clock = REAL_TIME.clock
    loop = ArbiterLoop(Inbox(), clock, interval_s=plan.arbiter.round_interval_s)
    api = ArbiterApi(plan, loop)
    await api.start()
    config = RoundConfig.of(plan, unix_at_zero_s=0.0)
    journal = Journal.open(tmp_path / "journal", at_s=clock.now(), policies=config.policies)
    router = await start_router(
        [{"name": "sleepy", "role": "agg"}],
        planner_url=f"http://127.0.0.1:{api.port}",
        planner_token_file=str(token),
        queue={"deadline_s": 60.0},
    )

    def adapter() -> int:
        found = server.admin.get(f"{ADAPTERS.format(namespace)}/sleepy-agg")
        return int(found["spec"]["replicas"])

    stopping = asyncio.Event()
    try:
        async with surroundings(
            plan, clock, folder=tmp_path, cluster_url="", router_urls=(router.admin,), router_token=None
        ) as around:
            ports = Ports(
                cluster=around.cluster,
                router=around.router,
                pools=loop.inbox,
                journal=journal,
                clock=clock,
                operators=around.operators,
                ledger=around.ledger,
                nodes=around.nodes,
            )
            rounds = asyncio.create_task(
                loop.run(ports, journal.memory, config, lambda: not stopping.is_set(), may_decide=around.may_decide)
            )
            for _ in range(300):
                if loop.last_round is not None or rounds.done():
                    break
                await asyncio.sleep(0.1)
            assert loop.last_round is not None and await asyncio.to_thread(adapter) == 0, "it sleeps"

            asked = {"model": MODEL, "messages": [{"role": "user", "content": "wake up"}]}
            patient = aiohttp.ClientTimeout(total=60)
            async with router.session.post(f"{router.base}/v1/chat/completions", json=asked, timeout=patient) as answer:
                assert answer.status == 200 and (await answer.json())["choices"], await answer.text()
            assert len([one for one in engine.calls if one.path == "/v1/chat/completions"]) == 1
            assert await asyncio.to_thread(adapter) == 1
            woken = loop.last_round.allocation.pools[0]
            assert woken.granted == 1
            stopping.set()
            await asyncio.wait_for(rounds, 20)
    finally:
        stopping.set()
        await api.stop()
        journal.close()
