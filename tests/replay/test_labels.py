"""Labels in a figure cover neither each other nor points."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from global_planner.replay import labels
from global_planner.replay.figures import frontier
from global_planner.replay.labels import placed

POINTS = st.lists(
    st.tuples(st.text("abc 0123", min_size=1, max_size=18), st.integers(0, 20).map(float), st.integers(0, 20).map(float)),
    min_size=1, max_size=14,
)  # fmt: skip


def box_of(at: tuple[float, float], label: labels.Label) -> labels._Box:
    [(across, up)] = [(across, up) for name, across, up in labels.PLACES if name == label.position]
    assert label.text
    return labels._box(at, label.text, across, up)


@given(POINTS)
def test_no_label_meets_another_or_a_point(points: list[tuple[str, float, float]]) -> None:
    at, told = labels._pixels(points), placed(points)
    boxes = [box_of(where, label) for where, label in zip(at, told, strict=True) if label.text]
    assert not any(one.meets(other) for one, other in combinations(boxes, 2))
    assert not any(box.left < x < box.right and box.low < y < box.high for box in boxes for x, y in at)


def test_points_on_one_place_share_a_label_and_the_rest_is_in_the_legend() -> None:
    same = placed([("16", 1.0, 0.9), ("24", 1.0, 0.9), ("8", 0.5, 0.4)])
    assert [label.text for label in same] == ["16, 24", "", "8"]
    rng = np.random.default_rng(1)
    assert not frontier("f", [("16", 1.0, 0.9), ("24", 1.0, 0.9)])["layout"]["showlegend"]
    crowd = [(f"goodput, {n} GPUs", float(x), float(y)) for n, (x, y) in enumerate(rng.uniform(0.0, 1.0, (40, 2)))]
    assert any(label.text is None for label in placed(crowd))
    assert frontier("f", crowd)["layout"]["showlegend"] and not frontier("f", crowd[:2])["layout"]["showlegend"]


def test_a_thousandth_more_of_gpu_hours_stands_beside_and_not_at_the_other_end() -> None:
    near, far = (labels._pixels([("a", 4.966, 0.901), ("b", hours, 0.945)]) for hours in (4.971, 9.0))
    assert 0.45 * labels.WIDTH < near[0][0] < near[1][0] < 0.55 * labels.WIDTH
    assert far[1][0] - far[0][0] > 0.85 * labels.WIDTH
    low, high = frontier("f", [("a", 4.966, 0.901), ("b", 4.971, 0.945)])["layout"]["xaxis"]["range"]
    assert 4.6 < low < 4.966 < 4.971 < high < 5.3


def test_nobody_asked_anything() -> None:
    assert frontier("f", [])["layout"]["xaxis"]["range"] == (-1.0, 1.0)


def test_one_policy_alone_has_an_axis_of_shares() -> None:
    alone, two = ([("16", 1.0, 0.247)], [("16", 1.0, 0.247), ("24", 2.0, 0.5)])
    assert frontier("f", alone)["layout"]["yaxis"]["range"] == [0, 1.02]
    assert "range" not in frontier("f", two)["layout"]["yaxis"]
