"""Two ways in which budgets are shared elsewhere, for comparison: in proportion, and to whoever asks first. Pure.

Neither looks at what a group makes of it, so both may grant capacity of one stage that its partner cannot use. Minima and
limits hold here too.
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
    """Mediation request by request. Nobody loses what it has. The planner of a deployment asks for all its pools at once: what
    only lowers is granted, and what raises is served in the order of asking, wholly or not at all (also where a part of it
    would lower). A refused request is forgotten; whoever still wants it asks again. Priorities and weights do not count.

    In two things this is kinder than mediators that are in use: a release serves whoever asks later in the same round, and
    rollout charges replicas that still end, where those forget them and exceed the budget."""
    requests: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for g, group in enumerate(plan.groups):
        for p, pool in enumerate(group.pools):
            present = plan.reserved[g][p] if pool.current is None else pool.current
            most = present if pool.rules.maximum is None else max(pool.floor, min(present, pool.rules.maximum))
            plan.counts[g][p] = max(plan.reserved[g][p], most)
            requests.setdefault((pool.spec.namespace, pool.spec.dgd), []).append((g, p))
    raising = []
    for name, places in requests.items():
        if any(plan.caps[g][p] > plan.counts[g][p] for g, p in places):
            asked = min(asked_at_s.get(plan.groups[g].pools[p].spec.name, 0.0) for g, p in places)
            raising.append((asked, name, places))
        else:
            for g, p in places:
                plan.counts[g][p] = max(plan.reserved[g][p], plan.caps[g][p])
    _give_back(plan)
    room = plan.room()
    for _, _, places in sorted(raising):
        steps = [(plan.caps[g][p] - plan.counts[g][p]) * plan.draws[g][p] for g, p in places]
        step = sum(steps, np.zeros_like(room))
        if bool((step <= np.maximum(room, 0.0) + EPS).all()):
            for g, p in places:
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
