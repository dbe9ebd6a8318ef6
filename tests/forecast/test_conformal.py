"""The conformal quantile: against a dumb twin, and its promise on series whose law is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_planner.forecast import PredictorOptions, make_predictor
from pool_planner.forecast.conformal import ErrorWindow


def twin(errors: list[float], size: int, level: float) -> float:
    """The same by sorting what is in the window."""
    window = sorted(errors[-size:])
    if not window:
        return 0.0
    rank = min(max((len(window) + 1) * level - 1.0, 0.0), len(window) - 1.0)
    low = math.floor(rank)
    high = min(low + 1, len(window) - 1)
    return window[low] + (rank - low) * (window[high] - window[low])


@given(
    errors=st.lists(st.floats(-1e6, 1e6), max_size=60),
    size=st.integers(1, 20),
    level=st.floats(0.01, 0.99),
)
def test_the_window_equals_sorting(errors: list[float], size: int, level: float) -> None:
    window = ErrorWindow(size)
    for error in errors:
        window.add(error)
    assert len(window) == min(size, len(errors))
    assert window.quantile(level) == pytest.approx(twin(errors, size, level))


LAWS = {
    "gaussian": lambda rng: max(0.0, rng.gauss(200.0, 30.0)),
    "exponential": lambda rng: rng.expovariate(1.0 / 80.0),
    "bursts": lambda rng: rng.lognormvariate(3.0, 1.0) if rng.random() < 0.3 else 5.0,
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["constant", "kalman", "auto"])
def test_nine_in_ten_bins_stay_under_the_ninety_percent_quantile(name: str, law: str) -> None:
    rng = random.Random(21)
    values = [LAWS[law](rng) for _ in range(500)]
    predictor = make_predictor(name, PredictorOptions(horizons=(1, 3)))
    met = {1: 0, 3: 0}
    judged = 0
    for index, value in enumerate(values[:-3]):
        predictor.learn(value, float(index + 1))
        if index < 100:
            continue
        judged += 1
        for steps in met:
            prediction = predictor.forecast(steps, (0.9,))
            assert prediction is not None
            met[steps] += values[index + steps] <= prediction.quantile(0.9)
    for steps in met:
        assert 0.86 <= met[steps] / judged <= 0.94


def test_between_scored_horizons_the_next_larger_one_serves_and_beyond_the_last_the_margin_widens() -> None:
    rng = random.Random(5)
    predictor = make_predictor("constant", PredictorOptions(horizons=(1, 4)))
    level = 1000.0
    for index in range(300):
        level += rng.gauss(0.0, 5.0)
        predictor.learn(level, float(index + 1))
    margins = []
    for steps in (1, 2, 4, 16):
        prediction = predictor.forecast(steps, (0.9,))
        assert prediction is not None
        margins.append(prediction.quantile(0.9) - prediction.mean)
    assert margins[0] < margins[1] == margins[2]
    assert margins[3] == pytest.approx(2.0 * margins[2])
