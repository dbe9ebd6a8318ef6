"""Direct corrections of the naive forecast: for each horizon, what usually becomes of a value like the last one. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from pool_planner.forecast.daily import LaggedHistory
from pool_planner.forecast.least_squares import LARGEST_EXPONENT, SLOWEST, StackedLeastSquares, Vector
from pool_planner.forecast.smoothing import UNKNOWN


class DirectCorrections:
    """For each of `horizons` (ascending) its own regression of the change to come on what pulls the series back: one of
    log(1 + value), one of the value. Other horizons are unknown.

    Features: the distance of the last value to averages at four rates and, where `day_bins` is given, what the series did at
    this time yesterday, and the distance to where it was then.

    It begins with weights that suit traffic in general, and a series must earn its own: of the last jump, most is noise, and
    the more so the further ahead. They were fitted on other series than the benchmark judges, what single clients of
    ServeGen sent (tests/bench/forecast_development.py), and are rounded.
    """

    RATES = np.array([0.7, 0.4, 0.15, 0.04])
    NEXT_BIN = (0.0, 0.7, 0.0, 0.0)
    LATER = (-0.6, 1.4, 0.0, 0.0)

    def __init__(self, *, horizons: Sequence[int], day_bins: float | None) -> None:
        self.names = ("direct_log", "direct")
        self._horizons = tuple(horizons)
        self._seen = 0
        self._levels = np.zeros((2, len(self.RATES)))
        self._last: Vector | None = None  # in both units
        self._histories = None
        if day_bins is not None:
            self._histories = tuple(LaggedHistory(day_bins, horizons[-1]) for _ in self.names)
        yesterday = () if day_bins is None else (0.0, 0.0)
        starts = [(*(self.NEXT_BIN if steps == 1 else self.LATER), *yesterday) for steps in horizons]
        self._fit = StackedLeastSquares(np.array([*starts, *starts]), ridge=5.0, forgetting=0.997)
        # Features (unit, horizon, feature) and last values (unit,) behind the forecasts of each bin, newest first.
        self._issued: deque[tuple[Vector, Vector]] = deque(maxlen=horizons[-1])
        self._learned = np.zeros(len(horizons))
        self._scale = np.zeros((2, len(horizons)))
        self._points: dict[int, tuple[float, float]] = {}

    def learn(self, value: float | None) -> None:
        values = None if value is None else np.array([math.log1p(value), value])
        if values is not None:
            self._learn_changes(values)
            self._seen += 1
            self._levels += np.maximum(self.RATES, 1.0 / self._seen) * (values[:, None] - self._levels)
            self._last = values
        if self._last is None:
            return
        if self._histories is not None:
            for unit, history in enumerate(self._histories):
                history.add_or_repeat(None if values is None else float(values[unit]), float(self._last[unit]))
        x = self._features(self._last)
        weights = self._fit.weights.reshape(x.shape)
        ahead = self._last[:, None] + np.einsum("uhi,uhi->uh", weights, x)
        self._issued.appendleft((x, self._last))
        logs, plain = ahead.tolist()
        self._points = {
            steps: (math.expm1(min(log, LARGEST_EXPONENT)), value)
            for steps, log, value in zip(self._horizons, logs, plain, strict=True)
        }

    def _features(self, last: Vector) -> Vector:
        pull = self._levels - last[:, None]
        if self._histories is None:
            return np.repeat(pull[:, None, :], len(self._horizons), axis=1)
        x = np.empty((2, len(self._horizons), len(self.RATES) + 2))
        x[:, :, : len(self.RATES)] = pull[:, None, :]
        yesterday = []
        for history, value in zip(self._histories, last.tolist(), strict=True):
            then = history.day_ago(0)
            for steps in self._horizons:
                after = None if then is None else history.day_ago(steps)
                yesterday += [0.0, 0.0] if then is None or after is None else [after - then, after - value]
        x[:, :, len(self.RATES) :] = np.reshape(yesterday, (2, -1, 2))
        return x

    def _learn_changes(self, values: Vector) -> None:
        """What became of the forecasts that were made for this bin."""
        ready = sum(steps <= len(self._issued) for steps in self._horizons)
        if not ready:
            return
        made = [self._issued[steps - 1] for steps in self._horizons[:ready]]
        x = np.array([features[:, row] for row, (features, _) in enumerate(made)]).swapaxes(0, 1)
        change = values[:, None] - np.array([start for _, start in made]).T
        self._learned[:ready] += 1.0
        scale = self._scale[:, :ready]
        scale += np.maximum(SLOWEST, 1.0 / self._learned[:ready]) * (np.abs(change) - scale)
        moving = scale > 0.0
        if ready == len(self._horizons) and moving.all():
            self._fit.learn((x / scale[:, :, None]).reshape(-1, x.shape[2]), (change / scale).ravel())
        elif moving.any():
            unit, row = np.nonzero(moving)
            size = scale[unit, row]
            self._fit.learn(x[unit, row] / size[:, None], change[unit, row] / size, unit * len(self._horizons) + row)

    def points(self, steps: int) -> Sequence[float]:
        return self._points.get(steps, (UNKNOWN, UNKNOWN))
