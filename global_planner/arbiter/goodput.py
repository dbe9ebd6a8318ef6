"""The objective `goodput`: per class from the highest, the most weighted requests/s within their SLA. Pure.

Two passes over the classes. First everybody is raised with GPUs that are free, at once and without a price. Then GPUs move
between groups, and within one: what the taker surely gains, less what its new replicas do not serve while they start, must
exceed what the giver may lose (see `judge`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from global_planner.arbiter.choose import Options, choose
from global_planner.arbiter.frontier import Bundles, Counts, bundles_of
from global_planner.arbiter.judge import sure_changes
from global_planner.arbiter.plan import EPS, Array, Plan
from global_planner.arbiter.state import ArbiterPolicy
from global_planner.arbiter.view import GroupView

DEAR = 1e-8
"""What all GPUs together count against all value, so that among equal values the cheaper one is chosen."""
TIE = 1e-10
"""What the order among equals counts, relative to a group's value: less than any GPU."""
INERTIA = 1e-6
"""What any change counts against a group's value where GPUs would move: nothing moves for nothing."""


@dataclass(slots=True, kw_only=True)
class _Class:
    """One class's options: by member group, replica counts and values; the first takes least."""

    counts: list[list[Counts]]
    values: list[list[float]]


def solve_goodput(plan: Plan, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None) -> None:
    """Set `plan.counts`. `ranks` orders groups among equals, 0 first; `moves_left`: groups that may still be raised with GPUs
    of others (None: any number)."""
    if not policy.stability:
        _raise_from_free(plan, ranks)
        return
    quo = [
        [max(plan.reserved[g][p], min(pool.low, plan.caps[g][p])) for p, pool in enumerate(group.pools)]
        for g, group in enumerate(plan.groups)
    ]
    plan.counts = quo
    if bool((plan.room() >= -EPS).all()):
        _raise_from_free(plan, ranks)
    _move(plan, policy, ranks, moves_left)


def _raise_from_free(plan: Plan, ranks: Mapping[str, int]) -> None:
    """The best bundles at or above the present counts, class by class, within what is free."""
    for members in plan.classes():
        stakes = _Class(counts=[], values=[])
        wants = []
        for g in members:
            group = plan.groups[g]
            bundles = bundles_of(group, plan.counts[g], plan.caps[g], plan.draws[g])
            _note_thinned(plan, bundles)
            if len(bundles.counts) > 1:
                scale = group.scale
                wants.append(g)
                stakes.counts.append(bundles.counts)
                stakes.values.append([scale * level for level in bundles.attainment])
        if wants:
            capacity = plan.room() + plan.usage(plan.counts, wants)
            _take_best(plan, wants, stakes, capacity, ranks)


def _move(plan: Plan, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None) -> None:
    """GPUs from group to group, and to the classes above from those below, down to what is reserved."""
    classes = plan.classes()
    for index, members in enumerate(classes):
        below = [g for lower in classes[index + 1 :] for g in lower]
        above = [g for higher in classes[:index] for g in higher]
        capacity = plan.limits.capacity - plan.usage(plan.counts, above) - plan.usage(plan.reserved, below)
        crowded = bool((plan.usage(plan.counts, members) > capacity + EPS).any())
        growth = {g: bundles_of(plan.groups[g], plan.counts[g], plan.caps[g], plan.draws[g]) for g in members}
        takers = {g for g in members if len(growth[g].counts) > 1}
        if not crowded and (not takers or moves_left == 0):
            continue
        before = {g: list(plan.counts[g]) for g in members}
        slack = plan.slack
        offers = {g: _offer(plan, g, growth[g], policy) for g in members}
        raised = _settle(plan, members, offers, before, capacity, ranks, None)
        if moves_left is not None and len(raised) > moves_left:
            best = sorted(raised, key=lambda g: (-raised[g], ranks[plan.groups[g].spec.name]))
            plan.slack = slack
            raised = _settle(plan, members, offers, before, capacity, ranks, frozenset(best[:moves_left]))
        if moves_left is not None:
            moves_left = max(0, moves_left - len(raised))
        plan.moved.update(raised)


def _settle(
    plan: Plan,
    members: Sequence[int],
    offers: Mapping[int, tuple[list[Counts], list[float]]],
    before: Mapping[int, list[int]],
    capacity: Array,
    ranks: Mapping[str, int],
    may_rise: frozenset[int] | None,
) -> dict[int, float]:
    """Choose among the offers (`may_rise`: the groups that may gain; None: all); the groups that gained, with their gain."""
    stakes = _Class(counts=[], values=[])
    for g in members:
        counts, values = offers[g]
        if may_rise is not None and g not in may_rise:
            kept = [k for k, value in enumerate(values) if value <= 0.0]
            counts, values = [counts[k] for k in kept], [values[k] for k in kept]
        stakes.counts.append(counts)
        stakes.values.append(values)
    gains = _take_best(plan, members, stakes, capacity, ranks)
    return {
        g: gain
        for g, gain in zip(members, gains, strict=True)
        if gain > 0.0 and any(after > now for after, now in zip(plan.counts[g], before[g], strict=True))
    }


