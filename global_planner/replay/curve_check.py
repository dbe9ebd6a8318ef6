"""Which of a proposal's two curves is true: what planners said of the ready replicas, and what requests attained. Pure.

Means over requests; None where nothing was said. A path attains the minimum of its stages.

What planners plan for is the upper end of what may come, and what waits: more than comes. So the curve with admission is read
at the rate that came, where the proposal tells what it carries (`pool_planner.performance.door`). The curve without admission
says by itself which rate it is about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from global_planner.config import GroupConfig
from global_planner.replay.scenario import Outcome
from global_planner.replay.scores import OverTime
from global_planner.replay.timeline import Timeline
from pool_planner.performance.door import share_served

SMOOTH = 100.0  # requests: chance moves a count of so many by a tenth
Floats = NDArray[np.float64]


def curve_check(outcome: Outcome, group: GroupConfig, over_time: OverTime) -> dict[str, float | None]:
    """Of a group: `with_admission`, `without_admission`, as its planners said, and what was `attained` in that time."""
    timeline = outcome.timeline
    at_s = np.asarray(timeline.at_s)
    if not at_s.size:
        return {"with_admission": None, "without_admission": None, "attained": None}
    bins = np.minimum((at_s / over_time.width_s).astype(np.int64), over_time.requests.size - 1)
    came_rps = _rates_that_came(over_time)[bins]
    stages = [[other.name for other in group.pools if other.role == role] for role in {pool.role: None for pool in group.pools}]
    behind = np.minimum.reduce([_mean(timeline, pools, _behind_a_door(timeline, pools, came_rps)) for pools in stages])
    without = np.minimum.reduce([_mean(timeline, pools, _column(timeline, pools, "open")) for pools in stages])
    said = {"with_admission": behind, "without_admission": without}
    known = np.isfinite(without)
    inside = np.unique(bins[known])
    requests = int(over_time.requests[inside].sum())
    return {
        **{name: _over_requests(share, over_time.requests[bins]) for name, share in said.items()},
        "attained": float(over_time.met[inside].sum() / requests) if requests else None,
    }


def _over_requests(share: Floats, requests: NDArray[np.int64]) -> float | None:
    known = np.isfinite(share)
    weight = requests[known]
    return float((share[known] * weight).sum() / weight.sum()) if weight.sum() else None


def _rates_that_came(over_time: OverTime) -> Floats:
    """Requests/s around each bin, counted over times in which SMOOTH requests come in the mean. In shorter ones chance makes
    peaks: what is above the capacity then counts as lost and what is below does not make up for it, though a pool whose
    requests stay for a minute feels neither."""
    total = over_time.requests.sum()
    together = max(1, math.ceil(SMOOTH * over_time.requests.size / total)) if total else 1
    around = np.ones(min(together | 1, 2 * over_time.requests.size - 1))
    middle = (around.size - 1) // 2
    counted = np.convolve(over_time.requests, around)[middle : middle + over_time.requests.size]
    bins = np.convolve(np.ones(over_time.requests.size), around)[middle : middle + over_time.requests.size]
    return np.asarray(counted / bins / over_time.width_s)


def _column(timeline: Timeline, pools: Sequence[str], name: str) -> Floats:
    """Of a stage: pools x rounds."""
    return np.array([np.asarray(timeline.pools[pool][name]) for pool in pools])


def _mean(timeline: Timeline, pools: Sequence[str], shares: Floats) -> Floats:
    """The load-weighted mean of a stage's pools, by round; NaN where none said anything. An idle pool starves nobody."""
    loads = np.nan_to_num(_column(timeline, pools, "load_rps"))
    whole = loads.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(whole > 0.0, np.nansum(loads * shares, axis=0) / whole, np.nan))


def _behind_a_door(timeline: Timeline, pools: Sequence[str], came_rps: Floats) -> Floats:
    """What each pool's curve says of its part of what came (pools x rounds)."""
    loads, closed = _column(timeline, pools, "load_rps"), _column(timeline, pools, "closed")
    rps, full = _column(timeline, pools, "rps"), _column(timeline, pools, "full_rps")
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(loads > 0.0, loads / np.nansum(loads, axis=0), 0.0) * came_rps
    shares = np.where(np.isfinite(closed), 1.0, np.nan)
    # Who has room for what came and for what was planned has nothing to say of either.
    for place in zip(*np.nonzero(np.isfinite(closed) & ((closed < 1.0) | (parts > rps))), strict=True):
        shares[place] = _share(*(float(values[place]) for values in (closed, loads, parts, rps, full)))
    return shares


def _share(closed: float, load_rps: float, came_rps: float, rps: float, full_rps: float) -> float:
    """The share of what came that is carried where `closed` of `load_rps` would be. Without a capacity that is as many
    requests/s; with one, live load may have shown that the replicas carry less than it says."""
    if math.isnan(rps):
        return min(1.0, closed * load_rps / came_rps) if came_rps > 0.0 else 1.0
    full = rps if math.isnan(full_rps) else full_rps
    modelled = share_served(load_rps, rps, full)
    shown = min(1.0, closed / modelled) if modelled > 0.0 else 0.0
    return shown * share_served(came_rps, rps, full)
