"""Whom our planning is compared with: fixed fleets, pools that share nothing, an HPA, and one who knows the trace. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from global_planner.compile import planner_setups_of
from global_planner.config import PoolConfig, Topology
from global_planner.replay.arrivals import Workload
from global_planner.replay.contenders import Contender, Reporter, Terrain, live_planners, with_arbiter
from global_planner.replay.hpa import SYNC_S, Autoscaler
from global_planner.replay.needs import PoolLoad, capacity_of, pool_loads, setups_by_pool, shares, static_replicas
from pool_planner.performance.demand import HEADROOM
from pool_planner.performance.profile import Profile
from pool_planner.setup import PoolSetup
from pool_planner.types import Grant, Hold, Observation, PlannerStatus, Proposal, Report

VALID_S = 60.0
BIN_S = 20.0
GUIDE_PREDICTORS = ("arima", "constant", "kalman", "prophet")  # its default first
HPA_SHARE = 0.7  # of the concurrency at which a replica just meets its SLA: where operators usually put the target

Start = Mapping[str, int] | None


# ---- fleets that never move ----------------------------------------------------------------------------------------------


class Silent:
    """Says of each pool what it has."""

    samples = 0

    def __init__(self, pools: Mapping[str, int], tick_s: float) -> None:
        self._replicas = pools
        self.tick_s = tick_s
        self.pools = tuple(pools)

    def tick(
        self, now: float, observations: Mapping[str, Observation], grants: Mapping[str, Grant], in_flight: Mapping[str, int]
    ) -> tuple[Report, ...]:
        return tuple(
            _wish(pool, now, replicas, observations.get(pool), 2 * self.tick_s) for pool, replicas in self._replicas.items()
        )

    def statuses(self, now: float) -> tuple[PlannerStatus, ...]:
        return ()


def _wish(pool: str, now: float, replicas: int, seen: Observation | None, valid_s: float) -> Proposal:
    rate = seen.requests / seen.interval_s if seen is not None and seen.requests is not None else 0.0
    return Proposal(pool=pool, at_s=now, expires_at_s=now + max(VALID_S, valid_s), load_rps=rate, wanted=replicas)


def static(name: str, *, peak: bool, quantile: float = 1.0) -> Contender:
    """Every pool at the replicas that its peak (or that `quantile` of its busy moments, or its mean load) asks for by the
    profile, all the time, from the start. The budget is what that takes: a fleet for everybody's own peak is the price of not
    sharing."""

    def deploy(topology: Topology, profiles: Mapping[str, Profile], workload: Workload) -> tuple[Topology, Start]:
        setups, loads = setups_by_pool(planner_setups_of(topology, profiles)), pool_loads(topology, workload)
        span_s = max(workload.span_s, 1.0)
        fleet = {pool: static_replicas(setups[pool], loads[pool], span_s, peak=peak, quantile=quantile) for pool in setups}
        return _pinned(topology, fleet), fleet

    return Contender(name=name, reporters=_silent, deploy=deploy, admission=False)


class Still:
    """Keeps every pool as it is, whatever comes."""

    samples = 0

    def __init__(self, pools: Sequence[str], tick_s: float) -> None:
        self.tick_s = tick_s
        self.pools = tuple(pools)

    def tick(
        self, now: float, observations: Mapping[str, Observation], grants: Mapping[str, Grant], in_flight: Mapping[str, int]
    ) -> tuple[Report, ...]:
        until_s = now + max(VALID_S, 2 * self.tick_s)
        return tuple(Hold(pool=pool, at_s=now, reason="the fleet stays as it is", expires_at_s=until_s) for pool in self.pools)

    def statuses(self, now: float) -> tuple[PlannerStatus, ...]:
        return ()


def static_start() -> Contender:
    """The fleet that stands at the start, all the time: what is there today."""

    def reporters(terrain: Terrain) -> tuple[Reporter, ...]:
        pools = [pool.name for _, pool in terrain.topology.placed_pools()]
        return (Still(pools, terrain.topology.arbiter.round_interval_s),)

    return Contender(name="static_start", reporters=reporters, admission=False)


def _silent(terrain: Terrain) -> tuple[Reporter, ...]:
    fleet = {pool.name: pool.min_replicas for _, pool in terrain.topology.placed_pools()}
    return (Silent(fleet, terrain.topology.arbiter.round_interval_s),)


def _pinned(topology: Topology, fleet: Mapping[str, int]) -> Topology:
    """The deployment with exactly this fleet, in a budget that holds it."""
    pinned = _with_pools(
        topology,
        lambda pool: {"min_replicas": fleet[pool.name], "max_replicas": max(1, fleet[pool.name]), "guarantee_replicas": 0},
    )
    held: dict[str, int] = {}
    for _, pool in pinned.placed_pools():
        held[pool.gpu_type] = held.get(pool.gpu_type, 0) + fleet[pool.name] * pool.gpus_per_replica
    gpus = {
        name: budget.model_copy(
            update={"max": None if budget.max is None else max(budget.max, held.get(name, 1)), "min_total": 0}
        )
        for name, budget in topology.budget.gpus.items()
    }
    budget = topology.budget.model_copy(update={"gpus": gpus, "limits": ()})
    return pinned.model_copy(update={"budget": budget, "selectors": (), "schedules": (), "overrides": ()})


def _with_pools(topology: Topology, changed: Callable[[PoolConfig], Mapping[str, object]]) -> Topology:
    return topology.model_copy(
        update={
            "groups": tuple(
                group.model_copy(update={"pools": tuple(pool.model_copy(update=changed(pool)) for pool in group.pools)})
                for group in topology.groups
            )
        }
    )


# ---- pools that share nothing --------------------------------------------------------------------------------------------


def independent() -> Contender:
    """Our planners, each pool alone: the budget of each GPU type is divided beforehand, in proportion to what each pool's peak
    asks for, and nobody may go beyond its share."""

    def deploy(topology: Topology, profiles: Mapping[str, Profile], workload: Workload) -> tuple[Topology, Start]:
        setups, loads = setups_by_pool(planner_setups_of(topology, profiles)), pool_loads(topology, workload)
        span_s = max(workload.span_s, 1.0)
        most: dict[str, int] = {}
        for gpu_type, budget in topology.budget.gpus.items():
            pools = {pool.name: pool for _, pool in topology.placed_pools() if pool.gpu_type == gpu_type}
            peaks = {name: static_replicas(setups[name], loads[name], span_s, peak=True) for name in pools}
            if budget.max is None:
                continue
            minima = {name: setups[name].min_replicas for name in pools}
            gpus = {name: pool.gpus_per_replica for name, pool in pools.items()}
            most |= shares(peaks, minima, gpus, budget.max)
        return (
            _with_pools(
                topology,
                lambda pool: (
                    {"max_replicas": max(1, min(pool.max_replicas or most[pool.name], most[pool.name]))}
                    if pool.name in most
                    else {}
                ),
            ),
            None,
        )

    return Contender(name="independent", reporters=live_planners, deploy=deploy)


# ---- an HPA -----------------------------------------------------------------------------------------------------------------


class HpaReporter:
    """One HorizontalPodAutoscaler a pool, on requests in flight. Replicas that are ordered beyond the budget are
    pending, and a GPU that becomes free goes to the one that was ordered first."""

    tick_s = SYNC_S
    samples = 0

    def __init__(self, topology: Topology, setups: Mapping[str, PoolSetup], targets: Mapping[str, float]) -> None:
        self.pools = tuple(setups)
        self._setups = setups
        self._targets = targets
        self._scalers = {pool: Autoscaler() for pool in setups}
        self._budget = {name: budget.max for name, budget in topology.budget.gpus.items()}
        self._gpus = {pool.name: (pool.gpu_type, pool.gpus_per_replica) for _, pool in topology.placed_pools()}
        self._pending: dict[str, list[float]] = {pool: [] for pool in setups}  # when each was ordered

    def tick(
        self, now: float, observations: Mapping[str, Observation], grants: Mapping[str, Grant], in_flight: Mapping[str, int]
    ) -> tuple[Report, ...]:
        ordered: dict[str, int] = {}
        for pool, setup in self._setups.items():
            grant = grants[pool]
            if grant.replicas_spec is None or grant.replicas_ready is None:
                continue
            self._scalers[pool], ordered[pool] = self._scalers[pool].next(
                now,
                in_flight=in_flight[pool],
                target=self._targets[pool],
                ready=grant.replicas_ready,
                spec=grant.replicas_spec,
                least=max(1, setup.min_replicas),
                most=setup.max_replicas,
            )
        scheduled = self._scheduled(now, ordered, grants)
        return tuple(_wish(pool, now, scheduled[pool], observations.get(pool), 4 * SYNC_S) for pool in ordered)

    def _scheduled(self, now: float, ordered: Mapping[str, int], grants: Mapping[str, Grant]) -> Mapping[str, int]:
        """What of the orders finds GPUs."""
        scheduled = {pool: min(count, grants[pool].replicas_spec or 0) for pool, count in ordered.items()}
        free = dict(self._budget)
        for pool, (gpu_type, gpus) in self._gpus.items():
            most = free[gpu_type]
            if most is not None:
                free[gpu_type] = most - scheduled.get(pool, grants[pool].replicas_spec or 0) * gpus
        for pool, count in ordered.items():
            short = count - scheduled[pool]
            self._pending[pool] = [*self._pending[pool], *[now] * short][:short]
        for _, pool in sorted((at_s, name) for name in ordered for at_s in self._pending[name]):
            gpu_type, gpus = self._gpus[pool]
            room = free[gpu_type]
            if room is None or room >= gpus:
                free[gpu_type] = None if room is None else room - gpus
                scheduled[pool] += 1
        return scheduled

    def statuses(self, now: float) -> tuple[PlannerStatus, ...]:
        return ()


def hpa(targets: Mapping[str, float] | None = None) -> Contender:
    """Kubernetes' autoscaler for every pool; where the budget is short, replicas start in the order in which they were ordered;
    and nobody limits what is admitted. `targets`: requests in flight a replica by pool; absent: `HPA_SHARE` of what the profile
    says a replica can have in flight within its SLA, at the workload's mean lengths."""

    def deploy(topology: Topology, profiles: Mapping[str, Profile], workload: Workload) -> tuple[Topology, Start]:
        return with_arbiter(topology, objective="first_come", stability=False), None

    def reporters(terrain: Terrain) -> tuple[Reporter, ...]:
        setups, loads = setups_by_pool(terrain.setups), pool_loads(terrain.topology, terrain.workload)
        known = {pool: concurrency_target(setup, loads[pool]) for pool, setup in setups.items()}
        return (HpaReporter(terrain.topology, setups, {**known, **(targets or {})}),)

    return Contender(name="hpa", reporters=reporters, deploy=deploy, admission=False)


