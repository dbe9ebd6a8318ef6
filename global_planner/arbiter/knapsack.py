"""One option from every class within one capacity, of the greatest total value: exact, and fast where classes are many. Pure.

The multiple-choice knapsack. Three steps: (1) its Lagrangean relaxation, solved exactly by secants between a solution that
fits and one that does not (the break price of Sinha and Zoltners, 1979); (2) a solution that fits, filled up greedily; (3) what
could still be better deviates from the relaxed solution only by options whose regret at the break price is below the distance
of the two, which are few, so that a dynamic programme over their weight offsets ends it exactly (the core idea of Pisinger,
1995). The best choice mostly lies far closer to the bound than the greedy one: it is sought within a part of the distance
first, where few options remain, and proven there if found. Where even that core is too large for `WORK_LIMIT` operations, the
greedy solution stays, with its distance to the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WORK_LIMIT = 40_000_000
"""Additions and comparisons of the core's dynamic programme: about 0.1 s."""
_TINY = 1e-12
DEPTHS = (1 / 16, 1 / 4, 1.0)
"""Parts of the distance between the greedy choice and the bound within which the best one is sought, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`picks[g]`: index of the option chosen in class g. `bound`: no choice that fits is worth more. `exact`: none is. `solver`
    is told to people."""

    picks: Ints
    bound: float
    exact: bool
    solver: str = "knapsack"


def starts_of(sizes: Ints) -> Ints:
    """Where each class begins, from their sizes."""
    starts: Ints = sizes.cumsum() - sizes
    return starts


def segment_max(values: Floats, starts: Ints) -> Floats:
    """Maximum of each class; `starts[g]` is where class g begins."""
    result: Floats = np.maximum.reduceat(values, starts)
    return result


def first_true(mask: NDArray[np.bool_], starts: Ints) -> Ints:
    """Index of the first true entry of each class (every class has one)."""
    hits = mask.nonzero()[0]
    result: Ints = hits[hits.searchsorted(starts)]
    return result


def last_true(mask: NDArray[np.bool_], starts: Ints) -> Ints:
    """Index of the last true entry of each class (every class has one)."""
    hits = mask.nonzero()[0]
    ends = np.append(starts[1:], len(mask))
    result: Ints = hits[hits.searchsorted(ends) - 1]
    return result


def knapsack(values: Floats, weights: Ints, starts: Ints, sizes: Ints, capacity: int) -> Choice:
    """The best choice. Classes are consecutive: class g has `sizes[g]` options from `starts[g]`, in rising value and weight.

    The lightest options together must fit into `capacity` (whole units >= 0). Among choices of one value, a lighter one.
    """
    owner = np.repeat(np.arange(len(starts)), sizes)
    scale = max(1.0, float(np.abs(values).max(initial=0.0)))
    tie = _TINY * scale
    top = first_true(values >= segment_max(values, starts)[owner] - tie, starts)
    if int(weights[top].sum()) <= capacity:
        return Choice(picks=top, bound=float(values[top].sum()), exact=True)

    price, light, heavy, best = _break_price(values, weights, starts, owner, capacity, tie)
    bound = float(best.sum()) + price * capacity
    regret = best[owner] - (values - price * weights)
    picks = _fill(values, weights, owner, light, heavy, capacity, regret, bound)
    slack = bound - float(values[picks].sum())
    if slack <= tie * len(starts):
        return Choice(picks=picks, bound=bound, exact=True)
    better = None
    for depth in DEPTHS:
        better = _core(weights, starts, owner, regret, light, capacity, price, slack * depth)
        if better is not None:
            break
    if better is None:
        return Choice(picks=picks, bound=bound, exact=False)
    picks = better if float(values[better].sum()) >= float(values[picks].sum()) - tie else picks
    return Choice(picks=picks, bound=float(values[picks].sum()), exact=True)


def _break_price(
    values: Floats, weights: Ints, starts: Ints, owner: Ints, capacity: int, tie: float
) -> tuple[float, Ints, Ints, Floats]:
    """The price of a unit that solves the relaxation; the lightest and the heaviest of its solutions; its value by class."""
    ends = np.append(starts[1:], len(values)) - 1
    fits, over = starts.astype(np.int64), ends
    value_fits, weight_fits = float(values[fits].sum()), int(weights[fits].sum())
    value_over, weight_over = float(values[over].sum()), int(weights[over].sum())
    while True:
        price = (value_over - value_fits) / (weight_over - weight_fits)
        profit = values - price * weights
        best = segment_max(profit, starts)
        among = profit >= (best - tie)[owner]
        light = first_true(among, starts)
        on_line = float(best.sum()) <= value_fits - price * weight_fits + tie * len(starts)
        weight_light = int(weights[light].sum())
        if weight_light > capacity and not on_line:
            over, value_over, weight_over = light, float(values[light].sum()), weight_light
            continue
        heavy = last_true(among, starts)
        weight_heavy = int(weights[heavy].sum())
        if on_line or weight_heavy >= capacity:
            light = light if weight_light <= capacity else fits
            heavy = heavy if weight_heavy >= capacity else over
            return price, light, heavy, best
        fits, value_fits, weight_fits = heavy, float(values[heavy].sum()), weight_heavy


