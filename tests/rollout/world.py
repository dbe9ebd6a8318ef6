"""An adversarial cluster, its router processes and its people, all in one deterministic virtual world.

The cluster takes orders late, partly, twice, or not at all; it says "accepted" to one that has no effect yet; the planner
crashes between any two operations; people set replicas by hand at any moment. The world watches what the planner must never
do: use more GPUs than the budget, end a replica that has work, order a pool below its minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from global_planner.ports import EndpointLoad, GroupAdmission, PoolEndpoints, RouterState
from global_planner.types import Budget, Cancel, Grow, Holding, PoolSpec, Replica, Shrink
from pool_planner.types import ClusterUnavailable, Conflict, Report

COLD_START_S = 25.0
TERMINATION_S = 15.0
REQUEST_S = 35.0
KV_PULL_S = 12.0


class Crash(BaseException):
    """The planner's process ends here; everything that it did not write down is gone."""


@dataclass(slots=True)
class Pod:
    id: str
    state: str
    since_s: float
    stuck: bool = False
    was_ready: bool = False


@dataclass(slots=True)
class PoolInWorld:
    spec_: PoolSpec
    ordered: int
    version: int = 1
    pods: list[Pod] = field(default_factory=list)
    doomed: list[str] = field(default_factory=list)
    killed_by_people: int = 0
    made: int = 0

    def live(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.state != "terminating"]

    def gpus(self) -> int:
        ending = len(self.pods) - len(self.live())
        return (max(self.ordered, len(self.live())) + ending) * self.spec_.gpus_per_replica


@dataclass(slots=True)
class RouterProcess:
    states: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, list[float]] = field(default_factory=dict)
    pulling: dict[str, list[float]] = field(default_factory=dict)
    up: bool = True

    def busy(self, endpoint: str) -> bool:
        return bool(self.in_flight.get(endpoint)) or bool(self.pulling.get(endpoint))


