"""[I/O] The command line of a pool planner: `pool-planner …` or `python -m pool_planner …`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from pool_planner import standalone
from pool_planner.assume import AssumedLoad, assumed_reports, parse_load
from pool_planner.clock import SpeedClock, clock_from_environment
from pool_planner.compatibility import ConfigError, Reading, config_schema, explain
from pool_planner.config import PlannerConfig
from pool_planner.config_source import load_config
from pool_planner.connectors.global_planner import HttpArbiter, Send
from pool_planner.connectors.virtual_book import DECISION_TIMEOUT_S
from pool_planner.decision_log import say
from pool_planner.performance.profile import Profile, ProfileError, load_profile
from pool_planner.profiler.command import curves_command, profile_command
from pool_planner.setup import SetupError, setup_from_config
from pool_planner.types import Hold, Proposal, Report, Role, WorldError

ROLES: tuple[Role, ...] = ("prefill", "decode", "agg")
RAY = "ray"  # as the value of --arbiter: the actor of the Ray cluster that this process is in

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option(
    "--config", "source", required=True, metavar="FILE|JSON", help="A PlannerConfig: a JSON or YAML file, or the text itself."
)


class _RunByDefault(click.Group):
    """`pool-planner --config FILE` is `pool-planner run --config FILE`, which is how deployments start a planner."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] not in ("--help", "--version"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="global-planner")
def main() -> None:
    """One planner a pool: traffic in, demand out.

    Reads the PlannerConfig of existing deployments as it is. `pool-planner --config FILE` runs the planner of one deployment
    (the same as `pool-planner run --config FILE`); the other commands check a configuration and answer questions about a
    pool. Under `global-planner run` nobody needs to start any: the arbiter starts them.
    """


@main.command()
@_CONFIG
@click.option(
    "--profile", type=click.Path(exists=True, file_okay=False, path_type=Path), show_default="profile_results_dir",
    help="Folder of profile data (npz or JSON).",
)  # fmt: skip
@click.option(
    "--gpus", type=click.IntRange(1), show_default="prefill_engine_num_gpu, decode_engine_num_gpu; else as observed, or 1",
    help="GPUs of one replica.",
)  # fmt: skip
@click.option(
    "--dgd", envvar="DYN_PARENT_DGD_K8S_NAME", default="local", show_default=True, show_envvar=True,
    help="The deployment that is planned.",
)  # fmt: skip
@click.option(
    "--k8s-namespace", envvar="POD_NAMESPACE", show_envvar=True, show_default="as the Dynamo namespace says",
    help="kubernetes: the namespace of the DGD.",
)  # fmt: skip
@click.option(
    "--pool", "names", multiple=True, metavar="ROLE=NAME",
    help="What the arbiter (or the outside system) calls the pool of a role, instead of the component's name. Repeatable.",
)  # fmt: skip
@click.option(
    "--series", type=click.Choice(["namespace", "pool"]), default="namespace", show_default=True,
    help="Which metrics are the pool's: those of its Dynamo namespace, or those that our router labels with the pool.",
)  # fmt: skip
@click.option(
    "--arbiter", envvar="GLOBAL_PLANNER_URL", show_envvar=True, metavar="URL|ray",
    help="environment global-planner: where the arbiter answers HTTP, or `ray` for the actor of this Ray cluster.",
)  # fmt: skip
@click.option(
    "--token-file", envvar="GLOBAL_PLANNER_TOKEN_FILE", show_envvar=True, type=_FILE,
    help="Bearer token: shown to the arbiter, or asked of the outside system (virtual).",
)  # fmt: skip
@click.option(
    "--listen", default="127.0.0.1:8090", show_default=True, metavar="HOST:PORT", help="virtual: where decisions are."
)
@click.option(
    "--replicas", multiple=True, metavar="POOL=N",
    help="virtual: what the outside system has at the beginning; unknown until it says so. Repeatable.",
)  # fmt: skip
@click.option(
    "--decision-timeout", type=click.FloatRange(0, min_open=True), default=DECISION_TIMEOUT_S, show_default=True,
    metavar="SECONDS", help="virtual: a decision that is not completed by then no longer holds up the next.",
)  # fmt: skip
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of the planner's own /metrics, /healthz.")
def run(
    source: str,
    profile: Path | None,
    gpus: int | None,
    dgd: str,
    k8s_namespace: str | None,
    names: tuple[str, ...],
    series: str,
    arbiter: str | None,
    token_file: Path | None,
    listen: str,
    replicas: tuple[str, ...],
    decision_timeout: float,
    metrics_host: str,
) -> None:
    """Plan one deployment until SIGTERM, a JSON line a decision on standard error.

    \b
    `environment` in the configuration says who carries decisions out:
      kubernetes      the planner itself, on its own DGD (adapters' scale where there are adapters)
      global-planner  the arbiter: --arbiter, --token-file, --pool
      virtual         an outside system, which fetches decisions at --listen (see pool_planner.connectors.virtual_client)

    \b
    Examples:
      python -m pool_planner --config planner_config.json
      pool-planner --config planner_config.json --arbiter http://global-planner:8080 --token-file /run/token \\
                   --pool prefill=chat-prefill --pool decode=chat-decode
      pool-planner --config '{"environment": "virtual", "mode": "agg", "profile_results_dir": "profile",
                              "load_router_metrics_url": "http://127.0.0.1:8000/metrics"}' --replicas VllmWorker=1
      curl 'http://127.0.0.1:8090/v1/decision?wait_s=30'

    Exit status: 0 after SIGTERM or SIGINT, 2 for bad input, 1 when a port is taken.
    """
    reading = _read(source)
    for warning in reading.warnings:
        say("warning", text=warning)
    clock = clock_from_environment()
    try:
        host, port = _address(listen, token_file)
        options = standalone.Standalone(
            dgd=dgd,
            kubernetes_namespace=k8s_namespace,
            gpus_per_replica={} if gpus is None else dict.fromkeys(ROLES, gpus),
            names=_names(names),
            replicas=_counts(replicas),
            series="pool" if series == "pool" else "namespace",
            send=_arbiter(arbiter, token_file) if reading.config.environment == "global-planner" else None,
            listen_host=host,
            listen_port=port,
            metrics_host=metrics_host,
            token=standalone.read_token(token_file),
            decision_timeout_s=decision_timeout,
        )
        folder = profile if profile is not None else Path(reading.config.profile_results_dir or "")
        curves = load_profile(folder) if folder != Path() else None
        asyncio.run(_plan(reading.config, curves, options, clock))
    except (ValueError, ProfileError, SetupError) as error:
        _refuse(str(error))
    except OSError as error:
        click.echo(f"cannot listen: {error}", err=True)
        sys.exit(1)
    except WorldError as error:
        click.echo(str(error), err=True)
        sys.exit(1)


