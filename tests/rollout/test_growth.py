"""Growth with fewer free GPUs than were granted: partners climb together, minima and higher classes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from global_planner.growth import Climb, climb
from global_planner.types import Holding, PoolSpec


def pool(
    name: str,
    now: int,
    target: int,
    *,
    gpus: int = 1,
    gpu_type: str = "h100",
    minimum: int = 0,
    rank: int = 0,
    value: float = 1.0,
) -> Climb:
    group, role = name.split("-")[:2]
    spec = PoolSpec(
        name=name,
        group=group,
        role=role,  # type: ignore[arg-type]
        gpu_type=gpu_type,
        gpus_per_replica=gpus,
        dgd=group,
        component=role,
        namespace="test",
        min_replicas=minimum,
    )
    holding = Holding(pool=name, at_s=0.0, spec=now, version="1", gpus_per_replica=gpus)
    return Climb(
        spec=spec,
        holding=holding,
        now=now,
        target=target,
        charged_gpus=now * gpus,
        priority_class=rank,
        marginal_value=value,
    )


@pytest.mark.parametrize(
    ("what", "pools", "free", "grown"),
    [
        (
            "everything fits",
            [pool("chat-prefill", 1, 3), pool("chat-decode", 1, 2, gpus=2)],
            8,
            {"chat-prefill": 3, "chat-decode": 2},
        ),
        (
            "half fits: both stages get their half",
            [pool("chat-prefill", 0, 4), pool("chat-decode", 0, 4)],
            4,
            {"chat-prefill": 2, "chat-decode": 2},
        ),
        (
            "the stage that is behind goes first",
            [pool("chat-prefill", 3, 4), pool("chat-decode", 1, 4)],
            2,
            {"chat-decode": 3},
        ),
        (
            "prefill does not run ahead of a decode replica that does not fit",
            [pool("chat-prefill", 1, 4), pool("chat-decode", 1, 4, gpus=4)],
            3,
            {},
        ),
        (
            "a partner of another GPU type that has none free holds this stage back too",
            [pool("chat-prefill", 1, 4), pool("chat-decode", 1, 4, gpu_type="h200")],
            3,
            {},
        ),
        (
            "a stage that is behind catches up although the partner cannot grow",
            [pool("chat-prefill", 1, 4), pool("chat-decode", 2, 4, gpus=4)],
            3,
            {"chat-prefill": 2},
        ),
        (
            "aggregated pools of the group wait for nobody",
            [pool("chat-prefill", 1, 4), pool("chat-decode", 1, 4, gpus=4), pool("chat-agg", 0, 2)],
            3,
            {"chat-agg": 2},
        ),
        (
            "two groups share by how far each has come",
            [pool("chat-agg", 0, 4), pool("code-agg", 2, 4)],
            3,
            {"chat-agg": 3},
        ),
        (
            "a stage of two pools: the one that fits is not held up by the other",
            [pool("chat-prefill-long", 0, 1, gpus=4), pool("chat-prefill-short", 0, 2), pool("chat-decode", 0, 2)],
            3,
            {"chat-prefill-short": 2, "chat-decode": 1},
        ),
        (
            "the higher class first, and what its next replica waits for is kept for it",
            [pool("chat-agg", 0, 2, gpus=4, rank=5), pool("code-agg", 0, 4)],
            6,
            {"chat-agg": 1},
        ),
        (
            "within a class nobody waits for the large replica of another",
            [pool("chat-agg", 0, 2, gpus=4), pool("code-agg", 0, 2)],
            3,
            {"code-agg": 2},
        ),
        (
            "minima before classes",
            [pool("chat-agg", 1, 4, rank=5, minimum=1), pool("code-agg", 0, 1, minimum=1)],
            2,
            {"code-agg": 1, "chat-agg": 2},
        ),
        (
            "the stage below its minimum first",
            [pool("chat-prefill", 0, 4), pool("chat-decode", 1, 9, minimum=2)],
            1,
            {"chat-decode": 2},
        ),
        ("more value first", [pool("chat-agg", 0, 1, value=1.0), pool("code-agg", 0, 1, value=2.0)], 1, {"code-agg": 1}),
        ("by name when nothing else decides", [pool("code-agg", 0, 1), pool("chat-agg", 0, 1)], 1, {"chat-agg": 1}),
        ("over budget nothing grows", [pool("chat-agg", 0, 1)], -1, {}),
        ("nothing is free", [pool("chat-agg", 0, 1)], 0, {}),
    ],
)
def test_table(what: str, pools: list[Climb], free: int, grown: dict[str, int]) -> None:
    assert climb([replace(item) for item in pools], {"h100": free, "h200": 0}) == grown, what


def test_unlimited() -> None:
    assert climb([pool("chat-prefill", 0, 40), pool("chat-decode", 0, 40)], {"h100": None}) == {
        "chat-prefill": 40,
        "chat-decode": 40,
    }


def test_an_order_that_is_charged_already_costs_nothing_again_but_not_when_over_budget() -> None:
    again = pool("chat-agg", 1, 3, gpus=4)
    again.holding = replace(again.holding, last_write=3)
    again.charged_gpus = 12
    assert climb([replace(again)], {"h100": 0}) == {"chat-agg": 3}
    assert climb([replace(again)], {"h100": -1}) == {}
