"""Which solver runs: none where nothing binds, the exact knapsack for one limit in whole units, prices beyond. Pure.

The choice depends on the instance alone. Limits that cannot bind are left out first, and classes that share no binding limit
are solved apart: most instances with several GPU types fall into knapsacks of one limit each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.knapsack import Choice, Floats, Ints, first_true, knapsack, segment_max, starts_of
from global_planner.arbiter.lagrange import choose_within

NO_LIMIT = "no limit"
"""What is told of a choice in which everybody has the best."""
_STRENGTH = (NO_LIMIT, "knapsack", "prices")
"""The solvers, the strongest last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Classes of options, consecutive: class g has `sizes[g]` from `starts[g]`. `weights`: limits x options. The first option
    of each class takes least of every limit. `reference`: what a distance to the bound is to be seen against, where values
    are changes to something larger; `among`: how many classes that has, where they are more than these."""

    values: Floats
    weights: Floats
    sizes: Ints
    reference: float = 0.0
    among: int = 0

    @property
    def starts(self) -> Ints:
        return starts_of(self.sizes)


def choose(options: Options, capacity: Floats) -> Choice:
    """The best option of every class within `capacity` by limit. The first options together must fit."""
    starts = options.starts
    owner = np.arange(len(starts)).repeat(options.sizes)
    least = options.weights.take(starts, axis=1)
    room = capacity - least.sum(axis=1)
    beyond = options.weights - least.take(owner, axis=1)
    fits = (beyond <= (room + 1e-9)[:, None]).all(axis=0)
    if not fits.all():  # what does not even fit alone is left out: with little room, nearly everything
        fits[starts] = True
        kept = fits.nonzero()[0]
        owner = owner.take(kept)
        sizes = np.bincount(owner, minlength=len(starts))
        choice = _choose(options.values.take(kept), beyond.take(kept, axis=1), sizes, owner, room, options)
        return replace(choice, picks=kept.take(choice.picks))
    return _choose(options.values, beyond, options.sizes, owner, room, options)


def _choose(values: Floats, weights: Floats, sizes: Ints, owner: Ints, room: Floats, options: Options) -> Choice:
    """`choose`, with `room` and `weights` beyond what the first options take; `owner`: the class of each option."""
    starts = starts_of(sizes)
    scale = float(np.abs(values).max(initial=0.0)) or 1.0  # tolerances below are for values near 1
    worth, rest = values / scale, replace(options, reference=options.reference / scale)
    most = np.maximum.reduceat(weights, starts, axis=1) if len(starts) else np.zeros((len(room), 0))
    binding = (most.sum(axis=1) > room + 1e-9).nonzero()[0]

    picks = starts.copy()
    bound, exact, solvers = 0.0, True, set[str]()
    for members, rows in _components(most.take(binding, axis=0).T > 0.0):
        limits = binding.take(rows)
        if len(members) == len(starts):
            inside = weights if len(limits) == len(weights) else weights.take(limits, axis=0)
            result = _solve(worth, inside, sizes, starts, owner, room.take(limits), rest)
            picks, bound, exact = result.picks, result.bound, result.exact
            solvers.add(result.solver)
            continue
        inside_it = np.zeros(len(starts), dtype=bool)
        inside_it[members] = True
        places = inside_it.take(owner).nonzero()[0]
        own = sizes.take(members)
        inside = weights.take(limits, axis=0).take(places, axis=1)
        own_starts, own_owner = starts_of(own), np.arange(len(own)).repeat(own)
        result = _solve(worth.take(places), inside, own, own_starts, own_owner, room.take(limits), rest)
        picks[members] = places.take(result.picks)
        bound += result.bound
        exact = exact and result.exact
        solvers.add(result.solver)
    return Choice(picks=picks, bound=bound * scale, exact=exact, solver=max(solvers, key=_STRENGTH.index, default=NO_LIMIT))


def _solve(values: Floats, weights: Floats, sizes: Ints, starts: Ints, owner: Ints, room: Floats, options: Options) -> Choice:
    if not len(weights):
        tie = 1e-12 * max(1.0, float(np.abs(values).max(initial=0.0)))
        picks = first_true(values >= segment_max(values, starts).take(owner) - tie, starts)
        return Choice(picks=picks, bound=float(values.take(picks).sum()), exact=True, solver=NO_LIMIT)
    column = weights[0]
    whole = np.rint(column)
    if len(weights) > 1 or bool((np.abs(column - whole) > 1e-9).any()):
        return choose_within(values, weights, starts, owner, room, options.reference, options.among)
    capacity = int(np.floor(room[0] + 1e-9))
    if _in_order(whole, starts):
        order, sorted_values, units = None, values, whole.astype(np.int64)
    else:
        order = np.lexsort((-values, whole, owner))
        sorted_values, units = values[order], whole[order].astype(np.int64)
    # Among options of rising weight, those that add nothing to the value of a lighter one are left out.
    kept = _rising(sorted_values, starts, owner).nonzero()[0]
    kept_sizes = np.bincount(owner.take(kept), minlength=len(sizes))
    kept_starts, kept_units = starts_of(kept_sizes), units.take(kept)
    divisor = int(np.gcd.reduce(kept_units)) or 1
    result = knapsack(sorted_values.take(kept), kept_units // divisor, kept_starts, kept_sizes, capacity // divisor)
    picks = kept.take(result.picks)
    return Choice(picks=picks if order is None else order[picks], bound=result.bound, exact=result.exact, solver=result.solver)


def _in_order(weights: Floats, starts: Ints) -> bool:
    """Whether the options of every class weigh more and more, as most come."""
    rises = weights[1:] > weights[:-1]
    rises[starts[1:] - 1] = True
    return bool(rises.all())


def _rising(values: Floats, starts: Ints, owner: Ints) -> NDArray[np.bool_]:
    """Which entries exceed all before them in their class (the first always does)."""
    low = float(values.min(initial=0.0))
    spread = float(np.ptp(values)) + 1.0 if len(values) else 1.0
    lifted = (values - low) + owner * spread  # so that the running maximum starts anew in every class
    before = np.concatenate(([-np.inf], np.maximum.accumulate(lifted)[:-1]))
    mask: NDArray[np.bool_] = lifted > before + 1e-15 * spread
    mask[starts] = True
    return mask


def _components(draws: NDArray[np.bool_]) -> list[tuple[Ints, Sequence[int]]]:
    """Classes that share limits, directly or through others: (classes, limits). Classes without a limit come as one."""
    classes, limits = draws.shape
    if limits == 1 and bool(draws.all()):
        return [(np.arange(classes, dtype=np.int64), [0])]
    label = list(range(limits))
    for drawn in set(map(tuple, draws.tolist())) if limits > 1 else ():
        together = [label[place] for place in range(limits) if drawn[place]]
        if len(set(together)) > 1:
            label = [min(together) if one in together else one for one in label]
    parts: list[tuple[Ints, Sequence[int]]] = []
    for one in sorted(set(label)):
        rows = [place for place in range(limits) if label[place] == one]
        members = np.flatnonzero(draws[:, rows].any(axis=1)).astype(np.int64)
        if len(members):
            parts.append((members, rows))
    free = np.flatnonzero(~draws.any(axis=1)).astype(np.int64) if limits else np.arange(classes, dtype=np.int64)
    if len(free):
        parts.append((free, []))
    return parts
