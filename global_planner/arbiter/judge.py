"""What changes of groups' replicas are surely worth: the worst case over what the loads may be in truth. Pure.

What was measured for a pool may be off by some percent, and each of its group's stages for itself. So a change is judged at
the loads as they are, with all of them 1.1 times as large, and with those of one stage alone so: a stage that looks too large
for its partner by less than that is not too large, and one that looks too small not too small. The least gain, or greatest
loss, counts. A move that is worth it by this measure is worth it in truth while noise stays below +-5 %, so noise cannot pay
for a move and for the way back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.flat import floats_of
from global_planner.arbiter.knapsack import starts_of
from global_planner.arbiter.menu import Menu
from global_planner.arbiter.view import HEADROOM, Curve, GroupView, PoolView

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_NOTHING: Curve = (0.0,)


def sure_changes(groups: Sequence[GroupView], menu: Menu, present: Ints) -> tuple[Floats, Floats]:
    """For each option of the menu against row `present[i]` of its member i, in requests/s: the change in served load, at worst;
    and the load that new replicas are to serve, which nobody serves while they start.

    `groups` are the menu's members. O(options) array work over all groups at once, a path or a stage at a time.
    """
    owner = menu.owner
    base = present.take(owner)
    cases = np.zeros((4, len(owner)))  # at the loads; all higher; those of the first stage higher; those of the last
    fresh = np.zeros(len(owner))
    for number in range(max([len(group.paths) for group in groups])):
        paths = [group.paths[number] if number < len(group.paths) else () for group in groups]
        load = _by_group([group.path_loads[number] if number < len(group.paths) else 0.0 for group in groups]).take(owner)
        ceiling = _by_group([group.ceilings[number] if number < len(group.paths) else 0.0 for group in groups]).take(owner)
        first_now, first_hi = _stage(groups, [path[0] if path else () for path in paths], menu.counts, owner)
        last_now, last_hi = _stage(groups, [path[-1] if path else () for path in paths], menu.counts, owner)
        mixed_first, mixed_last = first_hi, last_hi
        if min([len(path) for path in paths]) < 2:
            alone = np.array([len(path) < 2 for path in paths]).take(owner)
            mixed_first, mixed_last = np.where(alone, first_now, first_hi), np.where(alone, last_now, last_hi)
        pairs = ((first_now, last_now), (first_hi, last_hi), (mixed_first, last_now), (first_now, mixed_last))
        for case, (first, last) in enumerate(pairs):
            reached = np.minimum(np.minimum(first, last), ceiling) * load
            cases[case] += reached * HEADROOM if case == 1 else reached
        rise = np.maximum(first_now - first_now.take(base), last_now - last_now.take(base))
        fresh += load * np.maximum(rise, 0.0)
    changes: Floats = (cases - cases.take(base, axis=1)).min(axis=0)
    return changes, fresh


def _by_group(values: list[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _stage(groups: Sequence[GroupView], stages: Sequence[tuple[int, ...]], counts: Ints, owner: Ints) -> tuple[Floats, Floats]:
    """Attainment of one stage of every group for each option, at the load and at 1.1 x the load; 1 where nothing is known of it
    (the path's ceiling says what it lets through)."""
    places = [stage[0] for stage in stages if len(stage) == 1]
    if len(places) == len(groups):
        alone = [group.pools[place] for group, place in zip(groups, places, strict=True) if _known(group, place) is not None]
        if len(alone) == len(groups):
            return _look_up(alone, _counts_at(counts, places, owner), owner)
    now, high = np.zeros(len(owner)), np.zeros(len(owner))
    known = np.zeros(len(groups))
    for nth in range(max((len(stage) for stage in stages), default=0)):
        members = [_known(group, stage[nth]) if nth < len(stage) else None for group, stage in zip(groups, stages, strict=True)]
        share = _by_group([0.0 if m is None else group.shares[m] for m, group in zip(members, groups, strict=True)])
        pools = [None if m is None else group.pools[m] for m, group in zip(members, groups, strict=True)]
        count = _counts_at(counts, [0 if m is None else m for m in members], owner)
        own_now, own_high = _look_up(pools, count, owner)
        now += share[owner] * own_now
        high += share[owner] * own_high
        known += share
    whole = known[owner]
    nothing = whole <= 0.0
    divisor = np.where(nothing, 1.0, whole)
    return np.where(nothing, 1.0, now / divisor), np.where(nothing, 1.0, high / divisor)


def _known(group: GroupView, place: int) -> int | None:
    pool: PoolView = group.pools[place]
    return place if pool.now and group.shares[place] > 0 else None


def _counts_at(counts: Ints, places: list[int], owner: Ints) -> Ints:
    """For each option, the replicas of the pool at places[owner] of its group."""
    if min(places) == max(places):
        own: Ints = counts[places[0]]
        return own
    chosen: Ints = counts[np.array(places).take(owner), np.arange(len(owner))]
    return chosen


def _look_up(pools: Sequence[PoolView | None], count: Ints, owner: Ints) -> tuple[Floats, Floats]:
    """`now` and `hi` of pools[owner[k]] at count[k], their last value beyond their end; 0 where there is no pool or curve."""
    now = [_NOTHING if pool is None or not pool.now else pool.now for pool in pools]
    high = [_NOTHING if pool is None or not pool.hi else pool.hi for pool in pools]
    sizes, sizes_high = [len(curve) for curve in now], [len(curve) for curve in high]
    places = _places_in(sizes, count, owner)
    places_high = places if sizes == sizes_high else _places_in(sizes_high, count, owner)
    return floats_of(now).take(places), floats_of(high).take(places_high)


def _places_in(lengths: list[int], count: Ints, owner: Ints) -> Ints:
    """Where count[k] is among curves of these lengths, one after another, in that of owner[k]."""
    sizes = np.array(lengths, dtype=np.int64)
    places: Ints = starts_of(sizes).take(owner) + np.minimum(count, (sizes - 1).take(owner))
    return places
