"""The contest behind `auto`: who was best of late, by horizon, and what the few best say together. Pure.

Every candidate is scored out of sample by a discounted sum of absolute errors, in units of what the naive forecast has lately
missed at that horizon, so that one burst does not decide for an hour, and capped, so that one bin does not either. The
few best are averaged, which beats picking one (Bates and Granger 1969); none that is behind the naive forecast may take part,
so with nothing to gain it *is* the naive forecast. Errors several bins ahead overlap and so say less than their number, and
those of one bin ahead say little about what lasts: a horizon adds the scores of its neighbours to its own.

All horizons are scored and chosen for at once: arrays are (horizons, candidates).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
SCALE_RATE = 0.05


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


class Scoreboard:
    """The scores of all candidates at all `horizons` (ascending); the naive forecast is the first candidate. `probation` by
    candidate: errors (discounted count) that it must have shown, beside those that all must."""

    def __init__(self, horizons: Sequence[int], probation: Vector, rules: Contest) -> None:
        shape = (len(horizons), len(probation))
        self._horizons = tuple(horizons)
        self._rows = np.arange(shape[0])[:, None]
        self._probation = probation
        self._rules = rules
        self._issued: deque[Vector] = deque(maxlen=horizons[-1])  # points of each bin, newest first
        self._loss = np.zeros(shape)
        self._weight = np.zeros(shape)
        self._scored = np.zeros(shape[0])
        self._scale = np.zeros(shape[0])
        self._mean_loss = np.full(shape, np.nan)  # in the naive forecast's mean errors; NaN for one that was not scored
        self._best = np.zeros((shape[0], 1), dtype=np.intp)  # candidates by rank, and which of them make the forecast
        self._taking_part = np.ones((shape[0], 1), dtype=bool)
        self.forecasts: list[float] = []  # at each horizon

    def score(self, value: float) -> None:
        """What became of the forecasts that were issued for this bin."""
        ready = sum(steps <= len(self._issued) for steps in self._horizons)
        if not ready:
            return
        issued = np.array([self._issued[steps - 1][row] for row, steps in enumerate(self._horizons[:ready])])
        missed = np.abs(issued - value)
        naive = missed[:, 0]
        told = naive == naive  # False where nothing was known when these were issued
        scored, scale = self._scored[:ready], self._scale[:ready]
        scored += told
        rate = np.maximum(SCALE_RATE, 1.0 / np.maximum(scored, 1.0))
        scale += np.where(told, rate * (naive - scale), 0.0)
        unit = scale[:, None]
        cap = self._rules.cap
        missed = np.where(
            unit > 0.0, np.minimum(missed / np.where(unit > 0.0, unit, 1.0), cap), np.where(missed > 0.0, cap, missed)
        )
        known = (missed == missed) & told[:, None]
        loss, weight, discount = self._loss[:ready], self._weight[:ready], self._rules.discount
        np.copyto(loss, discount * loss + missed, where=known)
        np.copyto(weight, discount * weight + 1.0, where=known)
        np.divide(loss, weight, out=self._mean_loss[:ready], where=weight > 0.0)

    def choose(self, points: Vector) -> None:
        """Take the points (horizons, candidates) for the next forecasts, and decide which of them make it."""
        rules = self._rules
        naive_weight = self._weight[:, :1]
        tried = self._weight >= np.maximum(self._probation, np.minimum(naive_weight, rules.probation))
        tried &= (points == points) & (naive_weight >= 2.0)
        # Of a horizon where a candidate was not scored it borrows nothing new; before there was any score, nothing at all.
        begun = (self._scored > 0.0)[:, None]
        rank = self._mean_loss.copy()
        shorter, longer = self._mean_loss[:-1], self._mean_loss[1:]
        rank[1:] += np.where(shorter == shorter, shorter, longer) * begun[:-1]
        rank[:-1] += rules.longer * np.where(longer == longer, longer, shorter) * begun[1:]
        rank = np.where(tried, rank, np.inf)
        self._best = np.argsort(rank, axis=1, kind="stable")[:, : rules.best]
        rows = self._rows
        ordered = rank[rows, self._best]
        self._taking_part = ordered <= rank[:, :1]
        untold = ordered[:, 0] == np.inf  # too little is known to compare: the naive forecast
        self._best[untold, 0] = 0
        self._taking_part[untold, 1:] = False
        self._issued.appendleft(points)
        offered = np.where(self._taking_part, points[rows, self._best], 0.0)
        self.forecasts = (offered.sum(axis=1) / self._taking_part.sum(axis=1)).tolist()

    def combine(self, row: int, points: Vector) -> float:
        """What those chosen at the horizon `row` say together, of `points` (candidates,) for another one."""
        offered = points[self.chosen(row)]
        offered = offered[offered == offered]
        return float(offered.mean()) if len(offered) else float(points[0])

    def chosen(self, row: int) -> NDArray[np.intp]:
        """The candidates that make the forecast at the horizon `row`."""
        chosen: NDArray[np.intp] = self._best[row][self._taking_part[row]]
        return chosen
