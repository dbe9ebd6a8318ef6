"""Who decides in a replay: a contender is what stands between the observations of the pools and the rounds. Pure.

All contenders share engines, router, cluster and rollout; they differ in what they report to the arbiter, in the arbiter's
objective, and in whether the plan limits what the router admits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from global_planner.config import Topology
from global_planner.replay.arrivals import Workload
from pool_planner.performance.profile import Profile
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import fit_jobs, fitted, start, statuses
from pool_planner.types import Grant, Observation, PlannerStatus, Report


class Reporter(Protocol):
    """Reports for some pools, every `tick_s`. `samples`: how often the workers' gauges are read in a tick (0: never)."""

    @property
    def pools(self) -> tuple[str, ...]: ...

    @property
    def tick_s(self) -> float: ...

    @property
    def samples(self) -> int: ...

    def tick(
        self, now: float, observations: Mapping[str, Observation], grants: Mapping[str, Grant], in_flight: Mapping[str, int]
    ) -> tuple[Report, ...]:
        """The reports now. `in_flight`: requests with the pool's engines or waiting for it."""
        ...

    def statuses(self, now: float) -> tuple[PlannerStatus, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Terrain:
    """What a contender is told beforehand: the deployment, its curves by pool, and (for those that know it) the workload."""

    topology: Topology
    profiles: Mapping[str, Profile]
    setups: Mapping[str, PlannerSetup]
    workload: Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """`deploy` may change the deployment and what stands at the start before anything else is made of them; `reporters` makes
    those who report. `admission`: whether the router is told what the plan admits."""

    name: str
    reporters: Callable[[Terrain], tuple[Reporter, ...]]
    deploy: Callable[[Topology, Mapping[str, Profile], Workload], tuple[Topology, Mapping[str, int] | None]] | None = None
    admission: bool = True


class LivePlanner:
    """The pool planner of one DGD, as its actor runs it. A fit that is due runs beside the loop; its result is an event of the
    next tick."""

    def __init__(self, setup: PlannerSetup) -> None:
        self._setup = setup
        self._state = start(setup)
        self._fits = []  # type: ignore[var-annotated]

    @property
    def pools(self) -> tuple[str, ...]:
        return tuple(pool.name for pool in self._setup.pools)

    @property
    def tick_s(self) -> float:
        return self._setup.tick_s

    @property
    def samples(self) -> int:
        return self._setup.samples_per_tick if self._setup.config.enable_load_scaling else 0

    def tick(
        self, now: float, observations: Mapping[str, Observation], grants: Mapping[str, Grant], in_flight: Mapping[str, int]
    ) -> tuple[Report, ...]:
        for pool, series, result in self._fits:
            self._state = fitted(self._state, pool, series, result, now=now)
        self._state, reports = plan(self._state, observations, grants, now, self._setup)
        self._fits = [(pool, series, job.run()) for pool, series, job in fit_jobs(self._state)]
        return reports

    def statuses(self, now: float) -> tuple[PlannerStatus, ...]:
        return statuses(self._state, now=now)


def live_planners(terrain: Terrain) -> tuple[Reporter, ...]:
    return tuple(LivePlanner(setup) for setup in terrain.setups.values())


def objective(name: str) -> Contender:
    """Our planners under one of the arbiter's objectives: goodput, max_min, proportional, first_come; and our door."""

    def deploy(
        topology: Topology, profiles: Mapping[str, Profile], workload: Workload
    ) -> tuple[Topology, Mapping[str, int] | None]:
        return with_arbiter(topology, objective=name), None

    return Contender(name=name, reporters=live_planners, deploy=deploy)


def first_come() -> Contender:
    """Mediation request by request, as systems that have it do it: the planners of deployments ask one after the other, and get
    all they ask for or nothing (`arbiter.baselines`). Such a mediator has no plan of what may be admitted and tells no door
    anything, so everybody who comes waits until an engine takes him. The planners are ours: what they forecast and ask for is
    what they would for us, so this is kinder than the whole of such a system."""
    return replace(objective("first_come"), admission=False)


def first_come_door() -> Contender:
    """`first_come` behind our door, which turns away only who cannot be in time: beside ours this shows what arbitration alone
    is worth, everything else being the same."""
    return replace(objective("first_come"), name="first_come_door")


def with_arbiter(topology: Topology, **changed: object) -> Topology:
    """The deployment with other settings of the arbiter."""
    return topology.model_copy(update={"arbiter": topology.arbiter.model_copy(update=changed)})
