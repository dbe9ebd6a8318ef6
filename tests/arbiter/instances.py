"""Random instances for properties: groups of every shape, any rising curve, any holding."""

from __future__ import annotations

from hypothesis import strategies as st

from global_planner.types import GroupSpec, PoolSpec, RoundInputs
from pool_planner.types import Proposal, Role
from tests.arbiter.builders import group, inputs, pool, steps

SHAPES: tuple[tuple[Role, ...], ...] = (
    ("agg",),
    ("prefill", "decode"),
    ("prefill", "prefill", "decode"),
    ("prefill", "decode", "agg"),
)


@st.composite
def curves(draw: st.DrawFn, most: int) -> tuple[float, ...]:
    """A rising attainment curve for 0..n replicas, n at least 1."""
    size = draw(st.integers(1, most))
    points = sorted(draw(st.lists(st.integers(0, 20), min_size=size + 1, max_size=size + 1)))
    return tuple(point / 20 for point in points)


@st.composite
def rounds(
    draw: st.DrawFn,
    *,
    groups: int = 3,
    most: int = 3,
    types: int = 1,
    classes: int = 1,
    held: bool = False,
    minima: bool = True,
) -> RoundInputs:
    """One round over a few groups; everything is between nothing and a little too much."""
    specs: list[PoolSpec] = []
    owners: list[GroupSpec] = []
    reports: list[Proposal] = []
    for name in "abcdef"[: draw(st.integers(1, groups))]:
        owners.append(
            group(name, priority=draw(st.integers(0, classes - 1)), weight=draw(st.sampled_from((0.5, 1.0, 1.0, 3.0))))
        )
        for number, role in enumerate(draw(st.sampled_from(SHAPES))):
            spec = pool(
                f"{name}-{role}{number}",
                role,
                gpus=draw(st.sampled_from((1, 1, 2, 4))),
                gpu_type=draw(st.sampled_from(("h100", "h200", "l40s")[:types])),
                least=draw(st.integers(0, 1)) if minima else 0,
                most=draw(st.none() | st.integers(1, most)),
            )
            specs.append(spec)
            reports.append(steps(spec.name, draw(st.integers(0, 8)) / 2.0, draw(curves(most))))
    budget = {name: draw(st.integers(0, 24)) for name in ("h100", "h200", "l40s")[:types]}
    have = {spec.name: draw(st.integers(0, most + 1)) for spec in specs} if held else None
    return inputs(specs, reports, budget=budget, have=have, groups=owners)
