"""Why a round decided what it did, in sentences and tables made from its record. Pure: records in, text out.

Everything that is told stands in the record; nothing is computed again, so an explanation cannot differ from the decision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from global_planner.charge import account, charge_or_last_known, ordered_replicas
from global_planner.types import (
    Allocation,
    Cancel,
    Drain,
    Grow,
    Holding,
    PoolGrant,
    PoolSpec,
    Round,
    Shrink,
    Step,
    StepOutcome,
    Undrain,
)
from pool_planner.types import Hold, Proposal, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a title. `text()` sets them in columns; another renderer may take the fields."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        set_out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([self.title, *(f"  {line}" for line in set_out)])


Part = str | Table
"""Of a page that is told: sentences, one a line, or a table. Lines that are indented belong to the title above them."""


def plain(parts: Iterable[Part]) -> str:
    """The page as text in columns, however wide, for files and pipes."""
    return "\n\n".join(part if isinstance(part, str) else part.text() for part in parts)


# ---- a whole round -------------------------------------------------------------------------------------------------------


def explain_round(done: Round) -> str:
    """A round as a page of text."""
    return plain(round_parts(done))


def round_parts(done: Round) -> tuple[Part, ...]:
    """A round: budget, groups, pools, the reason for each, steps, and what people should know."""
    why = "Why\n" + "\n".join(f"  {grant.pool}: {grant.reason}" for grant in done.allocation.pools)
    lines = step_lines(done) or ["none: nothing to do, or nothing possible now"]
    rules = [f"  {item.pool}: {'; '.join(item.rules)}" for item in done.allocation.pools if item.rules]
    rules += [f"  {item.group}: {'; '.join(item.rules)}" for item in done.allocation.groups if item.rules]
    if rules:
        why += "\n\nRules in force\n" + "\n".join(rules)
    steps = "Steps\n" + "\n".join(f"  {line}" for line in lines)
    known = ("To know\n" + "\n".join(f"  {condition}" for condition in done.conditions),) if done.conditions else ()
    by_priority = priority_table(done)
    priorities = () if by_priority is None else (by_priority,)
    return (heading(done), group_table(done), *priorities, pool_table(done), why, steps, *known)


def heading(done: Round) -> str:
    """When, under which objective, how good, and what the GPUs are used for."""
    allocation = done.allocation
    first = (
        f"Round {done.inputs.round_no} at {done.inputs.at_s:.0f} s, objective {allocation.objective}: "
        f"value {allocation.value:.2f}, {_gap(allocation)} ({allocation.solver}), decided in {done.decide_ms:.1f} ms."
    )
    lines = [first]
    for gpu_type, entry in sorted(account(done.inputs.budget, done.inputs.pools, done.inputs.holdings).items()):
        limit = "no limit" if entry.max_gpus is None else f"budget {entry.max_gpus}"
        free = "" if entry.free_gpus is None else f", {max(0, entry.free_gpus)} free"
        lines.append(f"{gpu_type}: {entry.charged_gpus} GPUs charged, {limit}{free}.")
    return "\n".join(lines)


def group_table(done: Round) -> Table:
    """Each group's load, what it attains with its grant, and what the router may admit now."""
    specs = {group.name: group for group in done.inputs.groups}
    told = known_groups(done.inputs.pools, done.allocation)
    rows = []
    for grant in done.allocation.groups:
        spec, known = specs.get(grant.group), grant.group in told
        rows.append(
            (
                grant.group,
                "?" if spec is None else str(spec.priority_class),
                "?" if spec is None else f"{spec.weight:g}",
                f"{grant.load_rps:.2f}" if known else "?",
                f"{grant.attainment:.1%}" if known else "?",
                "unlimited" if grant.admitted_rps is None else f"{grant.admitted_rps:.2f}",
                f"{grant.value:.2f}" if known else "?",
            )
        )
    columns = ("group", "class", "weight", "load req/s", "attains", "admitted req/s", "value")
    return Table(title="Groups", columns=columns, rows=tuple(rows))


def known_groups(pools: Iterable[PoolSpec], allocation: Allocation) -> set[str]:
    """Groups of whose demand anything is known: one of its pools said what it wants, or is thought to carry what it last said.
    Of any other group a load of 0 and an attainment of 0 in the record mean that nobody knows."""
    groups = {spec.name: spec.group for spec in pools}
    said = {groups[grant.pool] for grant in allocation.pools if grant.wanted is not None and grant.pool in groups}
    return said | {grant.group for grant in allocation.groups if grant.load_rps > 0.0 or grant.attainment > 0.0}


def priority_table(done: Round) -> Table | None:
    """What the router may admit of each request priority, for groups with more than one; None: there is no such group."""
    rows = [
        (grant.group, str(item.priority), f"{item.load_rps:.2f}", f"{item.admitted_rps:.2f}")
        for grant in done.allocation.groups
        if len(grant.by_priority) > 1
        for item in grant.by_priority
    ]
    columns = ("group", "request priority", "load req/s", "admitted req/s")
    return Table(title="Admission by request priority", columns=columns, rows=tuple(rows)) if rows else None


