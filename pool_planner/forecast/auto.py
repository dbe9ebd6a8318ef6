"""`auto`: the mean of the cheap forecasts that were best of late, chosen anew in each bin and for each horizon. Pure.

Every candidate is scored out of sample by a discounted sum of absolute errors, in units of what the naive forecast has lately
missed at that horizon, so that one burst does not decide for an hour, and capped, so that one bin does not either. The
few best are averaged, which beats picking one (Bates and Granger 1969); none that is behind the naive forecast may take part,
so with nothing to gain it *is* the naive forecast. Errors several bins ahead overlap and so say less than their number, and
those of one bin ahead say little about what lasts: a horizon adds the scores of its neighbours to its own.
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

SCALE_RATE = 0.05
CEILING = 3.0  # no candidate above this many times the largest value seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """How candidates are compared. `best`: how many are averaged. `discount` 0.98: half of a score comes from the last 34 bins.
    `cap`: an error counts at most as this many mean errors of the naive forecast. `probation`: errors (discounted count) that
    a candidate must have shown, unless the series is younger than that; `long_probation`: the same for those that estimate
    coefficients from nothing, whatever the age of the series. `longer`: weight of the next longer horizon's score in a rank.

    The defaults were chosen on other series than those that the benchmark judges (tests/bench/forecast_development.py).
    """

    best: int = 10
    discount: float = 0.98
    cap: float = 5.0
    probation: float = 8.0
    long_probation: float = 35.0
    longer: float = 0.5


def simple_candidates() -> list[Bank]:
    """Candidates that estimate nothing but a level or a trend; the naive forecast is the first."""
    return [*level_candidates(), DampedHolt(), Theta()]


def level_candidates() -> list[Bank]:
    """Those that forecast the same for every horizon."""
    return [
        LastValue(),
        Ewma((0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85)),
        AdaptiveLog(),
        WindowMeans((3, 4, 6, 8, 12, 24)),
        WindowMedians((3, 5, 7, 11, 25, 50, 75)),
    ]


def informed_candidates(horizons: Sequence[int]) -> list[Bank]:
    """Candidates that estimate coefficients, and begin with some that suit traffic in general."""
    return [DirectCorrection(horizons=horizons, day_bins=None, log=log) for log in (True, False)]


def learning_candidates(step_s: float | None, horizons: Sequence[int]) -> list[Bank]:
    """Candidates that estimate coefficients, and where a day has a fitting number of bins those that look a day back."""
    day = bins_per_day(step_s)
    banks: list[Bank] = [
        *(Autoregression(order, log=True) for order in (1, 2, 3, 4)),
        *(Autoregression(order, log=False) for order in (1, 2, 4, 6)),
    ]
    if day is not None:
        banks.append(DailyLag(day, horizons[-1]))
        banks += [DirectCorrection(horizons=horizons, day_bins=day, log=log) for log in (True, False)]
    return banks


@dataclass(slots=True)
class _Scores:
    """The scores of all candidates at one horizon."""

    steps: int
    rules: Contest
    issued: deque[Vector]
    loss: Vector
    weight: Vector
    scored: int = 0
    scale: float = 0.0
    mean_loss: Vector | None = None  # by candidate, in the naive forecast's mean errors; NaN for one that was not scored
    chosen: Vector | None = None  # indices of the candidates that make the forecast
    point: float = 0.0

    def score(self, value: float) -> None:
        missed = np.abs(self.issued.popleft() - value)
        naive = float(missed[0])
        if naive != naive:  # nothing was known when these were issued
            return
        self.scored += 1
        self.scale += max(SCALE_RATE, 1.0 / self.scored) * (naive - self.scale)
        if self.scale > 0.0:
            missed = np.minimum(missed / self.scale, self.rules.cap)
        else:
            missed = np.where(missed > 0.0, self.rules.cap, missed)
        known = missed == missed
        discount = self.rules.discount
        self.loss = np.where(known, discount * self.loss + missed, self.loss)
        self.weight = np.where(known, discount * self.weight + 1.0, self.weight)
        self.mean_loss = np.divide(self.loss, self.weight, out=np.full_like(self.loss, np.nan), where=self.weight > 0.0)

    def choose(self, points: Vector, probation: Vector, shorter: _Scores | None, longer: _Scores | None) -> None:
        """Take the points for the next forecast, and decide which of them make it."""
        self.chosen = None
        if self.mean_loss is not None and self.weight[0] >= 2.0:
            tried = (self.weight >= np.maximum(probation, min(self.weight[0], self.rules.probation))) & (points == points)
            rank = self.mean_loss
            for other, share in ((shorter, 1.0), (longer, self.rules.longer)):
                if other is not None and other.mean_loss is not None:
                    borrowed = other.mean_loss
                    rank = rank + share * np.where(borrowed == borrowed, borrowed, self.mean_loss)
            rank = np.where(tried, rank, np.inf)
            best = np.argsort(rank, kind="stable")[: self.rules.best]
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

    def __init__(self, *, step_s: float | None, horizons: Sequence[int], rules: Contest | None = None) -> None:
        ordered = sorted(set(horizons))
        rules = rules or Contest()
        known, learning = simple_candidates() + informed_candidates(ordered), learning_candidates(step_s, ordered)
        self._banks = known + learning
        self.names = tuple(name for bank in self._banks for name in bank.names)
        self._probation: Vector = np.array(
            [0.0 for bank in known for _ in bank.names] + [rules.long_probation for bank in learning for _ in bank.names]
        )
        zeros = np.zeros(len(self.names))
        self._scores = [_Scores(steps=steps, rules=rules, issued=deque(), loss=zeros, weight=zeros) for steps in ordered]
        self._level_banks = len(level_candidates())
        self._levels: list[float] = []  # what they forecast now
        self._largest = 0.0
        self._started = False

    def learn(self, value: float | None) -> None:
        for scores in self._scores:
            if len(scores.issued) == scores.steps:
                if value is None:
                    scores.issued.popleft()
                else:
                    scores.score(value)
        for bank in self._banks:
            bank.learn(value)
        if value is not None:
            self._started = True
            self._largest = max(self._largest, value)
        self._levels = [point for bank in self._banks[: self._level_banks] for point in bank.points(1)]
        around = [None, *self._scores, None]
        for shorter, scores, longer in zip(around, self._scores, around[2:], strict=False):
            scores.choose(self._points(scores.steps), self._probation, shorter, longer)

    def _points(self, steps: int) -> Vector:
        gathered = self._levels.copy()
        for bank in self._banks[self._level_banks :]:
            gathered.extend(bank.points(steps))
        points: Vector = np.minimum(np.maximum(np.array(gathered), 0.0), CEILING * self._largest)
        return points

    def point(self, steps: int) -> float | None:
        if not self._started:
            return None
        scores = next((s for s in self._scores if s.steps >= steps), self._scores[-1])
        return scores.point if scores.steps == steps else scores.combine(self._points(steps))

    def chosen(self, steps: int) -> tuple[str, ...]:
        """The candidates that make the forecast at the scored horizon nearest above `steps`."""
        scores = next((s for s in self._scores if s.steps >= steps), self._scores[-1])
        return ("naive",) if scores.chosen is None else tuple(self.names[int(i)] for i in scores.chosen)
