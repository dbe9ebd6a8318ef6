"""Background fits: offered, run elsewhere, brought back as an event. Nothing costly happens while learning."""

from __future__ import annotations

import pickle
import random
import time

import pytest

from pool_planner.forecast import PredictorOptions, make_predictor
from pool_planner.forecast.arima import LOST_AFTER, Arima
from pool_planner.forecast.arima_fit import ArimaFilter, ArimaFit, ArimaFitJob
from pool_planner.forecast.prophet import PATH_BINS, ProphetPath, ProphetWindow


def ar1(phi: float, count: int, seed: int = 7) -> list[float]:
    rng, value, out = random.Random(seed), 0.0, []
    for _ in range(count):
        value = phi * value + rng.gauss(0.0, 10.0)
        out.append(300.0 + value)
    return out


def test_a_job_is_offered_once_run_elsewhere_and_its_result_serves() -> None:
    arima = make_predictor("arima", PredictorOptions(horizons=(1, 3)))
    values = ar1(-0.7, 61)
    offered = []
    for index, value in enumerate(values):
        arima.learn(value, float(index))
        job = arima.fit_job()
        if job is not None:
            offered.append((index + 1, job))
    assert [at for at, _ in offered][:2] == [10, 10 + LOST_AFTER], "an unanswered job is offered again, not at once"
    naive = arima.forecast(1)
    assert naive is not None and naive.mean == values[-1], "until a fit comes the naive forecast serves"

    job = pickle.loads(pickle.dumps(offered[-1][1]))  # another process
    arima.fitted(job.run(), 100.0)
    fitted = arima.forecast(1)
    assert fitted is not None
    expected = 300.0 - 0.7 * (values[-1] - 300.0)
    assert abs(fitted.mean - expected) < abs(values[-1] - expected) / 2.0


def test_the_order_is_chosen_anew_as_history_grows() -> None:
    arima = make_predictor("arima", PredictorOptions(horizons=(1,)))
    rng = random.Random(4)
    orders, fits = [], 0
    walk = 300.0
    for index in range(330):
        walk += rng.gauss(0.0, 10.0)
        arima.learn(max(0.0, walk) if index < 60 else max(0.0, 300.0 + rng.gauss(0.0, 10.0)), float(index))
        job = arima.fit_job()
        if job is not None:
            result = job.run()
            arima.fitted(result, float(index))
            orders.append(result.order)  # type: ignore[attr-defined]
            fits += 1
    assert 12 <= fits <= 20, "as history grows by a quarter, then every 100 bins"
    assert orders[-1] != orders[4]


def test_an_older_result_than_the_one_in_use_and_one_of_another_life_are_ignored() -> None:
    model = Arima()
    for value in ar1(0.5, 40):
        model.learn(value)
    newer = ArimaFit(learned=30, d=0, ar=(0.5,), ma=(), mean=300.0)
    model.fitted(newer)
    model.fitted(ArimaFit(learned=20, d=1, ar=(), ma=(), mean=0.0))
    model.fitted(ArimaFit(learned=900, d=1, ar=(), ma=(), mean=0.0))
    assert model.fit is newer
    with pytest.raises(TypeError, match="not the result of an arima fit"):
        model.fitted(ProphetPath(learned=35, path=(1.0,)))


def test_predictors_without_fits_say_so() -> None:
    predictor = make_predictor("kalman")
    assert predictor.fit_job() is None
    with pytest.raises(TypeError, match="no background fit"):
        predictor.fitted(ArimaFit(learned=1, d=0, ar=(), ma=(), mean=0.0), 0.0)


def test_the_filter_agrees_with_the_recursion_written_out() -> None:
    """ARIMA(1,1,1) by hand: w = y - y', forecast w = phi w' + theta e'."""
    fit = ArimaFit(learned=0, d=1, ar=(0.6,), ma=(0.3,), mean=0.0)
    model, values = ArimaFilter(fit), [10.0, 12.0, 11.0, 15.0, 14.0]
    w_before = e_before = 0.0
    last = None
    for value in values:
        model.learn(value)
        w = 0.0 if last is None else value - last
        e_before, w_before, last = w - (0.6 * w_before + 0.3 * e_before), w, value
    first = values[-1] + 0.6 * w_before + 0.3 * e_before
    assert model.path(2) == pytest.approx([first, first + 0.6 * (first - values[-1])])


@pytest.mark.parametrize("values", [(5.0,) * 40, (0.0,) * 40, tuple(range(9))], ids=["constant", "zeros", "short"])
def test_a_window_that_holds_no_information_is_fitted_as_a_random_walk(values: tuple[float, ...]) -> None:
    fit = ArimaFitJob(learned=40, values=tuple(float(v) for v in values)).run()
    assert fit.order == (0, 1, 0)


def test_a_result_depends_on_its_job_alone() -> None:
    job = ArimaFitJob(learned=120, values=tuple(ar1(0.8, 120)))
    assert job.run() == job.run()


def test_learning_never_fits() -> None:
    """A whole history of 400 bins is learned in less time than a few fits would take."""
    arima = make_predictor("arima")
    for index, value in enumerate(ar1(0.5, 50)):
        arima.learn(value, float(index))
    job = arima.fit_job()
    assert job is not None
    arima.fitted(job.run(), 50.0)
    began = time.process_time()
    for index, value in enumerate(ar1(0.5, 400, seed=9)):
        arima.learn(value, 100.0 + index)
    assert time.process_time() - began < 0.4


def test_prophet_serves_the_rest_of_its_path_and_knows_where_it_ends() -> None:
    """The seam is the same; the package is not needed to test it."""
    model = ProphetWindow(window=20, step_s=60.0)
    for index in range(15):
        model.learn(float(index))
    job = model.fit_job()
    assert job is not None and model.fit_job() is None
    model.fitted(ProphetPath(learned=15, path=tuple(float(100 + i) for i in range(PATH_BINS))))
    assert model.point(1) == 100.0
    model.learn(50.0)
    assert model.point(1) == 101.0 and model.point(PATH_BINS - 1) == 163.0
    assert model.point(PATH_BINS) is None
