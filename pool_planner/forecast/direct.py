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

    Features: the distance of the last value to averages at four rates. Where `day_bins` is given, there are two more
    corrections (`DAILY`) that know besides what the series did at this time yesterday, and the distance to where it was then.

    It begins with weights that suit traffic in general, and a series must earn its own: of the last jump, most is noise, and
    the more so the further ahead. They were fitted on other series than the benchmark judges, what single clients of
    ServeGen sent (tests/bench/forecast_development.py), and are rounded.
    """

    RATES = np.array([0.7, 0.4, 0.15, 0.04])
    NEXT_BIN = (0.0, 0.7, 0.0, 0.0)
    LATER = (-0.6, 1.4, 0.0, 0.0)
    NAMES = ("direct_log", "direct")
    DAILY = ("direct_daily_log", "direct_daily")

    def __init__(self, *, horizons: Sequence[int], day_bins: float | None) -> None:
        self.names = self.NAMES if day_bins is None else self.NAMES + self.DAILY
        self._horizons = tuple(horizons)
        self._seen = 0
        self._levels = np.zeros((2, len(self.RATES)))
        self._last: Vector | None = None  # in both units
        self._histories: tuple[LaggedHistory, ...] = ()
        if day_bins is not None:
            self._histories = tuple(LaggedHistory(day_bins, horizons[-1]) for _ in self.NAMES)
        # Of each correction (variant), unit, horizon and feature; the first variant has no use for yesterday.
        self._shape = (len(self.names) // 2, 2, len(horizons), len(self.RATES) + (0 if day_bins is None else 2))
        starts = np.zeros(self._shape)
        starts[..., : len(self.RATES)] = [self.NEXT_BIN if steps == 1 else self.LATER for steps in horizons]
        features = np.ones(self._shape, dtype=bool)
        features[0, ..., len(self.RATES) :] = False
        flat = (-1, self._shape[3])
        self._fit = StackedLeastSquares(starts.reshape(flat), ridge=5.0, forgetting=0.997, features=features.reshape(flat))
        # Features (variant, unit, horizon, feature) and last values (unit,) of each bin's forecasts, newest first.
        self._issued: deque[tuple[Vector, Vector]] = deque(maxlen=horizons[-1])
        self._learned = np.zeros(len(horizons))
        self._scale = np.zeros((2, len(horizons)))
        self._points: dict[int, list[float]] = {}

    def learn(self, value: float | None) -> None:
        values = None if value is None else np.array([math.log1p(value), value])
        if values is not None:
            self._learn_changes(values)
            self._seen += 1
            self._levels += np.maximum(self.RATES, 1.0 / self._seen) * (values[:, None] - self._levels)
            self._last = values
        if self._last is None:
            return
        for unit, history in enumerate(self._histories):
            history.add_or_repeat(None if values is None else float(values[unit]), float(self._last[unit]))
        x = self._features(self._last)
        ahead = self._last[:, None] + np.vecdot(self._fit.weights.reshape(self._shape), x)
        self._issued.appendleft((x, self._last))
        by_horizon = ahead.reshape(-1, len(self._horizons)).T.tolist()
        self._points = {
            steps: [point if index % 2 else math.expm1(min(point, LARGEST_EXPONENT)) for index, point in enumerate(points)]
            for steps, points in zip(self._horizons, by_horizon, strict=True)
        }

    def _features(self, last: Vector) -> Vector:
        x = np.zeros(self._shape)
        x[..., : len(self.RATES)] = (self._levels - last[:, None])[:, None, :]
        if self._histories:
            yesterday = []
            for history, value in zip(self._histories, last.tolist(), strict=True):
                then = history.day_ago(0)
                for steps in self._horizons:
                    after = None if then is None else history.day_ago(steps)
                    yesterday += [0.0, 0.0] if then is None or after is None else [after - then, after - value]
            x[1, ..., len(self.RATES) :] = np.reshape(yesterday, (2, -1, 2))
        return x

    def _learn_changes(self, values: Vector) -> None:
        """What became of the forecasts that were made for this bin."""
        ready = sum(steps <= len(self._issued) for steps in self._horizons)
        if not ready:
            return
        made = [self._issued[steps - 1] for steps in self._horizons[:ready]]
        x = np.moveaxis(np.array([features[:, :, row] for row, (features, _) in enumerate(made)]), 0, 2)
        change = values[:, None] - np.array([start for _, start in made]).T
        self._learned[:ready] += 1.0
        scale = self._scale[:, :ready]
        scale += np.maximum(SLOWEST, 1.0 / self._learned[:ready]) * (np.abs(change) - scale)
        moving = scale > 0.0
        every_row = ready == len(self._horizons) and bool(moving.all())
        size = scale if every_row else np.where(moving, scale, 1.0)
        x, target = x / size[:, :, None], np.broadcast_to(change / size, x.shape[:3])
        if every_row:
            self._fit.learn(x.reshape(-1, self._shape[3]), target.ravel())
        elif moving.any():
            variant, unit, row = np.nonzero(np.broadcast_to(moving, x.shape[:3]))
            rows = (variant * 2 + unit) * len(self._horizons) + row
            self._fit.learn(x[variant, unit, row], target[variant, unit, row], rows)

    def points(self, steps: int) -> Sequence[float]:
        return self._points.get(steps) or [UNKNOWN] * len(self.names)
