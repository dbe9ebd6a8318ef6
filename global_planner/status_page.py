"""What `global-planner status` tells of a system: the last round, what operators set, what people should know. Pure.

Everything comes from what is written down (journal, operators' folder, clock), so it can be told while the arbiter is down;
that a round is overdue is then the first thing that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from global_planner.arbiter.effective import in_force
from global_planner.config_types import WEEKDAYS
from global_planner.explain import Part, Table, group_table, heading
from global_planner.operator_orders import Waiting, waiting
from global_planner.ports import Controls
from global_planner.types import Freeze, Holding, Override, Round, Schedule
from pool_planner.types import Hold

OVERDUE_ROUNDS = 3.0
"""Round intervals without a round after which the arbiter is taken for down or stuck."""

Calendar = Callable[[float], str]


def silent_s(done: Round | None, now_s: float, interval_s: float) -> float | None:
    """For how long no round came, where that is too long (infinite: none ever came); None: all is well."""
    age_s = float("inf") if done is None else now_s - done.inputs.at_s
    return age_s if age_s > OVERDUE_ROUNDS * interval_s else None


def status_parts(
    name: str, done: Round | None, controls: Controls | str, *, now_s: float, interval_s: float, calendar: Calendar
) -> tuple[Part, ...]:
    """The page. `controls` as a text: why they cannot be read. `calendar` puts a model time into words."""
    silent = silent_s(done, now_s, interval_s)
    first = [f"{name}: {_last(done, now_s, calendar)}"]
    if silent is not None:
        since = "There was no round yet" if done is None else f"There was no round for {span(silent)}"
        first.append(f"{since}, and one is due every {span(interval_s)}: the arbiter is down, or the whole system was stopped.")
    parts: list[Part] = ["\n".join(first)]
    if isinstance(controls, str):
        parts.append(f"EVERYTHING IS FROZEN, because what operators set cannot be read: {controls}")
    else:
        parts += _operators(done, controls, now_s, calendar)
    if done is None:
        return tuple(parts)
    parts += [heading(done), group_table(done), pool_status(done), planner_status(done)]
    if done.conditions:
        parts.append("To know\n" + "\n".join(f"  {condition}" for condition in done.conditions))
    return tuple(parts)


def _last(done: Round | None, now_s: float, calendar: Calendar) -> str:
    if done is None:
        return "no round is recorded yet."
    age_s = max(0.0, now_s - done.inputs.at_s)
    return f"round {done.inputs.round_no}, {span(age_s)} ago ({calendar(done.inputs.at_s)})."


def pool_status(done: Round) -> Table:
    """Each pool: what it has, what it is to have, and why."""
    holdings = {holding.pool: holding for holding in done.inputs.holdings}
    grants = {grant.pool: grant for grant in done.allocation.pools}
    rows = []
    for spec in done.inputs.pools:
        grant = grants.get(spec.name)
        rows.append(
            (
                spec.name,
                spec.role,
                spec.mode,
                _count(holdings.get(spec.name), "ready"),
                _count(holdings.get(spec.name), "starting"),
                _count(holdings.get(spec.name), "draining", "terminating"),
                "?" if grant is None or grant.wanted is None else str(grant.wanted),
                "?" if grant is None else f"{grant.granted} (held)" if grant.held else str(grant.granted),
                "" if grant is None else grant.reason,
            )
        )
    columns = ("pool", "role", "mode", "ready", "starting", "ending", "wanted", "granted", "why")
    return Table(title="Pools", columns=columns, rows=tuple(rows))


def planner_status(done: Round) -> Table:
    """What each pool's planner reported to the round: what it wants and why, or why it cannot know."""
    rows = []
    for report in sorted(done.inputs.reports, key=lambda each: each.pool):
        if isinstance(report, Hold):
            rows.append((report.pool, "hold", "", "", "", "", report.reason))
            continue
        ahead = report.forecast
        forecast = (
            "" if ahead is None else f"{ahead.requests_per_s:.2f} ({ahead.quantile:.0%}: {ahead.requests_per_s_high:.2f})"
        )
        rows.append(
            (
                report.pool,
                str(report.wanted),
                f"{report.load_rps:.2f}",
                forecast,
                "" if ahead is None else span(ahead.horizon_s),
                "" if ahead is None else ahead.predictor,
                report.reasons[0] if report.reasons else "",
            )
        )
    columns = ("pool", "wants", "planned rps", "forecast rps", "ahead", "by", "why")
    return Table(title="Planners", columns=columns, rows=tuple(rows))


