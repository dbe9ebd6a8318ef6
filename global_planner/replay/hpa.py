"""The Kubernetes HorizontalPodAutoscaler on requests in flight, as its controller computes it (autoscaling/v2 defaults). Pure.

Every 15 s: desired = ceil(ready x (in flight per replica / target)), nothing within a tolerance of 10 %. Replicas that are
not ready count as idle when that would raise, and at the target when it would lower. Scaling down takes the highest
recommendation of the last 300 s, scaling up the newest; in 15 s at most 4 replicas or 100 % are added, and any number
removed. Source: "Algorithm details" and "Configurable scaling behavior" of the Kubernetes documentation on horizontal pod
autoscaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SYNC_S = 15.0
TOLERANCE = 0.1
DOWN_WINDOW_S = 300.0
MOST_ADDED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaler:
    """`recommended`: (time, replicas) within the window of scaling down."""

    recommended: tuple[tuple[float, int], ...] = ()

    def next(
        self, now: float, *, in_flight: float, target: float, ready: int, spec: int, least: int, most: int
    ) -> tuple[Autoscaler, int]:
        """The replicas that it orders now, and what it remembers. `target`: requests in flight a replica, above 0."""
        wanted = recommendation(in_flight=in_flight, target=target, ready=ready, spec=spec)
        recent = (*((at_s, each) for at_s, each in self.recommended if at_s > now - DOWN_WINDOW_S), (now, wanted))
        stable = max(each for _, each in recent)
        ordered = max(wanted, min(spec, stable)) if wanted < spec else wanted
        ordered = min(ordered, max(spec + MOST_ADDED, 2 * spec))
        return Autoscaler(recommended=recent), max(least, min(most, ordered))


def recommendation(*, in_flight: float, target: float, ready: int, spec: int) -> int:
    """What the metric alone asks for.

    >>> recommendation(in_flight=60.0, target=10.0, ready=4, spec=4)
    6
    >>> recommendation(in_flight=42.0, target=10.0, ready=4, spec=4)  # within the tolerance
    4
    >>> recommendation(in_flight=60.0, target=10.0, ready=4, spec=6)  # two are starting
    6
    """
    if ready == 0:
        return max(spec, 1 if in_flight > 0 else spec)
    ratio = in_flight / (ready * target)
    if abs(ratio - 1.0) <= TOLERANCE:
        return spec
    starting = max(0, spec - ready)
    if starting:
        # Assumed of those that tell nothing yet; if that turns the verdict round, or makes it too small, nothing is done.
        assumed = (in_flight + (0.0 if ratio > 1.0 else starting * target)) / (spec * target)
        if abs(assumed - 1.0) <= TOLERANCE or (assumed > 1.0) != (ratio > 1.0):
            return spec
        return math.ceil(assumed * spec - 1e-9)
    return math.ceil(ratio * ready - 1e-9)
