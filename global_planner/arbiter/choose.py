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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Classes of options, consecutive: class g has `sizes[g]` from `starts[g]`. `weights`: options x limits. The first option
    of each class takes least of every limit. `reference`: what a distance to the bound is to be seen against, where values
    are changes to something larger."""

    values: Floats
    weights: Floats
    sizes: Ints
    reference: float = 0.0

    @property
    def starts(self) -> Ints:
        return starts_of(self.sizes)


def choose(options: Options, capacity: Floats) -> Choice:
    """The best option of every class within `capacity` by limit. The first options together must fit."""
    starts = options.starts
    owner = np.repeat(np.arange(len(starts)), options.sizes)
    room = capacity - options.weights[starts].sum(axis=0)
    beyond = options.weights - options.weights[starts][owner]
    fits = (beyond <= room + 1e-9).all(axis=1)
    if not fits.all():  # what does not even fit alone is left out: with little room, nearly everything
        fits[starts] = True
        kept = fits.nonzero()[0]
        sizes = np.bincount(owner[kept], minlength=len(starts))
        fewer = replace(options, values=options.values[kept], weights=options.weights[kept], sizes=sizes)
        choice = _choose(fewer, beyond[kept], room)
        return replace(choice, picks=kept[choice.picks])
    return _choose(options, beyond, room)


def _choose(options: Options, weights: Floats, room: Floats) -> Choice:
    """`choose`, with `room` and `weights` beyond what the first options take."""
    starts = options.starts
    scale = float(np.abs(options.values).max(initial=0.0)) or 1.0  # tolerances below are for values near 1
    worth, reference = options.values / scale, options.reference / scale
    need = np.maximum.reduceat(weights, starts, axis=0).sum(axis=0) if len(starts) else np.zeros_like(room)
    binding = np.flatnonzero(need > room + 1e-9)
    draws = np.maximum.reduceat(weights[:, binding] > 0.0, starts, axis=0)

    picks = starts.copy()
    bound, exact, solvers = 0.0, True, set[str]()
    for members, rows in _components(draws):
        if len(members) == len(starts):
            result = _solve(worth, weights[:, binding[rows]], options.sizes, room[binding[rows]], reference)
            picks, bound, exact = result.picks, result.bound, result.exact
            solvers.add(result.solver)
            continue
        inside_it = np.zeros(len(starts), dtype=bool)
        inside_it[members] = True
        part = np.repeat(inside_it, options.sizes)
        sizes = options.sizes[members]
        values = worth[part]
        inside = weights[np.ix_(part, binding[rows])]
        result = _solve(values, inside, sizes, room[binding[rows]], reference)
        places = part.nonzero()[0]
        picks[members] = places[result.picks]
        bound += result.bound
        exact = exact and result.exact
        solvers.add(result.solver)
    return Choice(picks=picks, bound=bound * scale, exact=exact, solver=max(solvers, default="no limit"))


def _solve(values: Floats, weights: Floats, sizes: Ints, room: Floats, reference: float) -> Choice:
    starts = starts_of(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    if weights.shape[1] == 0:
        tie = 1e-12 * max(1.0, float(np.abs(values).max(initial=0.0)))
        picks = first_true(values >= segment_max(values, starts)[owner] - tie, starts)
        return Choice(picks=picks, bound=float(values[picks].sum()), exact=True, solver="no limit")
    column = weights[:, 0]
    whole = np.rint(column)
    if weights.shape[1] > 1 or bool((np.abs(column - whole) > 1e-9).any()):
        return choose_within(values, weights, starts, sizes, room, reference)
    capacity = int(np.floor(room[0] + 1e-9))
    if _in_order(whole, starts):
        order, sorted_values, units = None, values, whole.astype(np.int64)
    else:
        order = np.lexsort((-values, whole, owner))
        sorted_values, units = values[order], whole[order].astype(np.int64)
    # Among options of rising weight, those that add nothing to the value of a lighter one are left out.
    kept = _rising(sorted_values, starts, owner).nonzero()[0]
    kept_sizes = np.bincount(owner[kept], minlength=len(sizes))
    kept_starts = starts_of(kept_sizes)
    divisor = int(np.gcd.reduce(units[kept])) or 1
    result = knapsack(sorted_values[kept], units[kept] // divisor, kept_starts, kept_sizes, capacity // divisor)
    picks = kept[result.picks]
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
    codes = draws @ (1 << np.arange(limits, dtype=np.int64))
    for row in draws[np.unique(codes, return_index=True)[1]] if limits > 1 else ():
        together = [label[place] for place in np.flatnonzero(row)]
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
