"""[I/O] One replay for people: sources are read, each policy is played with a progress bar, and the outputs are written.

OUT/summary.json     the numbers of every policy; the same inputs give the same bytes
OUT/report.html      one page with all plots; loads nothing
OUT/POLICY/journal   every round of a policy's run: explain, compare and replay --check read it
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from global_planner.compile import budget_of
from global_planner.config import Topology
from global_planner.demo.report import Decision
from global_planner.journal import Journal
from global_planner.policies import policies_of
from global_planner.replay.arrivals import Workload, merge
from global_planner.replay.contenders import Contender
from global_planner.replay.policies import policy
from global_planner.replay.report import most_gpus, number, percent, render
from global_planner.replay.scenario import Outcome, Scenario
from global_planner.replay.simulator import Simulation
from global_planner.replay.sources import Source, load
from global_planner.replay.summary import Numbers, plain, summarise
from global_planner.replay.trace import TraceError
from global_planner.replay.why import Reasons

JOURNAL_MB = 256.0
TELL_EVERY_S = 30.0  # where no terminal shows a bar, a log shall still tell that it goes on


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What a user can set, beside the scenario. `admission` false: no policy limits what the router admits."""

    out: Path
    policies: tuple[str, ...] = ("goodput",)
    admission: bool = True
    journals: bool = True


def read_sources(sources: Sequence[Source], topology: Topology, seed: int) -> Workload:
    """The requests of all sources; each draws from its own generator, so that adding one changes no other. Raises TraceError
    and ValueError."""
    models = [group.model for group in topology.groups]
    names = {group.name: group.model for group in topology.groups}
    parts = []
    for index, source in enumerate(sources):
        model = source.model if source.model in models else names.get(source.model)
        if model is None:
            raise ValueError(f"--trace {source.model}=…: no model or group {source.model!r} (has: {', '.join(models)})")
        # A line that comes and goes; nothing without a terminal.
        with Console(stderr=True).status(f"reading {escape(source.place)}"):
            parts.append(load(replace(source, model=model), np.random.default_rng([seed, index])))
    whole = merge(parts)
    if whole.at_s.size and whole.at_s[0] < 0.0:
        raise TraceError(sources[0].place, None, f"a request comes at {whole.at_s[0]:.3f} s, before the beginning")
    return whole


def writable(out: Path) -> None:
    """Makes the folder for the outputs, before hours are spent on what they are to hold. Raises ValueError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written: {error.strerror}") from error


def play(
    scenario: Scenario, options: ReplayOptions, sources: Sequence[str], *, beside: Mapping[str, Scenario] | None = None
) -> dict[str, Numbers]:
    """Play every policy, write the outputs, and give the numbers by policy. With `beside`, deployments by name for the same
    workload, every policy is played in each of these instead, and is called POLICY@NAME."""
    writable(options.out)
    runs = {name: (name, scenario) for name in options.policies}
    if beside:
        runs = {f"{name}@{place}": (name, each) for name in options.policies for place, each in beside.items()}
    outcomes: list[Outcome] = []
    why: list[Decision] = []
    columns = (
        TextColumn("{task.description:<13}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[told]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for label, (name, each) in runs.items():
            contender = replace(policy(name), name=label)
            contender = contender if options.admission else replace(contender, admission=False)
            task = progress.add_task(label, total=None, told="")
            outcome, rows = _play_one(each, contender, options, progress, task)
            outcomes.append(outcome)
            why += rows
    played = [each for _, each in runs.values()]
    numbers = {
        outcome.policy: summarise(outcome, each.profiles, each.workload) for outcome, each in zip(outcomes, played, strict=True)
    }
    title = f"Replay of {scenario.topology.name}: {', '.join(runs)}"
    report = render(
        outcomes,
        numbers,
        sorted(why, key=lambda row: row.at_s),
        title=title,
        sources=sources,
        budgets=[budget_of(each.topology) for each in played],
    )
    (options.out / "summary.json").write_bytes(
        summary_bytes(scenario, outcomes[0].window_s, numbers, sources, options.admission)
    )
    (options.out / "report.html").write_text(report, encoding="utf-8")
    return numbers


def summary_bytes(
    scenario: Scenario, window_s: float, numbers: dict[str, Numbers], sources: Sequence[str], admission: bool
) -> bytes:
    """The content of summary.json."""
    whole = {
        "topology": scenario.topology.name,
        "sources": list(sources),
        "requests": len(scenario.workload),
        "window_s": window_s,
        "seed": scenario.seed,
        "admission": admission,
        "policies": numbers,
    }
    return orjson.dumps(plain(whole), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _play_one(
    scenario: Scenario, contender: Contender, options: ReplayOptions, progress: Progress, task: object
) -> tuple[Outcome, list[Decision]]:
    kept = None
    if options.journals:
        folder = options.out / contender.name / "journal"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier replay: this one is another history
        topology = scenario.topology
        if contender.deploy is not None:
            topology, _ = contender.deploy(topology, scenario.profiles, scenario.workload)
        policies = policies_of(topology, unix_at_zero_s=scenario.unix_at_zero_s)
        kept = Journal.open(folder, at_s=0.0, policies=policies, max_mb=JOURNAL_MB, forced=False)
    reasons = Reasons(contender.name, kept)

    said_s = time.monotonic()

    def tell(now_s: float, requests: int) -> None:
        nonlocal said_s
        if not progress.console.is_terminal and time.monotonic() - said_s >= TELL_EVERY_S:
            said_s = time.monotonic()
            done = now_s / simulation.window_s if simulation.window_s else 1.0
            progress.console.print(f"{contender.name}: {done:.0%}, {requests:,} requests", highlight=False, markup=False)
        progress.update(task, completed=now_s, total=simulation.window_s, told=f"{requests:,} requests")  # type: ignore[arg-type]

    simulation = Simulation(scenario, contender, journal=reasons, progress=tell)
    try:
        outcome = simulation.run()
    finally:
        if kept is not None:
            kept.close()
    tell(simulation.window_s, outcome.total().requests)
    return outcome, reasons.rows


def table(numbers: dict[str, Numbers]) -> str:
    """The policies side by side, for a terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    heads = (
        "policy",
        "attainment",
        "TTFT met",
        "ITL met",
        "violations",
        "shed",
        "GPU-hours",
        "most GPUs",
        "cost",
        "moves",
        "over budget",
    )
    for name in heads:
        shown.add_column(name, justify="left" if name == "policy" else "right")
    for name, one in numbers.items():
        shown.add_row(
            name, percent(one["attainment"]), percent(one["ttft_attainment"]), percent(one["itl_attainment"]),
            f"{one['violations']:,}", f"{one['shed']:,}", f"{one['gpu_hours']:.2f}", most_gpus(one), number(one["cost"]),
            str(one["moves"]), str(one["budget_violations"]),
        )  # fmt: skip
    out = Console(file=io.StringIO(), width=128, color_system=None, highlight=False)
    out.print(shown)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())
