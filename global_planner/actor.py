"""[I/O] The Ray shell of the arbiter: a named, detached actor that runs rounds for ever and supervises the pool planners.

The actor holds no decision: it wires ports to `run_round`, keeps the newest report of every pool, and remembers through the
journal, so that a killed process goes on where it stopped. Its loop runs in a thread with an event loop of its own; when that
ends for any reason the process ends too, and Ray starts it again (crash only: no half-alive arbiter).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from global_planner import types as _types
from global_planner.compile import PLAN_VALID_ROUNDS, pool_specs
from global_planner.config import Topology
from global_planner.control_folder import ControlFolder
from global_planner.journal import Journal
from global_planner.mocker.cluster_client import VirtualCluster
from global_planner.planner_grants import grants_of
from global_planner.ray_ward import Ward
from global_planner.round import Ports, RoundConfig, run_round
from global_planner.router_client import RouterClient
from global_planner.types import ArbiterSnapshot, Round
from pool_planner import wire
from pool_planner.actor import PlannerActorSpec, PoolPlannerActor
from pool_planner.clock import SpeedClock
from pool_planner.types import GrantBatch, PlannerStatus, Report, ReportBatch

wire.register_module(_types)

NAMESPACE = "global-planner"
ACTOR_NAME = "global-planner"
NOTES_KEPT = 200
EXIT_LOOP_ENDED = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterActorSpec:
    """Everything that a (re)started arbiter needs; it reads nothing else."""

    topology: Topology
    clock: SpeedClock
    cluster_url: str
    router_urls: tuple[str, ...]
    router_token: str | None
    journal_folder: str
    control_folder: str
    unix_at_zero_s: float
    log: str
    planners: tuple[PlannerActorSpec, ...]


class Inbox:
    """The newest report and status of every pool (port Pools); a report can come at any time from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._statuses: dict[str, PlannerStatus] = {}
        self.pids: dict[str, int] = {}

    def reports(self) -> Mapping[str, Report]:
        with self._lock:
            return dict(self._reports)

    def statuses(self) -> tuple[PlannerStatus, ...]:
        with self._lock:
            return tuple(self._statuses[pool] for pool in sorted(self._statuses))

    def put(self, batch: ReportBatch, pools: frozenset[str]) -> None:
        """Take a planner's reports for the pools it may speak for."""
        with self._lock:
            for report in batch.reports:
                known = self._reports.get(report.pool)
                if report.pool in pools and (known is None or known.at_s <= report.at_s):
                    self._reports[report.pool] = report
            for status in batch.statuses:
                if status.pool in pools:
                    self._statuses[status.pool] = status
            self.pids[batch.dgd] = batch.pid


