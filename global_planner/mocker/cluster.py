"""[I/O] The virtual cluster: a process that keeps replicas of mock engines running, and an API to order more or fewer.

It stands for API server, operator and kubelet of a real cluster; the books are `cluster_state`'s. It ends, with every engine,
on SIGTERM, on SIGINT and when the process that started it dies.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from aiohttp import web
from pydantic import BaseModel, ValidationError

from global_planner.compile import engine_specs, virtual_nodes, virtual_pools
from global_planner.config import Topology
from global_planner.mocker.cluster_api import EventsAnswer, FaultOrder, PoolsAnswer, PoolView, ScaleOrder, node_views, pool_view
from global_planner.mocker.cluster_records import Command, Faults, Kill, Launch, Nonsense, StaleVersion, Terminate
from global_planner.mocker.cluster_state import ClusterState
from global_planner.mocker.engine_processes import EngineProcesses
from global_planner.replay.engine_spec import raw_spec
from global_planner.topology_file import TopologyError, load_profiles, load_topology
from pool_planner.clock import SpeedClock, clock_from_environment

DEFAULT_ENGINE = (
    *(sys.executable, "-m", "global_planner.mocker.engine", "--spec", "{spec}", "--port-file", "{port_file}"),
    *("--replica-id", "{replica}", "--grace", "{grace_s}"),
)
MAX_STOP_WALL_S = 3.0
MAX_BODY_BYTES = 1024 * 1024

MessageT = TypeVar("MessageT", bound=BaseModel)


@dataclass(slots=True)
class _ApiFaults:
    """How many of the next calls go wrong, and how late every answer is (model seconds)."""

    fail_writes: int = 0
    conflict_writes: int = 0
    lose_answers: int = 0
    fail_reads: int = 0
    delay_s: float = 0.0

    def take(self, name: str) -> bool:
        left: int = getattr(self, name)
        if left:
            setattr(self, name, left - 1)
        return left > 0


class VirtualClusterServer:
    """Joins the books with the processes and the HTTP API. `engine_command` may hold {spec}, {port_file}, {replica} and
    {grace_s} (model seconds from SIGTERM to SIGKILL)."""

    def __init__(
        self, topology: Topology, *, run_dir: Path, clock: SpeedClock, engine_command: Sequence[str] = DEFAULT_ENGINE
    ) -> None:
        self._clock = clock
        self._engine_command = engine_command
        self._folder = run_dir
        self._specs = _write_specs(topology, run_dir)
        self._state = ClusterState(
            virtual_pools(topology),
            cold_start_s=topology.cluster.cold_start_s,
            initial_cold_start_s=topology.cluster.initial_cold_start_s,
            termination_s=topology.cluster.termination_s,
            nodes=virtual_nodes(topology),
        )
        self._grace_s = f"{topology.cluster.termination_s:g}"
        self._stop_wall_s = min(MAX_STOP_WALL_S, clock.wall(topology.cluster.termination_s))
        self._faults = _ApiFaults()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._processes = EngineProcesses(
            folder=run_dir,
            environment=clock.environment(),
            on_healthy=lambda replica, url: self._run(self._state.healthy(replica, url, clock.now())),
            on_exit=lambda replica, how: self._run(self._state.exited(replica, how, clock.now())),
        )

    def start(self) -> None:
        """Order the replicas that stand from the start."""
        self._run(self._state.start(self._clock.now()))

    async def stop(self) -> None:
        """End every replica; returns when no process is left."""
        self._stopping = True
        self._state.stop(self._clock.now())
        await self._processes.close(self._stop_wall_s)

    # ---- the loop: commands to processes, and the next moment at which something is due ------------------------------

    def _run(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Launch(pool=pool, replica=replica):
                    places = {
                        "spec": str(self._specs[pool]),
                        "port_file": str(self._processes.port_file(replica)),
                        "replica": replica,
                        "grace_s": self._grace_s,
                    }
                    self._processes.launch(replica, [part.format(**places) for part in self._engine_command])
                case Terminate(replica=replica):
                    self._processes.terminate(replica)
                case Kill(replica=replica):
                    self._processes.kill(replica)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._state.next_due_s()
        if due_s is not None and not self._stopping:
            wait = self._clock.wall(max(0.0, due_s - self._clock.now()))
            # A tick a moment late finds what is due; one a rounding error early would only come again.
            self._timer = asyncio.get_running_loop().call_later(wait + 0.001, self._tick)

    def _tick(self) -> None:
        self._run(self._state.tick(self._clock.now()))

    # ---- the API ----------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/pools", self._get_pools)
        app.router.add_put("/v1/pools/{name}/scale", self._put_scale)
        app.router.add_get("/v1/events", self._get_events)
        app.router.add_post("/v1/faults", self._post_faults)
        return app

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _get_pools(self, request: web.Request) -> web.Response:
        await self._clock.sleep(self._faults.delay_s)
        if self._faults.take("fail_reads"):
            return _error(500, "a read was made to fail")
        pids = self._processes.pids()
        return _answer(
            PoolsAnswer(
                at_s=self._clock.now(),
                held_gpus=dict(self._state.held_gpus()),
                peak_gpus=dict(self._state.peak_gpus()),
                pools=tuple(pool_view(self._state, name, pids) for name in self._state.names()),
                nodes=node_views(self._state),
            )
        )

    async def _put_scale(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        order = await _read(request, ScaleOrder)
        await self._clock.sleep(self._faults.delay_s)
        if self._stopping:
            return _error(503, "the cluster stops")
        if name not in self._state.names():
            return _error(404, f"no pool {name!r} (has: {', '.join(self._state.names())})")
        if self._faults.take("fail_writes"):
            return _error(500, "a write was made to fail; nothing was changed")
        if self._faults.take("conflict_writes"):
            return _error(409, "a write was made to conflict; nothing was changed")
        try:
            now = self._clock.now()
            self._run(self._state.scale(name, order.replicas, order.victims, order.resource_version, now))
        except StaleVersion as error:
            return _error(409, str(error))
        except Nonsense as error:
            return _error(422, str(error))
        if self._faults.take("lose_answers"):
            return _error(500, "an answer was made to be lost")
        return _answer(self._view(name))

    def _view(self, name: str) -> PoolView:
        return pool_view(self._state, name, self._processes.pids())

    async def _get_events(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not after.isdecimal():
            return _error(422, f"after: {after!r} is not the number of an event")
        return _answer(EventsAnswer(events=self._state.events(int(after))))

    async def _post_faults(self, request: web.Request) -> web.Response:
        order = await _read(request, FaultOrder)
        strangers = sorted(set(order.pools) - set(self._state.names()))
        if strangers:
            return _error(404, f"no pool {strangers[0]!r} (has: {', '.join(self._state.names())})")
        for field in ("fail_writes", "conflict_writes", "lose_answers", "fail_reads", "delay_s"):
            value = getattr(order, field)
            if value is not None:
                setattr(self._faults, field, value)
        for name, fault in order.pools.items():
            faults = Faults(hang=fault.hang, unschedulable=fault.unschedulable)
            self._run(self._state.trouble(name, faults, self._clock.now()))
        return web.json_response({"status": "ok"})


def _write_specs(topology: Topology, folder: Path) -> Mapping[str, Path]:
    """One file for each pool, which its replicas' processes read."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, spec in engine_specs(topology, load_profiles(topology)).items():
        paths[name] = folder / f"{name}.engine.json"
        paths[name].write_text(json.dumps(raw_spec(spec)))
    return paths


