"""A line through the newest observations of load and latency, and its inversion at the SLA. Pure.

Load is prefill tokens in progress plus the prompt's own (TTFT), or decode blocks in use (ITL). A line is enough near the
operating point; a window of observations lets it follow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """latency = intercept + slope x load, least squares over `points` observations."""

    intercept: float
    slope: float
    points: int

    def load_at(self, latency: float) -> float | None:
        """The load at which the line reaches `latency`; None when it does not rise, or is above at no load at all."""
        if self.slope <= 0.0:
            return None
        load = (latency - self.intercept) / self.slope
        return load if load > 0.0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The last `size` observations (load, latency), oldest first.

    >>> window = Window(size=3)
    >>> for load in (1.0, 2.0, 3.0, 4.0):
    ...     window = window.with_point(load, 10.0 + 5.0 * load)
    >>> line = window.line()
    >>> len(window.points), round(line.load_at(50.0), 6)
    (3, 8.0)
    """

    size: int
    points: tuple[tuple[float, float], ...] = ()

    def with_point(self, load: float | None, latency: float | None) -> Window:
        """The window with one more observation; one that is not finite, or not above 0 in latency, is none."""
        if load is None or latency is None or not math.isfinite(load) or not math.isfinite(latency):
            return self
        if load < 0.0 or latency <= 0.0:
            return self
        return Window(size=self.size, points=(*self.points, (load, latency))[-self.size :])

    def line(self) -> Line | None:
        """The least-squares line; flat through the mean where all loads are equal; None without observations."""
        n = len(self.points)
        if n == 0:
            return None
        mean_x = sum(x for x, _ in self.points) / n
        mean_y = sum(y for _, y in self.points) / n
        spread = sum((x - mean_x) ** 2 for x, _ in self.points)
        if spread <= 1e-12 * max(1.0, mean_x * mean_x):
            return Line(intercept=mean_y, slope=0.0, points=n)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in self.points) / spread
        return Line(intercept=mean_y - slope * mean_x, slope=slope, points=n)
