"""Random instances for properties: groups of every shape, any rising curve, any holding."""

from __future__ import annotations

from hypothesis import strategies as st

from global_planner.types import GroupSpec, PoolSpec, RoundInputs
from pool_planner.types import Proposal, Role
from tests.arbiter.builders import group, inputs, pool, steps
from tests.dice import Dice, thrown

SHAPES: tuple[tuple[Role, ...], ...] = (
    ("agg",),
    ("prefill", "decode"),
    ("prefill", "prefill", "decode"),
    ("prefill", "decode", "agg"),
)
TYPES = ("h100", "h200", "l40s")
CHOICES = 160
"""At most this many are needed for three groups of pools with curves of three replicas, or one of five."""


def curve(dice: Dice, most: int) -> tuple[float, ...]:
    """A rising attainment curve for 0..n replicas, n at least 1."""
    size = dice.number(1, most)
    return tuple(point / 20 for point in sorted(dice.number(0, 20) for _ in range(size + 1)))


def round_of(
    dice: Dice,
    *,
    fewest: int = 1,
    groups: int = 3,
    most: int = 3,
    types: int = 1,
    classes: int = 1,
    held: bool = False,
    minima: bool = True,
) -> RoundInputs:
    """One round over a few groups; everything is between nothing and a little too much."""
    budget = {name: dice.number(0, 24) for name in TYPES[:types]}
    specs: list[PoolSpec] = []
    owners: list[GroupSpec] = []
    reports: list[Proposal] = []
    for name in "abcdef"[: dice.number(fewest, groups)]:
        owners.append(group(name, priority=dice.number(0, classes - 1), weight=dice.pick((1.0, 1.0, 0.5, 3.0))))
        for number, role in enumerate(dice.pick(SHAPES)):
            spec = pool(
                f"{name}-{role}{number}",
                role,
                gpus=dice.pick((1, 1, 2, 4)),
                gpu_type=dice.pick(TYPES[:types]),
                least=dice.number(0, 1) if minima else 0,
                most=dice.number(1, most) if dice.yes() else None,
            )
            specs.append(spec)
            reports.append(steps(spec.name, dice.number(0, 8) / 2.0, curve(dice, most)))
    have = {spec.name: dice.number(0, most + 1) for spec in specs} if held else None
    return inputs(specs, reports, budget=budget, have=have, groups=owners)


def rounds(
    *,
    groups: int = 3,
    most: int = 3,
    types: int = 1,
    classes: int = 1,
    held: bool = False,
    minima: bool = True,
) -> st.SearchStrategy[RoundInputs]:
    return thrown(
        CHOICES,
        lambda dice: round_of(dice, groups=groups, most=most, types=types, classes=classes, held=held, minima=minima),
    )
