"""Quantiles from a predictor's own recent errors (split conformal prediction over a sliding window). Pure.

Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005: the ceil((n + 1) * level)-th smallest of n
exchangeable errors bounds the next one with probability `level`. Traffic is not exchangeable over days, hence the window; nor
are calm and busy hours alike, hence errors in units of what has lately been usual (locally weighted: Lei et al.,
"Distribution-Free Predictive Inference for Regression", 2018, section 5.2).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class ErrorWindow:
    """The last `size` errors (actual - forecast), kept in order of arrival and in order of value.

    >>> window = ErrorWindow(size=4)
    >>> for error in (5.0, -1.0, 2.0, 0.0, 1.0):
    ...     window.add(error)
    >>> window.quantile(0.5), window.quantile(0.99)
    (0.5, 2.0)
    """

    size: int
    arrived: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.arrived)

    def add(self, error: float) -> None:
        if len(self.arrived) >= self.size:
            del self.ordered[bisect_left(self.ordered, self.arrived.popleft())]
        self.arrived.append(error)
        insort(self.ordered, error)

    def quantile(self, level: float) -> float:
        """The conformal quantile, interpolated between order statistics; 0 without errors, the largest beyond them."""
        n = len(self.ordered)
        if n == 0:
            return 0.0
        rank = (n + 1) * level - 1.0
        if rank >= n - 1:
            return self.ordered[-1]
        if rank <= 0.0:
            return self.ordered[0]
        low = int(rank)
        return self.ordered[low] + (rank - low) * (self.ordered[low + 1] - self.ordered[low])


RECENT_RATE = 0.1
USUAL_RATE = 0.005


@dataclass(slots=True)
class Margin:
    """How far above (or below) its forecasts a predictor must plan to be covered with a given probability.

    The unit of its errors is the geometric mean of the recent and the usual size of an error: half-way between margins that
    never move, and margins that shrink at once in a lull and are missing when it ends. `unit` is read when a forecast is
    issued and handed back with the error of that forecast.
    """

    window: ErrorWindow
    recent: float = 0.0
    usual: float = 0.0
    seen: int = 0

    @property
    def unit(self) -> float:
        return math.sqrt(self.recent * self.usual)

    def learn(self, error: float, unit: float) -> None:
        self.seen += 1
        size, start = abs(error), 1.0 / self.seen
        self.recent += max(RECENT_RATE, start) * (size - self.recent)
        self.usual += max(USUAL_RATE, start) * (size - self.usual)
        if unit > 0.0:
            self.window.add(error / unit)
        else:  # the first error, or the first after none at all
            self.window.add(math.copysign(1.0, error) if error else 0.0)

    def quantile(self, level: float) -> float:
        """What to add to a forecast issued now, in the unit of the values."""
        return self.unit * self.window.quantile(level)
