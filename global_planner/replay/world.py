"""A cluster and a router in virtual time, as the ports of a round. Pure.

The cluster is the books of the virtual cluster (`mocker.cluster_state`: orders, versions, cold starts, endings), with engine
models where that has processes. The router is `dispatch`. Nothing here ever waits, so that a round runs from its first line
to its last at one moment of virtual time.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Literal, TypeVar

from global_planner.mocker.cluster_records import Command, Faults, Launch, Nonsense, StaleVersion, Terminate, VirtualPool
from global_planner.mocker.cluster_state import ClusterState
from global_planner.ports import EndpointLoad, GroupAdmission, PoolEndpoints, RouterState
from global_planner.replay.arrivals import BLOCK_TOKENS
from global_planner.replay.dispatch import Dispatch
from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineSpec
from global_planner.replay.prefix_cache import PrefixCache
from global_planner.replay.stations import Endpoint
from global_planner.types import Cancel, Grow, Holding, PoolSpec, Shrink
from global_planner.types import Replica as ReplicaSeen
from global_planner.woken import Woken
from pool_planner.types import ClusterUnavailable, Conflict, Report
from router.limits import RateLimit

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong at `at_s`. `kill`: a ready replica of the pool (the one that became ready first) dies with all it had,
    and the cluster replaces it; `slow`: that one takes `times` as long for everything; `hang`: replicas that start do not
    become ready any more. `recover` ends both in the whole pool."""

    at_s: float
    pool: str
    kind: Literal["kill", "slow", "hang", "recover"]
    times: float = 5.0


