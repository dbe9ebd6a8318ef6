"""The objective `goodput`: per class from the highest, the most weighted requests/s within their SLA. Pure.

Two passes over the classes, at the loads that are expected and then, beyond what these need, at those that are planned for (see
`expected`). In each, first everybody is raised with GPUs that are free, at once and without a price. Then GPUs move
between groups, and within one: what the taker surely gains, less what its new replicas do not serve while they start, must
exceed what the giver may lose (see `judge`). A need takes whatever lower classes have beyond their own needs. For a doubt GPUs
move among equals only: what a lower class would lose is not weighed against it, so any doubt would cost it every other one, and
a burst is mostly over before the replica that it was moved for has started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import gt

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.choose import NO_LIMIT
from global_planner.arbiter.expected import expected_view, kept_for_need
from global_planner.arbiter.flat import floats_of
from global_planner.arbiter.frontier import Bundles, Counts, bundles_of
from global_planner.arbiter.judge import sure_changes
from global_planner.arbiter.menu import Floats, Menu, drawn_by, menu_of, take_best
from global_planner.arbiter.plan import EPS, Plan
from global_planner.arbiter.state import ArbiterPolicy
from global_planner.arbiter.view import GroupView, View

INERTIA = 1e-6
"""What any change counts against a group's value where GPUs would move: nothing moves for nothing."""


def solve_goodput(plan: Plan, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None) -> None:
    """Set `plan.counts`. `ranks` orders groups among equals, 0 first; `moves_left`: groups that may still be raised with GPUs
    of others (None: any number)."""
    if policy.stability:
        plan.counts = plan.kept()
    plan.expected = expected = None if plan.everything_fits() else expected_view(plan.view)
    first = None
    if expected is not None:
        first = _first_what_is_needed(plan, expected, policy, ranks, moves_left)
        if moves_left is not None:
            moves_left = max(0, moves_left - len(first.moved))
    _decide(plan, policy, ranks, moves_left)
    if first is not None:
        plan.moved |= first.moved
        plan.solvers += first.solvers
        for priority_class, slack in first.slacks.items():
            plan.slacks[priority_class] = plan.slacks.get(priority_class, 0.0) + slack


def _decide(plan: Plan, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None) -> None:
    """From the counts that the plan begins with: what is free, then (with stability) what moves."""
    if bool((plan.room() >= -EPS).all()):
        _raise_from_free(plan, ranks)
    plan.aside = None
    if policy.stability:
        _move(plan, policy, ranks, moves_left)


def _first_what_is_needed(
    plan: Plan, expected: View, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None
) -> Plan:
    """Decide at the expected loads, and make that firm in `plan`. What pools keep beyond it is not free, but moves to whoever
    needs it, whatever the class."""
    first = plan.at(expected)
    if policy.stability:
        for g, group in enumerate(first.groups):
            kept = first.counts[g]
            for p, pool in enumerate(group.pools):
                kept[p] = kept_for_need(pool, kept[p])
        first.aside = plan.usage(plan.counts) - plan.usage(first.counts)
    _decide(first, policy, ranks, moves_left)
    plan.firm, plan.beyond_need = first.counts, True
    for g, needed in enumerate(first.counts):
        counts = plan.counts[g]
        plan.counts[g] = [counts[p] if counts[p] > least else least for p, least in enumerate(needed)]
    return first


def _raise_from_free(plan: Plan, ranks: Mapping[str, int]) -> None:
    """The best bundles at or above the present counts, class by class, within what is free."""
    if not plan.any_replica_fits():
        return
    for priority_class, members in plan.classes():
        growth = {g: plan.growth(g) for g in members}
        room = plan.room()
        all_wants = [g for g in members if len(growth[g].counts) > 1]
        wants = _with_room(plan, all_wants, growth, plan.counts, room)
        if wants:
            found = [growth[g] for g in wants]
            capacity = room + plan.usage(plan.counts, wants)
            menu = menu_of(wants, [bundles.counts for bundles in found])
            levels = floats_of([bundles.attainment for bundles in found])
            values = plan.scales.take(wants).take(menu.owner) * levels
            take_best(plan, menu, values, capacity, ranks, priority_class, _worth(plan, all_wants))


