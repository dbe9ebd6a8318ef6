"""Lines over time for the report: traffic, forecasts, replicas, charges and latencies of a run. Pure.

The x axis is model minutes since the load started. Steps keep only the points at which something changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from global_planner.demo.summary import charged_gpus, ready_replicas
from global_planner.mocker.load_record import LoadRecord
from global_planner.types import PoolSpec, Round
from pool_planner.types import PlannerStatus

BINS = 80
LEAST_BIN_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points of one line; None in `y` is a gap."""

    x: tuple[float, ...]
    y: tuple[float | None, ...]


def bin_s(span_s: float) -> float:
    """A round width that gives about 80 bins, 15 s at least."""
    wanted = max(LEAST_BIN_S, span_s / BINS)
    return next((width for width in (15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0) if width >= wanted), 3600.0)


def offered(records: Sequence[LoadRecord], model: str, width_s: float, span_s: float) -> Line:
    """Requests/s of a model as the workload has them, a point in the middle of each bin."""
    times = np.array([record.at_s for record in records if record.model == model])
    edges = np.arange(0.0, span_s + width_s, width_s)
    counts, _ = np.histogram(times, edges)
    lengths = np.minimum(edges[1:], span_s) - edges[:-1]
    keep = lengths > width_s / 4  # the rest of a bin at the end says nothing about a rate
    middles = (edges[:-1] + lengths / 2) / 60.0
    return Line(x=tuple(middles[keep].tolist()), y=tuple((counts[keep] / lengths[keep]).tolist()))


def quantiles(
    records: Sequence[LoadRecord],
    value: Callable[[LoadRecord], float | None],
    width_s: float,
    ranks: Sequence[float],
) -> tuple[Line, ...]:
    """A line for each percentile of `value` over the requests that were sent in each bin; a bin without any is a gap."""
    bins: dict[int, list[float]] = {}
    for record in records:
        measured = value(record)
        if measured is not None:
            bins.setdefault(int(record.at_s // width_s), []).append(measured)
    indices = range(max(bins, default=-1) + 1)
    x = tuple((index + 0.5) * width_s / 60.0 for index in indices)
    return tuple(
        Line(x=x, y=tuple(float(np.percentile(bins[index], rank)) if index in bins else None for index in indices))
        for rank in ranks
    )


def forecasts(statuses: Sequence[PlannerStatus], start_s: float, width_s: float) -> tuple[Line, Line, Line]:
    """(actual, forecast mean, upper quantile) in requests/s. Forecasts stand at the end of the interval that they are about,
    and what several said of one moment is said by the last; what came is told over `width_s`, or single intervals are noise.
    """
    came: dict[int, dict[float, tuple[float, float]]] = {}
    mean: dict[float, float] = {}
    high: dict[float, float] = {}
    for status in statuses:
        seen, expected = status.observation, status.forecast
        if seen is not None and seen.requests is not None and seen.interval_s > 0:
            bin_no = math.ceil((seen.at_s - start_s) / width_s)
            came.setdefault(bin_no, {})[seen.at_s] = (seen.requests, seen.interval_s)
        if expected is not None:
            about_s = expected.at_s + expected.horizon_s
            mean[about_s] = expected.requests_per_s
            high[about_s] = expected.requests_per_s_high
    actual = {
        max(seen): sum(requests for requests, _ in seen.values()) / sum(interval_s for _, interval_s in seen.values())
        for seen in came.values()
    }
    return _line(actual, start_s), _line(mean, start_s), _line(high, start_s)


def _line(points: Mapping[float, float], start_s: float) -> Line:
    times = sorted(points)
    return Line(x=tuple((at_s - start_s) / 60.0 for at_s in times), y=tuple(points[at_s] for at_s in times))


def steps(rounds: Sequence[Round], value: Callable[[Round], float | None], start_s: float) -> Line:
    """`value` of each round, where it changes, and at the last round."""
    x: list[float] = []
    y: list[float | None] = []
    for done in rounds:
        now = value(done)
        if not y or now != y[-1]:
            x.append((done.inputs.at_s - start_s) / 60.0)
            y.append(now)
    if rounds:
        x.append((rounds[-1].inputs.at_s - start_s) / 60.0)
        y.append(value(rounds[-1]))
    return Line(x=tuple(x), y=tuple(y))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeries:
    """Replicas of one pool, and its GPUs."""

    wanted: Line
    granted: Line
    ready: Line
    charged: Line


def pool_series(rounds: Sequence[Round], spec: PoolSpec, start_s: float) -> PoolSeries:
    grants = {done.inputs.round_no: grant for done in rounds for grant in done.allocation.pools if grant.pool == spec.name}
    holdings = {
        done.inputs.round_no: holding for done in rounds for holding in done.inputs.holdings if holding.pool == spec.name
    }

    def wanted(done: Round) -> float | None:
        grant = grants.get(done.inputs.round_no)
        return None if grant is None else grant.wanted

    def granted(done: Round) -> float | None:
        grant = grants.get(done.inputs.round_no)
        return None if grant is None else grant.granted

    def ready(done: Round) -> float | None:
        holding = holdings.get(done.inputs.round_no)
        return None if holding is None or holding.unknown is not None else ready_replicas(holding)

    return PoolSeries(
        wanted=steps(rounds, wanted, start_s),
        granted=steps(rounds, granted, start_s),
        ready=steps(rounds, ready, start_s),
        charged=every(rounds, lambda done: charged_gpus(done, spec), start_s),
    )


def every(rounds: Sequence[Round], value: Callable[[Round], float], start_s: float, most: int = 1200) -> Line:
    """`value` at the same moments for every pool, so that lines can be stacked; the largest of its neighbours where rounds are
    thinned out to at most about `most` points."""
    stride = max(1, math.ceil(len(rounds) / most))
    groups = [rounds[index : index + stride] for index in range(0, len(rounds), stride)]
    return Line(
        x=tuple((group[0].inputs.at_s - start_s) / 60.0 for group in groups),
        y=tuple(max(value(done) for done in group) for group in groups),
    )
