"""One option from every class within several capacities at once: a price for each, a choice at these prices, a proof. Pure.

Where limits cannot be separated (groups whose prefill runs on one GPU type and decode on another, a cost limit over types), the
dual prices are found coordinate by coordinate (exact line searches on a convex piecewise linear function), then by steps along
subgradients. The choice at these prices is repaired to fit and filled up. What could be better deviates from the relaxed choice
only by options of small regret: a search over partial deviations, widest first, pruned by bound, fit and equality, ends it
exactly while few are alive, and improves the choice where it must leave some out. Any prices give a valid bound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.knapsack import Choice, Floats, Ints, first_true, segment_max

MAX_STATES, MIN_STATES = 6000, 32
SEARCH_WORK = 12_000
"""Partial deviations that the search follows in all, shared out over its classes within the two limits above."""
SWEEPS = 3
SUBGRADIENT_STEPS = 40
FEW_CLASSES = 50
"""Up to so many, nothing is spared to prove the best choice."""
CLOSE, CLOSE_FEW = 1e-6, 1e-7
"""Relative distance to the lowest point at which a line search ends, with many classes and with few."""
NEXT_PRICE = 0.1
"""How far a line search looks for the other side of the lowest point, at first, relative to the price; then further."""
NEAR = 1e-3
"""Relative distance to the bound that is good enough beyond."""
_TINY = 1e-12


class _Relaxed:
    """At `prices`: the bound, the value of each class, and a choice that attains it."""

    def __init__(self, prices: Floats, bound: float, best: Floats, picks: Ints, usage: Floats) -> None:
        self.prices = prices
        self.bound = bound
        self.best = best
        self.picks = picks
        self.usage = usage


class _Instance:
    def __init__(self, values: Floats, weights: Floats, starts: Ints, owner: Ints, capacity: Floats) -> None:
        self.values, self.weights, self.starts, self.capacity = values, weights, starts, capacity
        self.owner = owner
        self.tie = _TINY * max(1.0, float(np.abs(values).max(initial=0.0)))
        self.close = CLOSE if len(starts) > FEW_CLASSES else CLOSE_FEW

    def relaxed(self, prices: Floats) -> _Relaxed:
        profit = self.profit(prices)
        best = segment_max(profit, self.starts)
        picks = first_true(profit >= (best - self.tie).take(self.owner), self.starts)
        bound = float(best.sum() + prices @ self.capacity)
        return _Relaxed(prices, bound, best, picks, self.drawn(picks).sum(axis=1))

    def profit(self, prices: Floats) -> Floats:
        """By option, what it is worth beyond what it draws."""
        profit: Floats = self.values - prices @ self.weights
        return profit

    def drawn(self, picks: Ints) -> Floats:
        """Limits x picks."""
        drawn: Floats = self.weights.take(picks, axis=1)
        return drawn

    def worth(self, picks: Ints) -> float:
        return float(self.values.take(picks).sum())


def choose_within(
    values: Floats, weights: Floats, starts: Ints, owner: Ints, capacity: Floats, reference: float = 0.0, among: int = 0
) -> Choice:
    """The choice of greatest value found, with a bound. `weights` (limits x options) >= 0; the first option of each class
    takes least of every limit, and these together fit into `capacity`. `owner`: the class of each option. `reference`,
    `among`: see `Options`."""
    instance = _Instance(values, weights, starts, owner, capacity)
    relaxed = _line_searches(instance)
    picks = _filled(instance, _repaired(instance, relaxed), relaxed)
    many = max(len(starts), among) > FEW_CLASSES
    near = NEAR * max(reference, relaxed.bound)
    if not many or relaxed.bound - instance.worth(picks) > near:
        relaxed = _subgradients(instance, relaxed)
        again = _filled(instance, _repaired(instance, relaxed), relaxed)
        picks = again if instance.worth(again) > instance.worth(picks) else picks
    slack = relaxed.bound - instance.worth(picks)
    if slack <= instance.tie * len(starts):
        return Choice(picks=picks, bound=relaxed.bound, exact=True, solver="prices")
    if many and slack <= near:
        return Choice(picks=picks, bound=relaxed.bound, exact=False, solver="prices")
    better, missed = _search(instance, relaxed, slack)
    if better is not None and instance.worth(better) > instance.worth(picks):
        picks = better
    value = instance.worth(picks)
    bound = max(value, relaxed.bound - missed)
    return Choice(picks=picks, bound=bound, exact=bound <= value + instance.tie * len(starts), solver="prices")


# ---- prices ----------------------------------------------------------------------------------------------------------


def _line_searches(instance: _Instance) -> _Relaxed:
    limits = len(instance.capacity)
    best = instance.relaxed(np.zeros(limits))
    for _ in range(SWEEPS):
        before = best.bound
        for limit in range(limits):
            best = _line_search(instance, best, limit)
        if before - best.bound <= 1e-6 * max(1.0, abs(best.bound)):
            break
    return best


def _subgradients(instance: _Instance, best: _Relaxed) -> _Relaxed:
    reach = 0.05 * float(best.prices @ instance.capacity)
    at = best
    for _ in range(SUBGRADIENT_STEPS):
        direction = instance.capacity - at.usage
        direction[(at.prices <= 0.0) & (direction > 0.0)] = 0.0
        # Limits are of different units: steps are taken in units of each limit's whole.
        scaled = direction / np.maximum(instance.capacity, 1.0)
        length = float(scaled @ scaled)
        if length <= 0.0:
            break
        step = reach / length / np.maximum(instance.capacity, 1.0)
        at = instance.relaxed(np.maximum(at.prices - step * scaled, 0.0))
        if at.bound < best.bound:
            best = at
        else:
            reach /= 2.0
            at = best
    return best


def _line_search(instance: _Instance, at: _Relaxed, limit: int) -> _Relaxed:
    """The lowest bound along one price: from `at`, to the other side of the lowest point; then tangents from both sides meet
    until they meet on the function."""
    capacity = float(instance.capacity[limit])

    def point(price: float) -> _Relaxed:
        prices = at.prices.copy()
        prices[limit] = price
        return instance.relaxed(prices)

    slope = capacity - float(at.usage[limit])
    here = float(at.prices[limit])
    if slope == 0.0 or (slope > 0.0 and here <= 0.0):
        return at
    best = at
    step = here * NEXT_PRICE if here > 0.0 else _usual_price(instance, limit)
    # One side has too little and the other too much: `left` is the cheaper one, at which the limit is exceeded.
    left, right = (None, at) if slope > 0.0 else (at, None)
    while left is None or right is None:
        near = right if left is None else left
        assert near is not None
        price = max(0.0, float(near.prices[limit]) - step) if left is None else float(near.prices[limit]) + step
        reached = point(price)
        step *= 3.0
        best = reached if reached.bound < best.bound else best
        if reached.usage[limit] <= capacity:
            right = reached
            if price <= 0.0:
                return best
        else:
            left = reached
    for _ in range(60):
        low, high = float(left.prices[limit]), float(right.prices[limit])
        slope, slope_right = capacity - float(left.usage[limit]), capacity - float(right.usage[limit])
        if slope_right <= 0.0 or slope >= 0.0:
            break
        meet = (left.bound - right.bound + slope_right * high - slope * low) / (slope_right - slope)
        line = left.bound + slope * (meet - low)
        if best.bound - line <= instance.close * max(1.0, abs(line)):
            break
        reached = point(meet)
        best = reached if reached.bound < best.bound else best
        if reached.usage[limit] > capacity:
            left = reached
        else:
            right = reached
    return best


def _usual_price(instance: _Instance, limit: int) -> float:
    """What a unit of the limit is worth, were it the only one: all value that it takes part in over all that there is of it."""
    drawn = instance.weights[limit] > 0.0
    gains = np.where(drawn, instance.values - instance.values.take(instance.starts).take(instance.owner), 0.0)
    gain = segment_max(gains, instance.starts)
    return float(gain.sum()) / max(float(instance.capacity[limit]), 1.0) + instance.tie


# ---- a choice that fits ----------------------------------------------------------------------------------------------


def _repaired(instance: _Instance, relaxed: _Relaxed) -> Ints:
    """The relaxed choice, lowered where it does not fit: each time by the change that loses least for the excess it removes."""
    picks = relaxed.picks.copy()
    profit = instance.profit(relaxed.prices)
    usage = relaxed.usage.copy()
    whole = np.maximum(instance.capacity, 1.0)
    while True:
        excess = usage - instance.capacity
        over = excess > 1e-9
        if not over.any():
            return picks
        less = instance.drawn(picks).take(instance.owner, axis=1) - instance.weights
        relief = (np.clip(less[over], 0.0, excess[over, None]) / whole[over, None]).sum(axis=0)
        relief[(less < -1e-9).any(axis=0)] = 0.0
        useful = np.flatnonzero(relief > 0.0)
        loss = (profit[picks][instance.owner] - profit)[useful] + instance.tie
        change = int(useful[np.argmin(loss / relief[useful])])
        group = int(instance.owner[change])
        usage += instance.weights[:, change] - instance.weights[:, picks[group]]
        picks[group] = change


def _filled(instance: _Instance, picks: Ints, relaxed: _Relaxed) -> Ints:
    """The choice, raised while anything more fits: each time by the change of least regret."""
    regret = relaxed.best.take(instance.owner) - instance.profit(relaxed.prices)
    near = (regret <= relaxed.bound - instance.worth(picks) + instance.tie).nonzero()[0]
    owner, values, weights, sought = (
        instance.owner.take(near),
        instance.values.take(near),
        instance.drawn(near),
        regret.take(near),
    )
    present = picks.take(owner)
    gain, extra = values - instance.values.take(present), weights - instance.drawn(present)
    cost = sought - regret.take(present)
    room = instance.capacity - instance.drawn(picks).sum(axis=1)
    left = (gain > instance.tie).nonzero()[0]
    while len(left):
        # Room only falls, so what does not fit never will.
        left = left[(extra.take(left, axis=1) <= (room + 1e-9)[:, None]).all(axis=0)]
        if not len(left):
            break
        best = int(left[cost.take(left).argmin()])
        change, group = int(near[best]), int(owner[best])
        room -= extra[:, best]
        picks[group] = change
        begin, end = int(owner.searchsorted(group)), int(owner.searchsorted(group + 1))
        own = slice(begin, end)
        gain[own], extra[:, own] = values[own] - instance.values[change], weights[:, own] - instance.weights[:, change, None]
        cost[own] = sought[own] - regret[change]
        again = (gain[own] > instance.tie).nonzero()[0] + begin  # what was too large may fit beside the larger choice
        before, after = left.searchsorted(begin), left.searchsorted(end)
        left = np.concatenate((left[:before], again, left[after:]))
    return picks


def _search(instance: _Instance, relaxed: _Relaxed, slack: float) -> tuple[Ints | None, float]:
    """The best choice that deviates from the relaxed one, of those that were followed; and how far below the relaxed bound
    every other one lies at least."""
    regret = relaxed.best[instance.owner] - instance.profit(relaxed.prices)
    alive = np.flatnonzero(regret <= slack)
    by_class = np.split(alive, np.flatnonzero(np.diff(instance.owner[alive])) + 1)
    base = relaxed.picks
    moves = []
    for options in by_class:
        group = int(instance.owner[options[0]])
        if len(options) > 1:
            offsets = instance.drawn(options).T - instance.weights[:, base[group]]
            moves.append((group, options, offsets, np.maximum(regret[options], 0.0)))
    whole = np.maximum(instance.capacity, 1.0)
    moves.sort(key=lambda move: (-float((np.ptp(move[2], axis=0) / whole).sum()), move[0]))
    room = instance.capacity - relaxed.usage
    falls = [move[2].min(axis=0) for move in moves]
    rises = [move[2].max(axis=0) for move in moves]
    fall_after = np.sum(falls, axis=0) if falls else np.zeros_like(room)
    rise_after = np.sum(rises, axis=0) if rises else np.zeros_like(room)

    used = np.zeros((1, len(room)))
    cost = np.zeros(1)
    most = min(MAX_STATES, max(MIN_STATES, SEARCH_WORK // max(1, len(moves)))) if len(moves) > 16 else MAX_STATES
    missed = slack
    trail: list[tuple[NDArray[np.int64], Ints]] = []
    for (_, options, offsets, losses), fall, rise in zip(moves, falls, rises, strict=True):
        fall_after = fall_after - fall
        rise_after = rise_after - rise
        next_used = (used[:, None, :] + offsets[None, :, :]).reshape(-1, len(room))
        next_cost = (cost[:, None] + losses[None, :]).ravel()
        idle = np.maximum(room - next_used - rise_after, 0.0) @ relaxed.prices
        keep = np.flatnonzero((next_cost + idle <= slack) & np.all(next_used + fall_after <= room + 1e-9, axis=1))
        order = keep[np.lexsort((next_cost[keep], *np.round(next_used[keep], 9).T))]
        if len(order):
            rows = np.round(next_used[order], 9)
            order = order[np.concatenate(([True], np.any(rows[1:] != rows[:-1], axis=1)))]
        if len(order) > most:
            hope = next_cost[order] + np.maximum(room - next_used[order], 0.0) @ relaxed.prices
            ranked = np.argsort(hope, kind="stable")
            dropped = order[ranked[most:]]
            missed = min(missed, float((next_cost[dropped] + idle[dropped]).min()))
            order = order[np.sort(ranked[:most])]
        used, cost = next_used[order], next_cost[order]
        trail.append((order // len(options), options[order % len(options)]))
        if not len(order):
            return None, missed
    total = np.where(np.all(used <= room + 1e-9, axis=1), cost + (room - used) @ relaxed.prices, np.inf)
    if not len(total) or not np.isfinite(total.min()):
        return None, missed
    at = int(np.argmin(total))
    picks = base.copy()
    for (group, _, _, _), (parents, options) in zip(reversed(moves), reversed(trail), strict=True):
        picks[group] = options[at]
        at = int(parents[at])
    return picks, missed
