"""[I/O] The command line of a pool planner: `pool-planner …` or `python -m pool_planner …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from pool_planner.assume import AssumedLoad, assumed_reports, parse_load
from pool_planner.compatibility import ConfigError, Reading, explain
from pool_planner.config import PlannerConfig
from pool_planner.config_source import load_config
from pool_planner.performance.profile import Profile, ProfileError, load_profile
from pool_planner.setup import SetupError, setup_from_config
from pool_planner.types import Hold, Proposal, Report

_CONFIG = click.option(
    "--config", "source", required=True, metavar="FILE|JSON", help="A PlannerConfig: a JSON or YAML file, or the text itself."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="global-planner")
def main() -> None:
    """One planner a pool: traffic in, demand out.

    Reads the PlannerConfig of existing deployments as it is. In a running system the planners are started by
    `global-planner run`; these commands check a configuration and answer questions about a pool.
    """


@main.command()
@_CONFIG
@click.option("--explain", "explained", is_flag=True, help="Print every effective value, where it came from, what it does.")
def config(source: str, explained: bool) -> None:
    """Check a PlannerConfig.

    \b
    pool-planner config --config planner_config.json
    pool-planner config --config '{"mode": "decode", "itl": 40}' --explain
    """
    reading = _read(source)
    for warning in reading.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not explained:
        click.echo(f"valid: mode {reading.config.mode}, backend {reading.config.backend}")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("field", "value", "from", "meaning"):
        table.add_column(name, overflow="fold")
    for line in explain(reading):
        table.add_row(line.path, json.dumps(line.value), line.origin, line.meaning)
    Console(highlight=False).print(table)


@main.command()
def schema() -> None:
    """Print the JSON schema of PlannerConfig."""
    click.echo(json.dumps(PlannerConfig.model_json_schema(), indent=2))


@main.command()
@_CONFIG
@click.option(
    "--load", "load_text", required=True, metavar="RPS[,ISL[,OSL]]", help="Constant traffic: requests/s, mean tokens."
)
@click.option(
    "--profile", type=click.Path(exists=True, file_okay=False, path_type=Path), show_default="profile_results_dir",
    help="Folder of profile data (npz or JSON).",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1), default=1, show_default=True, help="GPUs of one replica, unless the config says."
)
@click.option("--replicas", type=click.IntRange(0), default=1, show_default=True, help="Replicas that are ready now.")
def plan(source: str, load_text: str, profile: Path | None, gpus: int, replicas: int) -> None:
    """How many replicas this load needs, and why; touches nothing.

    \b
    pool-planner plan --config planner_config.json --profile DIR --load 8,3000,150
    """
    reading = _read(source)
    folder = profile if profile is not None else Path(reading.config.profile_results_dir or "")
    try:
        load = parse_load(load_text)
        curves: Profile | None = load_profile(folder) if folder != Path() else None
        setup = setup_from_config(reading.config, curves, gpus_per_replica={"prefill": gpus, "decode": gpus, "agg": gpus})
    except (ValueError, ProfileError, SetupError) as error:
        _refuse(str(error))
    names = [pool.name for pool in setup.pools]
    reports = assumed_reports(setup, dict.fromkeys(names, load), dict.fromkeys(names, replicas))
    for report in reports:
        _tell(report, load)


def _tell(report: Report, load: AssumedLoad) -> None:
    if isinstance(report, Hold):
        click.echo(f"{report.pool}: hold: {report.reason}")
        return
    click.echo(
        f"{report.pool}: {report.wanted} replicas for {load.rps:g} requests/s ({load.isl_tokens:g} → {load.osl_tokens:g})"
    )
    for reason in report.reasons:
        click.echo(f"  {reason}")
    _tell_curve(report)


def _tell_curve(report: Proposal) -> None:
    """What fewer and more replicas would attain, around the number that is wanted."""
    if report.curve is None:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("replicas", "within SLA", "can admit, req/s"):
        table.add_column(name, justify="right")
    last = len(report.curve.attainment) - 1
    for count in range(min(last, report.wanted + 2) + 1):
        rps = report.curve.capacity_rps[count] if report.curve.capacity_rps is not None else None
        table.add_row(str(count), f"{report.curve.attainment[count]:.1%}", "unknown" if rps is None else f"{rps:.2f}")
    Console(highlight=False).print(table)


def _read(source: str) -> Reading:
    try:
        return load_config(source)
    except ConfigError as error:
        _refuse(str(error))


def _refuse(text: str) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