def concurrency_target(setup: PoolSetup, load: PoolLoad) -> float:
    """Requests in flight a replica to aim at: for decode, as many sequences as the ITL allows (KV usage x capacity /
    context); for prefill, as many prompts as fit into the TTFT one after the other; an aggregated replica has what its decode
    allows."""
    engine = setup.engine
    if engine is None or load.at_s.size == 0:
        return 1.0
    isl, osl = float(load.isl.mean()), float(load.osl.mean())
    if engine.decode is not None and setup.role != "prefill":
        context = isl + osl / 2.0
        most = engine.decode.max_kv_usage(engine.itl_ms, context) * engine.decode.max_kv_tokens / context
        return max(1.0, HPA_SHARE * min(most, setup.max_num_seqs))
    assert engine.prefill is not None
    return max(1.0, HPA_SHARE * engine.ttft_ms / engine.prefill.ttft_ms(isl))


# ---- a system as it exists ------------------------------------------------------------------------------------------------


def existing() -> Contender:
    """The whole of an existing system: the planner as its guide describes it (throughput-based, with none of what ours does
    beyond the guide), at the deployment's own rhythm; the mediator of `first_come`, without holds; and no door."""

    def deploy(topology: Topology, profiles: Mapping[str, Profile], workload: Workload) -> tuple[Topology, Start]:
        mediated = with_arbiter(topology, objective="first_come", stability=False)
        pools = _with_pools(mediated, lambda pool: {"planner": _of_the_guide(pool.planner)})
        groups = tuple(group.model_copy(update={"planner": _of_the_guide(group.planner)}) for group in pools.groups)
        planner = {"load_predictor": GUIDE_PREDICTORS[0], **_of_the_guide(topology.planner), "extensions": {"plain": True}}
        return pools.model_copy(update={"groups": groups, "planner": planner}), None

    return Contender(name="existing", reporters=live_planners, deploy=deploy, admission=False)


