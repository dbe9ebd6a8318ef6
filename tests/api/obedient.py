"""A deployment whose cluster does at once what it is told, under the real loop, the real API and a real journal."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from global_planner.api import ApiServer
from global_planner.config import Topology
from global_planner.inbox import Inbox
from global_planner.journal import Journal
from global_planner.live import ArbiterLoop
from global_planner.ports import EndpointLoad, GroupAdmission, PoolEndpoints, RouterState
from global_planner.round import Ports, RoundConfig
from global_planner.topology_file import parse_topology
from global_planner.types import Cancel, Grow, Holding, PoolSpec, Replica, Shrink
from pool_planner.clock import SpeedClock
from tests.topology.refusals import EXAMPLE

ROUND_S = 2.0
TOKENS = {"chat": "sesame-chat", "code": "sesame-code", "door": "sesame-door"}


def _pool(name: str, role: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "role": role, "dgd": name.split("-")[0], "gpu_type": "h100", "profile": "profile", **more}


RAW: dict[str, Any] = {
    "name": "obedient",
    "budget": {"gpus": {"h100": {"max": 8}}},
    "cluster": {"namespace": "prod", "cold_start_s": 1},
    "arbiter": {"round_interval_s": ROUND_S, "hold_s": 0},
    "planner": {"throughput_adjustment_interval": 30},
    "groups": [
        {
            "name": "chat",
            "model": "demo/chat",
            "sla": {"ttft_ms": 6000, "itl_ms": 500},
            "pools": [
                _pool("chat-p", "prefill", min_replicas=1, max_replicas=6),
                _pool("chat-d", "decode", min_replicas=1, max_replicas=6),
            ],
        },
        {
            "name": "code",
            "model": "demo/code",
            "sla": {"ttft_ms": 6000, "itl_ms": 500},
            "pools": [_pool("code-a", "agg", min_replicas=0, max_replicas=6)],
        },
    ],
}


def topology(folder: Path, **api: Any) -> Topology:
    raw = copy.deepcopy(RAW)
    files = {}
    for name, token in TOKENS.items():
        files[name] = folder / f"token-{name}"
        files[name].write_text(token + "\n")
    raw["api"] = {
        "credentials": [
            {"name": "chat", "token_file": str(files["chat"]), "pools": ["chat-*"]},
            {"name": "code", "token_file": str(files["code"]), "pools": ["code-a"]},
            {"name": "door", "token_file": str(files["door"]), "wake": True},
        ],
        **api,
    }
    return parse_topology(json.dumps(raw), source="obedient.yaml", folder=EXAMPLE.parent)


class Obedient:
    """Cluster and router in one: replicas are ready as soon as they are ordered, and drain at once."""

    def __init__(self, specs: Sequence[PoolSpec], clock: SpeedClock) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.have = {spec.name: spec.min_replicas for spec in specs}
        self._versions = dict.fromkeys(self.have, 0)
        self._clock = clock
        self._draining: set[str] = set()

    async def observe(self) -> tuple[Holding, ...]:
        return tuple(
            Holding(
                pool=name,
                at_s=self._clock.now(),
                spec=count,
                version=str(self._versions[name]),
                gpus_per_replica=self.specs[name].gpus_per_replica,
                replicas=tuple(Replica(id=f"{name}-{n}", state="ready", url=f"http://{name}-{n}") for n in range(count)),
            )
            for name, count in self.have.items()
        )

    async def apply(self, step: Shrink | Grow | Cancel) -> None:
        self.have[step.pool] = step.after
        self._versions[step.pool] += 1

    async def state(self) -> RouterState:
        endpoints: dict[str, EndpointLoad] = {}
        for name, count in self.have.items():
            for n in range(count):
                replica = f"{name}-{n}"
                state = "draining" if replica in self._draining else "ready"
                endpoints[replica] = EndpointLoad(id=replica, state=state, in_flight=0, outstanding_tokens=0)  # type: ignore[arg-type]
        return RouterState(processes=1, endpoints=endpoints)

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None:
        self._draining = {one.id for pool in pools for one in pool.endpoints if one.state == "draining"}

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None:
        self._draining |= set(endpoints)

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None: ...


class Deployment:
    """What `deployed` gives: the URL of the API, the cluster behind it, and the loop."""

    def __init__(self, url: str, cluster: Obedient, loop: ArbiterLoop) -> None:
        self.url, self.cluster, self.loop = url, cluster, loop

    def have(self) -> Mapping[str, int]:
        return dict(self.cluster.have)


@asynccontextmanager
async def deployed(folder: Path, *, speed: float = 10.0, **api: Any) -> AsyncIterator[Deployment]:
    """Rounds run until the end of the block. At speed 10 a round takes 0.2 s."""
    whole = topology(folder, **api)
    clock = SpeedClock(origin=0.0, speed=speed)
    config = RoundConfig.of(whole, unix_at_zero_s=0.0)
    cluster = Obedient(config.pools, clock)
    loop = ArbiterLoop(Inbox(), clock, interval_s=ROUND_S)
    going = True
    server = ApiServer(whole, loop)
    await server.start()
    with Journal.open(folder / "journal", at_s=clock.now(), policies=config.policies) as journal:
        ports = Ports(cluster=cluster, router=cluster, pools=loop.inbox, journal=journal, clock=clock)
        running = asyncio.create_task(loop.run(ports, journal.memory, config, lambda: going))
        try:
            assert await loop.round_after(0, 10.0) is not None
            yield Deployment(f"http://127.0.0.1:{server.port}", cluster, loop)
        finally:
            going = False
            await running
            await server.stop()
