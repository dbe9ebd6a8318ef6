"""A group's bundles: for each attainment that it can reach, the smallest replica counts that reach it. Pure.

A bundle raises prefill and decode together, so that no bundle holds capacity of one stage that the other cannot use. Where
all pools of a stage draw on the same limits, a stage has one cheapest way to each attainment; where they do not (GPU types
that compete inside one stage), all ways are kept of which none is cheaper on every limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.view import GroupView

MAX_WAYS = 512
"""Ways of one stage that are kept where its pools draw on different limits; beyond it they are thinned evenly."""
_SAME = 1e-12

Counts = tuple[int, ...]


class Bundles:
    """`attainment[k]` of the group with `counts[k]` replicas by pool; the first is the one with every pool at its floor.
    `thinned`: some ways were left out, so the best of these may not be the best."""

    def __init__(self, attainment: list[float], counts: list[Counts], thinned: bool = False) -> None:
        self.attainment = attainment
        self.counts = counts
        self.thinned = thinned


@dataclass(slots=True, kw_only=True)
class _Ways:
    """Ways to run a stage or a path: attainment (k), replica counts (k x pools of the group), cost by limit (k x limits)."""

    attainment: NDArray[np.float64]
    counts: NDArray[np.int64]
    cost: NDArray[np.float64]
    thinned: bool = False


def bundles_of(
    group: GroupView,
    floors: Sequence[int],
    caps: Sequence[int],
    draws: NDArray[np.float64],
    *,
    hi: bool = False,
) -> Bundles:
    """The bundles between `floors` and `caps` replicas by pool. `draws[p, r]`: what a replica of pool p takes of limit r.

    O(replicas) for a path of one pool a stage, the common case; for several pools a stage, O(product of their ranges).
    """
    if len(group.paths) == 1:
        path = group.paths[0]
        first, last = path[0], path[-1]
        single = len(path) <= 2 and len(first) == len(last) == 1
        if single and group.pools[first[0]].now and group.pools[last[0]].now:
            return _simple(group, path, floors, caps, hi=hi)
    whole: _Ways | None = None
    for path, share, ceiling in zip(group.paths, group.path_shares(), group.ceilings, strict=True):
        ways = _path_ways(group, path, ceiling, floors, caps, draws, hi=hi)
        ways.attainment = ways.attainment * share
        whole = ways if whole is None else _together(whole, ways, np.add, draws, floors)
    assert whole is not None
    order = np.lexsort((whole.cost.sum(axis=1), whole.attainment))
    attainment = whole.attainment[order].tolist()
    counts = [tuple(row) for row in whole.counts[order].tolist()]
    base = tuple(floors)
    if base in counts:
        place = counts.index(base)
        attainment.insert(0, attainment.pop(place))
        counts.insert(0, counts.pop(place))
    else:
        attainment.insert(0, group.attainment(base, hi=hi))
        counts.insert(0, base)
    return Bundles(attainment=attainment, counts=counts, thinned=whole.thinned)


def above(group: GroupView, bundles: Bundles, counts: Sequence[int]) -> Bundles | None:
    """The part of `bundles` (of `group`) from `counts` up, which need not be searched for again; None: it must be."""
    if not group.in_step:
        return None
    try:
        place = bundles.counts.index(tuple(counts))
    except ValueError:
        return None
    return Bundles(attainment=bundles.attainment[place:], counts=bundles.counts[place:], thinned=bundles.thinned)


def _simple(
    group: GroupView, path: tuple[tuple[int, ...], ...], floors: Sequence[int], caps: Sequence[int], *, hi: bool
) -> Bundles:
    """One pool a stage: walk up all stages together, each to the first number that passes the level reached so far."""
    first, second = path[0][0], path[-1][0]
    pool_a, pool_b = group.pools[first], group.pools[second]
    curve_a, curve_b = (pool_a.hi, pool_b.hi) if hi else (pool_a.now, pool_b.now)
    last_a, last_b = len(curve_a) - 1, len(curve_b) - 1
    end_a, end_b = min(caps[first], last_a), min(caps[second], last_b)
    a, b = floors[first], floors[second]
    level_a = curve_a[a if a < last_a else last_a]
    level_b = curve_b[b if b < last_b else last_b]
    ceiling = group.ceilings[0]
    level = min(level_a, level_b, ceiling)
    attainment, found = [level], [tuple(floors)]
    pair, counts = len(floors) == 2 and first != second, list(floors)
    while level < ceiling:
        beyond = level + _SAME
        while level_a <= beyond and a < end_a:
            a += 1
            level_a = curve_a[a]
        while level_b <= beyond and b < end_b:
            b += 1
            level_b = curve_b[b]
        level = level_a if level_a < level_b else level_b
        if level <= beyond:
            break
        if level > ceiling:
            level = ceiling
        attainment.append(level)
        if pair:
            found.append((b, a) if first else (a, b))
        else:
            counts[second], counts[first] = b, a
            found.append(tuple(counts))
    return Bundles(attainment=attainment, counts=found)


def _path_ways(
    group: GroupView,
    path: tuple[tuple[int, ...], ...],
    ceiling: float,
    floors: Sequence[int],
    caps: Sequence[int],
    draws: NDArray[np.float64],
    *,
    hi: bool,
) -> _Ways:
    whole: _Ways | None = None
    for stage in path:
        ways = _stage_ways(group, stage, floors, caps, draws, hi=hi)
        if ways is not None:
            whole = ways if whole is None else _together(whole, ways, np.minimum, draws, floors)
    if whole is None:  # nothing is known of any stage: the path is what it is
        counts = np.asarray([floors], dtype=np.int64)
        return _Ways(attainment=np.asarray([ceiling]), counts=counts, cost=counts @ draws)
    whole.attainment = np.minimum(whole.attainment, ceiling)
    return _undominated(whole)


def _stage_ways(
    group: GroupView,
    stage: tuple[int, ...],
    floors: Sequence[int],
    caps: Sequence[int],
    draws: NDArray[np.float64],
    *,
    hi: bool,
) -> _Ways | None:
    """Ways of a stage: the load-weighted mean of its pools; None where nothing is known of any."""
    known = [place for place in stage if group.pools[place].now and group.shares[place] > 0]
    if not known:
        return None
    total = sum(group.shares[place] for place in known)
    whole: _Ways | None = None
    for place in known:
        pool = group.pools[place]
        curve = np.asarray(pool.hi if hi else pool.now, dtype=np.float64)
        numbers = np.arange(floors[place], max(min(caps[place], len(curve) - 1), floors[place]) + 1)
        counts = np.tile(np.asarray(floors, dtype=np.int64), (len(numbers), 1))
        counts[:, place] = numbers
        level = curve[np.minimum(numbers, len(curve) - 1)] * (group.shares[place] / total)
        ways = _undominated(_Ways(attainment=level, counts=counts, cost=counts @ draws))
        whole = ways if whole is None else _together(whole, ways, np.add, draws, floors)
    return whole


def _together(first: _Ways, second: _Ways, combine: np.ufunc, draws: NDArray[np.float64], floors: Sequence[int]) -> _Ways:
    """Every way of `first` with every way of `second`, of which no other is better."""
    base = np.asarray(floors, dtype=np.int64)
    attainment = combine.outer(first.attainment, second.attainment).ravel()
    counts = (first.counts[:, None, :] + (second.counts - base)[None, :, :]).reshape(len(attainment), -1)
    thinned = first.thinned or second.thinned
    return _undominated(_Ways(attainment=attainment, counts=counts, cost=counts @ draws, thinned=thinned))


def _undominated(ways: _Ways) -> _Ways:
    """The ways than which no other attains as much and costs no more on any limit, in rising attainment."""
    used = ways.cost - ways.cost.min(axis=0)
    sums = used.sum(axis=1)
    order = np.lexsort((sums, -ways.attainment))
    if _one_dimensional(used):
        cheapest = np.minimum.accumulate(sums[order])
        keep = np.concatenate(([True], sums[order][1:] < cheapest[:-1] - _SAME))
        kept = order[keep][::-1]
        return _of(ways, kept, thinned=ways.thinned)
    # Way i beats a later j of the order (which attains no more) where it costs no more anywhere.
    kept_list: list[int] = []
    frontier = np.empty((0, used.shape[1]))
    for place in order.tolist():
        row = used[place]
        if len(kept_list) and bool(np.any(np.all(frontier <= row + _SAME, axis=1))):
            continue
        kept_list.append(place)
        frontier = np.vstack((frontier, row))
    thinned = ways.thinned
    if len(kept_list) > MAX_WAYS:
        spread = np.unique(np.linspace(0, len(kept_list) - 1, MAX_WAYS).astype(int))
        kept_list = [kept_list[index] for index in spread.tolist()]
        thinned = True
    return _of(ways, np.asarray(kept_list[::-1], dtype=np.int64), thinned=thinned)


def _of(ways: _Ways, kept: NDArray[np.int64], *, thinned: bool) -> _Ways:
    return _Ways(attainment=ways.attainment[kept], counts=ways.counts[kept], cost=ways.cost[kept], thinned=thinned)


def _one_dimensional(used: NDArray[np.float64]) -> bool:
    """Whether all costs are multiples of one vector, so that their sums order them."""
    if used.shape[1] <= 1:
        return True
    largest = used[int(np.argmax(used.sum(axis=1)))]
    total = float(largest.sum())
    if total <= 0:
        return True
    return bool(np.allclose(used, np.outer(used.sum(axis=1) / total, largest), rtol=0.0, atol=1e-9))