async def _plan(config: PlannerConfig, curves: Profile | None, options: standalone.Standalone, clock: SpeedClock) -> None:
    setup, connector = await standalone.connected(config, curves, options, clock)
    await standalone.run(setup, connector, options, clock)


def _arbiter(where: str | None, token_file: Path | None) -> Send | None:
    """The way to the arbiter; without an address the actor of the Ray cluster that this process was started in."""
    if where is None and not os.environ.get("RAY_ADDRESS"):
        return None
    if where is None or where == RAY:
        from pool_planner.actor import connected_arbiter

        return connected_arbiter()
    if not where.startswith(("http://", "https://")):
        raise ValueError(f"--arbiter {where}: must be {RAY} or begin with http:// or https://")
    return HttpArbiter(where, token_file=token_file)


def _address(text: str, token_file: Path | None) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"--listen {text}: must be HOST:PORT")
    if token_file is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ValueError(f"--listen {text}: others can reach {host}, so a token has to be asked of them: --token-file FILE")
    return host, int(port)


def _names(texts: tuple[str, ...]) -> Mapping[Role, str]:
    found: dict[Role, str] = {}
    for text in texts:
        role, _, name = text.partition("=")
        known = next((each for each in ROLES if each == role), None)
        if known is None or not name:
            raise ValueError(f"--pool {text}: must be ROLE=NAME with a role of {', '.join(ROLES)}")
        found[known] = name
    return found


def _counts(texts: tuple[str, ...]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        pool, _, count = text.partition("=")
        if not pool or not count.isdigit():
            raise ValueError(f"--replicas {text}: must be POOL=N")
        found[pool] = int(count)
    return found


@main.command()
@click.option("--config", "source", metavar="FILE|JSON", help="A PlannerConfig: a JSON or YAML file, or the text itself.")
@click.option("--explain", "explained", is_flag=True, help="Print every effective value, where it came from, what it does.")
@click.option("--schema", "schema_only", is_flag=True, help="Print the JSON schema of what is accepted; needs no --config.")
def config(source: str | None, explained: bool, schema_only: bool) -> None:
    """Check a PlannerConfig.

    \b
    pool-planner config --config planner_config.json
    pool-planner config --config '{"mode": "decode", "itl": 40}' --explain
    pool-planner config --schema > planner_config.schema.json
    """
    if schema_only:
        if source is not None or explained:
            raise click.UsageError("--schema stands alone: it is about every configuration")
        _print_schema()
        return
    if source is None:
        raise click.UsageError("Missing option '--config' (or --schema).")
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
    """Print the JSON schema of PlannerConfig: the same as `config --schema`."""
    _print_schema()


def _print_schema() -> None:
    click.echo(json.dumps(config_schema(), indent=2))


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


main.add_command(profile_command)
main.add_command(curves_command)


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
