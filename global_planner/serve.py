"""[I/O] `global-planner run`: the system of a topology, until it is told to stop; a line for every change."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from global_planner.condition_log import ConditionLog
from global_planner.config import Topology
from global_planner.dry_run import describe
from global_planner.processes import ProcessFailed
from global_planner.stopping import Stopped, go_on, stop_on_signals
from global_planner.system import System, start_system
from global_planner.watch import Watch, quiet_raylet

POLL_WALL_S = 0.5


def serve(topology: Topology, *, folder: Path, speed: float) -> int:
    """Run until SIGINT or SIGTERM; the exit status."""
    system: System | None = None
    try:
        with stop_on_signals(), quiet_raylet():
            try:
                click.echo(f"starting {topology.name} in {folder} …")
                system = start_system(topology, folder=folder, speed=speed)
                click.echo(_ready(system, speed))
                _tell(system)
            finally:
                if system is not None:
                    click.echo("stopping …")
                    system.stop()
    except Stopped as stop:
        click.echo(f"{stop}: everything is stopped; journal and logs are in {folder}")
    except ProcessFailed as error:
        click.echo(f"error: {error}", err=True)
        return 1
    return 0


def _ready(system: System, speed: float) -> str:
    """Wait until the system can be used; what to tell of it."""
    topology = system.topology
    api = f"http://{topology.api.host}:{topology.api.port}"
    if topology.cluster.kind != "virtual":
        return f"the arbiter of {topology.name} runs; status, metrics and proposals: {api}; Ctrl-C stops"
    system.wait_ready()
    addresses = {"public": f"{system.public_url}/v1", "admin": system.admin_url, "speed": speed}
    (system.folder / "addresses.json").write_text(json.dumps(addresses, indent=1) + "\n")
    models = ", ".join(group.model for group in topology.groups)
    return f"ready: {system.public_url}/v1 serves {models}; metrics: {system.admin_url}/metrics; Ctrl-C stops"


def _tell(system: System) -> None:
    """Print notes and steps as they come, until a signal or a failure of the world that nobody repairs."""
    watch, conditions, told, round_no = Watch(), ConditionLog(), 0, 0
    while True:
        go_on()
        wrong = system.failed()
        if wrong is not None:
            raise ProcessFailed(wrong)
        watch.look(system)
        for at_s, text in watch.notes[told:]:
            click.echo(f"[{at_s:9.1f} s] {text}")
        told = len(watch.notes)
        done = watch.snapshot.last_round if watch.snapshot is not None else None
        if done is not None and done.inputs.round_no > round_no:
            round_no = done.inputs.round_no
            for outcome in done.outcomes:
                failed = "" if outcome.applied else f" (not applied: {outcome.error})"
                click.echo(f"[{done.inputs.at_s:9.1f} s] round {round_no}: {describe(outcome.step)}{failed}")
            for line in conditions.lines(done.conditions, done.inputs.at_s):
                click.echo(f"[{done.inputs.at_s:9.1f} s] round {round_no}: {line}")
        time.sleep(POLL_WALL_S)
