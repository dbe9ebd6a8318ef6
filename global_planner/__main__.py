"""[I/O] The command line of the arbiter: `global-planner …` or `python -m global_planner …`."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from global_planner.commands import COMMANDS
from global_planner.commands.options import built, compiled_option

if TYPE_CHECKING:  # imports happen in the commands, so that --help is quick
    from global_planner.config import Topology

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "two-models" / "topology.yaml"

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


class _Number(click.FloatRange):
    """A number in a range; `nan`, which no range refuses, and `inf` are none."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Start with: global-planner demo",
)
@click.version_option(package_name="global-planner")
def main() -> None:
    """One GPU budget, many pools of inference engines, one public endpoint.

    Each pool plans for itself; one arbiter shares the budget by what a GPU is worth in SLA attainment; one router sends each
    request to the right pool.
    """


@main.command()
@click.option(
    "--topology", "topology_path", type=_FILE, default=EXAMPLE, show_default="examples/two-models/topology.yaml",
    help="The deployment: budget, groups, pools.",
)  # fmt: skip
@click.option("--trace", type=_FILE, help="Play a real trace: Azure CSV or Mooncake JSONL, plain or .gz (told by content).")
@click.option(
    "--minutes", type=_Number(0, min_open=True), show_default="40, or 10 of a trace",
    help="Length of the workload, in minutes of model time.",
)  # fmt: skip
@click.option(
    "--speed", type=_Number(0.1, 200), default=20.0, show_default=True,
    help="Divides every duration of the system: at 20, a model minute takes 3 seconds.",
)  # fmt: skip
@click.option("--scale", type=_Number(0, min_open=True), default=1.0, show_default=True, help="Multiplies the rate.")
@click.option("--budget", type=click.IntRange(1), help="GPUs of the budget, instead of the topology's.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the built-in workload and thinning.")
@click.option("--out", type=_FOLDER, default=Path("demo-report"), show_default=True, help="Where the report is written.")
def demo(
    topology_path: Path,
    trace: Path | None,
    minutes: float | None,
    speed: float,
    scale: float,
    budget: int | None,
    seed: int,
    out: Path,
) -> None:
    """Run the whole system on mock engines and write a report.

    Starts a virtual cluster whose replicas are processes that behave like inference engines, the router, and a Ray of its own
    with the planners and the arbiter; plays a workload against the public endpoint; ends everything; writes OUT/summary.json
    and OUT/index.html. Exit status: 0 when no request was lost and the budget held, 1 when not, 2 for bad input.
    """
    from global_planner.demo.plan import DemoOptions
    from global_planner.demo.run import run_demo

    sys.exit(
        run_demo(
            DemoOptions(
                topology=_topology(topology_path, budget),
                out=out,
                trace=trace,
                minutes=minutes if minutes is not None else (10.0 if trace else 40.0),
                speed=speed,
                scale=scale,
                seed=seed,
            )
        )
    )


@main.command()
@click.option("--topology", "topology_path", type=_FILE, required=True, help="The deployment: budget, groups, pools.")
@click.option("--budget", type=click.IntRange(1), help="GPUs of the budget, instead of the topology's.")
@click.option("--speed", type=_Number(0.1, 200), default=1.0, show_default=True, help="Divides every duration.")
@click.option(
    "--folder", type=_FOLDER, show_default=".global-planner/NAME; in a Ray cluster ~/.global-planner/NAME of its head node",
    help="Where journal, logs and addresses are kept; the journal of an earlier run there is continued.",
)  # fmt: skip
@click.option(
    "--address", metavar="ADDRESS", show_default="auto in a Ray job, else a Ray of its own",
    help="Run in this Ray cluster instead: start or update the deployment there, and leave.",
)  # fmt: skip
@compiled_option
def run(
    topology_path: Path,
    budget: int | None,
    speed: float,
    folder: Path | None,
    address: str | None,
    compiled: bool | None,
) -> None:
    """Run the system of a topology until it is stopped (Ctrl-C), or in a Ray cluster that runs already.

    Prints the public endpoint when it is ready, then a line for every change. `global-planner plan` and `explain` read the
    same folder while it runs.

    As a Ray job (or with --address) it starts the deployment in that cluster, or changes it to this topology without a gap in
    control, reports, and ends; the deployment goes on. Submit it again whenever the topology has changed.

    \b
    Examples:
      global-planner run --topology examples/two-models/topology.yaml --speed 20
      ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
          python -m global_planner run --topology examples/two-models/topology.yaml
    """
    from global_planner.compiled_sets import ARBITER, ROUTER

    topology = _topology(topology_path, budget)
    built((ARBITER, ROUTER), compiled)
    if address is None and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # what Ray gives the drivers of its jobs
        address = "auto"
    if address is not None:
        from global_planner.job import submit

        home = Path(os.environ.get("GLOBAL_PLANNER_HOME", Path.home() / ".global-planner"))
        sys.exit(submit(topology, folder=folder or home / topology.name, speed=speed, address=address))

    from global_planner.serve import serve

    sys.exit(serve(topology, folder=folder or Path(".global-planner") / topology.name, speed=speed))


@main.command()
@click.option("--topology", "topology_path", type=_FILE, required=True, help="The deployment: budget, groups, pools.")
@click.option("--budget", type=click.IntRange(1), help="GPUs of the budget, instead of the topology's: what would change?")
@click.option(
    "--folder", type=_FOLDER, show_default=".global-planner/NAME",
    help="Of a running system, or of one that ran: its last round is decided again with this topology.",
)  # fmt: skip
@click.option(
    "--load", "loads", multiple=True, metavar="MODEL=RPS[,ISL[,OSL]]",
    help="Assume this traffic instead: requests/s with mean prompt and answer tokens (default 700, 60). Repeatable.",
)  # fmt: skip
def plan(topology_path: Path, budget: int | None, folder: Path | None, loads: tuple[str, ...]) -> None:
    """Print what one round would do, and touch nothing.

    With --load, from the pools' profiles alone: what each pool would want, get, and why. Else from the last round in the
    folder's journal. With neither, the minima.
    """
    from global_planner.dry_run import dry_run

    topology = _topology(topology_path, budget)
    try:
        click.echo(dry_run(topology, folder=folder or Path(".global-planner") / topology.name, loads=loads))
    except ValueError as error:
        _refuse(str(error))


for _command in COMMANDS:
    main.add_command(_command)


def _topology(path: Path, budget: int | None) -> Topology:
    from global_planner.topology_file import TopologyError, load_topology, with_budget

    try:
        topology = load_topology(path)
        return topology if budget is None else with_budget(topology, budget)
    except TopologyError as error:
        _refuse("\n".join(error.problems))


def _refuse(text: str) -> NoReturn:
    click.echo(text, err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
