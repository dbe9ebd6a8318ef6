"""What the series did at this time yesterday, as a bank. Pure.

A day need not be a whole number of bins: between two bins of yesterday the value is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pool_planner.forecast.smoothing import UNKNOWN

DAY_S = 86400.0
NARROWEST_BIN_S = 60.0  # below a minute a day is too many bins, and the next few bins have no daily shape
FEWEST_BINS = 4.0


def bins_per_day(step_s: float | None) -> float | None:
    """Bins in a day, where looking a day back is worth its memory (1 min to 6 h a bin), else None.

    >>> bins_per_day(600.0), bins_per_day(10.0), bins_per_day(None)
    (144.0, None, None)
    """
    if step_s is None or step_s < NARROWEST_BIN_S or DAY_S / step_s < FEWEST_BINS:
        return None
    return DAY_S / step_s


class LaggedHistory:
    """A ring of a little more than a day (`reach` more bins), read by distance from the newest bin."""

    __slots__ = ("_bins", "_count", "_day_bins")

    def __init__(self, day_bins: float, reach: int) -> None:
        self._day_bins = day_bins
        self._bins: NDArray[np.float64] = np.zeros(int(day_bins) + reach + 3)
        self._count = 0

    def add(self, value: float) -> None:
        self._bins[self._count % len(self._bins)] = value
        self._count += 1

    def add_or_repeat(self, value: float | None, last: float) -> None:
        """Add the next bin; one of unknown value as it was yesterday, or like the last one."""
        if value is None:
            before = self.day_ago(1)
            value = last if before is None else before
        self.add(value)

    def ago(self, bins: int) -> float:
        return float(self._bins[(self._count - 1 - bins) % len(self._bins)])

    def day_ago(self, ahead: float) -> float | None:
        """The value one day before the bin `ahead` bins after the newest; None where the past does not reach or not yet."""
        back = self._day_bins - ahead
        whole = int(back)
        oldest = whole + (1 if back > whole else 0)
        if back < 1.0 or oldest >= min(self._count, len(self._bins)):
            return None
        share = back - whole
        value = self.ago(whole)
        return value + share * (self.ago(whole + 1) - value) if share > 0.0 else value


@dataclass(slots=True)
class DailyLag:
    """Yesterday's value: as it was, in proportion to the level now, moved by the change since, and by a fading gap."""

    day_bins: float
    reach: int
    level_bins: int = 6
    fading: float = 0.9
    names: tuple[str, ...] = ("daily", "daily_ratio", "daily_change", "daily_gap")
    history: LaggedHistory = field(init=False)
    last: float | None = None

    def __post_init__(self) -> None:
        self.history = LaggedHistory(self.day_bins, self.reach + self.level_bins)

    def learn(self, value: float | None) -> None:
        self.last = self.last if value is None else value
        if self.last is not None:
            self.history.add_or_repeat(value, self.last)

    def points(self, steps: int) -> Sequence[float]:
        before = self.history.day_ago(steps)
        if before is None or self.last is None:
            return [UNKNOWN] * 4
        now_then = self.history.day_ago(0)
        change = UNKNOWN if now_then is None else before + self.last - now_then
        past = [self.history.day_ago(-back) for back in range(self.level_bins)]
        known = [value for value in past if value is not None]
        if len(known) < self.level_bins:
            return [before, UNKNOWN, change, UNKNOWN]
        level_now = sum(self.history.ago(back) for back in range(self.level_bins))
        level_then = sum(known)
        ratio = before * min(3.0, max(1.0 / 3.0, level_now / level_then)) if level_then > 0.0 else UNKNOWN
        return [before, ratio, change, before + self.fading**steps * (level_now - level_then) / self.level_bins]
