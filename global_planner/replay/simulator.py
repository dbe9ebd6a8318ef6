"""A deployment in virtual time: the live code over a workload, and what came of it. Pure.

    outcome = simulate(Scenario(topology=…, profiles=load_profiles(topology), workload=merge([...])), objective("goodput"))

What runs is what runs live: `pool_planner.plan` behind a `Reporter` for each DGD, `round.run_round` (arbiter and rollout),
the router's `policy` and `admission`; only cluster (`world`), engines (`engine`) and clock are models. Time jumps from event
to event: what an engine does next, the next arrival, a token of admission, something due in the cluster, a planner's tick, a
round. At one moment they happen in this order. Everything that is random comes from `Scenario.seed`, so the same scenario
gives the same outcome to the byte.

- Add a policy: a `contenders.Contender`. Its reporters get the observations, the grants and the requests in flight of their
  pools.
- Add a workload: columns (`arrivals.arrivals`), merged (`arrivals.merge`); models without requests are fine.
- Read single requests: `each` is called with (model index in the topology's order, priority, arrival s, TTFT s, ITL s or NaN,
  outcome: scores.COMPLETED, SHED or FAILED) for every request that ended, in batches, in the order of their ends.
- Read decisions: pass a `journal` (the port; `journal.Journal` writes the real thing, which `explain` and `replay --check`
  read).

What is counted as cost is the GPU time of all replicas, starting and ending ones included, from 0 to `Scenario.window_s`;
requests that are under way then are played to their end without being charged. `Outcome` holds sums and columns, whose size
does not depend on the number of requests.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf, log, sqrt

import numpy as np

from global_planner.compile import (
    PLAN_VALID_ROUNDS,
    engine_specs,
    planner_setups_of,
    pool_specs,
    router_config_of,
    virtual_pools,
)
from global_planner.config import Topology
from global_planner.demo.series import bin_s
from global_planner.planner_grants import grants_of
from global_planner.ports import Journal
from global_planner.replay.contenders import Contender, Reporter, Terrain
from global_planner.replay.dispatch import Dispatch
from global_planner.replay.scenario import ColdStart, Outcome, Scenario
from global_planner.replay.scores import Scores
from global_planner.replay.sensing import PoolSense, in_flight
from global_planner.replay.stations import Endpoint
from global_planner.replay.timeline import Timeline
from global_planner.replay.world import Fault, World, finish
from global_planner.round import HURRIED_SHARE, PlannerMemory, Ports, RoundConfig, run_round
from global_planner.types import Cancel, Grow, Round, Shrink
from global_planner.woken import at_zero
from router.types import WAKE_EVERY_S

COLLECT_AFTER = 200_000  # objects: what requests leave behind has no cycles, and looking for some took a tenth of the time
REST_S = 3600.0  # how long requests that are under way at the end are waited for; what is not done then has failed

CLUSTER, FAULT, SAMPLE, TICK, ROUND = range(5)  # the order of what happens at one moment, after engines, arrivals, admission


class _Forgetful:
    """A journal that keeps nothing."""

    def append(self, record: object) -> None:
        return None


class Simulation:
    """One replay; `run` it once."""

    def __init__(
        self,
        scenario: Scenario,
        contender: Contender,
        *,
        journal: Journal | None = None,
        each: Callable[[int, int, float, float, float, int], None] | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        topology, start = scenario.topology, dict(scenario.start)
        if contender.deploy is not None:
            topology, stands = contender.deploy(topology, scenario.profiles, scenario.workload)
            start = start if stands is None else dict(stands)
        self._topology, self._scenario, self._contender = topology, scenario, contender
        self._progress = progress
        workload = scenario.workload
        self.window_s = workload.span_s if scenario.window_s is None else scenario.window_s
        width_s = scenario.bin_s or bin_s(self.window_s)
        self._scores = Scores(
            [(group.sla.ttft_ms / 1e3, group.sla.itl_ms / 1e3) for group in topology.groups],
            width_s=width_s,
            span_s=max(self.window_s, width_s),
            each=each,
        )
        picking, starting = np.random.SeedSequence(scenario.seed).spawn(2)
        # Without admission nobody is turned away: neither by the plan's rates nor by what engines can begin in time.
        router = router_config_of(topology, profiles=scenario.profiles if contender.admission else None)
        if scenario.pick is not None:
            router = router.model_copy(
                update={
                    "models": tuple(
                        model.model_copy(
                            update={"pools": tuple(pool.model_copy(update={"pick": scenario.pick}) for pool in model.pools)}
                        )
                        for model in router.models
                    )
                }
            )
        self._heap: list[tuple[float, int, Endpoint]] = []
        self._serial = 0
        self.dispatch = Dispatch(
            router,
            profiles=scenario.profiles,
            told_lengths=scenario.told_lengths,
            scores=self._scores,
            changed=self._look_again,
            met_zero=self._wake,
            limited=contender.admission,
            seed=picking,
        )
        minima = {pool.name: pool.replicas for pool in virtual_pools(topology)}
        self._round_config = RoundConfig.of(topology, unix_at_zero_s=scenario.unix_at_zero_s)
        self._specs = pool_specs(topology)
        self.world = World(
            self._specs,
            {**engine_specs(topology, scenario.profiles), **scenario.engines},
            self.dispatch,
            start={**minima, **{pool: n for pool, n in start.items() if pool in minima}},
            cold_start_s=_draws(scenario.cold_start, topology, np.random.default_rng(starting)),
            termination_s=topology.cluster.termination_s,
            plan_valid_s=PLAN_VALID_ROUNDS * topology.arbiter.round_interval_s,
            prefix_cache=scenario.prefix_cache and workload.blocks is not None,
            engine_changed=self._look_again,
        )
        setups = planner_setups_of(topology, scenario.profiles)
        self._reporters = contender.reporters(
            Terrain(topology=topology, profiles=scenario.profiles, setups=setups, workload=workload)
        )
        self._senses = {
            name: PoolSense(self.dispatch.stations[name]) for reporter in self._reporters for name in reporter.pools
        }
        self._journal: Journal = journal if journal is not None else _Forgetful()
        self._ports = Ports(cluster=self.world, router=self.world, pools=self.world, journal=self._journal, clock=self.world)
        self._memory = PlannerMemory()
        self._last: Round | None = None
        self._next_round = 0  # which entry of the agenda is the next round: one that is hurried takes the place of the other
        self._round_at_s = 0.0
        self._woken: dict[str, float] = {}
        self._group_pools = {group.model: frozenset(pool.name for pool in group.pools) for group in topology.groups}
        self._agenda: list[tuple[float, int, int, object]] = []
        self._timeline = Timeline([spec.name for spec in self._specs], [group.name for group in topology.groups])
        self._hurried = False
        self._counts = dict.fromkeys(("rounds", "moves", "grown", "shrunk", "over"), 0)

    # ---- time ----------------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Play the workload to its end."""
        thresholds = gc.get_threshold()
        gc.set_threshold(COLLECT_AFTER, *thresholds[1:])
        try:
            return self._play()
        finally:
            gc.set_threshold(*thresholds)

    def _play(self) -> Outcome:
        world, dispatch, heap = self.world, self.dispatch, self._heap
        for reporter in self._reporters:
            self._plan_ticks(reporter, 0.0)
        for fault in self._scenario.faults:
            self._due(fault.at_s, FAULT, fault)
        self._due(0.0, ROUND, 0)
        lanes = [dispatch.lanes.get(model) for model in self._scenario.workload.models]
        unknown = [model for model, lane in zip(self._scenario.workload.models, lanes, strict=True) if lane is None]
        if unknown:
            known = ", ".join(dispatch.lanes)
            raise ValueError(f"the topology has no model {unknown[0]!r} (has: {known})")
        rows = self._scenario.workload.rows()
        row = next(rows, None)
        arrives_s = inf if row is None else row[0]
        appointed_s = self._appointed_s()
        events = 0
        while True:
            due_s = heap[0][0] if heap else inf
            planned_s = dispatch.pump_at_s if dispatch.pump_at_s < appointed_s else appointed_s
            if due_s <= arrives_s and due_s <= planned_s:
                _, _, endpoint = heappop(heap)
                if endpoint.due_s != due_s:
                    continue
                events += 1
                endpoint.due_s = inf
                dispatch.engine_events(endpoint, due_s)
                if self._hurried:
                    self._hurried, appointed_s = False, self._appointed_s()
                engine = endpoint.engine
                if engine is not None:
                    if endpoint.ending and engine.idle:
                        world.now_s = due_s
                        world.idle_at_last(endpoint)
                        appointed_s = self._appointed_s()
                    else:
                        self._look_again(endpoint, due_s)
            elif arrives_s <= planned_s:
                if arrives_s > self.window_s:
                    row, arrives_s = None, inf
                    continue
                assert row is not None
                events += 1
                lane = lanes[row[1]]
                assert lane is not None
                dispatch.arrive(lane, row)
                if self._hurried:
                    self._hurried, appointed_s = False, self._appointed_s()
                row = next(rows, None)
                arrives_s = inf if row is None else row[0]
            else:
                over = planned_s > self.window_s and row is None
                if (over and not dispatch.busy) or planned_s > self.window_s + REST_S:
                    break
                events += 1
                world.now_s = planned_s
                self._planned(planned_s)
                appointed_s = self._appointed_s()
        dispatch.give_up(world.now_s)
        return self._outcome(events)

    def _appointed_s(self) -> float:
        """When the cluster or the agenda has something to do next; only they themselves change it."""
        agenda_s, cluster_s = self._agenda[0][0], self.world.cluster_due_s
        return agenda_s if agenda_s < cluster_s else cluster_s

    def _look_again(self, endpoint: Endpoint, now: float) -> None:
        """An engine may have something else to do next."""
        engine = endpoint.engine
        due_s = inf if engine is None else engine.next_event_at()
        if due_s != endpoint.due_s:
            endpoint.due_s = due_s
            if due_s < inf:
                self._serial += 1
                heappush(self._heap, (due_s, self._serial, endpoint))

    def _due(self, at_s: float, kind: int, what: object) -> None:
        self._serial += 1
        heappush(self._agenda, (at_s, kind, self._serial, what))

    def _planned(self, now: float) -> None:
        """Admission first, then the cluster, then what is on the agenda."""
        if self.dispatch.pump_at_s <= now:
            self.dispatch.pump(now)
        elif self.world.cluster_due_s <= now:
            self.world.cluster_time()
        else:
            _, kind, _, what = heappop(self._agenda)
            if kind == FAULT:
                assert isinstance(what, Fault)
                self.world.happens(what)
            elif kind == SAMPLE:
                for name in what:  # type: ignore[attr-defined]
                    self._senses[name].sample(self.dispatch.flights, now)
            elif kind == TICK:
                self._tick(what, now)  # type: ignore[arg-type]
            elif what == self._next_round:
                self._round(now)

    # ---- planners and arbiter ----------------------------------------------------------------------------------------------

    def _plan_ticks(self, reporter: Reporter, now: float) -> None:
        """The next tick of a planner, and the samples before it."""
        for index in range(reporter.samples):
            self._due(now + reporter.tick_s * (index + 1) / reporter.samples, SAMPLE, reporter.pools)
        self._due(now + reporter.tick_s, TICK, reporter)

    def _tick(self, reporter: Reporter, now: float) -> None:
        observations = {name: self._senses[name].observe(now, reporter.tick_s) for name in reporter.pools}
        grants = {grant.pool: grant for grant in grants_of(self._last, reporter.pools, now)}
        loads = {name: in_flight(self.dispatch.stations[name]) for name in reporter.pools}
        for report in reporter.tick(now, observations, grants, loads):
            self.world.inbox[report.pool] = report
        for status in reporter.statuses(now):
            self._timeline.status(status)
            self._journal.append(status)
        self._plan_ticks(reporter, now)

    def _wake(self, model: str, now: float) -> None:
        """A request met a model at zero: as the live router and API, which ask for a replica and hurry the next round."""
        if now < self._woken.get(model, -inf) + WAKE_EVERY_S:
            return
        self._woken[model] = now
        zero = at_zero(self._last) & self._group_pools[model]
        if zero:
            self.world.woken.wake(sorted(zero), now + self._topology.api.wake_for_s)
            self._next_round_at(max(now, self._round_at_s + HURRIED_SHARE * self._topology.arbiter.round_interval_s))
            self._hurried = True

    def _next_round_at(self, at_s: float) -> None:
        self._next_round += 1
        self._due(at_s, ROUND, self._next_round)

    def _round(self, now: float) -> None:
        self.world.woken.at(now, at_zero(self._last))
        self._round_at_s = now
        self._memory, done = finish(run_round(self._ports, self._memory, self._round_config, timer=lambda: 0.0))
        self._last = done
        if now <= self.window_s:
            self._timeline.round(done)
            self._count(done)
        self._next_round_at(now + self._topology.arbiter.round_interval_s)
        if self._progress is not None:
            self._progress(min(now, self.window_s), self._scores.ended)

    def _count(self, done: Round) -> None:
        counts = self._counts
        counts["rounds"] += 1
        counts["over"] += any(done.charged_gpus.get(name, 0) > most for name, most in done.inputs.budget.max_gpus.items())
        for outcome in done.outcomes:
            step = outcome.step
            if outcome.applied and isinstance(step, Grow | Shrink | Cancel) and step.before != step.after:
                counts["moves"] += 1
                counts["grown" if step.after > step.before else "shrunk"] += abs(step.after - step.before)

    def _outcome(self, events: int) -> Outcome:
        topology, scores = self._topology, self._scores
        most_held = dict(self.world.state_.peak_gpus())
        limits = self._round_config.budget.max_gpus
        return Outcome(
            policy=self._contender.name,
            topology=topology,
            window_s=self.window_s,
            scores={group.model: scores.of(index) for index, group in enumerate(topology.groups)},
            over_time={group.model: scores.over_time(index) for index, group in enumerate(topology.groups)},
            timeline=self._timeline,
            gpu_hours={name: gpu_s / 3600.0 for name, gpu_s in sorted(self.world.gpu_s_until(self.window_s).items())},
            most_held=most_held,
            rounds=self._counts["rounds"],
            moves=self._counts["moves"],
            grown=self._counts["grown"],
            shrunk=self._counts["shrunk"],
            budget_violations=self._counts["over"] + sum(most_held.get(name, 0) > most for name, most in limits.items()),
            ejections=dict(self.dispatch.ejected),
            events=events,
        )


def simulate(
    scenario: Scenario,
    contender: Contender,
    *,
    journal: Journal | None = None,
    each: Callable[[int, int, float, float, float, int], None] | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> Outcome:
    """Play a scenario with a contender. `progress` is told (model seconds, requests ended) every round. Raises ValueError for a
    workload whose model the topology does not have."""
    return Simulation(scenario, contender, journal=journal, each=each, progress=progress).run()


def _draws(cold_start: ColdStart | None, topology: Topology, rng: np.random.Generator) -> float | Callable[[], float]:
    """The cold starts of a cluster, one after the other."""
    if cold_start is None:
        return topology.cluster.cold_start_s
    if cold_start.cv <= 0.0 or cold_start.mean_s <= 0.0:
        return cold_start.mean_s
    sigma = sqrt(log(1.0 + cold_start.cv**2))
    mu = log(cold_start.mean_s) - sigma**2 / 2.0
    return lambda: float(rng.lognormal(mu, sigma))
