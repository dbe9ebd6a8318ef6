"""How the load of a pool divides among request priorities, as its requests of late were. Pure.

A few requests in one interval say little, so counts fade instead of being forgotten: each counts half as much `HALF_LIFE_S`
later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

HALF_LIFE_S = 120.0
LEAST_SHARE = 1e-3
"""A priority of which so small a share is left is forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityMix:
    """`counts`: requests by priority, older ones faded.

    >>> mix = PriorityMix().learn({"0": 30.0, "9": 10.0}, interval_s=60.0)
    >>> mix.split(8.0)
    {'0': 6.0, '9': 2.0}
    """

    counts: Mapping[str, float] = field(default_factory=dict)

    def learn(self, requests: Mapping[str, float] | None, interval_s: float) -> PriorityMix:
        """The mix after an interval with these arrivals (None: not known)."""
        if requests is None or not interval_s > 0.0:
            return self
        fade = 0.5 ** (interval_s / HALF_LIFE_S)
        summed = {name: self.counts.get(name, 0.0) * fade + requests.get(name, 0.0) for name in {**self.counts, **requests}}
        least = LEAST_SHARE * sum(summed.values())
        return PriorityMix(counts={name: count for name, count in sorted(summed.items()) if count > least})

    def split(self, load_rps: float) -> dict[str, float] | None:
        """`load_rps` by priority; None while nothing is known."""
        total = sum(self.counts.values())
        return {name: load_rps * count / total for name, count in self.counts.items()} if total > 0.0 else None
