"""The three series of a pool, told as a planner would observe them."""

from __future__ import annotations

import copy
import math
import pickle

import pytest

from pool_planner.forecast import PredictorOptions, TrafficForecastConfig, TrafficForecaster


def forecaster(predictor: str = "constant", **kwargs: float) -> TrafficForecaster:
    return TrafficForecaster(TrafficForecastConfig(interval_s=60.0, predictor=predictor, **kwargs))  # type: ignore[arg-type]


def test_a_quiet_morning_a_blind_spell_and_an_idle_evening() -> None:
    traffic = forecaster()
    assert traffic.forecast(at_s=0.0, horizon_s=60.0) is None, "nothing is known yet"

    # 08:00: ten minutes at 600 requests a minute, 1000 tokens in and 200 out.
    for minute in range(1, 11):
        traffic.learn(600.0, 1000.0, 200.0, at_s=60.0 * minute, interval_s=60.0)
    seen = traffic.forecast(at_s=600.0, horizon_s=120.0, quantile=0.9)
    assert seen is not None
    assert (seen.requests_per_s, seen.requests_per_s_high) == (10.0, 10.0)
    assert (seen.isl_tokens, seen.osl_tokens, seen.age_s) == (1000.0, 200.0, 0.0)

    # Five minutes without metrics: the forecast stands, and grows old.
    for minute in range(11, 16):
        traffic.learn(None, None, None, at_s=60.0 * minute, interval_s=60.0)
    blind = traffic.forecast(at_s=900.0, horizon_s=120.0)
    assert blind is not None and blind.requests_per_s == 10.0 and blind.age_s == 300.0

    # Then the front door is up and nobody comes: that is a zero, and the lengths stay what they were.
    for minute in range(16, 20):
        traffic.learn(0.0, math.nan, None, at_s=60.0 * minute, interval_s=60.0)
    idle = traffic.forecast(at_s=1140.0, horizon_s=60.0)
    assert idle is not None and idle.requests_per_s == 0.0 and idle.age_s == 0.0
    assert (idle.isl_tokens, idle.osl_tokens) == (1000.0, 200.0)


def test_short_observations_are_gathered_into_bins() -> None:
    """Every 5 s: 20 requests; lengths weighted by requests."""
    traffic = forecaster()
    for index in range(1, 25):
        traffic.learn(20.0, 100.0 if index % 2 else 300.0, 50.0, at_s=5.0 * index, interval_s=5.0)
    seen = traffic.forecast(at_s=120.0, horizon_s=60.0)
    assert seen is not None and seen.requests_per_s == pytest.approx(4.0)
    assert seen.isl_tokens == pytest.approx(200.0)


@pytest.mark.parametrize(("missing", "rate"), [(4, 4.0), (8, None)], ids=["a third missing", "two thirds missing"])
def test_a_bin_is_scaled_up_from_what_was_seen_or_is_a_gap(missing: int, rate: float | None) -> None:
    traffic = forecaster()
    for index in range(1, 13):
        known = index > missing
        traffic.learn(20.0 if known else None, 100.0, 50.0, at_s=5.0 * index, interval_s=5.0)
    seen = traffic.forecast(at_s=60.0, horizon_s=60.0)
    assert (seen.requests_per_s if seen else None) == rate


def test_an_observation_longer_than_a_bin_counts_at_its_mean_rate() -> None:
    traffic = forecaster()
    traffic.learn(600.0, 1.0, 1.0, at_s=60.0, interval_s=60.0)
    traffic.learn(3600.0, 1.0, 1.0, at_s=360.0, interval_s=300.0)
    seen = traffic.forecast(at_s=360.0, horizon_s=60.0)
    assert seen is not None and seen.requests_per_s == pytest.approx(12.0)


def test_times_that_do_not_grow_and_absurd_intervals_are_ignored() -> None:
    traffic = forecaster()
    traffic.learn(600.0, 1.0, 1.0, at_s=120.0, interval_s=60.0)
    for at_s, interval_s in ((120.0, 60.0), (60.0, 60.0), (math.nan, 60.0), (180.0, 0.0), (180.0, math.inf)):
        traffic.learn(9.0, 9.0, 9.0, at_s=at_s, interval_s=interval_s)
    seen = traffic.forecast(at_s=120.0, horizon_s=60.0)
    assert seen is not None and seen.requests_per_s == 10.0


def test_jitter_of_the_observing_loop_makes_no_gaps() -> None:
    traffic = forecaster(predictor="kalman")
    now = 0.0
    for index in range(50):
        took = 60.0 + (3.0 if index % 2 else -3.0)
        now += took
        traffic.learn(10.0 * took, 100.0, 10.0, at_s=now, interval_s=took)
    seen = traffic.forecast(at_s=now, horizon_s=60.0)
    assert seen is not None and seen.requests_per_s == pytest.approx(10.0, rel=0.1)
    assert traffic.accuracy()["requests"][0].scored == 49