def _of_the_guide(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A planner's settings, but for those that the guide does not know."""
    strange = (
        {"extensions"} if settings.get("load_predictor") in (None, *GUIDE_PREDICTORS) else {"extensions", "load_predictor"}
    )
    return {name: value for name, value in settings.items() if name not in strange}


# ---- who knows the trace ---------------------------------------------------------------------------------------------------


class Oracle:
    """Reports what will come: the highest load, in bins of `BIN_S` (chance within them is the queueing model's), until what
    is ordered now has started and the next order after it, with the lengths of just those requests; and the mean of that time,
    so that where GPUs are short no peak of one comes before the whole load of another."""

    samples = 0

    def __init__(self, terrain: Terrain, reach_s: float) -> None:
        self._setups = setups_by_pool(terrain.setups)
        self._loads = pool_loads(terrain.topology, terrain.workload)
        self._reach_s = reach_s
        self.pools = tuple(self._setups)
        self.tick_s = terrain.topology.arbiter.round_interval_s

    def tick(
        self, now: float, observations: Mapping[str, Observation], grants: Mapping[str, Grant], in_flight: Mapping[str, int]
    ) -> tuple[Report, ...]:
        return tuple(self._report(pool, setup, now, observations.get(pool)) for pool, setup in self._setups.items())

    def _report(self, pool: str, setup: PoolSetup, now: float, seen: Observation | None) -> Report:
        bins = math.ceil(self._reach_s / BIN_S)
        ahead = self._loads[pool].between(now, now + bins * BIN_S)
        counts = [ahead.between(now + index * BIN_S, now + (index + 1) * BIN_S).at_s.size for index in range(bins)]
        rate = max(counts) / BIN_S
        engine = setup.engine
        if engine is None or rate == 0.0:
            return _wish(pool, now, setup.min_replicas, seen, 3 * self.tick_s)
        capacity = capacity_of(engine, ahead.shape(), setup)
        needed = capacity.needed(rate)
        return Proposal(
            pool=pool,
            at_s=now,
            expires_at_s=now + max(VALID_S, 3 * self.tick_s),
            load_rps=rate,
            expected_rps=ahead.at_s.size / (bins * BIN_S),
            wanted=max(setup.min_replicas, setup.max_replicas if needed is None else needed),
            curve=capacity.curve(rate),
            attainment_headroom=capacity.attainment(HEADROOM * rate),
            reasons=(f"at most {rate:.2f} requests/s will come within {self._reach_s:.0f} s",),
        )

    def statuses(self, now: float) -> tuple[PlannerStatus, ...]:
        return ()


def oracle() -> Contender:
    """Knows the trace and plans for it with our arbiter: the bound that a planner can be measured against. It raises in time
    and lowers at once, because it knows that nothing comes; it starts with what the beginning needs."""

    def deploy(topology: Topology, profiles: Mapping[str, Profile], workload: Workload) -> tuple[Topology, Start]:
        return with_arbiter(topology, objective="goodput", hold_s=0.0), None

    def reporters(terrain: Terrain) -> tuple[Reporter, ...]:
        arbiter = terrain.topology.arbiter
        return (Oracle(terrain, terrain.topology.cluster.cold_start_s + 2.0 * arbiter.round_interval_s),)

    return Contender(name="oracle", reporters=reporters, deploy=deploy)
