"""[I/O] The loop of a live planner: observe, plan, have it carried out. The same in a Ray actor and in a process of its own.

    wait a tick, sampling ─► observe ─► what the pools have ─► plan ─► own metrics ─► carry out

No failure of the world ends it: it is noted, what is unknown is held by `plan`, and the next tick tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pool_planner.clock import SpeedClock
from pool_planner.connectors.port import Connector
from pool_planner.forecast import FitJob, Series
from pool_planner.metrics.own import render
from pool_planner.metrics.source import Source
from pool_planner.performance.profile import raw_profile
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import PlannerState, fit_jobs, fitted, start, statuses
from pool_planner.types import Grant, MetricsUnavailable, Observation, Report, WorldError
from pool_planner.warmup import warmup_of


class Fits(Protocol):
    """Where slow forecast fits run, so that they do not hold up the loop."""

    def start(self, job: FitJob) -> asyncio.Future[Any]: ...


class PlannerLoop:
    """The planner of one deployment. `note(text)` is told of failures, `decided(reports, grants, now)` of every plan.

    `metrics` is the planner's own exposition after the last plan, `planned_at_s` when that was (None: not yet).
    """

    def __init__(
        self,
        setup: PlannerSetup,
        *,
        source: Source,
        connector: Connector,
        clock: SpeedClock,
        fits: Fits,
        note: Callable[[str], None],
        decided: Callable[[tuple[Report, ...], Mapping[str, Grant], float], None] | None = None,
    ) -> None:
        self._setup = setup
        self._source = source
        self._connector = connector
        self._clock = clock
        self._fits = fits
        self._note = note
        self._decided = decided
        self._running: dict[asyncio.Future[Any], tuple[str, Series]] = {}
        self._ticks = 0
        self.metrics = ""
        self.planned_at_s: float | None = None

    @property
    def setup(self) -> PlannerSetup:
        return self._setup

    def adopt(self, setup: PlannerSetup) -> None:
        """Plan with other limits and targets from the next tick on, keeping what was learned. Raises ValueError when pools,
        profiles or the rest of the configuration are not the same: then what was learned is about something else."""
        if not may_adopt(self._setup, setup):
            raise ValueError("other pools, profiles or another planner configuration: this planner has to be replaced")
        self._setup = setup

    async def run(self) -> None:
        """For ever; ends only by cancellation or a failure of our own."""
        clock = self._clock
        state = start(self._setup, now=clock.now(), warmup=warmup_of(self._setup))
        try:
            while True:
                observations = await self._observe()
                now = clock.now()
                state = self._take_fits(state, now)
                grants = await self._grants(now)
                state, reports = plan(state, observations, grants, now, self._setup)
                self.metrics = render(self._setup, state, reports, now=now)
                self.planned_at_s = now
                self._start_fits(state)
                self._ticks += 1
                if self._decided is not None:
                    self._decided(reports, grants, now)
                await self._carry_out(reports, state, now)
        finally:
            await self._source.close()
            await self._connector.close()

    async def _observe(self) -> Mapping[str, Observation]:
        """Wait out one tick, reading the workers' gauges in between, and observe at its end; empty when nothing answers."""
        clock, setup = self._clock, self._setup
        step_s = setup.tick_s / setup.samples_per_tick
        begun = clock.now()
        try:
            for sample in range(1, setup.samples_per_tick + 1):
                # The first tick after a start only takes the counters' first reading: no need to wait for that.
                if self._ticks:
                    await clock.sleep(max(0.0, begun + sample * step_s - clock.now()))
                if sample < setup.samples_per_tick:
                    await self._source.sample()
            return await self._source.observe(clock.now())
        except MetricsUnavailable as error:
            self._note(f"no observation: {error}")
            # After a failure at the very start, too: nothing that is down is asked faster than once a tick.
            await clock.sleep(max(0.0, begun + setup.tick_s - clock.now()))
            self._ticks += 1
            return {}

    async def _grants(self, now: float) -> Mapping[str, Grant]:
        try:
            return await self._connector.grants(now)
        except WorldError as error:
            self._note(f"what the pools have is not known: {error}")
            return {}

    async def _carry_out(self, reports: tuple[Report, ...], state: PlannerState, now: float) -> None:
        try:
            await self._connector.carry_out(reports, statuses(state, now=now), now)
        except WorldError as error:
            self._note(f"this plan was not carried out: {error}")

    def _take_fits(self, state: PlannerState, now: float) -> PlannerState:
        for done in [fit for fit in self._running if fit.done()]:
            pool, series = self._running.pop(done)
            if not done.cancelled() and done.exception() is None:  # a fit that was lost is offered again
                state = fitted(state, pool, series, done.result(), now=now)
        return state

    def _start_fits(self, state: PlannerState) -> None:
        """Start the fits that are due, one for a series at a time."""
        running = set(self._running.values())
        for pool, series, job in fit_jobs(state):
            if (pool, series) not in running:
                self._running[self._fits.start(job)] = (pool, series)


_LIMITS = ("min_endpoint", "max_gpu_budget", "min_gpu_budget", "ttft", "itl")


def may_adopt(running: PlannerSetup, other: PlannerSetup) -> bool:
    """Whether what a planner learned under one setup is about the same under the other."""
    return _what_learning_is_about(running) == _what_learning_is_about(other)


def _what_learning_is_about(setup: PlannerSetup) -> object:
    config = setup.config.model_dump(exclude=set(_LIMITS))
    # Curves are compared by what they were made of: two of the same data are different objects.
    return config, [
        (pool.name, pool.role, pool.gpus_per_replica, None if pool.profile is None else raw_profile(pool.profile))
        for pool in setup.pools
    ]