def _move(plan: Plan, policy: ArbiterPolicy, ranks: Mapping[str, int], moves_left: int | None) -> None:
    """GPUs from group to group, and to the classes above from those below, down to what is firm. Once needs are firm, classes
    below give nothing, unless those needs have to find room."""
    classes = plan.classes()
    of_doubts = plan.firm is not plan.reserved and bool((plan.room() >= -EPS).all())
    for index, (priority_class, members) in enumerate(classes):
        below = [g for _, lower in classes[index + 1 :] for g in lower]
        above = [g for _, higher in classes[:index] for g in higher]
        capacity = (
            plan.limits.capacity - plan.usage(plan.counts, above) - plan.usage(plan.counts if of_doubts else plan.firm, below)
        )
        crowded = bool((plan.usage(plan.counts, members) > capacity + EPS).any())
        growth = {g: plan.growth(g) for g in members}
        takers = [g for g in members if len(growth[g].counts) > 1]
        if not crowded and (not takers or moves_left == 0):
            continue
        # Who has nothing to give, and for whom not even all that others could give makes room, stays as it is.
        givers = [g for g in members if plan.counts[g] != plan.firm[g]]
        room = capacity - plan.usage(plan.firm, members)
        takers = sorted({*givers, *_with_room(plan, takers, growth, plan.firm, room)}.intersection(takers))
        if not crowded and not takers:
            plan.slacks[priority_class] = 0.0
            plan.solvers.append(NO_LIMIT)
            continue
        reference = _worth(plan, members)
        chosen = sorted({*givers, *takers})
        if len(chosen) < len(members):
            capacity = capacity - plan.usage(plan.counts, sorted({*members}.difference(chosen)))
            members = chosen
        menu, values, rises = _offers(plan, members, growth, policy)
        before = {g: plan.counts[g] for g in members}
        raised = _settle(plan, menu, values, capacity, ranks, priority_class, reference)
        if moves_left is not None and len(raised) > moves_left:
            best = sorted(raised, key=lambda g: (-raised[g], ranks[plan.groups[g].spec.name]))[:moves_left]
            may = np.isin(np.array(menu.members), np.array(best, dtype=np.int64))[menu.owner] | ~rises
            for g in members:
                plan.counts[g] = before[g]
            kept = may.nonzero()[0]
            raised = _settle(plan, menu.only(kept), values.take(kept), capacity, ranks, priority_class, reference)
        if moves_left is not None:
            moves_left = max(0, moves_left - len(raised))
        plan.moved.update(raised)


def _worth(plan: Plan, groups: list[int]) -> float:
    """All that there is to serve in `groups`."""
    return float(plan.scales.take(groups).sum())


def _with_room(
    plan: Plan, groups: list[int], growth: Mapping[int, Bundles], least: Sequence[Sequence[int]], room: Floats
) -> list[int]:
    """Those of `groups` whose next bundle fits into `room` beside what all draw with `least`, and those that may have another
    that does."""
    if not groups:
        return []
    steps = drawn_by(plan, groups, [growth[g].counts[1] for g in groups]) - drawn_by(plan, groups, [least[g] for g in groups])
    fits = np.all(steps <= (room + EPS)[:, None], axis=0).tolist()
    return [g for g, fit in zip(groups, fits, strict=True) if fit or not plan.groups[g].in_step]


def _settle(
    plan: Plan,
    menu: Menu,
    values: Floats,
    capacity: Floats,
    ranks: Mapping[str, int],
    priority_class: int,
    reference: float,
) -> dict[int, float]:
    """Choose among the offers; the groups of which a pool was raised, with their gain."""
    before = {g: plan.counts[g] for g in menu.members}
    gains = take_best(plan, menu, values, capacity, ranks, priority_class, reference)
    return {
        g: gain
        for g, gain in zip(menu.members, gains.tolist(), strict=True)
        if gain > 0.0 and any(map(gt, plan.counts[g], before[g]))
    }


