"""What `thorough` measures, in which order, and how many requests that takes at most. Pure.

A point is measured once to warm up and to find its lengths (not counted), then until its median is known well enough or
`most` times. A decode point whose sequences did not run together for long enough is tried again with longer answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pool_planner.profiler.sweep import DecodePoint

RETRIES = 3
QUEUE_DEPTHS = (2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often a point is measured: at least `least` and at most `most` times, until the 95 % confidence interval of the
    median is within `tight` of it. Never more than `concurrency` requests at once. `window`: tokens of each sequence that a
    decode measurement lasts."""

    least: int = 3
    most: int = 8
    tight: float = 0.03
    concurrency: int = 256
    window: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"repetitions: {self.least} to {self.most} is no range (must be 1 <= least <= most)")
        if self.concurrency < 1 or self.window < 4 or not 0.0 < self.tight < 1.0:
            raise ValueError("limits: concurrency >= 1, window >= 4 and 0 < tight < 1 are needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillPoint:
    """`depth` prompts of `isl` tokens, sent at once."""

    isl: int
    depth: int = 1


Point = PrefillPoint | DecodePoint


def key(point: Point) -> str:
    """The name of a point in the record of measurements."""
    if isinstance(point, PrefillPoint):
        return f"prefill isl={point.isl} depth={point.depth}"
    return f"decode context={point.context} batch={point.batch}"


def at_once(point: Point) -> int:
    return point.depth if isinstance(point, PrefillPoint) else point.batch


def requests_at_most(points: Sequence[Point], limits: Limits) -> int:
    """Requests that measuring `points` takes at most, warm-up and retries included.

    >>> requests_at_most([PrefillPoint(isl=100), DecodePoint(context=100, batch=4)], Limits(most=5))
    42
    """
    return sum(at_once(point) * (1 + limits.most + (RETRIES if isinstance(point, DecodePoint) else 0)) for point in points)


def queue_points(isl: int, limits: Limits) -> tuple[PrefillPoint, ...]:
    return tuple(PrefillPoint(isl=isl, depth=depth) for depth in QUEUE_DEPTHS if depth <= limits.concurrency)
