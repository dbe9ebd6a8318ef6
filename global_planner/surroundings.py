"""[I/O] The world that a deployment's rounds run in, by its topology: mock engines or a Kubernetes cluster, and routers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from global_planner.compile import PLAN_VALID_ROUNDS, pool_specs
from global_planner.config import Topology
from global_planner.control_folder import ControlFolder
from global_planner.mocker.cluster_client import VirtualCluster
from global_planner.ports import Cluster, Ledger, Nodes, Operators, Router
from global_planner.router_client import RouterClient
from global_planner.types import Round
from pool_planner.clock import SpeedClock


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """`may_decide` is asked before each round (a lease is renewed there); `tell` is told of each. None: nobody else decides,
    nobody is to be told. `standing` says in words who decides."""

    cluster: Cluster
    router: Router
    operators: Operators
    ledger: Ledger | None = None
    nodes: Nodes | None = None
    may_decide: Callable[[], Awaitable[bool]] | None = None
    tell: Callable[[Round], None] | None = None
    standing: Callable[[], str] = lambda: "no other process could decide"


@contextlib.asynccontextmanager
async def surroundings(
    topology: Topology,
    clock: SpeedClock,
    *,
    folder: Path,
    cluster_url: str,
    router_urls: tuple[str, ...],
    router_token: str | None,
    log: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[Surroundings]:
    """Open while the block runs; `log` is told what belongs to no round. Raises ClusterUnavailable when a Kubernetes cluster
    cannot be reached or read."""
    pools = pool_specs(topology)
    valid_s = PLAN_VALID_ROUNDS * topology.arbiter.round_interval_s
    async with RouterClient(router_urls, admission_valid_s=valid_s, token=router_token) as routers:
        if topology.cluster.kind == "virtual":
            async with VirtualCluster(cluster_url, pools, clock) as cluster:
                yield Surroundings(cluster=cluster, router=routers, operators=ControlFolder(folder / "control"), nodes=cluster)
            return
        # Here, because the Kubernetes client takes seconds to import, which a system on one machine never needs.
        from global_planner.kubernetes_world import open_world

        async with open_world(topology, pools, clock, log=log) as world:
            yield Surroundings(
                cluster=world.cluster,
                router=routers if world.router is None else world.router,
                operators=world.orders,
                ledger=world.lease,
                nodes=world.nodes,
                may_decide=world.ours,
                tell=world.tell,
                standing=lambda: world.standing.note,
            )