def _offers(
    plan: Plan, members: list[int], growth: Mapping[int, Bundles], policy: ArbiterPolicy
) -> tuple[Menu, Floats, NDArray[np.bool_]]:
    """What the groups give and take: options, their value against the present counts, and which of them raise a pool."""
    options: list[list[Counts]] = []
    present: list[int] = []
    rows = 0
    for g in members:
        own, place = _options(plan, g, growth[g])
        present.append(rows + place)
        options.append(own)
        rows += len(own)
    menu = menu_of(members, options)
    owner = menu.owner
    groups = [plan.groups[g] for g in members]
    at_present = np.array(present, dtype=np.int64)
    change, fresh = sure_changes(groups, menu, at_present)
    waits = np.array([_cold_start_s(plan.groups[g], plan.counts[g], plan.caps[g], policy) for g in members])
    weight = np.array([group.weight for group in groups]).take(owner)
    inertia = INERTIA * plan.scales.take(members).take(owner)
    values = weight * (change - (waits / policy.move_horizon_s).take(owner) * fresh) - inertia
    if policy.cache_loss_s > 0 and _any_hits(groups):
        values -= policy.cache_loss_s / policy.move_horizon_s * _cooled(groups, menu, at_present)
    values[at_present] = 0.0
    rises = (menu.counts > menu.counts.take(at_present, axis=1).take(owner, axis=1)).any(axis=0)
    kept = ((values > 0.0) | ~rises).nonzero()[0]
    return menu.only(kept), values.take(kept), rises.take(kept)


def _options(plan: Plan, g: int, growth: Bundles) -> tuple[list[Counts], int]:
    """Smaller counts, the smallest first, the present ones, then larger ones; and the place of the present ones."""
    now = tuple(plan.counts[g])
    if now == tuple(plan.firm[g]):
        return [now, *growth.counts[1:]], 0
    group = plan.groups[g]
    less = bundles_of(group, plan.firm[g], now, plan.draws[g], hi=True)
    plan.note_thinned(less)
    smaller = less.counts[:-1] if less.counts[-1] == now else [option for option in less.counts if option != now]
    options = [*smaller, now, *growth.counts[1:]]
    if len(growth.counts) > 1 and less.counts[-1] != now and group.attainment(less.counts[-1]) >= growth.attainment[0] - EPS:
        # Some of what it has is of no use to it, one stage being larger than its partner: it may change that for what is.
        every = bundles_of(group, plan.firm[g], plan.caps[g], plan.draws[g]).counts
        options += [option for option in every if _crosses(option, now)]
    return options, len(smaller)


def _crosses(option: Sequence[int], present: Sequence[int]) -> bool:
    """Whether an option takes from one pool and gives to another."""
    pairs = list(zip(option, present, strict=True))
    return any(after < now for after, now in pairs) and any(after > now for after, now in pairs)


def _cold_start_s(group: GroupView, present: Sequence[int], caps: Sequence[int], policy: ArbiterPolicy) -> float:
    """The longest cold start among the pools that may grow: the whole path waits for it."""
    longest = 0.0
    for p, pool in enumerate(group.pools):
        if caps[p] > present[p]:
            measured = None if pool.holding is None else pool.holding.cold_start_s
            one = policy.cold_start_s if measured is None else measured
            if one > longest:
                longest = one
    return longest


def _any_hits(groups: Sequence[GroupView]) -> bool:
    for group in groups:
        for pool in group.pools:
            if pool.hit_rate:
                return True
    return False


def _cooled(groups: Sequence[GroupView], menu: Menu, present: NDArray[np.int64]) -> Floats:
    """Weighted requests/s whose prefixes die with the replicas that go: load times hit rate, by the replicas' part."""
    width = len(menu.counts)
    loads = np.array(
        [[pool.load * (pool.hit_rate or 0.0) for pool in group.pools] + [0.0] * (width - len(group.pools)) for group in groups]
    ).T
    weights = np.array([group.weight for group in groups])
    owner = menu.owner
    now = menu.counts.take(present, axis=1).take(owner, axis=1)
    gone = np.maximum(now - menu.counts, 0) / np.maximum(now, 1)
    cooled: Floats = weights.take(owner) * (gone * loads.take(owner, axis=1)).sum(axis=0)
    return cooled
