"""Prophet over a sliding window: the fit, which is the forecast of the next bins too, is made off the control loop.

Prophet is an extra (`pip install 'global-planner[prophet]'`) and is imported when a job runs. Between fits the model
serves the rest of the path that the last fit forecast; past its end, and before the first, it answers that it does not know.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from importlib.util import find_spec

from pool_planner.forecast.base import FitJob, FitResult

PATH_BINS = 64  # bins that a fit forecasts
FEWEST = 10
REFITS_PER_WINDOW = 10
LOST_AFTER = 30  # bins after which a job that was never answered is offered again
EPOCH = datetime(2000, 1, 3)  # Prophet wants dates; only their differences matter


class MissingExtra(ImportError):
    """The predictor needs a package that is not installed; the text says which extra brings it."""


def require_prophet() -> None:
    """Raises MissingExtra where Prophet cannot be imported."""
    if find_spec("prophet") is None:
        raise MissingExtra(
            "load_predictor: 'prophet' needs the package prophet, which is not installed: "
            "pip install 'global-planner[prophet]', or choose auto, arima, kalman or constant"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProphetPath:
    """`path[i]` is forecast for bin `learned + 1 + i`."""

    learned: int
    path: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProphetJob:
    """`values` are the newest bins, oldest first, None where unknown; `step_s` their width."""

    learned: int
    values: tuple[float | None, ...]
    step_s: float

    def run(self) -> ProphetPath:
        require_prophet()
        pandas, prophet = import_module("pandas"), import_module("prophet")
        first = self.learned - len(self.values)
        bins = range(first, self.learned + PATH_BINS)
        dates = [EPOCH + timedelta(seconds=self.step_s * index) for index in bins]
        history = pandas.DataFrame(
            {
                "ds": dates[: len(self.values)],
                "y": [math.nan if value is None else value for value in self.values],
            }
        )
        model = prophet.Prophet(uncertainty_samples=0, weekly_seasonality=False, yearly_seasonality=False)
        model.fit(history)
        future = model.predict(pandas.DataFrame({"ds": dates[len(self.values) :]}))
        return ProphetPath(learned=self.learned, path=tuple(float(value) for value in future["yhat"]))


@dataclass(slots=True)
class ProphetWindow:
    """A `PointModel` and `Fittable` over the last `window` bins."""

    window: int
    step_s: float
    learned: int = 0
    known: int = 0
    recent: deque[float | None] = field(default_factory=deque)
    latest: ProphetPath | None = None
    handed_out: int | None = None

    def learn(self, value: float | None) -> None:
        if value is None and not self.recent:
            return
        self.learned += 1
        self.recent.append(value)
        self.known += value is not None
        if len(self.recent) > self.window:
            self.known -= self.recent.popleft() is not None

    def point(self, steps: int) -> float | None:
        if self.latest is None:
            return None
        index = self.learned - self.latest.learned + steps - 1
        return self.latest.path[index] if index < len(self.latest.path) else None

    def fit_job(self) -> FitJob | None:
        if self.known < FEWEST or (self.handed_out is not None and self.learned - self.handed_out < LOST_AFTER):
            return None
        pause = max(1, self.window // REFITS_PER_WINDOW)
        if self.latest is not None and self.learned - self.latest.learned < pause:
            return None
        self.handed_out = self.learned
        return ProphetJob(learned=self.learned, values=tuple(self.recent), step_s=self.step_s)

    def fitted(self, result: FitResult) -> None:
        if not isinstance(result, ProphetPath):
            raise TypeError(f"prophet: {type(result).__name__} is not the result of a prophet fit")
        if result.learned > self.learned or (self.latest is not None and result.learned <= self.latest.learned):
            return
        self.handed_out = None
        self.latest = result
