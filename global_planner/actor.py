"""[I/O] The Ray shell of the arbiter: a named, detached actor that runs rounds while it is its turn, and starts the planners.

The actor holds no decision: it wires ports to `run_round`, keeps the newest report of every pool, and remembers through the
journal, so that a killed process goes on where it stopped. Its loop runs in a thread with an event loop of its own; when that
ends for any reason the process ends too, and Ray starts it again (crash only: no half-alive arbiter).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from global_planner import compiled_arbiter
from global_planner import types as _types
from global_planner.api import ApiServer
from global_planner.build import build
from global_planner.compile import planner_setups_of
from global_planner.condition_log import ConditionLog
from global_planner.config import Topology
from global_planner.inbox import Inbox, on_our_clock
from global_planner.journal import Journal
from global_planner.live import LOOK_WALL_S, ArbiterLoop
from global_planner.round import Ports, RoundConfig
from global_planner.surroundings import surroundings
from global_planner.system_clock import SystemClock
from global_planner.topology_file import load_profiles
from global_planner.turns import turn
from global_planner.types import ArbiterSnapshot, Round
from pool_planner import wire
from pool_planner.actor import NAMESPACE, PlannerActorSpec, PoolPlannerActor, arbiter_name
from pool_planner.clock import SpeedClock
from pool_planner.types import ClusterUnavailable, GrantBatch, ReportBatch

wire.register_module(_types)

NOTES_KEPT = 200
EXIT_LOOP_ENDED = 70
JOURNAL_WITHIN_WALL_S = 30.0
"""How long the one before may take to end its round and close the journal."""
_PLANNER = "pool-planner/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterActorSpec:
    """Everything that a (re)started arbiter needs. `folder` is shared with those before and after it (see `turns`), and holds
    the journal and what operators set; `generation` tells them apart. `code`: of which build of the packages it is."""

    topology: Topology
    clock: SpeedClock
    cluster_url: str
    router_urls: tuple[str, ...]
    router_token: str | None
    folder: str
    unix_at_zero_s: float
    planners: tuple[PlannerActorSpec, ...]
    generation: int = 1
    code: str = ""

    @property
    def journal_folder(self) -> Path:
        return Path(self.folder) / "journal"


class GlobalPlannerActor:
    """The arbiter as a Ray actor. Every message is bytes of the wire codec."""

    def __init__(self, spec: ArbiterActorSpec) -> None:
        self._spec = spec
        self._clock = spec.clock
        self._started_at_s = self._clock.now()
        self._notes: deque[tuple[float, str]] = deque(maxlen=NOTES_KEPT)
        self._rounds = 0
        self._loop = ArbiterLoop(Inbox(), spec.clock, interval_s=spec.topology.arbiter.round_interval_s)
        self._standing: Callable[[], str] = lambda: "it is not this arbiter's turn"
        self._pools_of = {planner.dgd: frozenset(planner.pools) for planner in spec.planners}
        self._conditions = ConditionLog()
        self._outside = _planned_outside(spec.topology)
        self._thread = threading.Thread(target=self._live, name="rounds", daemon=True)
        self._thread.start()

    # ---- messages -------------------------------------------------------------------------------------------------

    def report(self, message: bytes) -> bytes:
        """A planner's reports in, the grants of its pools out (none while it is not this arbiter's turn). Raises WireError on a
        malformed message, and ValueError when a planner that was not started here reports for pools that are not its own."""
        batch: ReportBatch = wire.decode(message, expect=ReportBatch)
        allowed = self._pools_of.get(batch.dgd)
        if allowed is None:
            allowed = self._outside.get(batch.dgd, frozenset())
            strangers = sorted({report.pool for report in batch.reports} - allowed)
            if strangers:
                has = ", ".join(sorted(allowed)) or "none"
                raise ValueError(f"{strangers[0]!r} is no pool of DGD {batch.dgd} that is planned outside (has: {has})")
            batch = on_our_clock(batch, self._clock.now())
        self._loop.inbox.put(batch, allowed)
        return wire.encode(GrantBatch(grants=self._loop.grants(sorted(allowed))))

    def snapshot(self) -> bytes:
        """What the arbiter shows of itself, as an ArbiterSnapshot."""
        done, inbox = self._loop.last_round, self._loop.inbox
        return wire.encode(
            ArbiterSnapshot(
                pid=os.getpid(),
                started_at_s=self._started_at_s,
                rounds=self._rounds if done is None else done.inputs.round_no,
                last_round=done,
                statuses=inbox.statuses(),
                planner_pids=dict(inbox.pids),
                notes=tuple(self._notes),
            )
        )

    def standing(self) -> Standing:
        """Which deployment this arbiter decides for, and whether it is its turn."""
        spec = self._spec
        return Standing(
            deployment=spec.topology.name,
            folder=spec.folder,
            generation=spec.generation,
            leading=self._loop.leading,
            code=spec.code,
            note=self._standing(),
        )

    # ---- the loop -------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        sys.stderr = (Path(self._spec.folder) / "arbiter.log").open("a", buffering=1)
        sys.stderr.write(f"{compiled_arbiter.CHOSEN}\n")
        try:
            asyncio.run(self._turns())
        finally:
            # Reached only by a failure: leave the whole process to Ray, which starts a fresh one from the journal.
            traceback.print_exc()
            os._exit(EXIT_LOOP_ENDED)

    async def _turns(self) -> None:
        """Decide whenever it is this arbiter's turn, and stay out of the way when it is not, until somebody ends it."""
        folder, mine = Path(self._spec.folder), self._spec.generation
        while True:
            while turn(folder) != mine:  # noqa: ASYNC110 - a file in another process's hand has no event
                await asyncio.sleep(LOOK_WALL_S)
            await self._rounds_while_it_is_ours()
            self._note(f"arbiter {mine} has handed over to {turn(folder)}")

    async def _rounds_while_it_is_ours(self) -> None:
        spec, topology = self._spec, self._spec.topology
        config = RoundConfig.of(topology, unix_at_zero_s=spec.unix_at_zero_s)
        journal = await self._journal(config)
        memory = journal.memory
        self._rounds = memory.round_no
        if journal.warning is not None:
            self._note(journal.warning)
        if memory.round_no:
            self._note(f"the arbiter went on after round {memory.round_no} as process {os.getpid()}")
        planners = asyncio.create_task(asyncio.to_thread(supervise, spec.planners))
        api = ApiServer(topology, self._loop)
        try:
            await api.start()
            (Path(spec.folder) / "api.json").write_text(json.dumps({"host": topology.api.host, "port": api.port}) + "\n")
        except OSError as error:
            self._note(f"no API on {topology.api.host}:{topology.api.port}: {error}")
        async with surroundings(
            topology,
            self._clock,
            folder=Path(spec.folder),
            cluster_url=spec.cluster_url,
            router_urls=spec.router_urls,
            router_token=spec.router_token,
            log=_log,
        ) as around:
            self._standing = around.standing
            ports = Ports(
                cluster=around.cluster,
                router=around.router,
                pools=self._loop.inbox,
                journal=journal,
                clock=self._clock,
                operators=around.operators,
                ledger=around.ledger,
                nodes=around.nodes,
            )
            await self._loop.run(
                ports,
                memory,
                config,
                lambda: turn(Path(spec.folder)) == spec.generation,
                may_decide=around.may_decide,
                tell=lambda done: self._tell(done, around.tell),
            )
        await api.stop()
        journal.close()
        if planners.done() and planners.exception() is not None:
            self._note(f"not all planners could be started: {planners.exception()}")

    def _tell(self, done: Round, further: Callable[[Round], None] | None) -> None:
        """What has begun or ended to be worth knowing goes to the log; what was done goes to whoever else is told."""
        for line in self._conditions.lines(done.conditions, done.inputs.at_s):
            _log(f"round {done.inputs.round_no}: {line}")
        if further is not None:
            further(done)

    async def _journal(self, config: RoundConfig) -> Journal:
        """The journal, once whoever decided before has closed it. Raises ClusterUnavailable when that takes too long."""
        arbiter = self._spec.topology.arbiter
        ends = time.monotonic() + JOURNAL_WITHIN_WALL_S
        while True:
            try:
                return Journal.open(
                    self._spec.journal_folder,
                    at_s=self._clock.now(),
                    policies=config.policies,
                    max_mb=arbiter.journal_max_mb,
                    max_age_s=arbiter.journal_max_age_s,
                )
            except ClusterUnavailable:
                if time.monotonic() > ends:
                    raise
            await asyncio.sleep(LOOK_WALL_S / 4.0)

    def _note(self, text: str) -> None:
        self._notes.append((self._clock.now(), text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What an arbiter says of its place among others; `note` says in words who decides."""

    deployment: str
    folder: str
    generation: int
    leading: bool
    code: str
    note: str


def arbiter_spec(
    topology: Topology,
    *,
    folder: Path,
    system_clock: SystemClock,
    generation: int,
    cluster_url: str,
    router_urls: tuple[str, ...],
    router_token: str | None,
) -> ArbiterActorSpec:
    """What the arbiter of a deployment is started with, and its planners: one for each DGD that is planned inside. Raises
    TopologyError when a profile cannot be read any more."""
    clock, code = system_clock.clock, build()
    return ArbiterActorSpec(
        topology=topology,
        clock=clock,
        cluster_url=cluster_url,
        router_urls=router_urls,
        router_token=router_token,
        folder=str(folder),
        generation=generation,
        unix_at_zero_s=system_clock.unix_at_zero_s,
        code=code,
        planners=tuple(
            PlannerActorSpec(
                dgd=dgd,
                setup=setup,
                clock=clock,
                metrics_urls=tuple(f"{url}/metrics" for url in router_urls),
                log=str(folder / f"planner-{dgd}.log"),
                code=code,
            )
            for dgd, setup in planner_setups_of(topology, load_profiles(topology)).items()
        ),
    )


def _log(text: str) -> None:
    """A line of `arbiter.log`, which is this process's standard error."""
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


def _planned_outside(topology: Topology) -> dict[str, frozenset[str]]:
    """By DGD: the pools whose planner is a process of its own, which may report through Ray all the same."""
    found: dict[str, set[str]] = {}
    for _, pool in topology.placed_pools():
        if pool.planned == "outside":
            found.setdefault(pool.dgd_name, set()).add(pool.name)
    return {dgd: frozenset(pools) for dgd, pools in found.items()}


# ---- starting things in Ray ---------------------------------------------------------------------------------------


def supervise(specs: Sequence[PlannerActorSpec]) -> dict[str, str]:
    """One detached planner a DGD: those that run and can take over their spec go on with what they learned, others are
    replaced, and those of no DGD any more are ended. By DGD: what was done. Blocks; to be called off the loop."""
    done: dict[str, str] = {}
    wanted = {f"{_PLANNER}{spec.dgd}": spec for spec in specs}
    named = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if each["namespace"] == NAMESPACE}
    for name in sorted(named - set(wanted)):
        if name.startswith(_PLANNER):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
            done[name.removeprefix(_PLANNER)] = "ended"
    for name, spec in wanted.items():
        if name in named:
            running = ray.get_actor(name, namespace=NAMESPACE)
            if _adopts(running, spec):
                done[spec.dgd] = "kept"
                continue
            ray.kill(running)
        done[spec.dgd] = "replaced" if name in named else "started"
        start_planner(spec)
    return done


def _adopts(running: Any, spec: PlannerActorSpec) -> bool:
    try:
        return bool(ray.get(running.adopt.remote(spec), timeout=ADOPT_WITHIN_WALL_S))
    except (ray.exceptions.RayError, TimeoutError):
        return False


ADOPT_WITHIN_WALL_S = 10.0


def start_planner(spec: PlannerActorSpec) -> Any:
    """The detached planner actor of one DGD."""
    options = {
        "name": f"{_PLANNER}{spec.dgd}",
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    return ray.remote(PoolPlannerActor).options(**options).remote(spec)


class ArbiterClient:
    """The arbiter as a driver sees it. A restart in between is not an error: `snapshot` answers None then."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @staticmethod
    def launch(spec: ArbiterActorSpec, *, on_head: bool = False) -> ArbiterClient:
        """Start the arbiter of this generation in the Ray cluster that this process is connected to; it decides once it is
        given the turn. `on_head`: on the head node, where its folder is."""
        options: dict[str, Any] = {
            "name": arbiter_name(spec.generation),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": -1,
            "num_cpus": 0,
            "max_concurrency": 4,
        }
        if on_head:
            options["resources"] = {"node:__internal_head__": 0.001}
        return ArbiterClient(ray.remote(GlobalPlannerActor).options(**options).remote(spec))

    @staticmethod
    def find(generation: int) -> ArbiterClient:
        """Raises ValueError when there is none of that generation."""
        return ArbiterClient(ray.get_actor(arbiter_name(generation), namespace=NAMESPACE))

    def snapshot(self, timeout_s: float) -> ArbiterSnapshot | None:
        try:
            message = ray.get(self._actor.snapshot.remote(), timeout=timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return None
        answer: ArbiterSnapshot = wire.decode(message, expect=ArbiterSnapshot)
        return answer

    def standing(self, timeout_s: float) -> Standing | None:
        """None: it does not answer now."""
        try:
            found: Standing = ray.get(self._actor.standing.remote(), timeout=timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return None
        return found

    def end(self) -> None:
        """End it for good."""
        ray.kill(self._actor)