class GlobalPlannerActor:
    """The arbiter as a Ray actor. Every message is bytes of the wire codec."""

    def __init__(self, spec: ArbiterActorSpec) -> None:
        self._spec = spec
        self._clock = spec.clock
        self._started_at_s = self._clock.now()
        self._inbox = Inbox()
        self._notes: deque[tuple[float, str]] = deque(maxlen=NOTES_KEPT)
        self._last_round: Round | None = None
        self._rounds = 0
        self._pools_of = {planner.dgd: frozenset(planner.pools) for planner in spec.planners}
        self._thread = threading.Thread(target=self._live, name="rounds", daemon=True)
        self._thread.start()

    # ---- messages -------------------------------------------------------------------------------------------------

    def report(self, message: bytes) -> bytes:
        """A planner's reports in, the grants of its pools out. Raises WireError on a malformed message."""
        batch: ReportBatch = wire.decode(message, expect=ReportBatch)
        allowed = self._pools_of.get(batch.dgd, frozenset())
        self._inbox.put(batch, allowed)
        return wire.encode(GrantBatch(grants=grants_of(self._last_round, sorted(allowed), self._clock.now())))

    def snapshot(self) -> bytes:
        """What the arbiter shows of itself, as an ArbiterSnapshot."""
        return wire.encode(
            ArbiterSnapshot(
                pid=os.getpid(),
                started_at_s=self._started_at_s,
                rounds=self._rounds,
                last_round=self._last_round,
                statuses=self._inbox.statuses(),
                planner_pids=dict(self._inbox.pids),
                notes=tuple(self._notes),
            )
        )

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        sys.stderr = Path(self._spec.log).open("a", buffering=1)  # noqa: SIM115 - for the life of the process
        try:
            asyncio.run(self._rounds_for_ever())
        finally:
            # Reached only by a failure: leave the whole process to Ray, which starts a fresh one from the journal.
            traceback.print_exc()
            os._exit(EXIT_LOOP_ENDED)

    async def _rounds_for_ever(self) -> None:
        spec, topology = self._spec, self._spec.topology
        config = RoundConfig.of(topology, unix_at_zero_s=spec.unix_at_zero_s)
        folder = Path(spec.journal_folder)
        journal = Journal.open(
            folder,
            at_s=self._clock.now(),
            policies=config.policies,
            max_mb=topology.arbiter.journal_max_mb,
            max_age_s=topology.arbiter.journal_max_age_s,
        )
        memory = journal.memory
        self._rounds = memory.round_no
        if journal.warning is not None:
            self._note(journal.warning)
        if memory.round_no:
            self._note(f"the arbiter went on after round {memory.round_no} as process {os.getpid()}")
        for planner in spec.planners:
            start_planner(planner)
        interval_s = topology.arbiter.round_interval_s
        async with (
            VirtualCluster(spec.cluster_url, pool_specs(topology), self._clock) as cluster,
            RouterClient(spec.router_urls, admission_valid_s=PLAN_VALID_ROUNDS * interval_s, token=spec.router_token) as router,
        ):
            ports = Ports(
                cluster=cluster,
                router=router,
                pools=self._inbox,
                journal=journal,
                clock=self._clock,
                operators=ControlFolder(Path(spec.control_folder)),
            )
            written = 0.0
            # Cycles are looked for between rounds, never in one; what stands now (modules, topology) is never looked at again.
            gc.collect()
            gc.freeze()
            gc.disable()
            while True:
                due = self._clock.now() + interval_s
                memory, done = await run_round(ports, memory, config, timer=time.perf_counter)
                self._last_round, self._rounds = done, done.inputs.round_no
                for status in self._inbox.statuses():
                    if status.at_s > written:
                        journal.append(status)
                written = max([written, *(status.at_s for status in self._inbox.statuses())])
                gc.collect()
                await self._clock.sleep(max(0.0, due - self._clock.now()))

    def _note(self, text: str) -> None:
        self._notes.append((self._clock.now(), text))


# ---- starting things in Ray ---------------------------------------------------------------------------------------


def start_planner(spec: PlannerActorSpec) -> Any:
    """The detached planner actor of one DGD: the running one, or a new one."""
    options = {
        "name": f"pool-planner/{spec.dgd}",
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    return ray.remote(PoolPlannerActor).options(**options).remote(spec, ACTOR_NAME, NAMESPACE)


class ArbiterClient:
    """The arbiter as a driver sees it. A restart in between is not an error: `snapshot` answers None then."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @staticmethod
    def launch(spec: ArbiterActorSpec) -> ArbiterClient:
        """Start the named arbiter in the Ray cluster that this process is connected to."""
        options = {
            "name": ACTOR_NAME,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": -1,
            "num_cpus": 0,
            "max_concurrency": 4,
        }
        return ArbiterClient(ray.remote(GlobalPlannerActor).options(**options).remote(spec))

    def snapshot(self, timeout_s: float) -> ArbiterSnapshot | None:
        try:
            message = ray.get(self._actor.snapshot.remote(), timeout=timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return None
        answer: ArbiterSnapshot = wire.decode(message, expect=ArbiterSnapshot)
        return answer


class LocalRay:
    """A Ray of our own on loopback, in `folder`, which `ray_environment.prepare` made before Ray was imported."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ward: Ward | None = None

    def start(self) -> None:
        """Start it and connect. Signals stay with those who handled them before: Ray takes SIGTERM over when it starts, and
        would end this process with its own status and a stack trace."""
        self._ward = Ward(self._folder)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._init()
        except SystemExit:  # Ray's answer to a SIGTERM in between: hand it on to whom it was meant for
            _restore(handlers)
            signal.raise_signal(signal.SIGTERM)
            raise
        _restore(handlers)

    def _init(self) -> None:
        ray.init(
            address="local",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self._folder),
            namespace=NAMESPACE,
            include_dashboard=False,
            num_cpus=2,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def stop(self) -> None:
        """End it and remove its folder; harmless when it never started."""
        ray.shutdown()
        if self._ward is not None:
            self._ward.end()


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, action in handlers.items():
        signal.signal(number, action)
