"""Means and medians of the last few known values, as banks. Pure.

A median is what a bursty series looks like between its bursts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from pool_planner.forecast.smoothing import UNKNOWN


@dataclass(slots=True)
class WindowMeans:
    """Means over windows of several lengths, in bins, ascending."""

    lengths: tuple[int, ...]
    recent: deque[float] = field(default_factory=deque)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"mean_{length}" for length in self.lengths)

    def learn(self, value: float | None) -> None:
        if value is None:
            return
        self.recent.appendleft(value)
        if len(self.recent) > self.lengths[-1]:
            self.recent.pop()

    def points(self, steps: int) -> Sequence[float]:
        if not self.recent:
            return [UNKNOWN] * len(self.lengths)
        means, total, taken = [], 0.0, 0
        newest_first = iter(self.recent)
        for length in self.lengths:
            for value in islice(newest_first, length - taken):
                total += value
                taken += 1
            means.append(total / taken)
        return means


@dataclass(slots=True)
class _Sorted:
    length: int
    arrived: deque[float] = field(default_factory=deque)
    ordered: list[float] = field(default_factory=list)

    def learn(self, value: float) -> None:
        if len(self.arrived) >= self.length:
            del self.ordered[bisect_left(self.ordered, self.arrived.popleft())]
        self.arrived.append(value)
        insort(self.ordered, value)

    def median(self) -> float:
        half, odd = divmod(len(self.ordered), 2)
        return self.ordered[half] if odd else 0.5 * (self.ordered[half - 1] + self.ordered[half])


@dataclass(slots=True)
class WindowMedians:
    """Medians over windows of several lengths, in bins."""

    lengths: tuple[int, ...]
    windows: list[_Sorted] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.windows = [_Sorted(length) for length in self.lengths]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"median_{length}" for length in self.lengths)

    def learn(self, value: float | None) -> None:
        if value is not None:
            for window in self.windows:
                window.learn(value)

    def points(self, steps: int) -> Sequence[float]:
        if not self.windows[0].ordered:
            return [UNKNOWN] * len(self.lengths)
        return [window.median() for window in self.windows]
