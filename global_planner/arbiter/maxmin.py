"""The objective `max_min`: per class from the highest, raise whoever is worst off, as far as everybody can be raised. Pure.

Weights and loads do not count, only the share of each group's load that meets its SLA. First the highest level that all groups
can reach together (a group that cannot reach it at all stays at its best), then, from the lowest up, what is left over.
With stability on, GPUs move between groups only where the level after the move, judged at 1.1 x the load of those who give,
exceeds the level before by more than the cold start costs.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from global_planner.arbiter.frontier import Bundles, bundles_of
from global_planner.arbiter.plan import EPS, Array, Plan
from global_planner.arbiter.state import ArbiterPolicy


@dataclass(slots=True, kw_only=True)
class _Ladder:
    """One group's bundles in rising attainment with what they draw; where limits compete inside a group, the way to a level
    that takes the smallest share of its tightest limit."""

    group: int
    bundles: Bundles
    draws: Array

    def rung(self, level: float) -> int:
        """The first bundle that reaches the level, else the last."""
        return min(bisect_left(self.bundles.attainment, level - EPS), len(self.bundles.attainment) - 1)

    def draws_no_more(self, other: _Ladder, level: float) -> bool:
        """Whether the level takes no more of any limit here than there."""
        return bool((self.draws[self.rung(level)] <= other.draws[other.rung(level)] + EPS).all())


def solve_max_min(plan: Plan, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None) -> None:
    """Set `plan.counts`. `ranks` and `moves_left` as for `goodput`."""
    plan.solvers.append("levels")
    if policy.stability:
        plan.counts = plan.kept()
        if bool((plan.room() >= -EPS).all()):
            for _, members in plan.classes():
                _climb(plan, members, plan.counts, plan.room(), ranks)
    classes = plan.classes()
    for index, (_, members) in enumerate(classes):
        below = [g for _, lower in classes[index + 1 :] for g in lower]
        above = [g for _, higher in classes[:index] for g in higher]
        base = plan.usage(plan.counts, above) + plan.usage(plan.reserved, below) + plan.usage(plan.reserved, members)
        room = plan.limits.capacity - base
        if policy.stability:
            _move(plan, members, room, ranks, policy, moves_left)
        else:
            _climb(plan, members, plan.reserved, room, ranks)


def _ladders(plan: Plan, members: Sequence[int], floors: Sequence[Sequence[int]], *, hi: bool = False) -> list[_Ladder]:
    ladders = []
    for g in members:
        if plan.groups[g].load <= 0:
            continue  # nobody is badly off without a request; it keeps what is reserved for it
        bundles = bundles_of(plan.groups[g], floors[g], plan.caps[g], plan.draws[g], hi=hi)
        draws = (np.array(bundles.counts, dtype=np.float64) - np.array(floors[g])) @ plan.draws[g]
        share = (draws / np.maximum(plan.limits.total, 1.0)).max(axis=1, initial=0.0)
        order = [0]
        for k in range(len(share) - 1, 0, -1):
            if bundles.attainment[k] > bundles.attainment[0] + EPS and (len(order) == 1 or share[k] < share[order[-1]] - EPS):
                order.append(k)
        order = [0, *order[:0:-1]]
        chain = Bundles(attainment=[bundles.attainment[k] for k in order], counts=[bundles.counts[k] for k in order])
        ladders.append(_Ladder(group=g, bundles=chain, draws=draws[order]))
    return ladders


def _highest_level(ladders: Sequence[_Ladder], room: Array) -> float:
    """The highest attainment that all groups reach together within `room`."""
    levels = sorted({level for ladder in ladders for level in ladder.bundles.attainment})
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if bool((_cost(ladders, levels[middle]) <= room + EPS).all()):
            low = middle
        else:
            high = middle - 1
    return levels[low] if levels else 0.0


def _cost(ladders: Sequence[_Ladder], level: float) -> Array:
    drawn = [ladder.draws[ladder.rung(level)] for ladder in ladders]
    total: Array = np.sum(drawn, axis=0) if drawn else np.zeros(0)
    return total


def _climb(plan: Plan, members: Sequence[int], floors: Sequence[Sequence[int]], room: Array, ranks: Mapping[str, int]) -> None:
    """From `floors`: everybody to the highest common level, then the lowest first, each as far as its next step fits."""
    ladders = _ladders(plan, members, floors)
    if not ladders:
        return
    level = _highest_level(ladders, room)
    at = [ladder.rung(level) for ladder in ladders]
    left = room - _cost(ladders, level)
    heap = [
        (ladder.bundles.attainment[k], ranks[plan.groups[ladder.group].spec.name], i, k)
        for i, (ladder, k) in enumerate(zip(ladders, at, strict=True))
    ]
    heapq.heapify(heap)
    while heap:
        _, rank, i, k = heapq.heappop(heap)
        ladder = ladders[i]
        if k + 1 >= len(ladder.bundles.attainment):
            continue
        step = ladder.draws[k + 1] - ladder.draws[k]
        if bool((step <= left + EPS).all()):
            left = left - step
            at[i] = k + 1
            heapq.heappush(heap, (ladder.bundles.attainment[k + 1], rank, i, k + 1))
    for ladder, k in zip(ladders, at, strict=True):
        plan.counts[ladder.group] = list(ladder.bundles.counts[k])


def _move(
    plan: Plan, members: Sequence[int], room: Array, ranks: Mapping[str, int], policy: ArbiterPolicy, moves_left: int | None
) -> None:
    """Lift those below a common level to it, the lowest first, with GPUs of those above it, where that pays."""
    idle = [g for g in members if plan.groups[g].load <= 0]
    members = [g for g in members if plan.groups[g].load > 0]
    room = room - (plan.usage(plan.counts, idle) - plan.usage(plan.reserved, idle))
    if bool((room < -EPS).any()):  # those without load give all that they have beyond their reserve
        room = room + (plan.usage(plan.counts, idle) - plan.usage(plan.reserved, idle))
        for g in idle:
            plan.counts[g] = list(plan.reserved[g])
    if not members:
        return
    counts = {g: tuple(plan.counts[g]) for g in members}
    present = {g: plan.groups[g].attainment(counts[g]) for g in members}
    used = plan.usage(plan.counts, members) - plan.usage(plan.reserved, members)
    crowded = bool((used > room + EPS).any())
    givers = {ladder.group: ladder for ladder in _ladders(plan, members, plan.reserved, hi=True)}
    takers = {ladder.group: ladder for ladder in _ladders(plan, members, plan.reserved)}
    lowest = min((present[g] for g in members if present[g] < takers[g].bundles.attainment[-1] - EPS), default=1.0)
    level = _highest_level(list(givers.values()), room)
    keeps = max(0.0, 1.0 - policy.cold_start_s / policy.move_horizon_s)
    if not crowded and level * keeps <= lowest + EPS:
        return
    counts_then = [list(row) for row in plan.counts]
    lowest_first = sorted(members, key=lambda g: (present[g], ranks[plan.groups[g].spec.name]))
    for g in lowest_first:
        # The level fits by what everybody needs for it at 1.1 x the load. The load itself needs no more, unless a planner's
        # curves contradict each other; whatever they say, nobody takes more than was counted.
        own = givers[g]
        if present[g] < level and takers[g].draws_no_more(own, level):
            own = takers[g]
        after = list(own.bundles.counts[own.rung(level)])
        if any(new > now for new, now in zip(after, counts[g], strict=True)):
            if present[g] < level and (moves_left is None or len(plan.moved) < moves_left):
                plan.moved.add(g)
            else:  # neither who gives, nor who comes too late for this hour, is raised
                after = [min(new, now) for new, now in zip(after, counts[g], strict=True)]
        counts_then[g] = after
    spare = room - (plan.usage(counts_then, members) - plan.usage(plan.reserved, members))
    # Nobody gives more than is taken: those above the level keep what they have, the lowest first, as far as it fits.
    for g in lowest_first:
        kept = np.array(counts[g]) - np.array(counts_then[g])
        extra = kept @ plan.draws[g]
        if bool((kept >= 0).all() and kept.any() and (extra <= spare + EPS).all()):
            spare = spare - extra
            counts_then[g] = list(counts[g])
    for g in members:
        plan.counts[g] = counts_then[g]
