"""Any point model made safe for a control loop: gaps, bounds, quantiles, accuracy, background fits. Pure.

Each known bin is first scored against the forecasts that were issued for it, then learned, then forecast at the tracked
horizons; so every error is out of sample, and a forecast costs the caller a table look-up at those horizons.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pool_planner.forecast.base import Accuracy, FitJob, FitResult, Fittable, PointModel, Prediction
from pool_planner.forecast.conformal import ErrorWindow, Margin

ABSURD = 1e15
"""No count of requests or tokens is as large; squares and products of such values would leave the range of a double."""
MAX_GAP_BINS = 100  # of a longer silence only this much is gone through (20 ms); for a day after it, yesterday is misplaced
CEILING = 4.0  # no forecast above this many times the largest value seen
ACCURACY_DECAY = 0.98  # half of the published accuracy comes from the last 34 bins


@dataclass(slots=True)
class _Horizon:
    """The forecasts under way at one horizon, and what became of those that could be judged."""

    steps: int
    margin: Margin
    issued: deque[tuple[float, float, float] | None]  # mean, naive forecast, unit of the margin
    scored: int = 0
    loss: float = 0.0
    naive_loss: float = 0.0
    volume: float = 0.0


def check_horizons(horizons: Sequence[int]) -> None:
    """Raises ValueError unless there is one, and each is a number of bins ahead."""
    if not horizons or min(horizons) < 1:
        raise ValueError(f"horizons: {tuple(horizons)!r} must name at least one number of bins, each 1 or more")


class SeriesPredictor:
    """A `Predictor` around `model`.

    `step_s` is the width of a bin: a hole between two times is learned as bins of unknown value (None: calls are
    consecutive). `horizons` are the numbers of bins at which errors are kept; a quantile between two of them uses the next
    larger one, beyond the last it widens with the square root of the distance. `log1p` lets the model see log(1 + value).
    """

    def __init__(
        self,
        name: str,
        model: PointModel,
        *,
        step_s: float | None = None,
        log1p: bool = False,
        horizons: Sequence[int] = (1, 3, 6, 12),
        window: int = 150,
    ) -> None:
        check_horizons(horizons)
        if step_s is not None and not step_s > 0.0:
            raise ValueError(f"step_s: {step_s!r} must be above 0, or None for consecutive bins")
        self._name = name
        self._model = model
        self._step_s = step_s
        self._log1p = log1p
        self._horizons = [
            _Horizon(steps=steps, margin=Margin(ErrorWindow(window)), issued=deque([None] * steps))
            for steps in sorted(set(horizons))
        ]
        self._at_s: float | None = None
        self._known_at_s = -math.inf
        self._last: float | None = None
        self._largest = 0.0
        self._refitted = False  # parameters have changed since the forecasts of the newest bin were issued
        self.learned = 0  # bins, those of unknown value included
        self.unknown = 0  # values offered that were None, NaN, infinite or negative
        self.late = 0  # values offered for a bin that had already been taken

    @property
    def name(self) -> str:
        return self._name

    @property
    def model(self) -> PointModel:
        return self._model

    def learn(self, value: float | None, at_s: float) -> None:
        if self._at_s is not None:
            if at_s <= self._at_s:
                self.late += 1
                return
            if self._step_s is not None:
                for _ in range(min(MAX_GAP_BINS, round((at_s - self._at_s) / self._step_s) - 1)):
                    self._take(None)
        self._at_s = at_s
        if value is None or not 0.0 <= value <= ABSURD:  # also NaN: it is within nothing
            self.unknown += 1
            self._take(None)
        else:
            self._known_at_s = at_s
            self._take(float(value))

    def _take(self, value: float | None) -> None:
        self.learned += 1
        self._refitted = False
        for horizon in self._horizons:
            forecast = horizon.issued.popleft()
            if value is not None and forecast is not None:
                self._score(horizon, value, forecast)
        if value is not None:
            self._last = value
            self._largest = max(self._largest, value)
        self._model.learn(math.log1p(value) if self._log1p and value is not None else value)
        for horizon in self._horizons:
            horizon.issued.append(None if self._last is None else (self._mean(horizon.steps), self._last, horizon.margin.unit))

    def _score(self, horizon: _Horizon, value: float, forecast: tuple[float, float, float]) -> None:
        mean, naive, unit = forecast
        horizon.margin.learn(value - mean, unit)
        horizon.scored += 1
        horizon.loss = ACCURACY_DECAY * horizon.loss + abs(value - mean)
        horizon.naive_loss = ACCURACY_DECAY * horizon.naive_loss + abs(value - naive)
        horizon.volume = ACCURACY_DECAY * horizon.volume + value

    def _mean(self, steps: int) -> float:
        assert self._last is not None
        point = self._model.point(steps)
        if point is None or not math.isfinite(point):
            return self._last
        if self._log1p:
            point = math.expm1(min(point, 700.0))  # e^709 is the largest double
        return min(max(point, 0.0), CEILING * self._largest)

    def forecast(self, steps: int, levels: Sequence[float] = (0.8, 0.9)) -> Prediction | None:
        if steps < 1:
            raise ValueError(f"steps: {steps} must be 1 or more")
        if self._last is None:
            return None
        horizon = next((h for h in self._horizons if h.steps >= steps), self._horizons[-1])
        issued = horizon.issued[-1]
        ready = issued is not None and horizon.steps == steps and not self._refitted
        mean = issued[0] if issued is not None and ready else self._mean(steps)
        widen = math.sqrt(steps / horizon.steps) if steps > horizon.steps else 1.0
        quantiles = tuple((level, max(0.0, mean + widen * horizon.margin.quantile(level))) for level in sorted(levels))
        return Prediction(steps=steps, mean=mean, quantiles=quantiles, known_at_s=self._known_at_s)

    def accuracy(self) -> tuple[Accuracy, ...]:
        return tuple(
            Accuracy(
                steps=h.steps,
                scored=h.scored,
                rmae=h.loss / h.naive_loss if h.naive_loss > 0.0 else None,
                wape=h.loss / h.volume if h.volume > 0.0 else None,
            )
            for h in self._horizons
        )

    def fit_job(self) -> FitJob | None:
        if not hasattr(self._model, "fit_job"):
            return None
        return cast(Fittable, self._model).fit_job()

    def fitted(self, result: Any, at_s: float) -> None:
        if not hasattr(self._model, "fitted"):
            raise TypeError(f"predictor {self._name!r} has no background fit to take a result of")
        cast(Fittable, self._model).fitted(cast(FitResult, result))
        self._refitted = True
