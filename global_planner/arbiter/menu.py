"""What the groups of one class may be set to, as arrays over all their options; and the choice of the best of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.choose import Options, choose
from global_planner.arbiter.flat import floats_of, ints_of
from global_planner.arbiter.frontier import Counts
from global_planner.arbiter.knapsack import starts_of
from global_planner.arbiter.plan import Plan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEAR = 1e-8
"""What all GPUs together count against all value, so that among equal values the cheaper one is chosen."""
TIE = 1e-10
"""What the order among equals counts, relative to a group's value: less than any GPU."""


class Menu:
    """Options of the groups `members`, consecutive: `sizes[i]` of member i from `starts[i]`, the first of which takes least.
    `owner`: place in `members` of each option. `counts`: pools of a group x options (groups of fewer pools are filled up with
    0)."""

    def __init__(self, members: list[int], sizes: Ints, counts: Ints, owner: Ints) -> None:
        self.members = members
        self.sizes = sizes
        self.counts = counts
        self.owner = owner
        self.starts = starts_of(sizes)

    def only(self, kept: Ints) -> Menu:
        """The menu with the options at `kept` alone (rising places); every member keeps one at least."""
        owner = self.owner.take(kept)
        sizes = np.bincount(owner, minlength=len(self.members))
        return Menu(self.members, sizes, self.counts.take(kept, axis=1), owner)


def menu_of(members: list[int], options: Sequence[Sequence[Counts]]) -> Menu:
    """A menu from the options of each member."""
    sizes = np.array([len(own) for own in options], dtype=np.int64)
    width = max([len(own[0]) for own in options])
    rows: list[Sequence[int]] = []
    for own in options:
        short = width - len(own[0])
        rows += [(*row, *(0,) * short) for row in own] if short else own
    counts = np.ascontiguousarray(ints_of(rows).reshape(len(rows), width).T)
    return Menu(members, sizes, counts, np.arange(len(members)).repeat(sizes))


def drawn_by(plan: Plan, members: list[int], rows: Sequence[Sequence[int]]) -> Floats:
    """What each of the groups `members` draws of each limit with its row of replicas (limits x members)."""
    width = max([len(row) for row in rows])
    if min([len(row) for row in rows]) < width:
        rows = [(*row, *(0,) * (width - len(row))) for row in rows]
    draws = plan.draws_by_place.take(members, axis=2)
    total = np.zeros(draws.shape[1:])
    for own, counts in zip(draws, floats_of(rows).reshape(len(rows), width).T, strict=False):  # other groups may be wider
        total += own * counts
    return total


def weights_of(plan: Plan, menu: Menu) -> Floats:
    """What each option draws of each limit (limits x options)."""
    draws = plan.draws_by_place.take(menu.members, axis=2)
    total = np.zeros((draws.shape[1], len(menu.owner)))
    for p, counts in enumerate(menu.counts.astype(np.float64)):
        total += counts * draws[p].take(menu.owner, axis=1)
    return total


def take_best(
    plan: Plan,
    menu: Menu,
    values: Floats,
    capacity: Floats,
    ranks: Mapping[str, int],
    priority_class: int,
    reference: float,
) -> Floats:
    """Choose one option for each member within `capacity`, set the counts, and return the values chosen. `reference`: see
    `Options`."""
    weights = weights_of(plan, menu)
    starts = menu.starts
    whole = float((np.maximum.reduceat(values, starts) - values.take(starts)).sum())
    groups = plan.groups
    order = np.array([len(ranks) - ranks[groups[g].spec.name] for g in menu.members], dtype=np.float64) / len(ranks)
    judged = values * (1.0 + TIE * order).take(menu.owner)
    if len(weights):
        judged -= DEAR * whole * ((weights / np.maximum(capacity, 1.0)[:, None]).sum(axis=0) / len(weights))
    among = len(groups) if plan.beyond_need else 0
    options = Options(values=judged, weights=weights, sizes=menu.sizes, reference=reference, among=among)
    choice = choose(options, capacity)
    plan.slacks[priority_class] = max(0.0, choice.bound - float(judged.take(choice.picks).sum()))
    plan.solvers.append(choice.solver)
    width = len(menu.counts)
    for g, row in zip(menu.members, menu.counts.take(choice.picks, axis=1).T.tolist(), strict=True):
        own = len(plan.counts[g])
        plan.counts[g] = row if own == width else row[:own]
    chosen: Floats = values.take(choice.picks)
    return chosen
