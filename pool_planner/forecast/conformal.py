"""Quantiles from a predictor's own recent errors (split conformal prediction over a sliding window). Pure.

Source: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005: the ceil((n + 1) * level)-th smallest of n
exchangeable errors bounds the next one with probability `level`. Traffic is not exchangeable over days, hence the window.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
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

    def quantiles(self, levels: Sequence[float]) -> list[float]:
        return [self.quantile(level) for level in levels]