def pool_table(done: Round) -> Table:
    """Each pool: what it has, wanted and was granted, what bound it, and what the next GPU would be worth. "For
    sure": replicas for the load that is expected in the mean; what is wanted beyond is for a doubt."""
    holdings = {holding.pool: holding for holding in done.inputs.holdings}
    specs = {spec.name: spec for spec in done.inputs.pools}
    rows: list[tuple[str, ...]] = []
    for grant in done.allocation.pools:
        holding, spec = holdings.get(grant.pool), specs.get(grant.pool)
        gpus = None if holding is None or spec is None else charge_or_last_known(holding, spec)
        rows.append(
            (
                grant.pool,
                "?" if spec is None else spec.role,
                _known(grant.before),
                _states(holding),
                _known(grant.wanted),
                "" if grant.needed is None else str(grant.needed),
                f"{grant.granted} (held)" if grant.held else str(grant.granted),
                _known(gpus),
                grant.binding or "",
                "" if grant.marginal_value is None else f"{grant.marginal_value:.3f}",
                "" if grant.runner_up is None else f"{grant.runner_up.pool} {grant.runner_up.value_per_gpu:.3f}",
            )
        )
    columns = (
        "pool",
        "role",
        "ordered",
        "replicas",
        "wanted",
        "for sure",
        "granted",
        "GPUs",
        "bound by",
        "next GPU",
        "runner-up",
    )
    return _without_empty(Table(title="Pools", columns=columns, rows=tuple(rows)), "for sure")


def _without_empty(table: Table, column: str) -> Table:
    """Without a column in which nothing stands: where no planner doubts, most of the time."""
    place = table.columns.index(column)
    if any(row[place] for row in table.rows):
        return table
    rows = tuple(row[:place] + row[place + 1 :] for row in table.rows)
    return Table(title=table.title, columns=table.columns[:place] + table.columns[place + 1 :], rows=rows)


def step_lines(done: Round) -> list[str]:
    """Each step as a sentence, with what became of it."""
    became = {outcome.step: outcome for outcome in done.outcomes}
    return [f"{step_line(step)} [{_became(became.get(step))}]" for step in done.steps]


def step_line(step: Step) -> str:
    if isinstance(step, Drain):
        return f"drain {', '.join(step.replicas)} of {step.pool} until {step.deadline_s:.0f} s: {step.reason}"
    if isinstance(step, Undrain):
        return f"let {', '.join(step.replicas)} of {step.pool} serve again: {step.reason}"
    named = ""
    if isinstance(step, Shrink | Cancel) and step.victims:
        named = f" ({', '.join(step.victims)})"
    verb = {Shrink: "shrink", Grow: "grow", Cancel: "cancel in"}[type(step)]
    return f"{verb} {step.pool} from {step.before} to {step.after}{named}: {step.reason}"


# ---- one pool ------------------------------------------------------------------------------------------------------------


def explain_pool(done: Round, pool: str) -> str:
    """One pool in one round, in sentences. Raises KeyError when the round does not know the pool."""
    spec = next((item for item in done.inputs.pools if item.name == pool), None)
    if spec is None:
        known = ", ".join(item.name for item in done.inputs.pools)
        raise KeyError(f"round {done.inputs.round_no} has no pool {pool!r} (has: {known})")
    grant = next((item for item in done.allocation.pools if item.pool == pool), None)
    holding = next((item for item in done.inputs.holdings if item.pool == pool), None)
    report = next((item for item in done.inputs.reports if item.pool == pool), None)
    sentences = [
        f"Round {done.inputs.round_no} at {done.inputs.at_s:.0f} s.",
        f"{pool} is the {spec.role} pool of {spec.group}, {spec.gpus_per_replica} GPU(s) of {spec.gpu_type} a replica, "
        f"{_bounds(spec)}.",
        _has(holding, spec),
        _asks(report, done.inputs.at_s),
        *_gets(grant),
    ]
    mine = [line for line, step in zip(step_lines(done), done.steps, strict=True) if step.pool == pool]
    sentences += [f"Step: {line}." for line in mine] or ["No step."]
    sentences += [f"To know: {condition}." for condition in done.conditions if pool in condition]
    return "\n".join(sentences)