def _count(holding: Holding | None, *states: str) -> str:
    if holding is None or holding.unknown is not None:
        return "?"
    return str(sum(1 for replica in holding.replicas if replica.state in states))


# ---- what operators set ----------------------------------------------------------------------------------------------


def _operators(done: Round | None, controls: Controls, now_s: float, calendar: Calendar) -> list[Part]:
    parts: list[Part] = []
    if controls.freeze is not None:
        parts.append(frozen_line(controls.freeze, calendar))
    overrides = [item for item in controls.overrides if item.expires_at_s is None or now_s < item.expires_at_s]
    if overrides:
        parts.append(override_table(overrides, now_s, calendar))
    asked = () if done is None else waiting(done, controls.approvals, now_s)
    if asked:
        parts.append(waiting_text(asked))
    return parts


def frozen_line(freeze: Freeze, calendar: Calendar) -> str:
    by = f" by {freeze.by}" if freeze.by else ""
    why = f": {freeze.reason}" if freeze.reason else ""
    return f"EVERYTHING IS FROZEN{by} since {calendar(freeze.at_s)}{why}. Take it back with: global-planner unfreeze"


def override_table(overrides: list[Override], now_s: float, calendar: Calendar) -> Table:
    """Overrides in force."""
    rows = tuple(
        (
            item.pool,
            item.kind,
            "" if item.replicas is None else str(item.replicas),
            "cleared" if item.expires_at_s is None else f"{calendar(item.expires_at_s)} (in {span(item.expires_at_s - now_s)})",
            item.by,
            item.reason,
        )
        for item in overrides
    )
    return Table(title="Overrides", columns=("pool", "kind", "replicas", "until", "by", "reason"), rows=rows)


def waiting_text(asked: tuple[Waiting, ...]) -> str:
    """What waits for approval, with its steps."""
    lines = ["Waiting for approval (global-planner approve POOL, or refuse POOL)"]
    for item in asked:
        before = "?" if item.ordered is None else str(item.ordered)
        said = "" if item.refused is None else f", refused by {item.refused.by or 'somebody'}"
        lines.append(f"  {item.pool}: {before} -> {item.granted} replicas{said}")
        lines += [f"    {step}" for step in item.steps]
    return "\n".join(lines)


def schedule_table(events: Sequence[tuple[Schedule, str]], unix_s: float) -> Table:
    """Known events with where each stands, and whether it lasts (or is led up to) at Unix time `unix_s`."""
    rows = []
    for event, source in events:
        days = event.date or ",".join(WEEKDAYS[day] for day in event.days) or "every day"
        does = f"at least {event.min_replicas}" if event.min_replicas is not None else f"load x {event.load_factor:g}"
        where = " ".join(name for name in (event.group and f"group {event.group}", event.pool and f"pool {event.pool}") if name)
        now = "now" if in_force(event, unix_s) else ""
        rows.append(
            (event.name, f"{event.start} {event.timezone}", days, span(event.duration_s), where or "all", does, source, now)
        )
    columns = ("event", "starts", "on", "lasts", "for", "sets", "from", "in force")
    return Table(title="Known events", columns=columns, rows=tuple(rows))


def span(duration_s: float) -> str:
    """A duration for people.

    >>> [span(s) for s in (4.2, 95, 7200, 90000)]
    ['4 s', '95 s', '2 h', '25 h']
    """
    if duration_s < 120:
        return f"{duration_s:.0f} s"
    if duration_s < 7200:
        return f"{duration_s / 60:.0f} min"
    return f"{duration_s / 3600:.0f} h"
