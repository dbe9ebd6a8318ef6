"""[I/O] Everything of a Kubernetes cluster that a deployment's rounds need, opened from its topology and closed again.

async with open_world(topology, pools, clock) as world:
    while await world.ours():                 # the lease is renewed: one call
        memory, done = await run_round(Ports(cluster=world.cluster, ledger=world.lease, operators=world.orders, …), …)
        world.tell(done)                      # Events on the DGDs
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from global_planner.config import Topology
from global_planner.kubernetes_cluster import KubernetesCluster
from global_planner.kubernetes_events import EventTeller
from global_planner.kubernetes_nodes import KubernetesNodes
from global_planner.kubernetes_orders import KubernetesOrders
from global_planner.lease import LeaderLease, Standing
from global_planner.types import PoolSpec, Round
from global_planner.unrouted import Unrouted
from pool_planner.clock import SpeedClock
from pool_planner.connectors.kubernetes import Deployments
from pool_planner.connectors.kubernetes_api import KubernetesApi, connect
from pool_planner.types import ClusterUnavailable, Conflict

LOOK_SHARE = 1.0 / 3.0
"""Share of the lease's duration between two looks at whether it can be had."""
LIST_TIMEOUT_S = 20.0


@dataclass(slots=True, kw_only=True)
class KubernetesWorld:
    """The open cluster. `router` is the port where no router of ours is in front (None: one is). `nodes` None: they are not to
    be looked at. `standing`: who decides, as of the last `ours`."""

    api: KubernetesApi
    deployments: Deployments
    cluster: KubernetesCluster
    lease: LeaderLease
    orders: KubernetesOrders
    events: EventTeller
    router: Unrouted | None
    nodes: KubernetesNodes | None
    lease_s: float
    standing: Standing = field(default_factory=lambda: Standing(kind="standby", note="not asked yet"))
    _listed: bool = False

    async def ours(self) -> bool:
        """Renew or take the lease; whether we decide now. Whoever comes to decide reads everything consistently first."""
        self.standing = await self.lease.stand()
        if self.standing.kind != "leader":
            self._listed = False
            return False
        if self.standing.new or not self._listed:
            try:
                await asyncio.to_thread(self._list_again)
            except ClusterUnavailable as error:
                self.standing = Standing(kind="waiting", note=f"the lease is ours; the cluster cannot be listed: {error}")
                return False
            self._listed = True
        return True

    async def until_ours(self) -> None:
        """Wait until we decide."""
        while not await self.ours():  # noqa: ASYNC110 - a lease in another process's hand has no event
            await asyncio.sleep(self.lease_s * LOOK_SHARE)

    def tell(self, done: Round) -> None:
        """Tell what a round has done, as Events. No call is waited for."""
        self.events.tell(done)

    def _list_again(self) -> None:
        self.deployments.list_again(LIST_TIMEOUT_S)
        if not self.orders.list_again(LIST_TIMEOUT_S):
            raise ClusterUnavailable("operators' orders cannot be listed")
        if self.nodes is not None:
            self.nodes.wait_until_seen(LIST_TIMEOUT_S)  # what is not seen by then is told by the round itself


def api_of(topology: Topology) -> KubernetesApi:
    """The API server of a topology's cluster. Raises ClusterUnavailable."""
    config = topology.cluster.kubernetes
    return connect(access=config.access, kubeconfig=config.kubeconfig, context=config.context)


def orders_of(topology: Topology, api: KubernetesApi) -> KubernetesOrders:
    """What operators set at run time for a topology; commands and rounds find it under the same name."""
    return KubernetesOrders(api, namespace=topology.control_namespace, name=f"{topology.name}-orders")


@contextlib.asynccontextmanager
async def open_world(
    topology: Topology, pools: Sequence[PoolSpec], clock: SpeedClock, *, log: Callable[[str], None] = lambda text: None
) -> AsyncIterator[KubernetesWorld]:
    """`log` is told what belongs to no round. Raises ClusterUnavailable when the cluster cannot be reached or read. The clock
    must run at speed 1: a real cluster knows no other."""
    if clock.speed != 1.0:
        raise ClusterUnavailable(f"a Kubernetes cluster runs in real time, not at speed {clock.speed:g}")
    config = topology.cluster.kubernetes
    api = api_of(topology)
    deployments = Deployments(
        api,
        sorted({pool.namespace for pool in pools}),
        operators=config.operator_managers,
        engine_port=config.engine_port,
        write_deadline_s=config.write_deadline_s,
        write_spacing_s=config.write_spacing_s,
    )
    orders = orders_of(topology, api)
    lease = LeaderLease(
        api,
        namespace=topology.control_namespace,
        name=f"{topology.name}-planner",
        identity=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        lease_s=config.lease_s,
        write_deadline_s=config.write_deadline_s,
    )
    with contextlib.ExitStack() as undo:
        undo.callback(deployments.close)
        undo.callback(orders.close)
        await asyncio.to_thread(deployments.start)
        orders.watch()
        nodes = None
        if config.see_nodes:
            nodes = KubernetesNodes(api, {pool.gpu_type for pool in pools}, label=config.gpu_label)
            undo.callback(nodes.close)
            nodes.start()
        events = EventTeller(api, deployments.dgd, tuple(pools), unix_now=time.time, log=log)
        undo.callback(events.close)
        routed = config.drained_by == "router"
        yield KubernetesWorld(
            api=api,
            deployments=deployments,
            cluster=KubernetesCluster(
                deployments,
                pools,
                now=clock.now,
                model_s=lambda unix_s: unix_s - clock.origin,
                may_write_s=lease.left_s,
                routed=routed,
            ),
            lease=lease,
            orders=orders,
            events=events,
            router=None if routed else Unrouted(),
            nodes=nodes,
            lease_s=config.lease_s,
        )
        with contextlib.suppress(ClusterUnavailable, Conflict):
            await lease.give_up()
