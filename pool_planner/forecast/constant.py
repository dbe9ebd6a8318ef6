"""The naive forecast: the next bin is like the last one. The yardstick of every other predictor. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Naive:
    """Repeats the last known value."""

    last: float | None = None

    def learn(self, value: float | None) -> None:
        if value is not None:
            self.last = value

    def point(self, steps: int) -> float | None:
        return self.last
