"""[I/O] The Ray shell of a pool planner: holds the state of one DGD's planner, observes, calls `plan`, reports to the arbiter.

The loop runs in a thread with an event loop of its own; when it ends for any reason the process ends too, and Ray starts it
again. A fresh planner knows nothing but what is provisioned (from the arbiter's grants) and learns from there. The arbiter's
absence is no error: the planner goes on observing and forecasting with the grants that it has, and reports when it is back.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pool_planner import wire
from pool_planner.clock import SpeedClock
from pool_planner.forecast import Series
from pool_planner.metrics.names import by_pool
from pool_planner.metrics.own import render
from pool_planner.metrics.serve import MetricsServer
from pool_planner.metrics.source import Source, source_of
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import fit_jobs, fitted, start, statuses
from pool_planner.types import Grant, GrantBatch, MetricsUnavailable, Observation, Report, ReportBatch
from pool_planner.warmup import warmup_of

EXIT_LOOP_ENDED = 70
ARBITER_TIMEOUT_WALL_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerActorSpec:
    """Everything that a (re)started planner needs. `metrics_urls`: the /metrics of every router process. `log`: a file that
    it appends to."""

    dgd: str
    setup: PlannerSetup
    clock: SpeedClock
    metrics_urls: tuple[str, ...]
    log: str

    @property
    def pools(self) -> tuple[str, ...]:
        return tuple(pool.name for pool in self.setup.pools)


class PoolPlannerActor:
    """The planner of one DGD as a Ray actor. `arbiter` is the arbiter's actor name in `namespace`."""

    def __init__(self, spec: PlannerActorSpec, arbiter: str, namespace: str) -> None:
        self._spec = spec
        self._arbiter = arbiter
        self._namespace = namespace
        self._started_at_s = spec.clock.now()
        self._ticks = 0
        self._fits: dict[asyncio.Future[Any], tuple[str, Series]] = {}
        self._handle: Any = None
        self._own_metrics = ""
        self._thread = threading.Thread(target=self._live, name="plans", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        sys.stderr = Path(self._spec.log).open("a", buffering=1)  # noqa: SIM115 - for the life of the process
        try:
            asyncio.run(self._plan_for_ever())
        finally:
            # Reached only by a failure: leave the whole process to Ray, which starts a fresh one.
            traceback.print_exc()
            os._exit(EXIT_LOOP_ENDED)

    async def _plan_for_ever(self) -> None:
        spec, clock = self._spec, self._spec.clock
        state = start(spec.setup, now=clock.now(), warmup=warmup_of(spec.setup))
        grants: Mapping[str, Grant] = {}
        source = source_of(spec.setup, [by_pool(pool) for pool in spec.setup.pools], router_urls=spec.metrics_urls)
        own = await self._serve_own_metrics()
        try:
            while True:
                observations = await self._observe(source)
                now = clock.now()
                for done in [fit for fit in self._fits if fit.done()]:
                    pool, series = self._fits.pop(done)
                    if done.exception() is None:  # a fit that was lost is offered again
                        state = fitted(state, pool, series, done.result(), now=now)
                state, reports = plan(state, observations, grants, now, spec.setup)
                if own is not None:
                    self._own_metrics = render(spec.setup, state, reports, now=now)
                self._start_fits(state)
                self._ticks += 1
                grants = await self._tell(reports, state, grants)
        finally:
            await source.close()
            if own is not None:
                await own.stop()

    async def _serve_own_metrics(self) -> MetricsServer | None:
        """The planner's own /metrics, where its configuration names a port. A port that is taken costs the metrics only."""
        port = self._spec.setup.config.metric_reporting_prometheus_port
        if port is None:
            return None
        server = MetricsServer(lambda: self._own_metrics, port=port)
        try:
            await server.start()
        except OSError as error:
            sys.stderr.write(f"{self._spec.dgd}: no metrics of its own on port {port}: {error}\n")
            return None
        return server

    async def _observe(self, source: Source) -> Mapping[str, Observation]:
        """Wait out one tick, reading the workers' gauges in between, and observe at its end; empty when nothing answers."""
        clock, setup = self._spec.clock, self._spec.setup
        step_s = setup.tick_s / setup.samples_per_tick
        begun = clock.now()
        try:
            for sample in range(1, setup.samples_per_tick + 1):
                # The first tick after a start only takes the counters' first reading: no need to wait for that.
                if self._ticks:
                    await clock.sleep(max(0.0, begun + sample * step_s - clock.now()))
                if sample < setup.samples_per_tick:
                    await source.sample()
            return await source.observe(clock.now())
        except MetricsUnavailable as error:
            sys.stderr.write(f"{self._spec.dgd}: {error}\n")
            await clock.sleep(max(0.0, begun + setup.tick_s - clock.now()))
            return {}

    def _start_fits(self, state: Any) -> None:
        """Run the fits that are due as Ray tasks, one for a series at a time: they must not hold up the loop."""
        running = set(self._fits.values())
        for pool, series, job in fit_jobs(state):
            if (pool, series) not in running:
                task = ray.remote(_run_fit).options(num_cpus=0.1).remote(job)
                self._fits[asyncio.wrap_future(task.future())] = (pool, series)

    async def _tell(self, reports: tuple[Report, ...], state: Any, grants: Mapping[str, Grant]) -> Mapping[str, Grant]:
        """Report to the arbiter; its grants, or those that we have when it does not answer now."""
        batch = ReportBatch(
            dgd=self._spec.dgd,
            pid=os.getpid(),
            started_at_s=self._started_at_s,
            reports=reports,
            statuses=statuses(state, now=self._spec.clock.now()),
        )
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self._arbiter, namespace=self._namespace)
            answer = asyncio.wrap_future(self._handle.report.remote(wire.encode(batch)).future())
            message: bytes = await asyncio.wait_for(answer, ARBITER_TIMEOUT_WALL_S)
        except (ValueError, TimeoutError, ray.exceptions.RayActorError) as error:
            # ValueError: no actor of that name (yet). The next tick tries again; the arbiter holds what it does not hear of.
            sys.stderr.write(f"{self._spec.dgd}: the arbiter did not answer: {type(error).__name__}: {error}\n")
            return grants
        decoded: GrantBatch = wire.decode(message, expect=GrantBatch)
        return {grant.pool: grant for grant in decoded.grants}


def _run_fit(job: Any) -> Any:
    return job.run()