@dataclass(slots=True)
class World:
    """`faults` names what happens to the next orders, one each, then "ok" for ever: ok, lost, late, accepted, twice, conflict.
    `at_operation[n]` runs before the n-th operation of a round (people's edits, a Crash). `seen_as` changes what is observed of
    a pool (None: it is not seen)."""

    specs: Sequence[PoolSpec]
    budget: Budget
    now_s: float = 0.0
    pools: dict[str, PoolInWorld] = field(default_factory=dict)
    routers: list[RouterProcess] = field(default_factory=lambda: [RouterProcess(), RouterProcess()])
    reports_now: dict[str, Report] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    late: list[tuple[float, Shrink | Grow | Cancel]] = field(default_factory=list)
    at_operation: dict[int, Callable[[], None]] = field(default_factory=dict)
    operation: int = 0
    cluster_up: bool = True
    broken_starts: bool = False
    lazy: bool = False
    traffic: bool = True
    no_change_moves_version: bool = True
    over_by_people: int = 0
    violations: list[str] = field(default_factory=list)
    admitted: tuple[GroupAdmission, ...] = ()
    seen_as: Callable[[Holding], Holding | None] = lambda holding: holding

    def __post_init__(self) -> None:
        for spec in self.specs:
            self.pools[spec.name] = PoolInWorld(spec_=spec, ordered=spec.min_replicas)
            while len(self.pools[spec.name].pods) < spec.min_replicas:
                self._make(self.pools[spec.name], "ready")

    # ---- the ports -------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        self.pass_time(duration_s)

    def reports(self) -> dict[str, Report]:
        self._operation()
        return self.reports_now

    async def observe(self) -> tuple[Holding, ...]:
        self._operation()
        if not self.cluster_up:
            raise ClusterUnavailable("the API server does not answer")
        self._settle_with_people()
        holdings = (self.seen_as(self._holding(name, pool)) for name, pool in self.pools.items())
        return tuple(holding for holding in holdings if holding is not None)

    def _holding(self, name: str, pool: PoolInWorld) -> Holding:
        return Holding(
            pool=name,
            at_s=self.now_s,
            spec=pool.ordered,
            version=str(pool.version),
            gpus_per_replica=pool.spec_.gpus_per_replica,
            replicas=tuple(
                Replica(id=pod.id, state=pod.state, url=f"http://{pod.id}", since_s=pod.since_s)  # type: ignore[arg-type]
                for pod in pool.pods
            ),
        )

    async def apply(self, step: Shrink | Grow | Cancel) -> None:
        self._operation()
        if not isinstance(step, Grow) and step.after < min(self.pools[step.pool].spec_.min_replicas, step.before):
            self.violations.append(f"{step.pool} ordered down to {step.after}, below its minimum")
        fault = self.faults.pop(0) if self.faults else "ok"
        if not self.cluster_up or fault == "lost":
            raise ClusterUnavailable("timeout")
        if fault == "conflict":
            self.pools[step.pool].version += 1
        if fault == "late":
            self.late.append((self.now_s + 25.0, step))
            raise ClusterUnavailable("timeout; who knows")
        if fault == "accepted":
            self.late.append((self.now_s + 25.0, step))
            return
        if fault == "twice":
            self.late.append((self.now_s + 5.0, step))
        pool = self.pools[step.pool]
        gone = [] if isinstance(step, Grow) else sorted(set(step.victims) - {pod.id for pod in pool.live()})
        if gone or not self._write(step):
            raise Conflict(f"{step.pool} is at version {pool.version}, not {step.version}; gone: {gone}")
        self._operation()

    async def state(self) -> RouterState:
        self._operation()
        if not all(router.up for router in self.routers):
            raise ClusterUnavailable("a router process does not answer")
        endpoints = {}
        for id_ in sorted({id_ for router in self.routers for id_ in router.states}):
            states = [router.states.get(id_, "starting") for router in self.routers]
            state = "ready" if "ready" in states else "starting" if "starting" in states else "draining"
            busy = sum(len(router.in_flight.get(id_, ())) for router in self.routers)
            pulling = sum(len(router.pulling.get(id_, ())) for router in self.routers)
            endpoints[id_] = EndpointLoad(
                id=id_,
                state=state,  # type: ignore[arg-type]
                in_flight=busy,
                outstanding_tokens=100 * busy,
                pending_kv=pulling,
            )
        return RouterState(processes=len(self.routers), endpoints=endpoints)

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None:
        self._operation()
        states = {endpoint.id: endpoint.state for pool in pools for endpoint in pool.endpoints}
        for router in self.routers:
            if router.up:
                router.states = dict(states)
        self._refuse_if_router_down()

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None:
        self._operation()
        for router in self.routers:
            if router.up:
                router.states.update(dict.fromkeys(endpoints, "draining"))
        self._refuse_if_router_down()

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None:
        self._operation()
        self._refuse_if_router_down()
        self.admitted = tuple(groups)

    def _refuse_if_router_down(self) -> None:
        if not all(router.up for router in self.routers):
            raise ClusterUnavailable("a router process does not answer")

    def _operation(self) -> None:
        self.operation += 1
        happens = self.at_operation.pop(self.operation, None)
        if happens is not None:
            happens()
        self._watch()

    # ---- what happens in the world -----------------------------------------------------------------------------------

    def people_set(self, name: str, replicas: int) -> None:
        """Somebody edits the replicas by hand."""
        pool = self.pools[name]
        if replicas == pool.ordered:
            return
        if replicas < pool.ordered:
            pool.killed_by_people += pool.ordered - replicas
        else:
            self.over_by_people += (replicas - pool.ordered) * pool.spec_.gpus_per_replica
        pool.ordered = replicas
        pool.version += 1
        self._watch()

    def pass_time(self, duration_s: float) -> None:
        """Time passes in steps of five seconds."""
        for _ in range(int(duration_s // 5)):
            self.now_s += 5.0
            due = [step for at_s, step in self.late if at_s <= self.now_s]
            self.late = [(at_s, step) for at_s, step in self.late if at_s > self.now_s]
            for step in due:
                self._write(step)
            for pool in self.pools.values():
                self._reconcile(pool)
            self._requests()
            self._watch()

    def used_gpus(self) -> int:
        return sum(pool.gpus() for pool in self.pools.values())

    def settled_at(self, name: str, replicas: int) -> bool:
        """The pool has exactly these replicas, ready, and the router sends to all of them."""
        pool = self.pools[name]
        ready = [pod.id for pod in pool.pods if pod.state == "ready"]
        sent_to = all(router.states.get(id_) == "ready" for router in self.routers for id_ in ready)
        return pool.ordered == replicas == len(ready) == len(pool.pods) and sent_to

    def _write(self, step: Shrink | Grow | Cancel) -> bool:
        pool = self.pools[step.pool]
        if str(pool.version) != step.version:
            return False
        if step.after == pool.ordered and not self.no_change_moves_version:
            return True
        pool.version += 1
        pool.ordered = step.after
        if not isinstance(step, Grow):
            pool.doomed.extend(step.victims)
            if not self.lazy:
                self._reconcile(pool)
        return True

    def _reconcile(self, pool: PoolInWorld) -> None:
        """What the cluster does with one pool in five seconds; when it is lazy, one pod at a time."""
        at_once = 1 if self.lazy else 99
        for pod in [pod for pod in pool.pods if pod.state == "terminating" and self.now_s - pod.since_s >= TERMINATION_S]:
            pool.pods.remove(pod)
            for router in self.routers:
                router.in_flight.pop(pod.id, None)
                router.pulling.pop(pod.id, None)
        for pod in pool.pods:
            if pod.state == "starting" and not pod.stuck and self.now_s - pod.since_s >= COLD_START_S:
                pod.state, pod.since_s, pod.was_ready = "ready", self.now_s, True
        for _ in range(min(at_once, pool.ordered - len(pool.live()))):
            self._make(pool, "starting")
        for _ in range(min(at_once, len(pool.live()) - pool.ordered)):
            self._kill(pool)
        if len(pool.live()) <= pool.ordered:
            pool.doomed.clear()
            pool.killed_by_people = 0

    def _make(self, pool: PoolInWorld, state: str) -> None:
        pool.made += 1
        id_ = f"{pool.spec_.name}-{pool.made}"
        pool.pods.append(Pod(id_, state, self.now_s, self.broken_starts and state == "starting", state == "ready"))

    def _kill(self, pool: PoolInWorld) -> None:
        """The cluster removes one pod: named victims first, then the youngest that never was ready, then any."""

        def key(pod: Pod) -> tuple[bool, bool, float]:
            return (pod.id not in pool.doomed, pod.was_ready, -pod.since_s)

        victim = min(pool.live(), key=key)
        busy = any(router.busy(victim.id) for router in self.routers)
        if victim.id not in pool.doomed and victim.was_ready and pool.killed_by_people:
            pool.killed_by_people -= 1
        elif busy:
            self.violations.append(f"t={self.now_s}: {victim.id} was ended with work in flight")
        victim.state, victim.since_s = "terminating", self.now_s

    def _requests(self) -> None:
        """Requests end, the blocks of prefills are pulled a while later, and new ones come."""
        alive = {pod.id: pool.spec_.role for pool in self.pools.values() for pod in pool.live() if pod.state == "ready"}
        for router in self.routers:
            for id_, ends in router.in_flight.items():
                done = [end for end in ends if end <= self.now_s]
                router.in_flight[id_] = [end for end in ends if end > self.now_s]
                if alive.get(id_) == "prefill":
                    router.pulling.setdefault(id_, []).extend(end + KV_PULL_S for end in done)
            for id_, ends in router.pulling.items():
                router.pulling[id_] = [end for end in ends if end > self.now_s]
        if self.traffic:
            self.burst()

    def burst(self) -> None:
        """A request for every endpoint that a router process takes for ready, from every process."""
        alive = {pod.id for pool in self.pools.values() for pod in pool.live() if pod.state == "ready"}
        for router in self.routers:
            for id_ in sorted(alive):
                if router.states.get(id_) == "ready":
                    router.in_flight.setdefault(id_, []).append(self.now_s + REQUEST_S)

    def _watch(self) -> None:
        """The sum of charges never exceeds the budget because of us."""
        for gpu_type, limit in self.budget.max_gpus.items():
            used = self._used(gpu_type)
            if used > limit + self.over_by_people:
                self.violations.append(f"t={self.now_s}: {used} {gpu_type} used of {limit} (+{self.over_by_people} by people)")

    def _used(self, gpu_type: str) -> int:
        return sum(pool.gpus() for pool in self.pools.values() if pool.spec_.gpu_type == gpu_type)

    def _settle_with_people(self) -> None:
        """What people added is theirs until the planner could see it, and it fits with the orders that are under way."""
        for gpu_type, limit in self.budget.max_gpus.items():
            under_way = 0
            for _, step in self.late:
                pool = self.pools[step.pool]
                if pool.spec_.gpu_type == gpu_type and str(pool.version) == step.version:
                    under_way += max(0, step.after - pool.ordered) * pool.spec_.gpus_per_replica
            if self._used(gpu_type) + under_way <= limit:
                self.over_by_people = 0


def specs() -> tuple[PoolSpec, ...]:
    """Two disaggregated groups and an aggregated one, replicas of 1, 2 and 4 GPUs."""

    def pool(name: str, role: str, gpus: int, minimum: int) -> PoolSpec:
        group = name.split("-")[0]
        return PoolSpec(
            name=name,
            group=group,
            role=role,  # type: ignore[arg-type]
            gpu_type="h100",
            gpus_per_replica=gpus,
            dgd=f"{group}-main",
            component=role,
            namespace="test",
            min_replicas=minimum,
            start_limit_s=100.0,
        )

    return (
        pool("chat-prefill", "prefill", 1, 1),
        pool("chat-decode", "decode", 2, 1),
        pool("code-prefill", "prefill", 1, 1),
        pool("code-decode", "decode", 2, 0),
        pool("docs-agg", "agg", 4, 0),
    )


def with_mode(pools: Sequence[PoolSpec], name: str, mode: str) -> tuple[PoolSpec, ...]:
    return tuple(replace(pool, mode=mode) if pool.name == name else pool for pool in pools)  # type: ignore[arg-type]
