"""[I/O] whatif: a replay under several budgets and priorities, in parallel on Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from global_planner.commands.look import told_errors
from global_planner.commands.options import chosen, compiled_option

if TYPE_CHECKING:  # imports happen in the command, so that --help is quick
    from global_planner.replay.scenario import Scenario
    from global_planner.replay.summary import Numbers
    from global_planner.replay.sweep import Variant


@click.command()
@click.option("--topology", "topology_path", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--trace", "traces", multiple=True, required=True, metavar="MODEL=SOURCE[,…]", help="As for replay. Repeatable.")
@click.option("--budget", "budgets", metavar="N,N,…", help="GPUs of the budget to try; else the topology's.")
@click.option("--priority", "priorities", multiple=True, metavar="GROUP=N,N,…", help="Priorities to try. Repeatable.")
@click.option("--policy", "policies", default="goodput", show_default=True, metavar="A,B,…", help="As for replay --compare.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of everything that is random.")
@compiled_option
@click.option("--jobs", type=click.IntRange(1), show_default="a CPU each", help="How many runs at a time.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("whatif-report"), show_default=True,
    help="Where report.html and summary.json are written.",
)  # fmt: skip
def whatif(
    topology_path: Path,
    traces: tuple[str, ...],
    budgets: str | None,
    priorities: tuple[str, ...],
    policies: str,
    seed: int,
    compiled: bool | None,
    jobs: int | None,
    out: Path,
) -> None:
    """Sweep budgets and priorities over a trace: what would each attain, and what would it cost?

    Every combination is one replay (see `global-planner replay --help` for traces and policies); they run in parallel on a
    Ray of their own. The report draws the frontier of GPU-hours against attainment, for all models and for each.

    \b
    Examples:
      global-planner whatif --topology examples/two-models/topology.yaml --trace chat=azure_conv.csv.gz,scale=0.1 \\
          --trace code=azure_code.csv.gz,scale=0.1 --budget 8,12,16,24
      global-planner whatif --topology T --trace chat=… --trace code=… --budget 16,24,32 --priority chat=900,500
      global-planner whatif --topology T --trace chat=… --policy goodput,hpa --budget 8,16
    """
    from global_planner.compiled_sets import REPLAY

    click.echo(chosen(REPLAY, compiled), err=True)
    from global_planner.replay.policies import names_of
    from global_planner.replay.run import read_sources, writable
    from global_planner.replay.scenario import Scenario
    from global_planner.replay.sources import parse_source
    from global_planner.replay.sweep import variants, varied
    from global_planner.topology_file import load_profiles, load_topology

    with told_errors():
        topology = load_topology(topology_path)
        asked: dict[str, list[int]] = {}
        for group, numbers in map(_priorities, priorities):
            if group in asked:
                raise ValueError(f"--priority {group}=…: is given twice; list its numbers with commas between")
            asked[group] = numbers
        tried = variants(names_of(policies), [] if budgets is None else _numbers(budgets, f"--budget {budgets}"), asked)
        deployed = [varied(topology, each) for each in tried]
        workload = read_sources([parse_source(text) for text in traces], topology, seed)
        profiles = load_profiles(topology)
        scenarios = [Scenario(topology=each, profiles=profiles, workload=workload, seed=seed) for each in deployed]
        writable(out)
    results, failed = _swept(scenarios, tried, jobs or os.cpu_count() or 1)
    for label, reason in failed.items():
        click.echo(f"error: {label}: {reason}", err=True)
    if results:
        _write(out, traces, scenarios[0], results, failed)
    sys.exit(1 if failed or any(one["budget_violations"] for one in results.values()) else 0)


def _swept(scenarios: Sequence[Scenario], tried: Sequence[Variant], jobs: int) -> tuple[dict[str, Numbers], dict[str, str]]:
    """Ray is only imported once there is something to do for it, and its environment is prepared."""
    from global_planner.ray_environment import prepare

    folder = prepare()
    from global_planner.ray_local import LocalRay
    from global_planner.ray_sweep import swept

    local = LocalRay(folder)
    try:
        local.start()
        return swept(scenarios, tried, jobs)
    finally:
        local.stop()


def _write(
    out: Path, traces: tuple[str, ...], scenario: Scenario, results: Mapping[str, Numbers],
    failed: Mapping[str, str],
) -> None:  # fmt: skip
    import orjson

    from global_planner.commands.page import show
    from global_planner.explain import Table
    from global_planner.replay.summary import plain
    from global_planner.replay.sweep import render, rows_of

    whole = {
        "topology": scenario.topology.name,
        "sources": list(traces),
        "requests": len(scenario.workload),
        "seed": scenario.seed,
        "variants": dict(results),
        "failed": dict(failed),
    }
    (out / "summary.json").write_bytes(orjson.dumps(plain(whole), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    (out / "report.html").write_text(render(scenario.topology, results, sources=traces), encoding="utf-8")
    heads, rows = rows_of(scenario.topology, results)
    show([Table(title="What if", columns=heads, rows=tuple(rows))])
    click.echo(f"\n{out / 'report.html'}  {out / 'summary.json'}")


def _numbers(text: str, where: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().lstrip("-").isdecimal() for part in parts):
        raise ValueError(f"{where}: must be whole numbers with commas between")
    return list(dict.fromkeys(int(part) for part in parts))


def _priorities(text: str) -> tuple[str, list[int]]:
    group, equals, numbers = text.partition("=")
    if not equals:
        raise ValueError(f"--priority {text}: must be GROUP=N,N,…")
    return group, _numbers(numbers, f"--priority {text}")
