"""From two snapshots of counters to what happened between them, and to the observation of a pool. Pure.

Increases are summed over instances before anything is divided: a mean is sum over count, never a mean of means. A counter
that fell was reset, and counts from zero. An instance that is seen for the first time only gives a baseline; one that was
silent for a while gives the share of its increase that falls into this interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pool_planner.metrics.exposition import Families
from pool_planner.metrics.names import START_TIME, PoolSeries
from pool_planner.types import Histogram, Observation, WorkerLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one instance exposed at `at_s`."""

    at_s: float
    families: Families
    instance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One instance at the begin and the end of an interval. `share`: length of the interval over the time between the two,
    below 1 when an instance was silent for longer, around 1 when it is read at its own times."""

    before: Snapshot
    after: Snapshot
    share: float = 1.0

    @property
    def restarted(self) -> bool:
        starts = [_single(snapshot.families.get(START_TIME)) for snapshot in (self.before, self.after)]
        return None not in starts and starts[0] != starts[1]


def _single(series: Mapping[str, object] | None) -> float | None:
    values = [value.value for value in (series or {}).values() if hasattr(value, "value")]
    return values[0] if len(values) == 1 else None


def increase(pairs: Iterable[Pair], name: str, pool: PoolSeries) -> float | None:
    """How much the pool's counter `name` grew over all instances; None where no instance has it."""
    grown = [growth for _, growth in _growths(pairs, name, pool)]
    return sum(grown) if grown else None


def increase_by(pairs: Iterable[Pair], name: str, pool: PoolSeries, label: str) -> Mapping[str, float] | None:
    """The same by the value of a label; None where no instance has the counter."""
    found: dict[str, float] = {}
    for labels, growth in _growths(pairs, name, pool):
        value = labels.get(label, "")
        found[value] = found.get(value, 0.0) + growth
    return found or None


def _growths(pairs: Iterable[Pair], name: str, pool: PoolSeries) -> Iterator[tuple[Mapping[str, str], float]]:
    for pair in pairs:
        old = {} if pair.restarted else pair.before.families.get(name, {})
        for key, series in pair.after.families.get(name, {}).items():
            if not pool.mine(series.labels) or not math.isfinite(series.value):
                continue
            before = old[key].value if key in old else 0.0
            grown = series.value - before if math.isfinite(before) and series.value >= before else series.value
            yield series.labels, pair.share * grown


def mean(pairs: Sequence[Pair], name: str, pool: PoolSeries) -> float | None:
    """The mean of what the histogram `name` was given in the interval; None without any."""
    total, count = increase(pairs, name + "_sum", pool), increase(pairs, name + "_count", pool)
    return total / count if total is not None and count else None


def buckets(pairs: Sequence[Pair], name: str, pool: PoolSeries) -> Histogram | None:
    """The histogram's counts in the interval, by bucket; None without any, or where instances have different buckets."""
    grown: dict[float, float] = {}
    edges: set[frozenset[float]] = set()
    for pair in pairs:
        mine: dict[float, float] = {}
        old = {} if pair.restarted else pair.before.families.get(name + "_bucket", {})
        for key, series in pair.after.families.get(name + "_bucket", {}).items():
            if not pool.mine(series.labels) or "le" not in series.labels:
                continue
            edge = float(series.labels["le"])
            before = old[key].value if key in old else 0.0
            mine[edge] = mine.get(edge, 0.0) + pair.share * (series.value - before if series.value >= before else series.value)
        if mine:
            edges.add(frozenset(mine))
        for edge, count in mine.items():
            grown[edge] = grown.get(edge, 0.0) + count
    if len(edges) != 1 or math.inf not in grown or grown[math.inf] <= 0.0:
        return None
    ordered = sorted(grown)
    counts = [grown[ordered[0]]] + [max(0.0, grown[b] - grown[a]) for a, b in pairwise(ordered)]
    return Histogram(edges=tuple(ordered[:-1]), counts=tuple(counts))


def gauge(snapshots: Iterable[Snapshot], name: str, pool: PoolSeries) -> float | None:
    """The pool's gauge summed over instances; None where no instance has it."""
    found = [
        series.value
        for snapshot in snapshots
        for series in snapshot.families.get(name, {}).values()
        if pool.mine(series.labels) and math.isfinite(series.value)
    ]
    return sum(found) if found else None


def observation(
    pool: PoolSeries,
    pairs: Sequence[Pair],
    *,
    at_s: float,
    interval_s: float,
    complete: bool,
    workers: tuple[WorkerLoad, ...] | None,
    pending: tuple[float | None, float | None] = (None, None),
) -> Observation:
    """What was observed of a pool over (at_s - interval_s, at_s]. `complete`: every instance answered. Without pairs nothing
    is known of the traffic. `pending`: (requests, prompt tokens) that wait, where the source's own series do not tell."""
    names = pool.names

    def mean_of(name: str, scale: float = 1.0) -> float | None:
        value = mean(pairs, name, pool)
        return None if value is None else value * scale

    completed = increase(pairs, names.completed, pool)
    # A door that lets the shortest prompts in first leaves answers that make the load look lighter than it is.
    isl = mean_of(names.offered_isl) if names.offered_isl is not None else None
    isl_series = names.isl if isl is None or names.offered_isl is None else names.offered_isl
    now = [pair.after for pair in pairs]
    queued_requests = None if names.waiting is None else gauge(now, names.waiting, pool)
    queued_tokens = None if names.waiting_tokens is None else gauge(now, names.waiting_tokens, pool)
    return Observation(
        pool=pool.pool,
        at_s=at_s,
        interval_s=interval_s,
        front_door_up=complete,
        requests=_arrived(pairs, pool, completed),
        completed=completed,
        shed=None if names.shed is None else increase(pairs, names.shed, pool),
        queued_requests=pending[0] if queued_requests is None else queued_requests,
        queued_tokens=pending[1] if queued_tokens is None else queued_tokens,
        isl_tokens=mean_of(isl_series),
        osl_tokens=mean_of(names.osl),
        ttft_ms=mean_of(names.ttft, 1e3),
        itl_ms=mean_of(names.itl, 1e3),
        duration_s=mean_of(names.duration),
        isl_histogram=buckets(pairs, isl_series, pool),
        osl_histogram=buckets(pairs, names.osl, pool),
        workers=workers,
        requests_by_priority=None if names.offered is None else increase_by(pairs, names.offered, pool, "priority"),
        prefix_hit_rate=_hit_rate(pairs, pool),
    )


def _hit_rate(pairs: Sequence[Pair], pool: PoolSeries) -> float | None:
    names = pool.names
    if names.cache_queries is None or names.cache_hits is None:
        return None
    queried, found = increase(pairs, names.cache_queries, pool), increase(pairs, names.cache_hits, pool)
    return min(1.0, found / queried) if queried and found is not None else None


def _arrived(pairs: Sequence[Pair], pool: PoolSeries, completed: float | None) -> float | None:
    """Arrivals: counted where the source counts them; else what was completed and what more is under way."""
    names = pool.names
    if names.started is not None:
        started = increase(pairs, names.started, pool)
        return completed if started is None else started
    if completed is None or names.waiting is None or names.running is None:
        return completed
    under_way = [
        [gauge(snapshots, name, pool) for name in (names.waiting, names.running)]
        for snapshots in ([pair.before for pair in pairs], [pair.after for pair in pairs])
    ]
    if any(value is None for side in under_way for value in side):
        return completed
    before, after = (sum(value or 0.0 for value in side) for side in under_way)
    return max(0.0, completed + after - before)