async def _read(request: web.Request, message: type[MessageT]) -> MessageT:
    try:
        return message.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        text = f"{path}: {first['msg']}" if path else str(first["msg"])
        raise web.HTTPUnprocessableEntity(text=json.dumps({"error": text}), content_type="application/json") from error


def _answer(message: BaseModel) -> web.Response:
    return web.Response(body=message.model_dump_json().encode(), content_type="application/json")


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


# ---- the process ---------------------------------------------------------------------------------------------------


def on_parent_death(parent: int, call: Callable[[], None]) -> None:
    """Call once when process `parent` has ended; made on a running event loop. A pidfd, not PR_SET_PDEATHSIG: that one fires
    when the *thread* that started us ends, and a driver may have started us from a short-lived one."""
    loop = asyncio.get_running_loop()
    if os.getppid() != parent:
        call()
        return
    pidfd = os.pidfd_open(parent)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        call()

    loop.add_reader(pidfd, ended)


async def serve(server: VirtualClusterServer, *, port: int, port_file: Path | None, parent: int) -> None:
    """Serve until told to end, then end every replica."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    on_parent_death(parent, stop.set)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        bound = runner.addresses[0][1]
        server.start()
        if port_file is not None:
            part = port_file.with_suffix(port_file.suffix + ".part")
            part.write_text(json.dumps({"port": bound, "pid": os.getpid(), "url": f"http://127.0.0.1:{bound}"}))
            part.replace(port_file)
        await stop.wait()
    finally:
        await server.stop()
        await runner.cleanup()


@click.command(help="Keep the replicas of a topology's pools running on this machine, as processes of the mock engine.")
@click.option("--topology", "path", required=True, type=click.Path(path_type=Path), help="The topology file.")
@click.option("--run-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Logs and port files.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="On loopback; 0: any free one.")
@click.option("--port-file", type=click.Path(path_type=Path), help='Told as {"port": …, "pid": …, "url": …} once it listens.')
@click.option(
    "--engine-command",
    help="Another engine: a command line with {spec}, {port_file}, {replica} and {grace_s}; it writes {port: N} into its port "
    "file and answers GET /health.",
)
def main(path: Path, run_dir: Path, port: int, port_file: Path | None, engine_command: str | None) -> None:
    parent = os.getppid()
    try:
        topology = load_topology(path)
    except TopologyError as error:
        raise click.ClickException(str(error)) from error

    async def run() -> None:
        command = shlex.split(engine_command) if engine_command else DEFAULT_ENGINE
        server = VirtualClusterServer(topology, run_dir=run_dir, clock=clock_from_environment(), engine_command=command)
        await serve(server, port=port, port_file=port_file, parent=parent)

    asyncio.run(run())


if __name__ == "__main__":
    main()
