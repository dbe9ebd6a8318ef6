"""Traffic forecasts: what a pool should expect at its horizon, as a mean and an upper quantile. Pure.

What a planner uses:

>>> forecaster = TrafficForecaster(TrafficForecastConfig(interval_s=60.0, predictor="kalman"))
>>> for minute in range(1, 11):
...     forecaster.learn(600.0, 1000.0, 200.0, at_s=60.0 * minute, interval_s=60.0)
>>> forecast = forecaster.forecast(at_s=600.0, horizon_s=180.0, quantile=0.9)
>>> forecast.requests_per_s, forecast.isl_tokens, forecast.age_s
(10.0, 1000.0, 0.0)

Unknown is a value here too: `learn(None, None, None, …)` is a gap, `learn(0.0, None, None, …)` is an idle interval, and
`forecast` answers None while it cannot know. Predictors with a costly fit (arima, prophet) never fit inside `learn`: each
tick, hand `fit_jobs()` to whatever runs in the background and bring the results back with `fitted(series, result, at_s=…)`;
without that they still forecast, from simpler models.
"""

from pool_planner.forecast.base import Accuracy, FitJob, FitResult, Prediction, Predictor
from pool_planner.forecast.registry import PREDICTORS, PredictorOptions, make_predictor
from pool_planner.forecast.traffic import SERIES, Series, TrafficForecastConfig, TrafficForecaster

__all__ = [
    "PREDICTORS",
    "SERIES",
    "Accuracy",
    "FitJob",
    "FitResult",
    "Prediction",
    "Predictor",
    "PredictorOptions",
    "Series",
    "TrafficForecastConfig",
    "TrafficForecaster",
    "make_predictor",
]
