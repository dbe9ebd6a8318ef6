"""Forecasts by recursive least squares: autoregression, and a direct correction of the naive forecast. Pure.

Recursive least squares with forgetting (Ljung and Soderstrom, "Theory and Practice of Recursive Identification", 1983, section
2.6), made safe for traffic: values are centred and scaled by running means, errors are clipped, and the covariance is bounded,
so that neither a burst nor a long calm blows it up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul

import numpy as np
from numpy.typing import NDArray

from pool_planner.forecast.daily import LaggedHistory
from pool_planner.forecast.smoothing import UNKNOWN, Ewma

Vector = NDArray[np.float64]
SLOWEST = 0.02  # running means forget no slower than this
LARGEST_EXPONENT = 50.0
CLIP = 4.0  # errors, in mean absolute deviations


class RecursiveLeastSquares:
    """Weights w that minimise the discounted sum of (target - w.x)^2, drawn towards `weights` with strength `ridge`."""

    __slots__ = ("covariance", "forgetting", "limit", "weights")

    def __init__(self, weights: Vector, *, ridge: float, forgetting: float) -> None:
        self.weights = weights
        self.covariance: Vector = np.eye(len(weights)) / ridge
        self.forgetting = forgetting
        self.limit = max(1e2, 10.0 / ridge) * len(weights)

    def learn(self, x: Vector, target: float) -> None:
        error = min(CLIP, max(-CLIP, target - float(self.weights @ x)))
        reach = self.covariance @ x
        gain = reach / (self.forgetting + float(x @ reach))
        self.weights = self.weights + gain * error
        self.covariance = (self.covariance - gain[:, None] * reach) / self.forgetting
        size = float(self.covariance.trace())
        if size > self.limit:
            self.covariance *= self.limit / size


@dataclass(slots=True)
class Autoregression:
    """AR(order), of values or of log(1 + value), iterated to the horizon. An unknown value is replaced by its forecast."""

    order: int
    log: bool
    forgetting: float = 0.995
    seen: int = 0
    centre: float = 0.0
    scale: float = 0.0
    newest_first: deque[float] = field(default_factory=deque)
    path: list[float] = field(default_factory=list)  # forecasts already made from here, one step and on
    fit: RecursiveLeastSquares = field(init=False)

    def __post_init__(self) -> None:
        weights = np.zeros(self.order + 1)
        weights[0] = 0.5
        self.fit = RecursiveLeastSquares(weights, ridge=1.0, forgetting=self.forgetting)

    @property
    def names(self) -> tuple[str, ...]:
        return (f"ar{self.order}{'_log' if self.log else ''}",)

    def learn(self, value: float | None) -> None:
        if value is None:
            if len(self.newest_first) == self.order:
                self._push(self._ahead(1))
            return
        value = math.log1p(value) if self.log else value
        self.seen += 1
        rate = max(SLOWEST, 1.0 / self.seen)
        self.centre += rate * (value - self.centre)
        self.scale += rate * (abs(value - self.centre) - self.scale)
        if len(self.newest_first) == self.order and self.scale > 0.0:
            x = np.array([*self.newest_first, 0.0])
            x -= self.centre
            x /= self.scale
            x[-1] = 1.0
            self.fit.learn(x, (value - self.centre) / self.scale)
        self._push(value)

    def _push(self, value: float) -> None:
        self.newest_first.appendleft(value)
        if len(self.newest_first) > self.order:
            self.newest_first.pop()
        self.path = []

    def _ahead(self, steps: int) -> float:
        if len(self.path) < steps:
            weights: list[float] = self.fit.weights.tolist()
            offset = weights.pop() * self.scale + self.centre * (1.0 - sum(weights))
            lags = [*reversed(self.path), *self.newest_first][: self.order]
            for _ in range(steps - len(self.path)):
                value = offset + sum(map(mul, weights, lags))
                lags.insert(0, value)
                lags.pop()
                self.path.append(value)
        return self.path[steps - 1]

    def points(self, steps: int) -> Sequence[float]:
        if len(self.newest_first) < self.order:
            return (UNKNOWN,)
        value = self._ahead(steps)
        return (math.expm1(min(value, LARGEST_EXPONENT)) if self.log else value,)


class StackedLeastSquares:
    """Several regressions with as many features each, as one: `weights` (K, n). What `RecursiveLeastSquares` does to each in
    turn, without the price of K times as many calls."""

    __slots__ = ("covariance", "forgetting", "limit", "weights")

    def __init__(self, weights: Vector, *, ridge: float, forgetting: float) -> None:
        self.weights = weights
        self.covariance: Vector = np.broadcast_to(np.eye(weights.shape[1]) / ridge, (*weights.shape, weights.shape[1])).copy()
        self.forgetting = forgetting
        self.limit = max(1e2, 10.0 / ridge) * weights.shape[1]

    def learn(self, rows: Sequence[int], x: Vector, target: Vector) -> None:
        """One sample for each of the regressions `rows`: x (len(rows), n), target (len(rows),)."""
        some = slice(None) if len(rows) == len(self.weights) else list(rows)
        weights, covariance = self.weights[some], self.covariance[some]
        error = np.minimum(CLIP, np.maximum(-CLIP, target - np.einsum("ki,ki->k", weights, x)))
        reach = np.einsum("kij,kj->ki", covariance, x)
        gain = reach / (self.forgetting + np.einsum("ki,ki->k", x, reach))[:, None]
        covariance = (covariance - gain[:, :, None] * reach[:, None, :]) / self.forgetting
        size = np.einsum("kii->k", covariance)
        if size.max() > self.limit:
            covariance *= np.minimum(1.0, self.limit / size)[:, None, None]
        self.weights[some] = weights + gain * error[:, None]
        self.covariance[some] = covariance


@dataclass(slots=True)
class _Horizon:
    """Of one horizon: the features of the forecasts that are under way, with the value they start from."""

    steps: int
    issued: deque[tuple[Vector, float]] = field(default_factory=deque)
    scale: float = 0.0
    seen: int = 0


class DirectCorrection:
    """For each of `horizons` its own regression of the change to come on what pulls the series back.

    Features: the distance of the last value to averages at four rates and, where `day_bins` is given, what the series did at
    this time yesterday, and the distance to where it was then. Other horizons are unknown.

    It begins with weights that suit traffic in general, and a series must earn its own: of the last jump, most is noise, and
    the more so the further ahead. They were fitted on other series than the benchmark judges, what single clients of
    ServeGen sent (tests/bench/forecast_development.py), and are rounded.
    """

    RATES = (0.7, 0.4, 0.15, 0.04)
    NEXT_BIN = (0.0, 0.7, 0.0, 0.0)
    LATER = (-0.6, 1.4, 0.0, 0.0)

    def __init__(self, *, horizons: Sequence[int], day_bins: float | None, log: bool) -> None:
        self._log = log
        self._averages = Ewma(self.RATES)
        self._history = LaggedHistory(day_bins, horizons[-1]) if day_bins is not None else None
        self._last: float | None = None
        yesterday = (0.0, 0.0) if day_bins is not None else ()
        starts = [(*(self.NEXT_BIN if steps == 1 else self.LATER), *yesterday) for steps in horizons]
        self._fit = StackedLeastSquares(np.array(starts), ridge=5.0, forgetting=0.997)
        self._horizons = [_Horizon(steps) for steps in horizons]
        self._points: dict[int, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return ("direct_log" if self._log else "direct",)

    def learn(self, value: float | None) -> None:
        if value is not None and self._log:
            value = math.log1p(value)
        self._learn_changes(value)
        if value is not None:
            self._averages.learn(value)
            self._last = value
        if self._last is None:
            return
        if self._history is not None:
            self._history.add_or_repeat(value, self._last)
        pull = [average - self._last for average in self._averages.levels]
        x: Vector = np.array([pull + self._yesterday(horizon.steps) for horizon in self._horizons])
        changes = np.einsum("ki,ki->k", self._fit.weights, x).tolist()
        for horizon, own, change in zip(self._horizons, x, changes, strict=True):
            horizon.issued.append((own, self._last))
            self._points[horizon.steps] = self._last + change

    def _learn_changes(self, value: float | None) -> None:
        """What became of the forecasts that were made for this bin."""
        rows: list[int] = []
        features: list[Vector] = []
        targets: list[float] = []
        for row, horizon in enumerate(self._horizons):
            if len(horizon.issued) < horizon.steps:
                continue
            x, start = horizon.issued.popleft()
            if value is None:
                continue
            change = value - start
            horizon.seen += 1
            horizon.scale += max(SLOWEST, 1.0 / horizon.seen) * (abs(change) - horizon.scale)
            if horizon.scale > 0.0:
                rows.append(row)
                features.append(x / horizon.scale)
                targets.append(change / horizon.scale)
        if rows:
            self._fit.learn(rows, np.array(features), np.array(targets))

    def _yesterday(self, steps: int) -> list[float]:
        if self._history is None or self._last is None:
            return []
        then, after = self._history.day_ago(0), self._history.day_ago(steps)
        return [0.0, 0.0] if then is None or after is None else [after - then, after - self._last]

    def points(self, steps: int) -> Sequence[float]:
        value = self._points.get(steps, UNKNOWN)
        return (math.expm1(min(value, LARGEST_EXPONENT)) if self._log and value == value else value,)
