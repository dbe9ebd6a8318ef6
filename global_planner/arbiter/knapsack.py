"""Which bundle each group gets: a multiple-choice knapsack, class by class. Pure and exact.

`goodput` is solved by dynamic programming over the GPUs spent (Pareto states where several types bind). The others are rules,
kept for comparison and for people who want them: `max_min` raises the worst-off group first, `proportional` divides what is
free by what groups need, `first_come` serves groups in the order in which they first asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from global_planner.arbiter.frontier import EPSILON, Bundle, Vector
from global_planner.types import Objective

Limits = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A group's side of the knapsack: its bundles, cheapest first; `bundles[0]` is reserved in any case."""

    group: str
    weight: float
    load_rps: float
    bundles: tuple[Bundle, ...]

    def value(self, bundle: Bundle) -> float:
        return self.weight * bundle.served_rps

    def attainment(self, bundle: Bundle) -> float:
        return min(1.0, bundle.served_rps / self.load_rps) if self.load_rps > 0.0 else 1.0


def choose(claims: Sequence[Claim], free: Limits, objective: Objective, turns: Sequence[str]) -> Mapping[str, Bundle]:
    """The bundle of every group of one class. `free`: GPUs by type for all of them together, floors included (None:
    unlimited). The floors must fit."""
    ordered = sorted(claims, key=lambda claim: claim.group)
    if objective == "goodput":
        return _goodput(ordered, free)
    if objective == "max_min":
        return _max_min(ordered, free)
    if objective == "proportional":
        return _proportional(ordered, free)
    place = {group: index for index, group in enumerate(turns)}
    return _one_by_one(sorted(ordered, key=lambda claim: place.get(claim.group, len(place))), ordered, free)


def fits(gpus: Vector, free: Limits) -> bool:
    return all(limit is None or spent <= limit for spent, limit in zip(gpus, free, strict=True))


def plus(first: Vector, second: Vector) -> Vector:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def minus(free: Limits, gpus: Vector) -> Limits:
    return tuple(None if limit is None else limit - spent for limit, spent in zip(free, gpus, strict=True))


def floors(claims: Sequence[Claim], types: int) -> Vector:
    total: Vector = (0,) * types
    for claim in claims:
        total = plus(total, claim.bundles[0].gpus)
    return total


def _goodput(claims: Sequence[Claim], free: Limits) -> Mapping[str, Bundle]:
    """Exact: after each group, for every amount of GPUs spent the best value so far. Equal values: fewer GPUs, then the
    earlier group by name keeps its larger bundle."""
    zero: Vector = (0,) * len(free)
    states: dict[Vector, tuple[float, tuple[int, ...]]] = {zero: (0.0, ())}
    rest = [floors(claims[index + 1 :], len(free)) for index in range(len(claims))]
    for claim, reserved in zip(claims, rest, strict=True):
        reached: dict[Vector, tuple[float, tuple[int, ...]]] = {}
        for spent, (value, picks) in states.items():
            for index, bundle in enumerate(claim.bundles):
                gpus = plus(spent, bundle.gpus)
                if not fits(plus(gpus, reserved), free):
                    continue
                total = value + claim.value(bundle)
                known = reached.get(gpus)
                if known is None or total > known[0] + EPSILON or (total > known[0] - EPSILON and (*picks, index) > known[1]):
                    reached[gpus] = (total, (*picks, index))
        states = _undominated(reached)
    _, picks = max(states.values(), key=lambda state: state[0])
    return {claim.group: claim.bundles[index] for claim, index in zip(claims, picks, strict=True)}


def _undominated(states: Mapping[Vector, tuple[float, tuple[int, ...]]]) -> dict[Vector, tuple[float, tuple[int, ...]]]:
    kept: dict[Vector, tuple[float, tuple[int, ...]]] = {}
    best: list[tuple[Vector, float]] = []
    for gpus in sorted(states, key=lambda vector: (sum(vector), vector)):
        value = states[gpus][0]
        if len(gpus) == 1:
            dominated = bool(best) and best[-1][1] >= value - EPSILON
        else:
            dominated = any(v >= value - EPSILON and all(a <= b for a, b in zip(g, gpus, strict=True)) for g, v in best)
        if not dominated:
            kept[gpus] = states[gpus]
            best.append((gpus, value))
    return kept


def _max_min(claims: Sequence[Claim], free: Limits) -> Mapping[str, Bundle]:
    picked = {claim.group: claim.bundles[0] for claim in claims}
    left = minus(free, floors(claims, len(free)))
    open_claims = list(claims)
    while open_claims:
        worst = min(open_claims, key=lambda claim: (claim.attainment(picked[claim.group]), claim.group))
        held = picked[worst.group]
        steps = [bundle for bundle in worst.bundles if bundle.served_rps > held.served_rps + EPSILON]
        step = next((b for b in steps if fits(tuple(x - y for x, y in zip(b.gpus, held.gpus, strict=True)), left)), None)
        if step is None:
            open_claims.remove(worst)
            continue
        left = minus(left, tuple(x - y for x, y in zip(step.gpus, held.gpus, strict=True)))
        picked[worst.group] = step
    return picked


def _proportional(claims: Sequence[Claim], free: Limits) -> Mapping[str, Bundle]:
    """Each group gets the best bundle within its floors and a share of what is left, by what it would need beyond them."""
    left = minus(free, floors(claims, len(free)))
    beyond = {
        claim.group: tuple(a - b for a, b in zip(claim.bundles[-1].gpus, claim.bundles[0].gpus, strict=True))
        for claim in claims
    }
    total = tuple(sum(vector) for vector in zip(*beyond.values(), strict=True))
    picked = {}
    for claim in claims:
        share: Limits = tuple(
            None if limit is None else floor + (min(extra, limit * extra // whole) if whole else 0)
            for limit, floor, extra, whole in zip(left, claim.bundles[0].gpus, beyond[claim.group], total, strict=True)
        )
        picked[claim.group] = _best_within(claim, share)
    return picked


def _one_by_one(order: Sequence[Claim], claims: Sequence[Claim], free: Limits) -> Mapping[str, Bundle]:
    left = minus(free, floors(claims, len(free)))
    picked = {}
    for claim in order:
        allowed: Limits = tuple(
            None if limit is None else limit + floor for limit, floor in zip(left, claim.bundles[0].gpus, strict=True)
        )
        bundle = _best_within(claim, allowed)
        picked[claim.group] = bundle
        left = minus(left, tuple(a - b for a, b in zip(bundle.gpus, claim.bundles[0].gpus, strict=True)))
    return picked


def _best_within(claim: Claim, limits: Limits) -> Bundle:
    return max((b for b in claim.bundles if fits(b.gpus, limits)), key=lambda bundle: bundle.served_rps)
