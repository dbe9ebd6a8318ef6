"""Autoregressions of several orders, of values and of log(1 + value), as one bank. Pure.

All of them are one stack of numbers: what a bin costs is the number of calls, not of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pool_planner.forecast.least_squares import LARGEST_EXPONENT, SLOWEST, StackedLeastSquares, Vector
from pool_planner.forecast.smoothing import UNKNOWN

FORGETTING = 0.995
WILDEST = 1e3  # a value that is unknown is taken as forecast, at most this many deviations from the mean


class Autoregressions:
    """AR(order), of log(1 + value) where `log`, for each (order, log) of `models`; iterated to the horizon. Values are centred
    and scaled by running means; an unknown one is replaced by each model's own forecast of it. `furthest`: steps ahead that
    will be asked for, which are worked out in one go."""

    def __init__(self, models: Sequence[tuple[int, bool]], furthest: int = 1) -> None:
        self.names = tuple(f"ar{order}{'_log' if log else ''}" for order, log in models)
        self._log = np.array([log for _, log in models])
        self._orders = np.array([order for order, _ in models])
        self._longest = int(self._orders.max())
        self._furthest = furthest
        self._lagged = np.arange(self._longest) < self._orders[:, None]
        weights = np.zeros((len(models), self._longest + 1))  # of the lags, newest first, and of the constant
        weights[:, 0] = 0.5
        features = np.hstack([self._lagged, np.ones((len(models), 1), dtype=bool)])
        self._fit = StackedLeastSquares(weights, ridge=1.0, forgetting=FORGETTING, features=features)
        self._seen = 0
        self._centre = np.zeros(len(models))
        self._scale = np.zeros(len(models))
        self._lags = np.zeros((len(models), self._longest))  # newest first; the places beyond an order are not read
        self._ahead: Vector | None = None  # forecasts already made from here: (models, steps), in each model's own unit
        self._points: list[list[float]] = []  # the same as values, by steps

    def learn(self, value: float | None) -> None:
        full = self._seen >= self._orders
        if value is None:
            if full.any():
                reach = WILDEST * self._scale
                told = np.clip(self._forecasts(1)[:, 0], self._centre - reach, self._centre + reach)
                self._push(told, full)
            return
        values = np.where(self._log, np.log1p(value), value)
        self._seen += 1
        rate = max(SLOWEST, 1.0 / self._seen)
        self._centre = self._centre + rate * (values - self._centre)
        self._scale = self._scale + rate * (np.abs(values - self._centre) - self._scale)
        rows = full & (self._scale > 0.0)
        if rows.any():
            self._learn(values, None if rows.all() else np.flatnonzero(rows))
        self._push(values, None)

    def _learn(self, values: Vector, rows: NDArray[np.intp] | None) -> None:
        some = slice(None) if rows is None else rows
        centre, scale = self._centre[some], self._scale[some]
        x = np.ones((len(centre), self._longest + 1))
        x[:, :-1] = (self._lags[some] - centre[:, None]) / scale[:, None] * self._lagged[some]
        self._fit.learn(x, (values[some] - centre) / scale, rows)

    def _push(self, newest: Vector, which: NDArray[np.bool_] | None) -> None:
        lags = np.empty_like(self._lags)
        lags[:, 0], lags[:, 1:] = newest, self._lags[:, :-1]
        self._lags = lags if which is None else np.where(which[:, None], lags, self._lags)
        self._ahead, self._points = None, []

    def _forecasts(self, steps: int) -> Vector:
        """What each model expects 1 to `steps` bins ahead, in its own unit; of those that know too little, nothing sensible."""
        done = 0 if self._ahead is None else self._ahead.shape[1]
        if done < steps:
            longest, weights = self._longest, self._fit.weights[:, :-1]
            offset = self._fit.weights[:, -1] * self._scale + self._centre * (1.0 - weights.sum(axis=1))
            line = np.empty((len(offset), steps + longest))  # newest first
            line[:, steps:] = self._lags
            if self._ahead is not None:
                line[:, steps - done : steps] = self._ahead[:, ::-1]
            for at in range(steps - 1 - done, -1, -1):
                line[:, at] = np.vecdot(weights, line[:, at + 1 : at + 1 + longest]) + offset
            self._ahead = line[:, steps - 1 :: -1]
        assert self._ahead is not None
        return self._ahead

    def points(self, steps: int) -> Sequence[float]:
        if len(self._points) < steps:
            full = self._seen >= self._orders
            if not full.any():
                return [UNKNOWN] * len(self.names)
            ahead = self._forecasts(max(steps, self._furthest)).T
            ahead = np.where(self._log, np.expm1(np.minimum(np.where(self._log, ahead, 0.0), LARGEST_EXPONENT)), ahead)
            self._points = np.where(full, ahead, UNKNOWN).tolist()
        return self._points[steps - 1]