def _fill(
    values: Floats, weights: Ints, owner: Ints, light: Ints, heavy: Ints, capacity: int, regret: Floats, bound: float
) -> Ints:
    """A choice that fits: the light solution, changed to the heavy one class by class, then by single best changes (to options
    whose regret does not rule them out)."""
    room = capacity - int(weights[light].sum())
    steps = (weights[heavy] - weights[light]).astype(np.int64)
    picks = light.copy()
    for group in np.flatnonzero(steps).tolist():
        if steps[group] <= room:
            picks[group] = heavy[group]
            room -= int(steps[group])
    near = np.flatnonzero(regret <= bound - float(values[picks].sum()))
    groups, worth, heft = owner[near], values[near], weights[near]
    while room > 0 and len(near):
        gain = worth - values[picks[groups]]
        gain[heft - weights[picks[groups]] > room] = 0.0
        best = int(np.argmax(gain))
        if gain[best] <= 0.0:
            break
        change = int(near[best])
        group = int(owner[change])
        room -= int(weights[change] - weights[picks[group]])
        picks[group] = change
    return picks


@dataclass(slots=True, kw_only=True)
class _Core:
    """Options of one class that may be chosen: indices, weight offsets to the relaxed solution (`low`..`high`), regrets."""

    group: int
    options: Ints
    offsets: list[int]
    regrets: list[float]
    low: int
    high: int


def _reach(core: _Core) -> tuple[int, int]:
    return (core.high - core.low, core.group)


def _core(
    weights: Ints, starts: Ints, owner: Ints, regret: Floats, base: Ints, capacity: int, price: float, slack: float
) -> Ints | None:
    """The best choice, from the relaxed solution `base` (which fits), if it is worth no less than bound - `slack`; None: it is
    not, or that is more work than the limit.

    A choice is worth bound - (sum of regrets + price x unused units): the least of that is sought, and partial choices
    whose regrets alone exceed `slack` cannot lead to it.
    """
    most = slack * (1.0 + 1e-9)
    alive = np.flatnonzero(regret <= most)  # the relaxed solution itself, and what may deviate from it
    groups = owner[alive]
    held = np.bincount(groups, minlength=len(starts))
    alive = alive[held[groups] > 1]
    offset = weights[alive] - weights[base[owner[alive]]]
    loss = np.maximum(regret[alive], 0.0)
    cores, begin = [], 0
    for group in np.flatnonzero(held > 1).tolist():
        end = begin + int(held[group])
        own = offset[begin:end].tolist()
        low, high = min(own), max(own)
        core = _Core(group=group, options=alive[begin:end], offsets=own, regrets=loss[begin:end].tolist(), low=low, high=high)
        cores.append(core)
        begin = end
    cores.sort(key=_reach)
    room = capacity - int(weights[base].sum())
    fall = [max(0, -core.low) for core in cores]
    rise = [max(0, core.high) for core in cores]
    fall_after, rise_after = sum(fall), sum(rise)
    least_use = room - (int(slack / price) + 1 if price > 0 else capacity + fall_after + 1)

    windows: list[tuple[int, int]] = []
    low = high = work = 0
    for core, down, up in zip(cores, fall, rise, strict=True):
        fall_after -= down
        rise_after -= up
        low = max(low - down, least_use - rise_after)
        high = min(high + up, room + fall_after)
        if low > high:
            return None
        windows.append((low, high))
        work += len(core.options) * (high - low + 1)
    if work > WORK_LIMIT:
        return None

    cost = np.zeros(1)
    low = 0
    chosen: list[NDArray[np.int32]] = []
    for core, (next_low, next_high) in zip(cores, windows, strict=True):
        following = np.full(next_high - next_low + 1, np.inf)
        choice = np.full(len(following), -1, dtype=np.int32)
        for number, (shift, lost) in enumerate(zip(core.offsets, core.regrets, strict=True)):
            begin, end = max(low + shift, next_low), min(low + len(cost) - 1 + shift, next_high)
            if begin > end:
                continue
            candidate = cost[begin - shift - low : end - shift - low + 1] + lost
            target = following[begin - next_low : end - next_low + 1]
            wins = candidate < target
            np.copyto(target, candidate, where=wins)
            np.copyto(choice[begin - next_low : end - next_low + 1], number, where=wins)
        following[following > most] = np.inf
        chosen.append(choice)
        cost, low = following, next_low

    used = np.arange(low, low + len(cost))
    total = np.where(used <= room, cost + price * (room - used), np.inf)
    least = float(total.min(initial=np.inf))
    if least > most:
        return None
    place = int(np.flatnonzero(total <= least + _TINY * max(1.0, slack))[0])
    picks = base.copy()
    at = int(used[place])
    for index in range(len(cores) - 1, -1, -1):
        core, (stage_low, _) = cores[index], windows[index]
        number = int(chosen[index][at - stage_low])
        picks[core.group] = core.options[number]
        at -= core.offsets[number]
    return picks
