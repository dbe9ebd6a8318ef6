"""What every predictor owes its caller, whatever the traffic: a table of predictors by shapes."""

from __future__ import annotations

import math
import pickle
import random
import time
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool_planner.forecast import PREDICTORS, Prediction, Predictor, PredictorOptions, make_predictor
from pool_planner.forecast.prophet import MissingExtra
from tests.forecast.shapes import SHAPES, Values, level_shift, noise

STEP_S = 1800.0
NAMES = [name for name in PREDICTORS if name != "prophet"]
HORIZONS = (1, 3, 12)


def predictor_named(name: str, *, log1p: bool = False) -> Predictor:
    return make_predictor(name, PredictorOptions(step_s=STEP_S, horizons=HORIZONS, log1p=log1p))


def feed(predictor: Predictor, values: Values, *, fits: bool = True, first: int = 0) -> list[Prediction | None]:
    """Learn each value, fit where a fit is offered, and return what was forecast three bins ahead after each."""
    out = []
    for index, value in enumerate(values, start=first):
        at_s = (index + 1) * STEP_S
        predictor.learn(value, at_s)
        job = predictor.fit_job() if fits else None
        if job is not None:
            predictor.fitted(job.run(), at_s)
        out.append(predictor.forecast(3, (0.5, 0.8, 0.9, 0.99)))
    return out


@pytest.mark.parametrize("log1p", [False, True], ids=["plain", "log1p"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_forecasts_are_finite_and_not_negative_on_every_shape(name: str, shape: str, log1p: bool) -> None:
    predictor = predictor_named(name, log1p=log1p)
    values = SHAPES[shape]()
    if log1p:
        values = values[:30]
    for prediction in feed(predictor, values):
        assert prediction is not None
        levels = [value for _, value in prediction.quantiles]
        assert all(math.isfinite(value) and value >= 0.0 for value in (prediction.mean, *levels))
        assert levels == sorted(levels)
    for steps in (1, 2, 7, 12, 50):
        prediction = predictor.forecast(steps)
        assert prediction is not None and math.isfinite(prediction.mean) and prediction.mean >= 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_is_forecast_exactly_and_without_margin(name: str) -> None:
    """ARIMA on constant data must not predict 0, and calm traffic must not be planned above itself."""
    last = feed(predictor_named(name), SHAPES["constant"]())[-1]
    assert last is not None
    assert last.mean == pytest.approx(120.0)
    assert last.quantile(0.99) == pytest.approx(120.0)


@pytest.mark.parametrize("name", NAMES)
def test_idle_traffic_is_forecast_as_idle(name: str) -> None:
    last = feed(predictor_named(name), SHAPES["zeros"]())[-1]
    assert last is not None and last.mean == 0.0 and last.quantile(0.9) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_after_a_level_shift_the_forecast_arrives_within_ten_bins(name: str) -> None:
    forecasts = feed(predictor_named(name), level_shift())
    shifted = len(forecasts) // 2
    after = forecasts[shifted + 10]
    assert after is not None and 360.0 < after.mean < 440.0


@pytest.mark.parametrize("name", NAMES)
def test_one_bad_sample_is_counted_and_changes_no_forecast_for_long(name: str) -> None:
    """One inf or NaN must not poison the model: it is a bin of unknown value."""
    clean, poisoned = predictor_named(name), predictor_named(name)
    values = noise()
    feed(clean, [None if i == 20 else value for i, value in enumerate(values)])
    feed(poisoned, [math.inf if i == 20 else value for i, value in enumerate(values)])
    assert clean.forecast(3) == poisoned.forecast(3)
    assert poisoned.unknown == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_hole_between_two_times_is_the_same_as_bins_of_unknown_value(name: str) -> None:
    told, silent = predictor_named(name), predictor_named(name)
    for index, value in enumerate(noise()[:70]):
        at_s = (index + 1) * STEP_S
        if 40 <= index < 50:
            told.learn(None, at_s)
            continue
        told.learn(value, at_s)
        silent.learn(value, at_s)
    assert told.forecast(3) == silent.forecast(3)


@pytest.mark.parametrize("name", NAMES)
def test_equal_histories_give_equal_forecasts_and_a_copy_goes_on_like_the_original(name: str) -> None:
    one, other = predictor_named(name), predictor_named(name)
    values = noise()
    assert feed(one, values[:70]) == feed(other, values[:70])
    copied = pickle.loads(pickle.dumps(one))
    assert feed(copied, values[70:], first=70) == feed(one, values[70:], first=70)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_first_value_nothing_is_forecast(name: str) -> None:
    predictor = predictor_named(name)
    assert predictor.forecast(1) is None
    predictor.learn(None, STEP_S)
    assert predictor.forecast(1) is None


def test_late_values_are_counted_and_ignored() -> None:
    predictor = predictor_named("constant")
    predictor.learn(5.0, 2.0 * STEP_S)
    predictor.learn(9.0, 1.0 * STEP_S)
    forecast = predictor.forecast(1)
    assert forecast is not None and forecast.mean == 5.0 and forecast.known_at_s == 2.0 * STEP_S
    assert predictor.late == 1


def test_unknown_predictors_and_absurd_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="load_predictor: 'crystal-ball' is not one of constant, kalman"):
        make_predictor("crystal-ball")
    with pytest.raises(ValueError, match="horizons"):
        make_predictor("auto", PredictorOptions(horizons=()))
    with pytest.raises(ValueError, match="step_s"):
        make_predictor("constant", PredictorOptions(step_s=0.0))
    with pytest.raises(ValueError, match="steps"):
        make_predictor("constant").forecast(0)


@pytest.mark.skipif(find_spec("prophet") is not None, reason="prophet is installed")
def test_prophet_without_its_package_names_the_extra() -> None:
    with pytest.raises(MissingExtra, match=r"global-planner\[prophet\]"):
        make_predictor("prophet")


@pytest.mark.skipif(find_spec("prophet") is None, reason="the extra 'prophet' is not installed")
@pytest.mark.parametrize("shape", ["constant", "zeros", "gaps", "decline_to_zero", "poison"])
def test_prophet_survives(shape: str) -> None:
    for prediction in feed(predictor_named("prophet"), SHAPES[shape]()[:40]):
        assert prediction is not None and math.isfinite(prediction.mean) and prediction.mean >= 0.0


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.none(), st.floats(), st.floats(min_value=0.0, max_value=1e6), st.integers(0, 5).map(float)),
        max_size=60,
    ),
    name=st.sampled_from(["constant", "kalman", "auto"]),
    log1p=st.booleans(),
)
def test_no_history_at_all_makes_a_forecast_negative_or_infinite(values: Values, name: str, log1p: bool) -> None:
    for prediction in feed(predictor_named(name, log1p=log1p), values):
        if prediction is not None:
            assert math.isfinite(prediction.mean) and prediction.mean >= 0.0
            assert all(math.isfinite(value) and value >= 0.0 for _, value in prediction.quantiles)


