"""`auto`: the mean of the cheap forecasts that were best of late, chosen anew in each bin and for each horizon. Pure.

The candidates are here; how they are compared, `contest` tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pool_planner.forecast.autoregression import Autoregressions
from pool_planner.forecast.contest import Contest, Scoreboard
from pool_planner.forecast.daily import DailyLag, bins_per_day
from pool_planner.forecast.direct import DirectCorrections
from pool_planner.forecast.smoothing import AdaptiveLog, Bank, DampedHolt, Ewma, LastValue, Theta
from pool_planner.forecast.windows import WindowMeans, WindowMedians

Vector = NDArray[np.float64]

CEILING = 3.0  # no candidate above this many times the largest value seen
AUTOREGRESSIONS = (*((order, True) for order in (1, 2, 3, 4)), *((order, False) for order in (1, 2, 4, 6)))


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


def learning_candidates(step_s: float | None, horizons: Sequence[int]) -> list[Bank]:
    """Candidates that estimate coefficients, and where a day has a fitting number of bins those that look a day back."""
    day = bins_per_day(step_s)
    banks: list[Bank] = [
        DirectCorrections(horizons=horizons, day_bins=day),
        Autoregressions(AUTOREGRESSIONS, furthest=horizons[-1]),
    ]
    if day is not None:
        banks.append(DailyLag(day, horizons[-1]))
    return banks


class RecentBest:
    """The point model behind `auto`. Horizons other than `horizons` use the choice made at the next larger one."""

    def __init__(self, *, step_s: float | None, horizons: Sequence[int], rules: Contest | None = None) -> None:
        self._horizons = tuple(sorted(set(horizons)))
        rules = rules or Contest()
        simple = simple_candidates()
        self._banks = [*simple, *learning_candidates(step_s, self._horizons)]
        self.names = tuple(name for bank in self._banks for name in bank.names)
        # Corrections that begin with what suits traffic in general are as good as known from the start.
        known = {*(name for bank in simple for name in bank.names), *DirectCorrections.NAMES}
        probation = [0.0 if name in known else rules.long_probation for name in self.names]
        self._board = Scoreboard(self._horizons, np.array(probation), rules)
        self._level_banks = len(level_candidates())
        self._levels: list[float] = []  # what they forecast now
        self._largest = 0.0
        self._started = False

    def learn(self, value: float | None) -> None:
        if value is not None:
            self._board.score(value)
        for bank in self._banks:
            bank.learn(value)
        if value is not None:
            self._started = True
            self._largest = max(self._largest, value)
        self._levels = [point for bank in self._banks[: self._level_banks] for point in bank.points(1)]
        self._board.choose(self._bounded([self._gathered(steps) for steps in self._horizons]))

    def _gathered(self, steps: int) -> list[float]:
        gathered = self._levels.copy()
        for bank in self._banks[self._level_banks :]:
            gathered.extend(bank.points(steps))
        return gathered

    def _bounded(self, gathered: Sequence[Sequence[float]]) -> Vector:
        points: Vector = np.minimum(np.maximum(np.array(gathered), 0.0), CEILING * self._largest)
        return points

    def point(self, steps: int) -> float | None:
        if not self._started:
            return None
        row = self._row(steps)
        if self._horizons[row] == steps:
            return self._board.forecasts[row]
        return self._board.combine(row, self._bounded([self._gathered(steps)])[0])

    def _row(self, steps: int) -> int:
        """The scored horizon nearest above `steps`."""
        return next((row for row, scored in enumerate(self._horizons) if scored >= steps), len(self._horizons) - 1)

    def chosen(self, steps: int) -> tuple[str, ...]:
        """The candidates that make the forecast at the scored horizon nearest above `steps`."""
        return tuple(self.names[int(index)] for index in self._board.chosen(self._row(steps)))