def test_a_length_never_seen_is_unknown_unless_there_is_a_fallback_or_nobody_came() -> None:
    blind, told, idle = forecaster(), forecaster(osl_fallback_tokens=1.0), forecaster()
    blind.learn(60.0, 500.0, None, at_s=60.0, interval_s=60.0)
    told.learn(60.0, 500.0, None, at_s=60.0, interval_s=60.0)
    idle.learn(0.0, None, None, at_s=60.0, interval_s=60.0)
    assert blind.forecast(at_s=60.0, horizon_s=60.0) is None
    seen = told.forecast(at_s=60.0, horizon_s=60.0)
    assert seen is not None and seen.osl_tokens == 1.0
    nobody = idle.forecast(at_s=60.0, horizon_s=60.0)
    assert nobody is not None and (nobody.requests_per_s, nobody.isl_tokens) == (0.0, 0.0)


def test_what_no_cache_has_is_a_series_of_its_own_from_the_first_time_that_it_is_told() -> None:
    """Prompts grow and what is new in them does not: its forecast follows itself, not their length."""
    traffic = forecaster(predictor="auto")
    for minute in range(1, 60):
        isl, new = 1000.0 + 100.0 * minute, 800.0
        told = None if minute < 5 or minute == 30 else new
        traffic.learn(60.0, isl, 10.0, at_s=60.0 * minute, interval_s=60.0, uncached=told)
        if minute == 4:
            assert traffic.uncached_tokens(at_s=240.0, horizon_s=60.0) is None
            assert set(traffic.accuracy()) == {"requests", "isl", "osl"}
    seen = traffic.forecast(at_s=3540.0, horizon_s=180.0)
    assert seen is not None and seen.isl_tokens > 6500.0
    assert traffic.uncached_tokens(at_s=3540.0, horizon_s=180.0) == pytest.approx(800.0)
    traffic.learn(60.0, 6900.0, 10.0, at_s=3600.0, interval_s=60.0, uncached=0.0)
    assert traffic.accuracy()["uncached"][0].scored > 50, "all of it found is a value, not a gap"


def test_bursts_raise_the_quantile_and_never_the_mean_above_it() -> None:
    traffic = forecaster(predictor="auto")
    for minute in range(1, 200):
        traffic.learn(3000.0 if minute % 9 == 0 else 60.0, 100.0, 10.0, at_s=60.0 * minute, interval_s=60.0)
    seen = traffic.forecast(at_s=60.0 * 199, horizon_s=60.0, quantile=0.95)
    assert seen is not None and seen.predictor == "auto"
    assert seen.requests_per_s < 20.0 < seen.requests_per_s_high


def test_a_longer_horizon_looks_further_along_a_trend() -> None:
    traffic = forecaster(predictor="auto")
    for minute in range(1, 60):
        traffic.learn(100.0 * minute, 100.0, 10.0, at_s=60.0 * minute, interval_s=60.0)
    near = traffic.forecast(at_s=3540.0, horizon_s=60.0)
    far = traffic.forecast(at_s=3540.0, horizon_s=360.0)
    assert near is not None and far is not None
    assert far.requests_per_s > near.requests_per_s > 95.0


def test_fits_come_and_go_by_series() -> None:
    traffic = forecaster(predictor="arima")
    for minute in range(1, 13):
        traffic.learn(600.0 + minute % 3, 1000.0 + minute % 5, None, at_s=60.0 * minute, interval_s=60.0)
    jobs = traffic.fit_jobs()
    assert [series for series, _ in jobs] == ["requests", "isl"], "there is nothing to fit for a length never seen"
    assert traffic.fit_jobs() == (), "under way"
    for series, job in jobs:
        traffic.fitted(series, job.run(), at_s=730.0)


@pytest.mark.parametrize("predictor", ["constant", "kalman", "arima", "auto"])
def test_the_state_is_cheap_to_copy_and_a_copy_is_independent(predictor: str) -> None:
    traffic = forecaster(predictor=predictor)
    for minute in range(1, 300):
        traffic.learn(600.0 + minute % 7, 1000.0, 200.0, at_s=60.0 * minute, interval_s=60.0)
    packed = pickle.dumps(traffic)
    assert len(packed) < 400_000
    twin = copy.deepcopy(traffic)
    twin.learn(0.0, None, None, at_s=18000.0, interval_s=60.0)
    assert pickle.dumps(traffic) == packed
    here, there = traffic.forecast(at_s=18000.0, horizon_s=60.0), twin.forecast(at_s=18000.0, horizon_s=60.0)
    assert (here is not None and there is not None and here.requests_per_s > there.requests_per_s) or predictor != "constant"


def test_configuration_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match="interval_s"):
        TrafficForecaster(TrafficForecastConfig(interval_s=0.0))
    with pytest.raises(ValueError, match="quantile"):
        forecaster().forecast(at_s=0.0, horizon_s=60.0, quantile=1.0)


def test_options_reach_the_predictors_and_the_bin_width_is_the_interval() -> None:
    def mean_after_jump(q_level: float) -> float:
        options = PredictorOptions(kalman_q_level=q_level, kalman_q_trend=0.0, horizons=(1,), step_s=1.0)
        traffic = TrafficForecaster(TrafficForecastConfig(interval_s=60.0, predictor="kalman", options=options))
        for minute in range(1, 8):
            traffic.learn(600.0 if minute < 7 else 1200.0, 1.0, 1.0, at_s=60.0 * minute, interval_s=60.0)
        seen = traffic.forecast(at_s=420.0, horizon_s=60.0)
        assert seen is not None
        return seen.requests_per_s

    assert mean_after_jump(100.0) > mean_after_jump(0.001)
