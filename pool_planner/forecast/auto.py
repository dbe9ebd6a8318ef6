"""`auto`: the mean of the cheap forecasts that were best of late, chosen anew in each bin and for each horizon. Pure.

Every candidate is scored out of sample by a discounted sum of absolute errors, in units of what the naive forecast has lately
missed at that horizon, so that one burst does not decide for an hour, and capped, so that one bin does not either. The
few best are averaged, which beats picking one (Bates and Granger 1969); none that is behind the naive forecast may take part,
so with nothing to gain it *is* the naive forecast. Errors several bins ahead overlap and so say less than their number: a
horizon adds the scores of the next shorter one to its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pool_planner.forecast.daily import DailyLag, bins_per_day
from pool_planner.forecast.regression import Autoregression, DirectCorrection
from pool_planner.forecast.smoothing import AdaptiveLog, Bank, DampedHolt, Ewma, LastValue, Theta
from pool_planner.forecast.windows import WindowMeans, WindowMedians

Vector = NDArray[np.float64]

BEST = 6  # candidates averaged
DISCOUNT = 0.98  # half of a score comes from the last 34 bins
CAP = 3.0  # an error counts at most as this many mean errors of the naive forecast
SCALE_RATE = 0.05
PROBATION = 8.0  # errors (discounted count) a candidate must have shown, unless the series is younger than that
LONG_PROBATION = 25.0  # the same for those that estimate coefficients, whatever the age of the series: about 35 bins
CEILING = 3.0  # no candidate above this many times the largest value seen


def simple_candidates() -> list[Bank]:
    """Candidates that estimate nothing but a level or a trend; the naive forecast is the first."""
    return [
        LastValue(),
        Ewma((0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85)),
        AdaptiveLog(),
        DampedHolt(),
        Theta(),
        WindowMeans((3, 4, 6, 8, 12, 24)),
        WindowMedians((3, 5, 7, 11, 25, 50, 75)),
    ]


def learning_candidates(step_s: float | None, horizons: Sequence[int]) -> list[Bank]:
    """Candidates that estimate coefficients, and where a day has a fitting number of bins those that look a day back."""
    day = bins_per_day(step_s)
    banks: list[Bank] = [
        *(Autoregression(order, log=True) for order in (1, 2, 3, 4)),
        *(Autoregression(order, log=False) for order in (1, 2, 4, 6)),
        DirectCorrection(horizons=horizons, day_bins=None, log=True),
        DirectCorrection(horizons=horizons, day_bins=None, log=False),
    ]
    if day is not None:
        banks.append(DailyLag(day, horizons[-1]))
        banks.append(DirectCorrection(horizons=horizons, day_bins=day, log=True))
        banks.append(DirectCorrection(horizons=horizons, day_bins=day, log=False))
    return banks


@dataclass(slots=True)
class _Contest:
    """The scores of all candidates at one horizon."""

    steps: int
    issued: deque[Vector]
    loss: Vector
    weight: Vector
    scale: float = 0.0
    chosen: Vector | None = None  # indices of the candidates that make the forecast
    point: float = 0.0

    def score(self, value: float) -> None:
        missed = np.abs(self.issued.popleft() - value)
        naive = float(missed[0])
        if naive != naive:  # nothing was known when these were issued
            return
        self.scale = self.scale + SCALE_RATE * (naive - self.scale) if self.scale > 0.0 else naive
        missed = np.minimum(missed / self.scale, CAP) if self.scale > 0.0 else np.where(missed > 0.0, CAP, missed)
        known = missed == missed
        self.loss = np.where(known, DISCOUNT * self.loss + missed, self.loss)
        self.weight = np.where(known, DISCOUNT * self.weight + 1.0, self.weight)

    def mean_loss(self) -> Vector:
        """By candidate, in the naive forecast's mean errors; NaN for one that has not been scored."""
        mean: Vector = np.divide(self.loss, self.weight, out=np.full_like(self.loss, np.nan), where=self.weight > 0.0)
        return mean

    def choose(self, points: Vector, probation: Vector, shorter: _Contest | None) -> None:
        """Take the points for the next forecast, and decide which of them make it."""
        self.chosen = None
        if self.weight[0] >= 2.0:
            tried = (self.weight >= np.maximum(probation, min(self.weight[0], PROBATION))) & (points == points)
            rank = self.mean_loss()
            if shorter is not None:
                borrowed = shorter.mean_loss()
                rank = rank + np.where(borrowed == borrowed, borrowed, rank)
            rank = np.where(tried, rank, np.inf)
            best = np.argsort(rank, kind="stable")[:BEST]
            self.chosen = best[rank[best] <= rank[0]]
        self.point = self.combine(points)
        self.issued.append(points)

    def combine(self, points: Vector) -> float:
        if self.chosen is None:
            return float(points[0])
        offered = points[self.chosen]
        offered = offered[offered == offered]
        return float(offered.mean()) if len(offered) else float(points[0])


class RecentBest:
    """The point model behind `auto`. Horizons other than `horizons` use the choice made at the next larger one."""

    def __init__(self, *, step_s: float | None, horizons: Sequence[int]) -> None:
        ordered = sorted(set(horizons))
        simple, learning = simple_candidates(), learning_candidates(step_s, ordered)
        self._banks = simple + learning
        self.names = tuple(name for bank in self._banks for name in bank.names)
        self._probation: Vector = np.array(
            [0.0 for bank in simple for _ in bank.names] + [LONG_PROBATION for bank in learning for _ in bank.names]
        )
        zeros = np.zeros(len(self.names))
        self._contests = [_Contest(steps=steps, issued=deque(), loss=zeros, weight=zeros) for steps in ordered]
        self._largest = 0.0
        self._started = False

    def learn(self, value: float | None) -> None:
        for contest in self._contests:
            if len(contest.issued) == contest.steps:
                if value is None:
                    contest.issued.popleft()
                else:
                    contest.score(value)
        for bank in self._banks:
            bank.learn(value)
        if value is not None:
            self._started = True
            self._largest = max(self._largest, value)
        shorter = None
        for contest in self._contests:
            contest.choose(self._points(contest.steps), self._probation, shorter)
            shorter = contest

    def _points(self, steps: int) -> Vector:
        gathered: list[float] = []
        for bank in self._banks:
            gathered.extend(bank.points(steps))
        points: Vector = np.minimum(np.maximum(np.array(gathered), 0.0), CEILING * self._largest)
        return points

    def point(self, steps: int) -> float | None:
        if not self._started:
            return None
        contest = next((c for c in self._contests if c.steps >= steps), self._contests[-1])
        return contest.point if contest.steps == steps else contest.combine(self._points(steps))

    def chosen(self, steps: int) -> tuple[str, ...]:
        """The candidates that make the forecast at the scored horizon nearest above `steps`."""
        contest = next((c for c in self._contests if c.steps >= steps), self._contests[-1])
        return ("naive",) if contest.chosen is None else tuple(self.names[int(i)] for i in contest.chosen)
