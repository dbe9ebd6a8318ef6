"""Predictors by the names that configurations use. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pool_planner.forecast.arima import Arima
from pool_planner.forecast.auto import RecentBest
from pool_planner.forecast.base import PointModel, Predictor
from pool_planner.forecast.constant import Naive
from pool_planner.forecast.fallback import FittedFallback, NaiveFallback
from pool_planner.forecast.kalman import AdaptiveTrend
from pool_planner.forecast.prophet import FEWEST, ProphetWindow, require_prophet
from pool_planner.forecast.series import SeriesPredictor, check_horizons


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorOptions:
    """Everything that shapes a predictor. Names and defaults of the first seven are those of the planner guide.

    `step_s` is the width of a bin in seconds; without it the bins are taken as consecutive and no model looks for a daily
    pattern. `horizons` are the bins ahead at which errors are kept for quantiles and accuracy, `error_window` how many.
    """

    log1p: bool = False
    prophet_window_size: int = 50
    kalman_q_level: float = 1.0
    kalman_q_trend: float = 0.1
    kalman_r: float = 10.0
    kalman_min_points: int = 5
    step_s: float | None = None
    horizons: tuple[int, ...] = (1, 3, 6, 12)
    error_window: int = 150

    def __post_init__(self) -> None:
        check_horizons(self.horizons)


def _constant(options: PredictorOptions) -> PointModel:
    return Naive()


def _kalman(options: PredictorOptions) -> PointModel:
    filters = AdaptiveTrend.around(
        q_level=options.kalman_q_level,
        q_trend=options.kalman_q_trend,
        r=options.kalman_r,
        min_points=options.kalman_min_points,
    )
    return NaiveFallback(filters, options.horizons)


def _arima(options: PredictorOptions) -> PointModel:
    model = Arima()
    return FittedFallback(model, model, options.horizons)


def _prophet(options: PredictorOptions) -> PointModel:
    require_prophet()
    model = ProphetWindow(window=max(FEWEST, options.prophet_window_size), step_s=options.step_s or 60.0)
    return FittedFallback(model, model, options.horizons)


def _auto(options: PredictorOptions) -> PointModel:
    return RecentBest(step_s=options.step_s, horizons=options.horizons)


_MODELS: dict[str, Callable[[PredictorOptions], PointModel]] = {
    "constant": _constant,
    "kalman": _kalman,
    "arima": _arima,
    "auto": _auto,
    "prophet": _prophet,
}

PREDICTORS = tuple(_MODELS)


def make_predictor(name: str, options: PredictorOptions | None = None) -> Predictor:
    """A fresh predictor. Raises ValueError for an unknown name, and ImportError (naming the extra) where one is missing."""
    if name not in _MODELS:
        raise ValueError(f"load_predictor: {name!r} is not one of {', '.join(PREDICTORS)}")
    options = options or PredictorOptions()
    return SeriesPredictor(
        name,
        _MODELS[name](options),
        step_s=options.step_s,
        log1p=options.log1p,
        horizons=options.horizons,
        window=options.error_window,
    )
