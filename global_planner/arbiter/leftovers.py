"""What is done with GPUs that nobody gains from: what planners want beyond their curves, and the floor of the fleet. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from global_planner.arbiter.plan import EPS, Array, Plan
from global_planner.types import Budget


def fill_wanted(plan: Plan, ranks: Mapping[str, int]) -> None:
    """Raise pools to what their planners want, with GPUs that are free, where the group attains all that it can and the pool's
    curve shows no use of more: a planner may know a reason that is not in its curve. A pool whose curve does show a use is
    short because its partner is, and does not run ahead of it."""
    room = plan.room()
    for _, members in plan.classes():
        for g in sorted(members, key=lambda g: ranks[plan.groups[g].spec.name]):
            group, counts, caps = plan.groups[g], plan.counts[g], plan.caps[g]
            if counts == caps:
                continue
            short = []
            for p, pool in enumerate(group.pools):
                if counts[p] < caps[p] and _at(pool.now, caps[p]) <= _at(pool.now, counts[p]) + EPS:
                    short.append(p)
            if not short or group.attainment(caps) > group.attainment(counts) + EPS:
                continue
            _raise_evenly(plan, g, short, room)


def _raise_evenly(plan: Plan, g: int, short: list[int], room: Array) -> None:
    """Raise the pools `short` of group g towards their caps within `room` (which is lowered), whoever is furthest from its cap
    first, so that no stage gets ahead of its partner. Beyond what its planner wants, a pool has a cap only because it is held:
    that is not given back to it alone."""
    group, counts, caps = plan.groups[g], plan.counts[g], plan.caps[g]
    before, together = list(counts), True
    while short:
        p = min(short, key=lambda p: (counts[p] / caps[p], p))
        wished = counts[p] < (group.pools[p].wanted or 0)
        if (wished or together) and bool((plan.draws[g][p] <= room + EPS).all()):
            counts[p] += 1
            room -= plan.draws[g][p]
            if counts[p] < caps[p]:
                continue
        else:
            together = False
        short.remove(p)
    if not together and len(counts) == 2 and len(group.paths[0]) == 2:
        for p, q in ((0, 1), (1, 0)):
            one, other = group.pools[p], group.pools[q]
            while one.capacity and other.capacity and counts[p] > max(before[p], one.wanted or 0):
                if _at(one.capacity, counts[p] - 1) < _at(other.capacity, counts[q]) - EPS:
                    break  # its partner passes on what the last replica does
                counts[p] -= 1
                room += plan.draws[g][p]


def _at(curve: Sequence[float], count: int) -> float:
    if count < len(curve):
        return curve[count]
    return curve[-1] if curve else 0.0


def keep_fleet(plan: Plan, budget: Budget, ranks: Mapping[str, int], surplus_pools: Sequence[str]) -> None:
    """Do not shrink the fleet of a GPU type below its floor: pools keep what they would have given up, the highest class first;
    then the pools named for it take what is still missing."""
    if not budget.min_total_gpus:
        return
    place = {pool.spec.name: (g, p) for g, group in enumerate(plan.groups) for p, pool in enumerate(group.pools)}
    lowest_first = sorted(
        range(len(plan.groups)), key=lambda g: (-plan.groups[g].priority_class, ranks[plan.groups[g].spec.name])
    )
    for gpu_type, floor in sorted(budget.min_total_gpus.items()):
        missing = floor - _fleet(plan, gpu_type)
        for g in lowest_first:
            for p, pool in enumerate(plan.groups[g].pools):
                if pool.spec.gpu_type == gpu_type and pool.current is not None:
                    most = pool.current if pool.rules.maximum is None else min(pool.current, pool.rules.maximum)
                    missing = _raise(plan, g, p, most, missing, f"kept for the {floor} GPUs that the fleet never goes below")
        for name in surplus_pools:
            if name in place and missing > 0:
                g, p = place[name]
                pool = plan.groups[g].pools[p]
                if pool.spec.gpu_type == gpu_type and name not in plan.blocked:
                    many = missing // pool.gpus + 1 + plan.counts[g][p]
                    most = many if pool.rules.maximum is None else min(many, pool.rules.maximum)
                    missing = _raise(plan, g, p, most, missing, f"takes the surplus of the fleet's {floor} GPUs")


def _fleet(plan: Plan, gpu_type: str) -> int:
    """GPUs of the type in the plan, those of held pools as charged."""
    return sum(
        pool.fixed_gpus if pool.fixed_gpus is not None else count * pool.gpus
        for group, counts in zip(plan.groups, plan.counts, strict=True)
        for pool, count in zip(group.pools, counts, strict=True)
        if pool.spec.gpu_type == gpu_type
    )


def _raise(plan: Plan, g: int, p: int, most: int, missing: int, note: str) -> int:
    """Raise one pool to at most `most` while GPUs are missing and every limit has room; what is still missing."""
    pool = plan.groups[g].pools[p]
    if pool.fixed_gpus is not None:
        return missing
    room = plan.room()
    while missing > 0 and plan.counts[g][p] < most and bool(np.all(plan.draws[g][p] <= room + EPS)):
        plan.counts[g][p] += 1
        room -= plan.draws[g][p]
        missing -= pool.gpus
        plan.notes[pool.spec.name] = note
    return missing