def finish(doing: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits for anything."""
    try:
        doing.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("something waited in virtual time")


class World:
    """Ports `Clock`, `Cluster`, `Router` and `Pools` at once; `now_s` is set by whoever moves time on."""

    def __init__(
        self,
        pools: Sequence[PoolSpec],
        engines: Mapping[str, EngineSpec],
        dispatch: Dispatch,
        *,
        start: Mapping[str, int],
        cold_start_s: float | Callable[[], float],
        termination_s: float,
        plan_valid_s: float,
        prefix_cache: bool,
        engine_changed: Callable[[Endpoint, float], None],
    ) -> None:
        self.now_s = 0.0
        self.cluster_due_s = inf
        self.inbox: dict[str, Report] = {}
        self.woken = Woken()
        self.admitted: tuple[GroupAdmission, ...] = ()
        self._pools = tuple(pools)
        self._specs = engines
        self._dispatch = dispatch
        self._plan_valid_s = plan_valid_s
        self._plans = 0
        self._prefix_cache = prefix_cache
        self._engine_changed = engine_changed
        self._engines: dict[str, Replica] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._held: list[tuple[float, dict[str, int]]] = []
        self.state_ = ClusterState(
            [
                VirtualPool(
                    name=pool.name,
                    gpu_type=pool.gpu_type,
                    gpus_per_replica=pool.gpus_per_replica,
                    replicas=start[pool.name],
                )
                for pool in pools
            ],
            cold_start_s=cold_start_s,
            initial_cold_start_s=0.0,
            termination_s=termination_s,
        )
        self._carry_out(self.state_.start(0.0))

    # ---- Clock, Pools --------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.now_s

    async def sleep(self, duration_s: float) -> None:
        raise RuntimeError("nobody sleeps in virtual time")

    def reports(self) -> Mapping[str, Report]:
        return {**self.inbox, **self.woken.raised(self.inbox)}

    # ---- Cluster -------------------------------------------------------------------------------------------------------

    async def observe(self) -> tuple[Holding, ...]:
        books = self.state_
        return tuple(
            Holding(
                pool=pool.name,
                at_s=self.now_s,
                spec=books.spec(pool.name),
                version=books.version(pool.name),
                replicas=tuple(
                    ReplicaSeen(
                        id=item.id,
                        state=item.state,
                        url=item.url,
                        since_s=item.since_s,
                        unschedulable=item.unschedulable,
                        progress_at_s=item.progress_at_s,
                    )
                    for item in books.replicas(pool.name)
                ),
                gpus_per_replica=pool.gpus_per_replica,
                cold_start_s=max(books.cold_starts_s(pool.name), default=None),
            )
            for pool in self._pools
        )

    async def apply(self, step: Shrink | Grow | Cancel) -> None:
        victims = () if isinstance(step, Grow) else step.victims
        try:
            commands = self.state_.scale(step.pool, step.after, victims, step.version, self.now_s)
        except StaleVersion as error:
            raise Conflict(str(error)) from error
        except Nonsense as error:
            raise ClusterUnavailable(f"{step.pool}: {error}") from error
        self._carry_out(commands)

    def cluster_time(self) -> None:
        """Do what is due in the cluster now."""
        self._carry_out(self.state_.tick(self.now_s))

    def _carry_out(self, commands: Sequence[Command]) -> None:
        """Processes start and end at once, as far as they can; what follows from that is carried out too."""
        todo = list(commands)
        while todo:
            command = todo.pop(0)
            if isinstance(command, Launch):
                todo += self.state_.healthy(command.replica, f"virtual://{command.replica}", self.now_s)
            elif isinstance(command, Terminate):
                engine = self._engines.get(command.replica)
                if engine is not None:
                    engine.drain()
                    endpoint = self._endpoints.get(command.replica)
                    if endpoint is not None:
                        endpoint.ending = True
                if engine is None or engine.idle:
                    todo += self._gone(command.replica, "told to end")
            else:
                todo += self._gone(command.replica, "killed")
        for pool in self._pools:
            for replica in self.state_.replicas(pool.name):
                if replica.state == "ready" and replica.id not in self._engines:
                    self._engines[replica.id] = Replica(self._specs[pool.name], ready_at_s=self.now_s)
        self._count_gpus()
        due = self.state_.next_due_s()
        self.cluster_due_s = inf if due is None else due

    def _gone(self, replica: str, how: str) -> list[Command]:
        """The process of a replica is gone, with whatever was still in it."""
        self._engines.pop(replica, None)
        endpoint = self._endpoints.pop(replica, None)
        if endpoint is not None:
            endpoint.due_s = inf
            self._dispatch.lost(endpoint, self.now_s)
        return self.state_.exited(replica, how, self.now_s)

    def idle_at_last(self, endpoint: Endpoint) -> None:
        """An engine that was told to end has nothing left to do."""
        self._carry_out(self._gone(endpoint.id, "told to end"))

    def happens(self, fault: Fault) -> None:
        """A fault of the scenario."""
        ready = [item for item in self.state_.replicas(fault.pool) if item.state == "ready"]
        first = min(ready, key=lambda item: item.number).id if ready else None
        if fault.kind == "kill":
            if first is not None:
                self._carry_out(self._gone(first, "died"))
        elif fault.kind == "slow":
            if first is not None:
                self._engines[first].slowness = fault.times
        else:
            if fault.kind == "recover":
                for item in ready:
                    self._engines[item.id].slowness = 1.0
            self._carry_out(self.state_.trouble(fault.pool, Faults(hang=fault.kind == "hang"), self.now_s))

    # ---- what is held ------------------------------------------------------------------------------------------------------

    def _count_gpus(self) -> None:
        held = dict(self.state_.held_gpus())
        if not self._held or held != self._held[-1][1]:
            self._held.append((self.now_s, held))

    def gpu_s_until(self, end_s: float) -> dict[str, float]:
        """GPU-seconds by type from 0 to `end_s`, starting and ending replicas included."""
        total: dict[str, float] = {}
        for (since_s, held), (until_s, _) in pairwise([*self._held, (inf, {})]):
            for gpu_type, gpus in held.items():
                lasted_s = max(0.0, min(until_s, end_s) - since_s)
                total[gpu_type] = total.get(gpu_type, 0.0) + gpus * lasted_s
        return total

    # ---- Router --------------------------------------------------------------------------------------------------------

    async def state(self) -> RouterState:
        return RouterState(
            processes=1,
            endpoints={
                one.id: EndpointLoad(
                    id=one.id,
                    state=one.state,
                    in_flight=one.in_flight,
                    outstanding_tokens=round(one.outstanding_tokens),
                    pending_kv=one.pending_kv,
                    healthy=one.engine is not None,
                )
                for station in self._dispatch.stations.values()
                for one in station.endpoints.values()
            },
        )

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None:
        told = {pool.name: pool.endpoints for pool in pools}
        for station in self._dispatch.stations.values():
            named = {one.id: one for one in told.get(station.name, ())}
            for endpoint in station.endpoints.values():
                if endpoint.id not in named:
                    endpoint.known, endpoint.state = False, "draining"
            for one in named.values():
                found = station.endpoints.get(one.id)
                if found is None:
                    found = station.endpoints[one.id] = Endpoint(one.id, station)
                found.state, found.known = one.state, True
                if found.engine is None and one.id in self._engines:
                    self._attach(found)
            station.refresh()
        self._dispatch.pump(self.now_s)

    def _attach(self, endpoint: Endpoint) -> None:
        """The router reaches the engine of an endpoint."""
        engine = endpoint.engine = self._engines[endpoint.id]
        self._endpoints[endpoint.id] = endpoint
        if self._prefix_cache and endpoint.station.role != "decode":
            capacity = engine.spec.kv_capacity_tokens
            endpoint.cache = PrefixCache((1 << 40 if capacity is None else capacity) // BLOCK_TOKENS, block_tokens=BLOCK_TOKENS)
        self._engine_changed(endpoint, self.now_s)

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None:
        station = self._dispatch.stations[pool]
        for name in endpoints:
            endpoint = station.endpoints.get(name)
            if endpoint is not None:
                endpoint.state = "draining"
        station.refresh()

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None:
        self._plans += 1
        self.admitted = tuple(groups)
        limits = {
            group.model: RateLimit(
                rate_rps=group.admitted_rps,
                burst=group.burst,
                in_flight=group.in_flight,
                in_flight_by_pool=group.in_flight_by_pool,
                by_priority=group.by_priority,
            )
            for group in groups
        }
        self._dispatch.put_plan(self._plans, limits, valid_s=self._plan_valid_s, now=self.now_s)
