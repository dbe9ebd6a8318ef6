"""[I/O] A planner in a process of its own: `python -m pool_planner --config FILE` until SIGTERM.

    configuration ─► setup ─► source (Prometheus, routers) ─┐
                         └──► connector (environment) ──────┴─► PlannerLoop, a JSON line a decision on standard error

Started once for a deployment, as the guide describes it: nothing of Ray or of the arbiter is needed, unless it reports there.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pool_planner.clock import SpeedClock
from pool_planner.config import COMPONENTS, PlannerConfig
from pool_planner.connectors.global_planner import ArbiterConnector, HttpArbiter, Send
from pool_planner.connectors.port import Connector
from pool_planner.connectors.virtual import VirtualConnector
from pool_planner.connectors.writers import OPERATOR_MANAGERS, OUR_MANAGERS
from pool_planner.decision_log import say, say_decisions
from pool_planner.forecast import FitJob
from pool_planner.live import PlannerLoop
from pool_planner.metrics.discovery import discovery_of
from pool_planner.metrics.names import PoolSeries, by_namespace, by_pool
from pool_planner.metrics.serve import MetricsServer
from pool_planner.metrics.source import source_of
from pool_planner.performance.profile import Profile
from pool_planner.setup import ROLES, PlannerSetup, SetupError, setup_from_config
from pool_planner.types import Role, WorldError

if TYPE_CHECKING:  # the Kubernetes client takes seconds to import, which only an own DGD is worth
    from pool_planner.connectors.own_dgd import Place

UNWELL_TICKS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standalone:
    """How the process runs, beside what its PlannerConfig says. `kubernetes_namespace` None: as the Dynamo namespace says.

    `names` by role: what the arbiter calls the pools (absent: the components' names). `replicas` by pool: what an outside
    system has at the beginning. `send`: the way to the arbiter (None: no arbiter is configured). `series`: whose series are
    the pool's: those of its Dynamo namespace, or those that our router labels with the pool.
    """

    dgd: str
    kubernetes_namespace: str | None = None
    gpus_per_replica: Mapping[Role, int] = field(default_factory=dict)
    names: Mapping[Role, str] = field(default_factory=dict)
    replicas: Mapping[str, int] = field(default_factory=dict)
    series: Literal["namespace", "pool"] = "namespace"
    send: Send | None = None
    listen_host: str = "127.0.0.1"
    listen_port: int = 8090
    metrics_host: str = "127.0.0.1"
    token: str | None = None
    decision_timeout_s: float = 1800.0


def with_gpus(options: Standalone, gpus_per_replica: Mapping[Role, int]) -> Standalone:
    """With what was observed, or assumed, where nothing was given."""
    return replace(options, gpus_per_replica={**gpus_per_replica, **options.gpus_per_replica})


def setup_of(config: PlannerConfig, profile: Profile | None, options: Standalone) -> PlannerSetup:
    """The pools that are planned, under the names that whoever carries decisions out knows them by. Raises SetupError."""
    setup = setup_from_config(config, profile, gpus_per_replica=options.gpus_per_replica)
    known = {pool.role for pool in setup.pools}
    for role in options.names:
        if role not in known:
            raise SetupError(f"--pool {role}=…: mode {config.mode} has no {role} pool (has: {', '.join(sorted(known))})")
    setup = replace(setup, pools=tuple(replace(pool, name=options.names.get(pool.role, pool.name)) for pool in setup.pools))
    strangers = sorted(set(options.replicas) - {pool.name for pool in setup.pools})
    if strangers:
        raise SetupError(f"--replicas {strangers[0]}=…: no such pool (has: {', '.join(pool.name for pool in setup.pools)})")
    return setup


async def run(setup: PlannerSetup, connector: Connector, options: Standalone, clock: SpeedClock) -> None:
    """Plan until SIGTERM or SIGINT. Raises SetupError (nothing to observe) and OSError (a port that is taken)."""
    stop = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop.set)
    fits = ProcessFits()
    loop = PlannerLoop(
        setup,
        source=source_of(setup, _series(setup, options), discovery=discovery_of(setup.config, dgd=options.dgd)),
        connector=connector,
        clock=clock,
        fits=fits,
        note=lambda text: say("trouble", text=text),
        decided=say_decisions,
    )
    own = _metrics_server(loop, options, clock)
    if own is not None:
        await own.start()
        say("listening", what="metrics", port=own.port)
    pools = {pool.name: pool.gpus_per_replica for pool in setup.pools}
    say("started", dgd=options.dgd, environment=setup.config.environment, gpus_per_replica=pools, tick_s=setup.tick_s)
    planning = asyncio.create_task(loop.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({planning, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if planning.done():
            planning.result()
    finally:
        for task in (planning, stopping):
            task.cancel()
        await asyncio.gather(planning, stopping, return_exceptions=True)
        if own is not None:
            await own.stop()
        fits.close()
    say("stopped", dgd=options.dgd)


async def connected(
    config: PlannerConfig, profile: Profile | None, options: Standalone, clock: SpeedClock
) -> tuple[PlannerSetup, Connector]:
    """What is planned, and who carries decisions out, by `environment`. Raises SetupError, OSError (a port that is taken) and
    ClusterUnavailable."""
    if config.environment == "kubernetes":
        return await _own_dgd(config, profile, options)
    setup = setup_of(config, profile, with_gpus(options, dict.fromkeys(("prefill", "decode", "agg"), 1)))
    if config.environment == "global-planner":
        if options.send is None:
            raise SetupError(
                "environment: 'global-planner' needs the arbiter's address: --arbiter URL (or GLOBAL_PLANNER_URL), or "
                "--arbiter ray in a Ray cluster"
            )
        close = options.send.close if isinstance(options.send, HttpArbiter) else None
        return setup, ArbiterConnector(options.send, dgd=options.dgd, started_at_s=clock.now(), close=close)
    connector = VirtualConnector(
        [pool.name for pool in setup.pools],
        host=options.listen_host,
        port=options.listen_port,
        clock=clock.now,
        note=lambda text: say("virtual", text=text),
        replicas=options.replicas,
        token=options.token,
        timeout_s=options.decision_timeout_s,
    )
    await connector.start()
    say("listening", what="decisions", port=connector.port)
    return setup, connector


async def _own_dgd(config: PlannerConfig, profile: Profile | None, options: Standalone) -> tuple[PlannerSetup, Connector]:
    """The planner's own DGD in the cluster that it runs in, or that a kubeconfig names."""
    from pool_planner.connectors.kubernetes import Deployments
    from pool_planner.connectors.kubernetes_api import connect
    from pool_planner.connectors.own_dgd import OwnDgd, observed_gpus

    place = place_of(config, options)
    deployments = Deployments(connect(), [place.namespace], manager=OUR_MANAGERS[1], operators=OPERATOR_MANAGERS)
    try:
        await asyncio.to_thread(deployments.start)
        observed = observed_gpus(deployments, place, ROLES[config.mode])
        # What the configuration says of GPUs wins; what was given at the command line is for what cannot be read.
        setup = setup_of(config, profile, replace(options, gpus_per_replica={**options.gpus_per_replica, **observed}))
    except (SetupError, WorldError):
        deployments.close()
        raise
    roles = {pool.name: pool.role for pool in setup.pools}
    return setup, OwnDgd(deployments, place, roles, note=lambda text: say("kubernetes", text=text))


def place_of(config: PlannerConfig, options: Standalone) -> Place:
    """Which DGD: the operator tells its pods the Dynamo namespace, which is `<namespace>-<dgd>`. Raises SetupError."""
    from pool_planner.connectors.own_dgd import Place

    namespace = options.kubernetes_namespace
    if namespace is None:
        namespace = config.namespace.removesuffix(f"-{options.dgd}")
        if namespace == config.namespace:
            raise SetupError(
                f"environment: 'kubernetes' needs the DGD and its namespace: namespace {config.namespace!r} does not end with "
                f"-{options.dgd}; set DYN_PARENT_DGD_K8S_NAME (--dgd) and POD_NAMESPACE (--k8s-namespace)"
            )
    components = {role: COMPONENTS[config.backend][role] for role in ROLES[config.mode]}
    return Place(namespace=namespace, dgd=options.dgd, components=components)


def _series(setup: PlannerSetup, options: Standalone) -> list[PoolSeries]:
    if options.series == "pool":
        return [by_pool(pool) for pool in setup.pools]
    return [by_namespace(pool, setup.config) for pool in setup.pools]


def _metrics_server(loop: PlannerLoop, options: Standalone, clock: SpeedClock) -> MetricsServer | None:
    port = loop.setup.config.metric_reporting_prometheus_port
    if port is None:
        return None
    started = clock.now()

    def unwell() -> str | None:
        silent_s = clock.now() - (started if loop.planned_at_s is None else loop.planned_at_s)
        return f"no plan for {silent_s:.0f} s" if silent_s > UNWELL_TICKS * loop.setup.tick_s + 10.0 else None

    return MetricsServer(lambda: loop.metrics, port=port, host=options.metrics_host, unwell=unwell)


# ---- fits ----------------------------------------------------------------------------------------------------------


class ProcessFits:
    """Fits in one process of their own, started with the first of them (most predictors never need one)."""

    def __init__(self, make: Callable[[], Executor] | None = None) -> None:
        self._make = make or _one_process
        self._executor: Executor | None = None

    def start(self, job: FitJob) -> asyncio.Future[Any]:
        if self._executor is None:
            self._executor = self._make()
        return asyncio.wrap_future(self._executor.submit(job.run))

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def _one_process() -> Executor:
    # Spawned, not forked: a fork of a process with threads may inherit a lock that nobody will ever release.
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_token(path: Path | None) -> str | None:
    """The token in a file. Raises SetupError."""
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SetupError(f"{path}: the token cannot be read: {error.strerror}") from error
    if not token:
        raise SetupError(f"{path}: the token is empty")
    return token
