"""A planner on a real API server and a virtual clock: cluster, lease, ledger and orders are real; router and wishes are not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from global_planner.kubernetes_cluster import KubernetesCluster
from global_planner.kubernetes_nodes import KubernetesNodes
from global_planner.kubernetes_orders import KubernetesOrders
from global_planner.lease import LeaderLease, Standing
from global_planner.memory import PlannerMemory, Policies, Snapshot
from global_planner.ports import EndpointLoad, GroupAdmission, Journal, PoolEndpoints, RouterState
from global_planner.rollout_state import RolloutPolicy
from global_planner.round import Ports, RoundConfig, run_round
from global_planner.types import Budget, GroupSpec, PoolSpec, Round
from global_planner.unrouted import Unrouted
from pool_planner import wire
from pool_planner.connectors.kubernetes import Deployments
from pool_planner.connectors.kubernetes_api import KubernetesApi
from pool_planner.types import Proposal, Report

ROUND_S = 10.0
BUDGET = 16
# group -> role -> (minimum, GPUs of a replica): six pools
FLEET: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "chat": {"prefill": (1, 1), "decode": (1, 2)},
    "code": {"prefill": (1, 1), "decode": (1, 2)},
    "docs": {"prefill": (1, 1), "decode": (1, 1)},
}
PLANNER_RULES: list[dict[str, Any]] = [
    {"apiGroups": ["nvidia.com"], "resources": ["dynamographdeployments"], "verbs": ["get", "list", "watch"]},
    {
        "apiGroups": ["nvidia.com"],
        "resources": ["dynamographdeploymentscalingadapters"],
        "verbs": ["get", "list", "watch"],
    },
    {
        "apiGroups": ["nvidia.com"],
        "resources": ["dynamographdeploymentscalingadapters/scale"],
        "verbs": ["get", "patch", "update"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
]
PATCH_DGDS: dict[str, Any] = {"apiGroups": ["nvidia.com"], "resources": ["dynamographdeployments"], "verbs": ["patch"]}


@dataclass(slots=True)
class Clock:
    """Virtual: it stands unless it is moved. Model time is Unix time, as in a cluster."""

    now_s: float = field(default_factory=lambda: float(int(time.time())))

    def now(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


@dataclass(slots=True)
class IdleRouter:
    """A router process that acknowledges every drain at once and never has work; `busy` endpoints have some."""

    states: dict[str, str] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)

    async def state(self) -> RouterState:
        loads = {
            id_: EndpointLoad(id=id_, state=state, in_flight=int(id_ in self.busy), outstanding_tokens=0)  # type: ignore[arg-type]
            for id_, state in self.states.items()
        }
        return RouterState(processes=1, endpoints=loads)

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None:
        self.states = {endpoint.id: endpoint.state for pool in pools for endpoint in pool.endpoints}

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None:
        self.states.update(dict.fromkeys(endpoints, "draining"))

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None:
        pass


@dataclass(slots=True)
class Records:
    kept: list[bytes] = field(default_factory=list)

    def append(self, record: object) -> None:
        self.kept.append(wire.encode(record))

    def records(self) -> list[object]:
        return [wire.decode(item) for item in self.kept]


@dataclass(slots=True)
class Wants:
    clock: Clock
    wanted: dict[str, int] = field(default_factory=dict)

    def reports(self) -> Mapping[str, Report]:
        now = self.clock.now_s
        return {
            pool: Proposal(pool=pool, at_s=now, expires_at_s=now + 35.0, load_rps=1.0, wanted=number)
            for pool, number in self.wanted.items()
        }


def pools_of(namespace: str, fleet: Mapping[str, Mapping[str, tuple[int, int]]] = FLEET) -> tuple[PoolSpec, ...]:
    return tuple(
        PoolSpec(
            name=f"{group}-{role}",
            group=group,
            role=role,  # type: ignore[arg-type]
            gpu_type="h100",
            gpus_per_replica=gpus,
            dgd=f"{group}-main",
            component=role,
            namespace=namespace,
            min_replicas=minimum,
            start_limit_s=60.0,
        )
        for group, roles in fleet.items()
        for role, (minimum, gpus) in roles.items()
    )


class Leader:
    """A planner at work: everything of it that is not the decision is real."""

    def __init__(
        self,
        api: KubernetesApi,
        namespace: str,
        clock: Clock,
        *,
        pools: Sequence[PoolSpec] | None = None,
        budget: int = BUDGET,
        identity: str = "one",
        lease_s: float = 30.0,
        router: IdleRouter | None = None,
        see_nodes: bool = False,
    ) -> None:
        self.clock, self.api = clock, api
        self.pools = tuple(pools or pools_of(namespace))
        groups = tuple(
            GroupSpec(name=name, model=name, pools=tuple(pool.name for pool in self.pools if pool.group == name))
            for name in dict.fromkeys(pool.group for pool in self.pools)
        )
        self.config = RoundConfig(
            budget=Budget(max_gpus={"h100": budget}),
            groups=groups,
            pools=self.pools,
            policies=Policies(rollout=RolloutPolicy(drain_deadline_s=60.0, backoff_base_s=30.0, backoff_max_s=60.0)),
            people_scale=True,
        )
        self.deployments = Deployments(
            api, [namespace], operators=("manager",), write_deadline_s=3.0, write_spacing_s=0.0, unix_now=clock.now
        )
        self.deployments.start(20.0)
        self.lease = LeaderLease(
            api, namespace=namespace, name="planner", identity=identity, lease_s=lease_s, write_deadline_s=3.0
        )
        self.cluster = KubernetesCluster(
            self.deployments, self.pools, now=clock.now, model_s=lambda unix_s: unix_s, may_write_s=self.lease.left_s
        )
        self.orders = KubernetesOrders(api, namespace=namespace, name="planner-orders")
        self.orders.watch()
        self.orders.list_again(10.0)
        self.nodes = KubernetesNodes(api, {pool.gpu_type for pool in self.pools}) if see_nodes else None
        if self.nodes is not None:
            self.nodes.start()
            assert self.nodes.wait_until_seen(10.0)
        self.router: IdleRouter | Unrouted = router or IdleRouter()
        self.wants = Wants(clock)
        self.memory = PlannerMemory()
        self.journal: Journal = Records()
        self.journal.append(Snapshot(at_s=clock.now_s, memory=self.memory, policies=self.config.policies))
        self.rounds: list[Round] = []
        self.standings: list[Standing] = []

    @property
    def ports(self) -> Ports:
        return Ports(
            cluster=self.cluster,
            router=self.router,
            pools=self.wants,
            journal=self.journal,
            clock=self.clock,
            operators=self.orders,
            ledger=self.lease,
            nodes=self.nodes,
        )

    async def step(self) -> Round | None:
        """A round, if it is ours to decide."""
        standing = await self.lease.stand()
        self.standings.append(standing)
        if standing.kind != "leader":
            return None
        if standing.new:
            await asyncio.to_thread(self.deployments.list_again, 10.0)
        self.memory, done = await run_round(self.ports, self.memory, self.config, timer=time.perf_counter)
        self.rounds.append(done)
        return done

    def close(self) -> None:
        self.deployments.close()
        self.orders.close()
        if self.nodes is not None:
            self.nodes.close()