def explain_history(rounds: Iterable[Round], pool: str) -> Table:
    """How a pool came to where it is: the rounds in which its grant, its replicas or its holding back changed, and why."""
    rows: list[tuple[str, ...]] = []
    last: tuple[object, ...] | None = None
    for done in rounds:
        grant = next((item for item in done.allocation.pools if item.pool == pool), None)
        holding = next((item for item in done.inputs.holdings if item.pool == pool), None)
        if grant is None:
            continue
        mine = [step for step in done.steps if step.pool == pool]
        now = (grant.granted, grant.held, grant.binding, _states(holding))
        if now == last and not mine:
            continue
        last = now
        does = ", ".join(type(step).__name__.lower() for step in mine)
        granted = f"{grant.granted} (held)" if grant.held else str(grant.granted)
        number, at = str(done.inputs.round_no), f"{done.inputs.at_s:.0f}"
        rows.append((number, at, _states(holding), _known(grant.wanted), granted, does, grant.reason))
    columns = ("round", "at s", "replicas", "wanted", "granted", "steps", "why")
    return Table(title=f"{pool}, where something changed", columns=columns, rows=tuple(rows))


def _has(holding: Holding | None, spec: PoolSpec) -> str:
    if holding is None:
        return "What it has is not known: no holding was observed."
    gpus = charge_or_last_known(holding, spec)
    charged = "its charge was never known" if gpus is None else f"it is charged {gpus} GPUs"
    if holding.unknown is not None:
        return f"What it has is not known ({holding.unknown}); {charged}."
    pending = "" if holding.last_write is None else f", an order of {holding.last_write} may still take effect"
    return f"It has {_known(ordered_replicas(holding))} replicas ordered ({_states(holding)}){pending}; {charged}."


def _asks(report: Report | None, at_s: float) -> str:
    if report is None:
        return "Its planner has no report in force."
    if isinstance(report, Hold):
        return f"Its planner asks to hold: {report.reason}."
    return _proposes(report, at_s)


def _proposes(report: Proposal, at_s: float) -> str:
    why = f" ({'; '.join(report.reasons)})" if report.reasons else ""
    by = [
        f"{number} by {name}"
        for name, number in (("throughput", report.predicted_replicas), ("load", report.load_replicas))
        if number is not None
    ]
    split = f", {' and '.join(by)}" if by else ""
    age_s = max(0.0, at_s - report.at_s)
    doubt = (
        ""
        if report.expected_rps is None or report.expected_rps >= report.load_rps
        else (f", of which {report.expected_rps:.2f} are expected in the mean and the rest is doubt")
    )
    said = f"Its planner reported {age_s:.0f} s before: {report.load_rps:.2f} req/s{doubt}"
    return f"{said}, wanting {report.wanted}{split}{why}."


def _gets(grant: PoolGrant | None) -> list[str]:
    if grant is None:
        return ["It has no line in the allocation."]
    sentences = [f"It was granted {grant.granted}: {grant.reason}."]
    if grant.rules:
        sentences.append(f"Rules in force for it: {'; '.join(grant.rules)}.")
    if grant.binding is not None:
        sentences.append(f"What bound it: {grant.binding}.")
    if grant.marginal_value is not None:
        part = "" if grant.marginal_sure is None else f", {grant.marginal_sure:.3f} of them of the load that is expected"
        sentences.append(f"The next GPU would be worth {grant.marginal_value:.3f} weighted req/s here{part}.")
    if grant.runner_up is not None:
        value = grant.runner_up.value_per_gpu
        sentences.append(f"The runner-up for it is {grant.runner_up.pool}, with {value:.3f}.")
    return sentences


def _bounds(spec: PoolSpec) -> str:
    most = "the budget" if spec.max_replicas is None else str(spec.max_replicas)
    guarantee = f", {spec.guarantee_replicas} guaranteed" if spec.guarantee_replicas else ""
    mode = "" if spec.mode == "act" else f", in mode {spec.mode}"
    return f"at least {spec.min_replicas} and at most {most}{guarantee}{mode}"


def _became(outcome: StepOutcome | None) -> str:
    if outcome is None:
        return "not sent"
    return "applied" if outcome.applied else f"not applied: {outcome.error}"


def _states(holding: Holding | None) -> str:
    if holding is None or holding.unknown is not None:
        return "unknown"
    counts: Mapping[str, int] = {
        state: sum(1 for replica in holding.replicas if replica.state == state)
        for state in ("ready", "starting", "draining", "terminating")
    }
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "none"


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)


def _gap(allocation: Allocation) -> str:
    return "proven best" if allocation.gap == 0.0 else f"at most {allocation.gap:.2%} below the best"


# ---- finding the round -----------------------------------------------------------------------------------------------------


def pick_round(rounds: Sequence[Round], number: int | None) -> Round:
    """The round of that number (None: the last). Raises KeyError that says which rounds there are."""
    if not rounds:
        raise KeyError("the journal holds no round")
    if number is None:
        return rounds[-1]
    found = next((done for done in rounds if done.inputs.round_no == number), None)
    if found is None:
        first, last = rounds[0].inputs.round_no, rounds[-1].inputs.round_no
        raise KeyError(f"the journal holds rounds {first} to {last}, not {number}")
    return found
