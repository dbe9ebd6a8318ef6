"""[I/O] The command `pool-router` (and `python -m router`): read a configuration, serve until told to stop."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import click

from pool_planner.compiled import ENV_CHOICE, CannotCompile, tell_children
from router.compiled_set import ROUTER

# Everything else is imported in the commands: whether it is the compiled code is chosen before.


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Commands(click.Group):
    """What `pool-router` can do besides serving, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["grid", "settings"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from router import commands

        return {"grid": commands.grid, "settings": commands.settings}.get(cmd_name)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    epilog="""\b
The smallest configuration (YAML or JSON):
  models:
    - model: my-model
      pools:
        - {name: p, role: prefill, endpoints: ["http://10.0.0.1:8000"]}
        - {name: d, role: decode, endpoints: ["http://10.0.0.2:8000"]}
\b
Pools without endpoints wait for a planner: PUT /admin/endpoints on the admin listener.
The JSON of an existing global router (mode, num_prefill_pools, ...) is taken as it is; name its model with --model. A
deployment's topology is taken too: the router then serves its groups.
\b
  pool-router --config router.yaml --check     # say what is wrong, start nothing
  pool-router settings                         # every key: what it means, its type, its default
  pool-router grid --topology topology.yaml    # a selection grid from the pools' curves
  curl localhost:8001/metrics                  # what the planner reads
  curl localhost:8001/admin/state              # endpoints, load, queues
""",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Configuration: YAML or JSON; ours, a global router's, or a topology.",
)
@click.option("--port", type=click.IntRange(0, 65535), help="Port for clients, instead of listen.port (0: any free one).")
@click.option("--admin-port", type=click.IntRange(0, 65535), help="Port for planner and metrics, instead of admin.port.")
@click.option("--model", show_default="any", help="Model name, for a global router's configuration.")
@click.option("--default-ttft-target", type=float, help="TTFT target, ms, of requests without one (global router's form).")
@click.option("--default-itl-target", type=float, help="ITL target, ms, of requests without one (global router's form).")
@click.option(
    "--port-file", type=click.Path(dir_okay=False, path_type=Path), help="When listening, write {port, admin_port, pid}."
)
@click.option("--access-log", help="One JSON line a request to this file (-: standard output), instead of access_log.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes on the one public port.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="With --workers: one port more, for the metrics of all processes added up.",
)
@click.option(
    "--compiled/--no-compiled",
    default=None,
    show_default="compiled where `global-planner compile` has built it for these sources",
    help="Run the hot path as compiled code (built when it is not; needs the extra fast and a C compiler), or as plain Python; "
    f"{ENV_CHOICE}=yes or no says the same. /metrics tells which it is (build_info).",
)
@click.option("--one-of", type=click.IntRange(2, 256), hidden=True, help="This process is one of so many workers.")
@click.option("--die-with-parent", "with_parent", is_flag=True, help="End when the process that started this one ends.")
@click.option("--check", is_flag=True, help="Read the configuration, say what is wrong with it, and stop.")
@click.pass_context
def main(
    context: click.Context,
    config_path: Path | None,
    port: int | None,
    admin_port: int | None,
    model: str | None,
    default_ttft_target: float | None,
    default_itl_target: float | None,
    port_file: Path | None,
    access_log: str | None,
    workers: int,
    metrics_port: int | None,
    compiled: bool | None,
    one_of: int | None,
    with_parent: bool,
    check: bool,
) -> None:
    """One public OpenAI endpoint in front of pools of inference engines.

    Sends each request to the right pool (prompt length, targets, priority), hands it from prefill to decode, keeps it alive
    while engines come and go, and exports the metrics that planners read. SIGTERM ends it gracefully: running answers are
    finished.
    """
    if context.invoked_subcommand is not None:
        return
    if config_path is None:
        raise click.UsageError("name a configuration with --config; --help shows the smallest one", ctx=context)
    if metrics_port is not None and workers == 1:
        raise click.UsageError("--metrics-port is for --workers; one process shows its metrics on the admin port", ctx=context)
    try:
        code = ROUTER.choose(tell_children(compiled))
    except (CannotCompile, ValueError) as error:
        click.echo(f"error: {'' if isinstance(error, ValueError) else '--compiled: '}{error}", err=True)
        sys.exit(2)
    import uvloop

    from router.config import ANY_MODEL, ConfigError
    from router.forms import load, predictors_of
    from router.process import die_with_parent, run
    from router.tokens import Tokenizer
    from router.workers import run_workers, share

    if with_parent:
        die_with_parent()
    try:
        model = model or ANY_MODEL
        config = load(config_path, model=model, default_ttft_ms=default_ttft_target, default_itl_ms=default_itl_target)
        if port is not None:
            config = config.model_copy(update={"listen": config.listen.model_copy(update={"port": port})})
        if admin_port is not None:
            config = config.model_copy(update={"admin": config.admin.model_copy(update={"port": admin_port})})
        if access_log is not None:
            config = config.model_copy(update={"access_log": access_log})
        if not _loopback(config.listen.host) and not config.keys and not config.listen.without_keys:
            raise ConfigError(
                f"listen.host: {config.listen.host} can be reached by others; configure keys, or set listen.without_keys: true"
            )
        if check:
            for configured in config.models:
                predictors_of(configured)
                if configured.tokenizer:
                    Tokenizer(configured.tokenizer)
            click.echo(f"{config_path.name}: {len(config.models)} models, {sum(len(m.pools) for m in config.models)} pools")
            return
        if one_of is None:
            click.echo(code, err=True)
        if workers > 1:
            passed = {
                "--model": model,
                "--default-ttft-target": default_ttft_target,
                "--default-itl-target": default_itl_target,
                "--access-log": access_log,
            }
            options = [word for name, value in passed.items() if value is not None for word in (name, str(value))]
            finished = uvloop.run(run_workers(config, config_path, options, workers, port_file, metrics_port))
        elif one_of is not None:
            finished = uvloop.run(run(share(config, one_of), port_file, reuse_port=True))
        else:
            finished = uvloop.run(run(config, port_file))
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"cannot listen: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if finished else 1)


if __name__ == "__main__":
    main()
