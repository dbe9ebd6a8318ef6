"""What a predictor is: values of equal bins go in, a mean and quantiles at any horizon come out. Pure.

Two layers. A `PointModel` turns a history into one number per horizon and knows nothing else. `SeriesPredictor`
(series.py) wraps any of them with what all need: unknown values, gaps, bounds, quantiles from its own errors, and its own
accuracy. Time is an argument everywhere; nothing reads a clock, draws a random number or starts a thread.

A model whose parameters need a costly fit never fits while it learns. It offers a `FitJob`, which is plain picklable data:
somebody runs `job.run()` wherever it is convenient and returns the `FitResult` through `fitted(result, at_s)`. Until then
the parameters of the last fit serve. A recorded run replays exactly, because the result is an input with a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of one bin, `steps` bins after the newest one learned. In the unit of the values learned.

    `quantiles` holds (level, value) in ascending order of level. `known_at_s` is the time of the newest data behind it.

    >>> p = Prediction(steps=1, mean=10.0, quantiles=((0.5, 9.0), (0.9, 17.0)), known_at_s=0.0)
    >>> p.quantile(0.7), p.quantile(0.99)
    (13.0, 17.0)
    """

    steps: int
    mean: float
    quantiles: tuple[tuple[float, float], ...]
    known_at_s: float

    def quantile(self, level: float) -> float:
        """The value at `level`, linear between the levels that were asked for and flat outside them."""
        if not self.quantiles:
            return self.mean
        below = self.quantiles[0]
        for above in self.quantiles:
            if level <= above[0]:
                span = above[0] - below[0]
                weight = (level - below[0]) / span if span > 0.0 else 1.0
                return below[1] + max(0.0, weight) * (above[1] - below[1])
            below = above
        return below[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How well a predictor has lately done at one horizon, out of sample; older errors count less.

    `rmae` is its mean absolute error over that of the naive forecast (the last value) for the same bins: below 1 it earns
    its keep. `wape` is its absolute error over the volume. Both are None until there is something to divide by. `scored` is
    the number of forecasts that could be judged so far.
    """

    steps: int
    scored: int
    rmae: float | None
    wape: float | None


class FitResult(Protocol):
    """The outcome of a fit. `learned` is the number of bins that the series had seen when the job was made."""

    @property
    def learned(self) -> int: ...


class FitJob(Protocol):
    """A fit to be run elsewhere: picklable, pure, and safe to lose (another is offered later)."""

    @property
    def learned(self) -> int: ...

    def run(self) -> FitResult: ...


class PointModel(Protocol):
    """The forecasting idea itself. Values are finite; None is a bin whose value is unknown."""

    def learn(self, value: float | None) -> None:
        """Take the next bin."""

    def point(self, steps: int) -> float | None:
        """The value expected `steps` >= 1 bins ahead, or None while too little is known. May be any float."""


class Fittable(Protocol):
    """What a `PointModel` adds when its parameters come from a costly fit."""

    def fit_job(self) -> FitJob | None: ...

    def fitted(self, result: FitResult) -> None: ...


class Predictor(Protocol):
    """One series, forecast at any horizon. State is an ordinary object: pickle or deepcopy it."""

    @property
    def name(self) -> str: ...

    def learn(self, value: float | None, at_s: float) -> None:
        """Take the bin that ended at `at_s`. None, NaN, infinite, negative and absurdly large values are unknown, and
        counted as such."""

    def forecast(self, steps: int, levels: Sequence[float] = (0.8, 0.9)) -> Prediction | None:
        """What to expect `steps` bins ahead (1 = the next bin), or None before any value is known."""

    def accuracy(self) -> tuple[Accuracy, ...]:
        """Recent accuracy at each horizon that is scored."""

    def fit_job(self) -> FitJob | None:
        """A fit worth running now, or None."""

    def fitted(self, result: Any, at_s: float) -> None:
        """Take the result of an earlier `fit_job`. One that is older than what is in use is ignored."""
