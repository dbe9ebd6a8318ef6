"""Two ways in which budgets are shared elsewhere, for comparison: in proportion, and to whoever asks first. Pure.

Both look at pools one by one, so both may grant capacity of one stage that its partner cannot use. Minima and limits hold
here too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from global_planner.arbiter.plan import EPS, Plan


def solve_proportional(plan: Plan) -> None:
    """Every pool gets the same share of what it wants beyond its reserve: the largest share that fits, rounded down; then one
    replica more, by the largest remainder, as far as it fits."""
    gaps = [
        (g, p, max(0, plan.caps[g][p] - plan.reserved[g][p]))
        for g, group in enumerate(plan.groups)
        for p in range(len(group.pools))
    ]
    room = plan.room()
    wanted = sum((gap * plan.draws[g][p] for g, p, gap in gaps), np.zeros_like(room))
    short = wanted > room + EPS
    share = float(np.min(room[short] / wanted[short], initial=1.0))
    remainders = []
    for g, p, gap in gaps:
        exact = gap * share
        whole = int(exact + EPS)
        plan.counts[g][p] = plan.reserved[g][p] + whole
        if whole < gap:
            remainders.append((-(exact - whole), plan.groups[g].pools[p].spec.name, g, p))
    room = plan.room()
    for _, _, g, p in sorted(remainders):
        if bool((plan.draws[g][p] <= room + EPS).all()):
            plan.counts[g][p] += 1
            room -= plan.draws[g][p]
    plan.solvers.append("proportional")


def solve_first_come(plan: Plan, asked_at_s: Mapping[str, float]) -> None:
    """Nobody loses what it has. Pools that want more are served in the order in which they asked, wholly or not at all; pools
    that want less are lowered first."""
    for g, group in enumerate(plan.groups):
        for p, pool in enumerate(group.pools):
            present = plan.reserved[g][p] if pool.current is None else pool.current
            plan.counts[g][p] = max(plan.reserved[g][p], min(plan.caps[g][p], present))
    _give_back(plan)
    room = plan.room()
    queue = sorted(
        (asked_at_s.get(pool.spec.name, 0.0), pool.spec.name, g, p)
        for g, group in enumerate(plan.groups)
        for p, pool in enumerate(group.pools)
    )
    for _, _, g, p in queue:
        step = (plan.caps[g][p] - plan.counts[g][p]) * plan.draws[g][p]
        if plan.caps[g][p] > plan.counts[g][p] and bool((step <= room + EPS).all()):
            plan.counts[g][p] = plan.caps[g][p]
            room -= step
    plan.solvers.append("first come")


def _give_back(plan: Plan) -> None:
    """Somebody else pushed us over a limit: lower pools in the reverse order of their names until all fits."""
    places = sorted(
        ((pool.spec.name, g, p) for g, group in enumerate(plan.groups) for p, pool in enumerate(group.pools)), reverse=True
    )
    room = plan.room()
    for _, g, p in places:
        while bool((room < -EPS).any()) and plan.counts[g][p] > plan.reserved[g][p]:
            if not bool((plan.draws[g][p, room < -EPS] > 0).any()):
                break
            plan.counts[g][p] -= 1
            room += plan.draws[g][p]