def _offer(plan: Plan, g: int, growth: Bundles, policy: ArbiterPolicy) -> tuple[list[Counts], list[float]]:
    """What a group gives and takes: replica counts, and their value against the present ones (0)."""
    group, present = plan.groups[g], plan.counts[g]
    now = tuple(present)
    less = bundles_of(group, plan.reserved[g], present, plan.draws[g], hi=True)
    _note_thinned(plan, less)
    options = [option for option in less.counts if option != now]
    if len(growth.counts) > 1:
        options += growth.counts[1:]
        if group.attainment(less.counts[-1]) >= growth.attainment[0] - EPS and less.counts[-1] != now:
            # Some of what it has is of no use to it, one stage being larger than its partner: it may change that for what is.
            options += [option for option in _all_bundles(plan, g) if _crosses(option, present)]
    if not options:
        return [now], [0.0]
    change, fresh = sure_changes(group, present, options)
    waits = _cold_start_s(group, present, plan.caps[g], policy) / policy.move_horizon_s
    values = group.weight * (change - waits * fresh) - INERTIA * group.scale
    if policy.cache_loss_s > 0:
        values -= [policy.cache_loss_s / policy.move_horizon_s * _cooled(group, present, option) for option in options]
    rises = np.any(np.array(options) > np.array(present), axis=1)
    kept = [k for k, (rise, value) in enumerate(zip(rises.tolist(), values.tolist(), strict=True)) if value > 0.0 or not rise]
    # The first option takes least: what is reserved, else (where that is what it has) the present counts.
    lower = [k for k in kept if not rises[k]]
    higher = [k for k in kept if rises[k]]
    ordered = [*(options[k] for k in lower), now, *(options[k] for k in higher)]
    return ordered, [*(float(values[k]) for k in lower), 0.0, *(float(values[k]) for k in higher)]


def _all_bundles(plan: Plan, g: int) -> list[Counts]:
    return bundles_of(plan.groups[g], plan.reserved[g], plan.caps[g], plan.draws[g]).counts


def _crosses(option: Sequence[int], present: Sequence[int]) -> bool:
    """Whether an option takes from one pool and gives to another."""
    pairs = list(zip(option, present, strict=True))
    return any(after < now for after, now in pairs) and any(after > now for after, now in pairs)


def _cold_start_s(group: GroupView, present: Sequence[int], caps: Sequence[int], policy: ArbiterPolicy) -> float:
    """The longest cold start among the pools that may grow: the whole path waits for it."""
    times = [
        policy.cold_start_s if pool.holding is None or pool.holding.cold_start_s is None else pool.holding.cold_start_s
        for pool, now, cap in zip(group.pools, present, caps, strict=True)
        if cap > now
    ]
    return max(times, default=0.0)


def _cooled(group: GroupView, present: Sequence[int], option: Sequence[int]) -> float:
    """Weighted requests/s that lose the warm cache of the replicas that go."""
    return group.weight * sum(
        pool.load * (now - after) / now for pool, now, after in zip(group.pools, present, option, strict=True) if now > after
    )


def _take_best(plan: Plan, members: Sequence[int], stakes: _Class, capacity: Array, ranks: Mapping[str, int]) -> list[float]:
    """Choose one option for each member within `capacity`, set the counts, and return the values chosen."""
    sizes = np.array([len(values) for values in stakes.values], dtype=np.int64)
    values = np.array([value for group in stakes.values for value in group])
    weights = np.concatenate(
        [np.array(counts, dtype=np.float64) @ plan.draws[g] for g, counts in zip(members, stakes.counts, strict=True)]
    )
    best = np.maximum.reduceat(values, np.concatenate(([0], np.cumsum(sizes)[:-1])))
    whole = float(best.sum() - sum(group[0] for group in stakes.values))
    order = np.array([len(ranks) - ranks[plan.groups[g].spec.name] for g in members], dtype=np.float64) / len(ranks)
    judged = values * (1.0 + TIE * np.repeat(order, sizes))
    if weights.shape[1]:
        judged -= DEAR * whole * (weights / np.maximum(capacity, 1.0)).mean(axis=1)
    options = Options(values=judged, weights=weights, sizes=sizes)
    choice = choose(options, capacity)
    plan.slack += max(0.0, choice.bound - float(judged[choice.picks].sum()))
    plan.solvers.append(choice.solver)
    offsets = choice.picks - options.starts
    for g, counts, pick in zip(members, stakes.counts, offsets.tolist(), strict=True):
        plan.counts[g] = list(counts[pick])
    return [group[pick] for group, pick in zip(stakes.values, offsets.tolist(), strict=True)]


def _note_thinned(plan: Plan, bundles: Bundles) -> None:
    if bundles.thinned and "thinned bundles" not in plan.solvers:
        plan.solvers.append("thinned bundles")
