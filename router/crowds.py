"""Who may begin while a pool is full: bounds of single pools on what is under way in them. Pure: every call gets `now` in model
seconds.

A request stays with prefill first and with decode later, and both are bounded when it comes in: prefill must have room for it
now, and decode when prefill is done. As many leave decode by then as are with prefill in the mean, so decode counts of those
that are with prefill only what is more or less than that, in whole requests. A bound on the sum of both would let the stage
that is short have what the other one does not use: prompts would queue at engines, or a crowd decode too slowly, and then
everybody is late.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, floor, inf

from router.policy import Path

MEAN_S = 20.0
"""Over about so long the mean of those with prefill is taken: several of their stays, or it would follow each of them."""
LOOK_S = MEAN_S / 64


class Crowds:
    """The bounds in force. `inside(pool)` tells how many requests are with the ready engines of a pool now; pools without a
    bound take any number."""

    __slots__ = ("_bounds", "_inside", "_means", "_together", "bounded")

    def __init__(self, inside: Callable[[str], int]) -> None:
        self._inside = inside
        self._bounds: Mapping[str, float] = {}
        self._together: dict[tuple[str, ...], float] = {}  # the bounds of stages
        self._means: dict[tuple[str, ...], _Mean] = {}
        self.bounded = False

    def put(self, bounds: Mapping[str, float]) -> None:
        """Other bounds, by pool, from now on."""
        self._bounds = bounds
        self._together = {}
        self.bounded = bool(bounds)

    def places(self, path: Path, now: float) -> float:
        """How many more may come in on this way now. Each stage lets in one always, or nobody would ever learn better. The
        pools of a stage that a way may try count together."""
        if not self.bounded:
            return inf
        serve = path.serve
        left = self._bound(serve) - self._count(serve)
        # Who would be served without prefill because that has engines that fail is none the less one of its crowd.
        first = path.prefill or path.instead_of
        if not first:
            return left
        begun = self._count(first)
        mean = self._means.get(first)
        if mean is None:
            mean = self._means[first] = _Mean(begun, now)
        leaving = floor(mean.at(begun, now) + 0.5)  # whole requests: a part of one would never come in
        return min(self._bound(first) - begun, left - begun + leaving)

    def _bound(self, pools: tuple[str, ...]) -> float:
        known = self._together.get(pools)
        if known is None:
            known = self._together[pools] = max(1.0, sum([self._bounds.get(name, inf) for name in pools]))
        return known

    def _count(self, pools: tuple[str, ...]) -> int:
        if len(pools) == 1:
            return self._inside(pools[0])
        return sum([self._inside(name) for name in pools])


class _Mean:
    """An exponentially fading mean of a number that changes in steps, looked at every LOOK_S at most."""

    __slots__ = ("_at_s", "_last", "_mean")

    def __init__(self, count: int, now: float) -> None:
        self._mean = float(count)
        self._last = count
        self._at_s = now

    def at(self, count: int, now: float) -> float:
        """`count` is what it is now; what was seen last counts as having held until now."""
        if now >= self._at_s + LOOK_S:
            self._mean += (self._last - self._mean) * (1.0 - exp((self._at_s - now) / MEAN_S))
            self._last = count
            self._at_s = now
        return self._mean
