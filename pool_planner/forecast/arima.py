"""ARIMA whose order is chosen anew as history grows: fits come from outside, filtering happens here. Pure.

Until the first fit, and wherever it loses to the naive forecast, `registry` lets the naive forecast stand in (fallback.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pool_planner.forecast.arima_fit import FEWEST, ArimaFilter, ArimaFit, ArimaFitJob
from pool_planner.forecast.base import FitJob, FitResult

WINDOW = 400  # values a fit looks at
GROWTH = 1.25  # history must have grown by this much before the next fit
LONGEST_PAUSE = 100  # but no more than this many bins pass without one
LOST_AFTER = 30  # bins after which a job that was handed out and never answered is offered again


@dataclass(slots=True)
class Arima:
    """A `PointModel` and `Fittable`. A gap is filled by the model's own forecast, or by the last value before there is one."""

    learned: int = 0
    filled: deque[float] = field(default_factory=deque)
    fit: ArimaFit | None = None
    filter: ArimaFilter | None = None
    next_fit: int = FEWEST
    handed_out: int | None = None
    path: list[float] = field(default_factory=list)

    def learn(self, value: float | None) -> None:
        if value is None and not self.filled:
            return
        self.learned += 1
        if value is None:
            expected = self.point(1)
            self.filled.append(self.filled[-1] if expected is None else expected)
        else:
            self.filled.append(value)
        if len(self.filled) > WINDOW:
            self.filled.popleft()
        self.path = []
        if self.filter is not None:
            self.filter.learn(value)

    def point(self, steps: int) -> float | None:
        if self.filter is None:
            return None
        if len(self.path) < steps:
            self.path = self.filter.path(max(steps, 12))
        return self.path[steps - 1]

    def fit_job(self) -> FitJob | None:
        waiting = self.handed_out is not None and self.learned - self.handed_out < LOST_AFTER
        if waiting or self.learned < self.next_fit:
            return None
        self.handed_out = self.learned
        return ArimaFitJob(learned=self.learned, values=tuple(self.filled))

    def fitted(self, result: FitResult) -> None:
        if not isinstance(result, ArimaFit):
            raise TypeError(f"arima: {type(result).__name__} is not the result of an arima fit")
        if result.learned > self.learned or (self.fit is not None and result.learned <= self.fit.learned):
            return
        self.handed_out = None
        self.fit = result
        self.next_fit = min(int(result.learned * GROWTH), result.learned + LONGEST_PAUSE)
        self.next_fit = max(self.next_fit, result.learned + 5)
        self.filter = ArimaFilter(result)
        for value in self.filled:
            self.filter.learn(value)
        self.path = []