def errors(name: str, values: list[float]) -> tuple[float, float]:
    """Mean absolute error one bin ahead over the second half: of the predictor, and of the naive forecast."""
    predictor = predictor_named(name)
    half, own, naive = len(values) // 2, 0.0, 0.0
    for index, value in enumerate(values[:-1]):
        at_s = (index + 1) * STEP_S
        predictor.learn(value, at_s)
        job = predictor.fit_job()
        if job is not None:
            predictor.fitted(job.run(), at_s)
        forecast = predictor.forecast(1)
        if index >= half and forecast is not None:
            own += abs(values[index + 1] - forecast.mean)
            naive += abs(values[index + 1] - value)
    return own, naive


def _walk(rng: random.Random) -> list[float]:
    level, out = 500.0, []
    for _ in range(200):
        level = max(0.0, level + rng.gauss(0.0, 10.0))
        out.append(level)
    return out


@pytest.mark.parametrize("name", ["auto", "kalman", "arima"])
def test_on_noise_around_a_level_a_predictor_is_nearly_as_good_as_knowing_the_level(name: str) -> None:
    """Knowing it leaves 1/sqrt(2) of the naive forecast's error, which carries the noise of the last bin as well."""
    rng = random.Random(12)
    values = [max(0.0, rng.gauss(100.0, 12.0)) for _ in range(240)]
    own, naive = errors(name, values)
    knowing = sum(abs(value - 100.0) for value in values[len(values) // 2 + 1 :])
    assert knowing < 0.8 * naive
    assert own <= 1.1 * knowing


@pytest.mark.parametrize("name", NAMES)
def test_on_a_random_walk_nothing_is_lost_against_the_naive_forecast(name: str) -> None:
    own, naive = errors(name, _walk(random.Random(12)))
    assert own <= 1.05 * naive


def test_auto_learns_the_shape_of_a_day() -> None:
    """Half-hour bins, the same sharp peak every day: from the third day on the peak is met when it comes."""
    day = [30.0] * 16 + [300.0] * 4 + [60.0] * 12 + [200.0] * 6 + [40.0] * 10
    own, naive = errors("auto", day * 8)
    assert own < 0.35 * naive


def test_accuracy_is_published_against_the_naive_forecast() -> None:
    predictor = predictor_named("kalman")
    feed(predictor, noise())
    by_steps = {each.steps: each for each in predictor.accuracy()}
    assert set(by_steps) == set(HORIZONS)
    assert by_steps[1].scored == len(noise()) - 1
    assert by_steps[1].rmae is not None and by_steps[1].rmae < 0.9
    assert by_steps[1].wape is not None and 0.05 < by_steps[1].wape < 0.25


def test_a_month_of_silence_is_got_over_within_a_tick() -> None:
    predictor = make_predictor("auto", PredictorOptions(step_s=30.0))
    for index, value in enumerate(noise()):
        predictor.learn(value, 30.0 * (index + 1))
    began = time.thread_time()
    predictor.learn(100.0, 30.0 * 86400.0)
    assert time.thread_time() - began < 0.15
    forecast = predictor.forecast(1)
    assert forecast is not None and 80.0 < forecast.mean < 120.0 and forecast.known_at_s == 30.0 * 86400.0


def test_auto_keeps_the_shape_of_a_day_through_an_outage() -> None:
    day = [30.0] * 16 + [300.0] * 4 + [60.0] * 12 + [200.0] * 6 + [40.0] * 10
    history: Values = [None if 5 * 48 <= index < 5 * 48 + 40 else value for index, value in enumerate(day * 6)]
    predictor = predictor_named("auto")
    feed(predictor, history)
    for index, value in enumerate(day[:16], start=len(history)):
        predictor.learn(value, (index + 1) * STEP_S)
    peak = predictor.forecast(1)
    assert peak is not None and peak.mean > 150.0, "the peak that the outage of yesterday hid is expected today"
