"""What the groups of one class may be set to, as arrays over all their options; and the choice of the best of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.choose import Options, choose
from global_planner.arbiter.frontier import Counts
from global_planner.arbiter.knapsack import starts_of
from global_planner.arbiter.plan import Plan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DEAR = 1e-8
"""What all GPUs together count against all value, so that among equal values the cheaper one is chosen."""
TIE = 1e-10
"""What the order among equals counts, relative to a group's value: less than any GPU."""


@dataclass(slots=True, kw_only=True)
class Menu:
    """Options of the groups `members`, consecutive: `sizes[i]` of member i from `starts[i]`, the first of which takes least.
    `owner`: place in `members` of each option. `counts`: options x pools of a group (groups of fewer pools are filled up with
    0)."""

    members: list[int]
    sizes: Ints
    owner: Ints
    starts: Ints
    counts: Ints

    def only(self, keep: NDArray[np.bool_]) -> Menu:
        """The menu with the options of `keep` alone; every member keeps one at least."""
        owner = self.owner[keep]
        sizes = np.bincount(owner, minlength=len(self.members))
        return Menu(members=self.members, sizes=sizes, owner=owner, starts=starts_of(sizes), counts=self.counts[keep])


def menu_of(members: list[int], options: Sequence[Sequence[Counts]]) -> Menu:
    """A menu from the options of each member."""
    sizes = np.array([len(own) for own in options], dtype=np.int64)
    widths = {len(own[0]) for own in options}
    width = max(widths)
    if len(widths) == 1:
        flat = chain.from_iterable(chain.from_iterable(options))
    else:
        flat = chain.from_iterable((*row, *(0,) * (width - len(row))) for own in options for row in own)
    total = int(sizes.sum())
    counts = np.fromiter(flat, dtype=np.int64, count=total * width).reshape(total, width)
    owner = np.repeat(np.arange(len(members)), sizes)
    return Menu(members=members, sizes=sizes, owner=owner, starts=starts_of(sizes), counts=counts)


def weights_of(plan: Plan, menu: Menu) -> Floats:
    """What each option draws of each limit (options x limits)."""
    draws = plan.draws_by_place[:, menu.members]
    total = np.zeros((len(menu.counts), draws.shape[2]))
    for p in range(menu.counts.shape[1]):
        total += menu.counts[:, p, None] * draws[p][menu.owner]
    return total


def take_best(
    plan: Plan, menu: Menu, values: Floats, capacity: Floats, ranks: Mapping[str, int], priority_class: int
) -> Floats:
    """Choose one option for each member within `capacity`, set the counts, and return the values chosen."""
    weights = weights_of(plan, menu)
    starts = menu.starts
    whole = float((np.maximum.reduceat(values, starts) - values[starts]).sum())
    groups = plan.groups
    order = np.array([len(ranks) - ranks[groups[g].spec.name] for g in menu.members], dtype=np.float64) / len(ranks)
    judged = values * (1.0 + TIE * order[menu.owner])
    if weights.shape[1]:
        judged -= DEAR * whole * (weights / np.maximum(capacity, 1.0)).mean(axis=1)
    reference = sum(plan.scales[menu.members].tolist())
    choice = choose(Options(values=judged, weights=weights, sizes=menu.sizes, reference=reference), capacity)
    plan.slacks[priority_class] = max(0.0, choice.bound - float(judged[choice.picks].sum()))
    plan.solvers.append(choice.solver)
    width = menu.counts.shape[1]
    for g, row in zip(menu.members, menu.counts[choice.picks].tolist(), strict=True):
        own = len(plan.counts[g])
        plan.counts[g] = row if own == width else row[:own]
    chosen: Floats = values[choice.picks]
    return chosen
