"""[I/O] The demo: the whole system on mock engines, a load against its public endpoint, a live view, and a report at the end.

    check everything ─► claim a folder ─► start the system ─► play the load, show it ─► stop ─► summary.json, index.html

The exit status is 0 only when no request was lost and the budget was never exceeded.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from pathlib import Path

import click
import orjson
from pydantic import TypeAdapter

from global_planner.compile import pool_specs
from global_planner.demo.output import Output, OutputTaken, claim
from global_planner.demo.plan import DemoOptions, Plan, make_plan
from global_planner.demo.report import render
from global_planner.demo.show import Show
from global_planner.demo.summary import RunParameters, Summary, summarise
from global_planner.demo.view import open_view
from global_planner.demo.words import table, words
from global_planner.journal_reader import read
from global_planner.mocker.load_record import LoadRecord
from global_planner.processes import ChildProcess, ProcessFailed, start
from global_planner.replay.trace import TraceError
from global_planner.replay.trace_file import write_workload
from global_planner.stopping import Stopped, go_on, stop_on_signals
from global_planner.system import System, start_system
from global_planner.watch import Watch, quiet_raylet

POLL_WALL_S = 0.5
PLANNERS_TIMEOUT_WALL_S = 60.0
LOAD_GRACE_WALL_S = 5.0
LOAD_RECORDS = "load.jsonl"
EXIT_FAILED = 1
EXIT_STOPPED = 130
_RECORDS = TypeAdapter(list[LoadRecord])


def run_demo(options: DemoOptions) -> int:
    """The whole demo; the exit status."""
    begun = time.monotonic()
    try:
        plan = make_plan(options)
        output = claim(options.out)
    except (TraceError, OutputTaken, ValueError) as error:
        click.echo(str(error), err=True)
        return 2
    if output.folder != options.out:
        click.echo(f"{options.out} is in use by another run; writing to {output.folder}")
    rates = f"{len(plan.requests)} requests in {plan.span_s / 60:.1f} model minutes"
    click.echo(f"{plan.source}: {rates}, at speed {options.speed:g} about {plan.span_s / options.speed:.0f} s")
    if plan.remark:
        click.echo(plan.remark)
    watch, stopped = Watch(), False
    try:
        with stop_on_signals(), quiet_raylet():
            _run(options, plan, output.run, watch)
    except Stopped as stop:
        click.echo(f"{stop}: everything is stopped; logs and journal are in {output.run}")
        stopped = True
    except ProcessFailed as error:
        click.echo(f"error: {error}", err=True)
        return EXIT_FAILED
    summary = _report(options, plan, output, watch, wall_s=time.monotonic() - begun, stopped=stopped)
    if stopped:
        return EXIT_STOPPED
    return 0 if summary is not None and summary.good else EXIT_FAILED


def _run(options: DemoOptions, plan: Plan, folder: Path, watch: Watch) -> None:
    """Start the system, play the load to its end, and stop everything, whatever happens. Raises Stopped, ProcessFailed."""
    folder.mkdir()
    write_workload(folder / "workload.jsonl", plan.requests)
    click.echo("starting engines, router, Ray, planners …")
    system = start_system(options.topology, folder=folder, speed=options.speed)
    load: ChildProcess | None = None
    try:
        system.wait_ready()
        _wait_for_planners(system)
        click.echo(f"endpoint: {system.public_url}/v1   journal and logs: {folder}")
        load = start(
            "load",
            "global_planner.mocker.load",
            [
                *("--workload", str(folder / "workload.jsonl"), "--url", system.public_url),
                *("--out", str(folder / LOAD_RECORDS), "--progress", str(folder / "progress.json")),
                # The router gives up first, so that its answer and not ours says what happened.
                *("--seed", str(options.seed), "--deadline", str(1.2 * options.topology.router.request_timeout_s)),
            ],
            folder=folder,
            environment={},
            port_file=False,
        )
        with open_view() as view:
            _follow(Show(system=system, plan=plan, view=view, progress_file=folder / "progress.json", watch=watch), load)
    finally:
        click.echo("stopping …")
        if load is not None:
            load.stop(LOAD_GRACE_WALL_S)
        system.stop()


def _wait_for_planners(system: System) -> None:
    """Until every planner has reported: from then on a change of traffic is seen. Raises ProcessFailed."""
    expected = {pool.dgd for pool in pool_specs(system.topology)}
    deadline = time.monotonic() + PLANNERS_TIMEOUT_WALL_S
    missing = expected
    while time.monotonic() < deadline:
        go_on()
        wrong = system.failed()
        if wrong is not None:
            raise ProcessFailed(wrong)
        found = system.snapshot()
        missing = expected - set(found.planner_pids) if found is not None else expected
        if not missing:
            return
        time.sleep(0.1)
    raise ProcessFailed(f"no report from the planners of {', '.join(sorted(missing))}; logs are in {system.folder}")


def _follow(show: Show, load: ChildProcess) -> None:
    """Draw until the load has ended."""
    while load.running():
        go_on()
        wrong = show.system.failed()
        if wrong is not None:
            raise ProcessFailed(wrong)
        show.step()
        time.sleep(POLL_WALL_S)
    show.step()
    if load.popen.returncode != 0:
        raise ProcessFailed(f"the load ended with status {load.popen.returncode}; its log says:\n{load.log_tail()}")


def _report(options: DemoOptions, plan: Plan, output: Output, watch: Watch, *, wall_s: float, stopped: bool) -> Summary | None:
    """Write summary.json and index.html, and say in words what happened; None when no request was ever sent."""
    load_file = output.run / LOAD_RECORDS
    records = read_records(load_file) if load_file.exists() else []
    if not records:
        click.echo("no request was sent, so there is nothing to report")
        return None
    parameters = RunParameters(
        topology=options.topology,
        speed=options.speed,
        wall_s=wall_s,
        minutes=options.minutes,
        scale=options.scale,
        seed=options.seed,
        trace=str(options.trace) if options.trace is not None else None,
        stopped=stopped,
        peak_held_gpus=watch.peak_gpus,
    )
    journal = list(read(output.run / "journal"))
    summary = summarise(records, journal, parameters)
    (output.folder / "summary.json").write_bytes(orjson.dumps(summary.as_json(), option=orjson.OPT_INDENT_2) + b"\n")
    (output.folder / "index.html").write_text(render(records, journal, summary, parameters, watch.notes), encoding="utf-8")
    width = max(60, min(110, shutil.get_terminal_size().columns))
    click.echo()
    click.echo(textwrap.fill(words(summary), width=width))
    click.echo()
    click.echo(table(summary))
    click.echo()
    click.echo(f"report: {output.folder / 'index.html'}   numbers: {output.folder / 'summary.json'}")
    click.echo(f"why each decision: .venv/bin/global-planner explain --journal {output.run / 'journal'}")
    return summary


def read_records(path: Path) -> list[LoadRecord]:
    """The load's records. Raises pydantic's ValidationError for a line that is none."""
    return _RECORDS.validate_json(b"[" + b",".join(line for line in path.read_bytes().splitlines() if line) + b"]")
