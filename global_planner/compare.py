"""What the cluster did over a time, and what we would have done: GPU-hours and attainment of every pool. Pure.

Meant for a time in mode `observe`: the recorded grants are what we would have had, the recorded replicas what was there. Two
things to know when reading it: a grant counts from the moment it was decided, without the cold start that reaching it takes;
and attainment is that of the reported demand curves, for both sides alike, not a measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from global_planner.charge import charge_or_last_known
from global_planner.explain import Table
from global_planner.types import Holding, Round
from pool_planner.types import Proposal

LONGEST_GAP_S = 600.0
"""Model seconds between two rounds beyond which nobody was looking: such a gap counts for neither side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolComparison:
    """One pool. Attainments are means over the offered requests (None: there were none, or no report); `differed` is the share
    of the time in which the ordered replicas were not those that we would have had. `unknown_s`: not compared, because the
    pool could not be read."""

    pool: str
    watched_s: float
    unknown_s: float
    did_gpu_hours: float
    would_gpu_hours: float
    did_attainment: float | None
    would_attainment: float | None
    differed: float


@dataclass(slots=True)
class _Sums:
    watched_s: float = 0.0
    unknown_s: float = 0.0
    differed_s: float = 0.0
    did_gpu_s: float = 0.0
    would_gpu_s: float = 0.0
    requests: float = 0.0
    did_requests: float = 0.0
    would_requests: float = 0.0


def compare(rounds: Iterable[Round]) -> tuple[PoolComparison, ...]:
    """Every pool over the rounds of a journal, each round until the next one; the last counts for nothing."""
    sums: dict[str, _Sums] = {}
    for done, following in pairwise(rounds):
        lasted_s = following.inputs.at_s - done.inputs.at_s
        if 0.0 < lasted_s <= LONGEST_GAP_S:
            _add(sums, done, lasted_s)
    return tuple(_compared(pool, total) for pool, total in sorted(sums.items()))


def _add(sums: dict[str, _Sums], done: Round, lasted_s: float) -> None:
    holdings = {holding.pool: holding for holding in done.inputs.holdings}
    grants = {grant.pool: grant for grant in done.allocation.pools}
    reports = {report.pool: report for report in done.inputs.reports}
    for spec in done.inputs.pools:
        total = sums.setdefault(spec.name, _Sums())
        holding, grant = holdings.get(spec.name), grants.get(spec.name)
        gpus = None if holding is None else charge_or_last_known(holding, spec)
        if holding is None or grant is None or gpus is None or holding.unknown is not None:
            total.unknown_s += lasted_s
            continue
        each = holding.gpus_per_replica or spec.gpus_per_replica
        total.watched_s += lasted_s
        total.did_gpu_s += gpus * lasted_s
        total.would_gpu_s += grant.granted * each * lasted_s
        total.differed_s += lasted_s if grant.granted != grant.before else 0.0
        report = reports.get(spec.name)
        if isinstance(report, Proposal):
            requests = report.load_rps * lasted_s
            total.requests += requests
            total.did_requests += requests * attainment(report, _ready(holding))
            total.would_requests += requests * attainment(report, grant.granted)


def attainment(report: Proposal, replicas: int) -> float:
    """The share of the reported load that so many replicas can be admitted with its SLA met."""
    if report.curve is not None:
        return report.curve.attainment[min(replicas, len(report.curve.attainment) - 1)]
    return min(1.0, replicas / report.wanted) if report.wanted else 1.0


def _ready(holding: Holding) -> int:
    return sum(1 for replica in holding.replicas if replica.state == "ready")


def _compared(pool: str, total: _Sums) -> PoolComparison:
    some = total.requests > 0.0
    return PoolComparison(
        pool=pool,
        watched_s=total.watched_s,
        unknown_s=total.unknown_s,
        did_gpu_hours=total.did_gpu_s / 3600.0,
        would_gpu_hours=total.would_gpu_s / 3600.0,
        did_attainment=total.did_requests / total.requests if some else None,
        would_attainment=total.would_requests / total.requests if some else None,
        differed=total.differed_s / total.watched_s if total.watched_s else 0.0,
    )


def comparison_table(compared: Iterable[PoolComparison]) -> Table:
    """The comparison as rows, with the sum of GPU-hours last."""
    pools = tuple(compared)
    rows = [
        (
            item.pool,
            f"{item.watched_s / 3600.0:.2f}",
            f"{item.did_gpu_hours:.2f}",
            f"{item.would_gpu_hours:.2f}",
            _share(item.did_attainment),
            _share(item.would_attainment),
            f"{item.differed:.0%}",
            f"{item.unknown_s / 3600.0:.2f}" if item.unknown_s else "",
        )
        for item in pools
    ]
    did, would = sum(item.did_gpu_hours for item in pools), sum(item.would_gpu_hours for item in pools)
    rows.append(("all", "", f"{did:.2f}", f"{would:.2f}", "", "", "", ""))
    columns = ("pool", "hours", "did GPU-h", "would GPU-h", "did attain", "would attain", "differed", "unknown h")
    return Table(title="What was done, and what we would have done", columns=columns, rows=tuple(rows))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
