"""Choosing and fitting an ARIMA model: a pure function of a window of values, to be run off the control loop.

Orders are screened by what they are for: each is estimated on the older three quarters of the window (Hannan and Rissanen 1982)
and judged by its absolute errors one and three steps ahead in the rest. The winner is estimated once more on the whole window
by exact maximum likelihood. statsmodels does both estimations; it is imported when a job runs.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

ORDERS = tuple((p, d, q) for d in (0, 1) for p in range(4) for q in range(3) if p + q <= 4)
FEWEST = 10  # values below which no order can be told from another
JUDGED_SHARE = 0.25
JUDGED_STEPS = (1, 3)
MARGIN = 0.98  # a richer order must be better than the random walk by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class ArimaFit:
    """phi(B) (w - mean) = theta(B) e with w the values differenced `d` times (0 or 1).

    `learned` is the number of bins that had been seen when the job was made.
    """

    learned: int
    d: int
    ar: tuple[float, ...]
    ma: tuple[float, ...]
    mean: float

    @property
    def order(self) -> tuple[int, int, int]:
        return (len(self.ar), self.d, len(self.ma))


class ArimaFilter:
    """Conditional innovations of a fitted model: O(p + q) a value, so the parameters of an old fit see the newest values."""

    __slots__ = ("_errors", "_fit", "_last", "_recent")

    def __init__(self, fit: ArimaFit) -> None:
        self._fit = fit
        self._recent: deque[float] = deque(maxlen=max(1, len(fit.ar)))  # newest first, centred, differenced
        self._errors: deque[float] = deque(maxlen=max(1, len(fit.ma)))
        self._last: float | None = None

    def _expected(self, recent: Iterable[float], errors: Iterable[float]) -> float:
        auto = sum(phi * value for phi, value in zip(self._fit.ar, recent, strict=False))
        return auto + sum(theta * error for theta, error in zip(self._fit.ma, errors, strict=False))

    def learn(self, value: float | None) -> None:
        """Take the next value; an unknown one is replaced by its forecast, with no error."""
        if self._last is None and value is None:
            return
        expected = self._expected(self._recent, self._errors)
        if self._fit.d == 0:
            centred = expected if value is None else value - self._fit.mean
            self._last = value if value is not None else self._last
        else:
            centred = expected if value is None or self._last is None else value - self._last - self._fit.mean
            base = self._last if self._last is not None else value
            self._last = value if value is not None else (base or 0.0) + centred + self._fit.mean
        self._recent.appendleft(centred)
        self._errors.appendleft(centred - expected)

    def path(self, steps: int) -> list[float]:
        """Forecasts 1..steps ahead."""
        recent, errors, level, out = list(self._recent), list(self._errors), self._last or 0.0, []
        for _ in range(steps):
            centred = self._expected(recent, errors)
            recent.insert(0, centred)
            errors.insert(0, 0.0)
            level = self._fit.mean + centred + (level if self._fit.d else 0.0)
            out.append(level)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ArimaFitJob:
    """Chooses an order and its parameters for `values` (oldest first, gaps filled)."""

    learned: int
    values: tuple[float, ...]

    def run(self) -> ArimaFit:
        walk = ArimaFit(learned=self.learned, d=1, ar=(), ma=(), mean=0.0)
        scale = float(np.std(self.values))
        if len(self.values) < FEWEST or not scale > 1e-9 * (1.0 + abs(self.values[-1])):
            return walk
        values = np.asarray(self.values) / scale
        first_judged = max(FEWEST - 2, int(len(values) * (1.0 - JUDGED_SHARE)))
        best, least = walk, MARGIN * _judge(walk, values, first_judged)
        for order in ORDERS:
            fit = _estimate(values[:first_judged], order, self.learned, exact=False)
            loss = _judge(fit, values, first_judged) if fit is not None else math.inf
            if fit is not None and loss < least:
                best, least = fit, loss
        if best is not walk:
            best = _estimate(values, best.order, self.learned, exact=True) or best
        return ArimaFit(learned=self.learned, d=best.d, ar=best.ar, ma=best.ma, mean=best.mean * scale)


def _judge(fit: ArimaFit, values: Vector, first: int) -> float:
    """Mean absolute error over the values from `first` on, at one and three steps."""
    model = ArimaFilter(fit)
    furthest = max(JUDGED_STEPS)
    total, count = 0.0, 0
    for index, value in enumerate(values):
        model.learn(float(value))
        if index >= first - 1:
            path = model.path(furthest)
            for steps in JUDGED_STEPS:
                if index + steps < len(values):
                    total += abs(path[steps - 1] - float(values[index + steps]))
                    count += 1
    return total / count if count else math.inf


def _estimate(values: Vector, order: tuple[int, int, int], learned: int, *, exact: bool) -> ArimaFit | None:
    """Parameters for one order, or None where it cannot be estimated or is not stationary and invertible."""
    from statsmodels.tsa.arima.estimators.hannan_rissanen import hannan_rissanen
    from statsmodels.tsa.arima.estimators.innovations import innovations_mle

    p, d, q = order
    series = np.diff(values, n=d) if d else values
    if len(series) < 3 * (p + q) + 5 or float(np.std(series)) < 1e-12:
        return None
    mean = float(series.mean()) if d == 0 else 0.0
    if p + q == 0:
        return ArimaFit(learned=learned, d=d, ar=(), ma=(), mean=mean)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if exact:
                found, _ = innovations_mle(
                    series - mean, order=(p, 0, q), demean=False, minimize_kwargs={"options": {"maxiter": 50}}
                )
            else:
                found, _ = hannan_rissanen(series - mean, ar_order=p, ma_order=q, demean=False)
    except (ValueError, np.linalg.LinAlgError):
        return None
    ar, ma = tuple(float(v) for v in found.ar_params), tuple(float(v) for v in found.ma_params)
    if not (_stable(ar) and _stable(tuple(-v for v in ma))):
        return None
    return ArimaFit(learned=learned, d=d, ar=ar, ma=ma, mean=mean)


def _stable(coefficients: Sequence[float]) -> bool:
    """Whether 1 - c1 z - c2 z^2 … has all its roots outside the unit circle."""
    if not all(math.isfinite(c) for c in coefficients):
        return False
    if not any(coefficients):
        return True
    roots = np.roots([1.0, *(-c for c in coefficients)])
    return bool(np.all(np.abs(roots) < 0.999))
