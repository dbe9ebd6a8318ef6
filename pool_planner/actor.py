"""[I/O] The Ray shell of a pool planner: holds the loop of one DGD's planner, whose connector is the arbiter's actor.

The loop runs in a thread with an event loop of its own; when it ends for any reason the process ends too, and Ray starts it
again. A fresh planner knows nothing but what is provisioned (from the arbiter's grants) and learns from there. The arbiter's
absence is no error: the planner goes on observing and forecasting with the grants that it has, and reports when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pool_planner.clock import SpeedClock
from pool_planner.connectors.global_planner import ARBITER_TIMEOUT_WALL_S, ArbiterConnector
from pool_planner.decision_log import say_decisions
from pool_planner.forecast import FitJob
from pool_planner.live import PlannerLoop
from pool_planner.metrics.names import by_pool
from pool_planner.metrics.serve import MetricsServer
from pool_planner.metrics.source import source_of
from pool_planner.setup import PlannerSetup
from pool_planner.types import ClusterUnavailable

EXIT_LOOP_ENDED = 70
NAMESPACE = "global-planner"
_ARBITER = "global-planner@"


def arbiter_name(generation: int) -> str:
    """The name of the arbiter's actor; each one that takes over from another has the next generation."""
    return f"{_ARBITER}{generation}"


def arbiter_generations() -> list[int]:
    """Of all arbiters in this Ray cluster, the oldest first; more than one while one takes over from another."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = [each["name"] for each in named if each["namespace"] == NAMESPACE and each["name"].startswith(_ARBITER)]
    return sorted(int(name.removeprefix(_ARBITER)) for name in names)


def find_arbiter() -> Any:
    """The handle of the newest arbiter. Raises ValueError when there is none."""
    generations = arbiter_generations()
    if not generations:
        raise ValueError(f"no arbiter runs in this Ray cluster (no actor {_ARBITER}N in namespace {NAMESPACE!r})")
    return ray.get_actor(arbiter_name(generations[-1]), namespace=NAMESPACE)


def connected_arbiter() -> RayArbiter:
    """The arbiter of the Ray cluster that RAY_ADDRESS names, or of the one on this machine, for a planner in a process of its
    own. Raises ClusterUnavailable."""
    try:
        ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterUnavailable(f"no Ray cluster can be reached: {error}") from error
    return RayArbiter(find_arbiter)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerActorSpec:
    """Everything that a (re)started planner needs. `metrics_urls`: the /metrics of every router process. `log`: a file that
    it appends to. `code`: of which build of the packages it is."""

    dgd: str
    setup: PlannerSetup
    clock: SpeedClock
    metrics_urls: tuple[str, ...]
    log: str
    code: str = ""

    @property
    def pools(self) -> tuple[str, ...]:
        return tuple(pool.name for pool in self.setup.pools)


class PoolPlannerActor:
    """The planner of one DGD as a Ray actor."""

    def __init__(self, spec: PlannerActorSpec) -> None:
        self._spec = spec
        self._thread = threading.Thread(target=self._live, name="plans", daemon=True)
        self._send = RayArbiter(find_arbiter)
        self._loop: PlannerLoop | None = None
        self._thread.start()

    def adopt(self, spec: PlannerActorSpec) -> bool:
        """Whether this planner could take over another setup as it runs; False: it has to be replaced."""
        mine = self._spec
        if self._loop is None or (mine.code, mine.metrics_urls, mine.clock) != (spec.code, spec.metrics_urls, spec.clock):
            return False
        try:
            self._loop.adopt(spec.setup)
        except ValueError:
            return False
        return True

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
        loop = PlannerLoop(
            spec.setup,
            source=source_of(spec.setup, [by_pool(pool) for pool in spec.setup.pools], router_urls=spec.metrics_urls),
            connector=ArbiterConnector(self._send, dgd=spec.dgd, started_at_s=clock.now()),
            clock=clock,
            fits=RayFits(),
            note=self._note,
            decided=say_decisions,
        )
        self._loop = loop
        own = await self._serve_own_metrics(loop)
        try:
            await loop.run()
        finally:
            if own is not None:
                await own.stop()

    async def _serve_own_metrics(self, loop: PlannerLoop) -> MetricsServer | None:
        """The planner's own /metrics, where its configuration names a port. A port that is taken costs the metrics only."""
        port = self._spec.setup.config.metric_reporting_prometheus_port
        if port is None:
            return None
        server = MetricsServer(lambda: loop.metrics, port=port)
        try:
            await server.start()
        except OSError as error:
            self._note(f"no metrics of its own on port {port}: {error}")
            return None
        return server

    def _note(self, text: str) -> None:
        sys.stderr.write(f"{self._spec.dgd}: {text}\n")


class RayArbiter:
    """Takes reports to the arbiter's actor (`Send` of the connector)."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find
        self._handle: Any = None

    async def __call__(self, message: bytes) -> bytes:
        try:
            if self._handle is None:
                self._handle = self._find()
            answer = asyncio.wrap_future(self._handle.report.remote(message).future())
            found: bytes = await asyncio.wait_for(answer, ARBITER_TIMEOUT_WALL_S)
        except ray.exceptions.RayActorError as error:
            self._handle = None  # it may have been replaced by another: look again
            raise ClusterUnavailable(f"the arbiter did not answer: {type(error).__name__}: {error}") from error
        except (ValueError, TimeoutError, ray.exceptions.RayTaskError) as error:
            # ValueError: no arbiter (yet). The next tick tries again; the arbiter holds what it does not hear of.
            self._handle = None
            raise ClusterUnavailable(f"the arbiter did not answer: {type(error).__name__}: {error}") from error
        return found


class RayFits:
    """Fits as Ray tasks."""

    def start(self, job: FitJob) -> asyncio.Future[Any]:
        task = ray.remote(_run_fit).options(num_cpus=0.1).remote(job)
        return asyncio.wrap_future(task.future())


def _run_fit(job: Any) -> Any:
    return job.run()
