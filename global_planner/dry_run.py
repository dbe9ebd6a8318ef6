"""[I/O] What one round would do, told without doing it: reads a journal or assumes a traffic, decides, and returns a text.

The decision is the live one (`plan`, `decide`); only the observations and the cluster are assumed or taken from the journal.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from global_planner.compile import planner_setups_of, virtual_pools
from global_planner.config import GroupConfig, PoolConfig, Topology
from global_planner.explain import known_groups
from global_planner.journal_reader import read, segments
from global_planner.memory import PlannerMemory, decide, memories
from global_planner.rollout import acting
from global_planner.round import RoundConfig
from global_planner.system_clock import read_clock
from global_planner.topology_file import load_profiles
from global_planner.types import Allocation, Holding, Replica, Round, RoundInputs, Step
from pool_planner.assume import AssumedLoad, assumed_reports, mixed, parse_load
from pool_planner.types import Report

WIDTH = 118


def parse_model_load(text: str, models: Sequence[str]) -> tuple[str, AssumedLoad]:
    """`MODEL=RPS[,ISL[,OSL]]`. Raises ValueError with what is allowed.

    >>> parse_model_load("m=1.5,900", ["m"])
    ('m', AssumedLoad(rps=1.5, isl_tokens=900.0, osl_tokens=60.0))
    """
    model, _, numbers = text.partition("=")
    if model not in models:
        raise ValueError(f"--load {text}: no model {model!r} (has: {', '.join(models)})")
    try:
        return model, parse_load(numbers)
    except ValueError as error:
        raise ValueError(f"--load {text}: {error}") from None


def dry_run(topology: Topology, *, folder: Path, loads: Sequence[str]) -> str:
    """The text of `global-planner plan`. Raises ValueError for a bad --load or a folder without its clock,
    JournalCorrupt for a damaged journal."""
    assumed = [parse_model_load(text, [group.model for group in topology.groups]) for text in loads]
    memory = PlannerMemory()
    last = None if assumed else _last_round(folder / "journal")
    if last is not None:
        memory, done = last
        config = RoundConfig.of(topology, unix_at_zero_s=read_clock(folder).unix_at_zero_s)
        known = {spec.name for spec in config.pools}
        inputs = replace(
            done.inputs,
            round_no=memory.round_no + 1,
            budget=config.budget,
            groups=config.groups,
            pools=config.pools,
            holdings=tuple(item for item in done.inputs.holdings if item.pool in known),
            reports=tuple(report for report in done.inputs.reports if report.pool in known),
        )
        source = f"the last round in {folder / 'journal'} (round {done.inputs.round_no}), decided again"
    else:
        reports = _assumed_reports(topology, assumed)
        # Assumed for now: what is scheduled for this time of day counts.
        config = RoundConfig.of(topology, unix_at_zero_s=time.time() - reports[0].at_s)
        inputs = RoundInputs(
            round_no=1,
            at_s=reports[0].at_s,
            budget=config.budget,
            groups=config.groups,
            pools=config.pools,
            holdings=_minima(topology, reports[0].at_s),
            reports=reports,
        )
        told = ", ".join(f"{model} {x.rps:g} req/s ({x.isl_tokens:g} → {x.osl_tokens:g} tokens)" for model, x in assumed)
        source = f"assumed traffic: {told or 'none'}; the pools at their minima"
    _, allocation, steps = decide(memory, inputs, config.policies)
    return _text(topology, inputs, allocation, acting(steps, inputs, allocation), source)


def _last_round(journal: Path) -> tuple[PlannerMemory, Round] | None:
    """The newest recorded round, with the memory after it."""
    if not segments(journal):
        return None
    records = list(read(journal))
    rounds = [record for record in records if isinstance(record, Round)]
    if not rounds:
        return None
    *_, memory = memories(records)
    return memory, rounds[-1]


# ---- assumed traffic --------------------------------------------------------------------------------------------------


def _assumed_reports(topology: Topology, loads: Sequence[tuple[str, AssumedLoad]]) -> tuple[Report, ...]:
    """What the planners would report; each load goes to the pools that its prompts go to."""
    replicas = {pool.name: pool.replicas for pool in virtual_pools(topology)}
    by_pool = {
        pool.name: mixed(tuple(x for model, x in loads if model == group.model and _takes(group, pool, x.isl_tokens)))
        for group, pool in topology.placed_pools()
    }
    setups = planner_setups_of(topology, load_profiles(topology)).values()
    return tuple(report for setup in setups for report in assumed_reports(setup, by_pool, replicas))


def _takes(group: GroupConfig, pool: PoolConfig, isl_tokens: float) -> bool:
    """Whether prompts of this length go to `pool`: to the tightest limit among the pools of its role that holds them.
    Raises ValueError when none does."""
    fitting = [
        other
        for other in group.pools
        if other.role == pool.role and (other.isl_max_tokens is None or isl_tokens <= other.isl_max_tokens)
    ]
    if not fitting:
        raise ValueError(f"no {pool.role} pool of {group.model} takes prompts of {isl_tokens:g} tokens")
    tightest = min(fitting, key=lambda other: float("inf") if other.isl_max_tokens is None else other.isl_max_tokens)
    return tightest.name == pool.name


def _minima(topology: Topology, now: float) -> tuple[Holding, ...]:
    return tuple(
        Holding(
            pool=pool.name,
            at_s=now,
            spec=pool.replicas,
            version="0",
            gpus_per_replica=pool.gpus_per_replica,
            replicas=tuple(Replica(id=f"{pool.name}-{n}", state="ready") for n in range(pool.replicas)),
        )
        for pool in virtual_pools(topology)
    )


# ---- telling ----------------------------------------------------------------------------------------------------------


def _text(topology: Topology, inputs: RoundInputs, allocation: Allocation, steps: Sequence[Step], source: str) -> str:
    pools = {spec.name: spec for spec in inputs.pools}
    groups = {grant.group: grant for grant in allocation.groups}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pool", "role", "has", "wants", "gets", "GPUs", "why"):
        table.add_column(name, justify="right" if name in ("has", "wants", "gets", "GPUs") else "left")
    used: dict[str, int] = {}
    for grant in allocation.pools:
        spec = pools[grant.pool]
        gpus = grant.granted * spec.gpus_per_replica
        used[spec.gpu_type] = used.get(spec.gpu_type, 0) + gpus
        table.add_row(
            grant.pool, spec.role, _count(grant.before), _count(grant.wanted), str(grant.granted), str(gpus), grant.reason
        )
    out = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    out.print(f"One round of {topology.name}, from {source}.\n", markup=False)
    out.print(table)
    out.print()
    for gpu_type, count in sorted(used.items()):
        most = inputs.budget.max_gpus.get(gpu_type)
        out.print(f"{gpu_type}: {count} of {'unlimited' if most is None else most} GPUs", markup=False)
    told = known_groups(inputs.pools, allocation)
    for group in inputs.groups:
        grant_of = groups.get(group.name)
        if grant_of is not None and group.name not in told:
            out.print(f"{group.name}: nothing is known of its demand", markup=False)
        elif grant_of is not None:
            out.print(
                f"{group.name}: {grant_of.attainment:.0%} of {grant_of.load_rps:.2f} requests/s within their SLA", markup=False
            )
    if allocation.infeasible:
        out.print(f"The minima do not fit together: {', '.join(allocation.infeasible)}", markup=False)
    out.print(f"\nSteps that would be taken now: {'none' if not steps else ''}", markup=False)
    for step in steps:
        out.print(f"  {describe(step)}", markup=False, soft_wrap=True)
    out.print("\nNothing was changed.", markup=False)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().splitlines())


def describe(step: Step) -> str:
    """One step as a line for people.

    >>> from global_planner.types import Grow
    >>> describe(Grow(pool="p", before=1, after=3, version=None, reason="forecast"))
    'Grow p 1 -> 3: forecast'
    """
    change = f" {step.before} -> {step.after}" if not hasattr(step, "replicas") else f" {', '.join(step.replicas)}"
    return f"{type(step).__name__} {step.pool}{change}: {step.reason}"


def _count(value: int | None) -> str:
    return "unknown" if value is None else str(value)
