"""Pools at zero that somebody needs: a request met them, and they are to have a replica whatever was reported. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from global_planner.types import Round
from pool_planner.types import Proposal, Report

WAKE_RPS = 1e-3
"""What a woken pool is taken to be asked for at least, while its planner has not seen the request."""


class Woken:
    """Which pools were woken, and until when that holds."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._now = 0.0
        self._at_zero: frozenset[str] = frozenset()

    def at(self, now_s: float, at_zero: frozenset[str]) -> None:
        """A round begins now; `at_zero`: pools that are known to have no replica."""
        self._now, self._at_zero = now_s, at_zero

    def wake(self, pools: Sequence[str], until_s: float) -> None:
        """These want a replica at least, until then; reported or not."""
        for pool in pools:
            self._until[pool] = max(until_s, self._until.get(pool, 0.0))

    def raised(self, found: Mapping[str, Report]) -> dict[str, Report]:
        """Reports of woken pools at zero that would leave them there, raised to one replica."""
        raised: dict[str, Report] = {}
        for pool, until_s in self._until.items():
            report = found.get(pool)
            asks = isinstance(report, Proposal) and report.wanted > 0
            if until_s <= self._now or pool not in self._at_zero or asks:
                continue
            # Without a curve the first replica is worth the whole load, which is what it is to whoever waits.
            raised[pool] = Proposal(
                pool=pool,
                at_s=self._now,
                expires_at_s=until_s,
                load_rps=max(report.load_rps, WAKE_RPS) if isinstance(report, Proposal) else WAKE_RPS,
                wanted=1,
                reasons=("a request met the pool at zero",),
            )
        return raised


def at_zero(done: Round | None) -> frozenset[str]:
    """Pools that are known to have, and to have been ordered, no replica."""
    if done is None:
        return frozenset()
    return frozenset(
        holding.pool
        for holding in done.inputs.holdings
        if holding.spec == 0 and holding.unknown is None and not any(item.state == "ready" for item in holding.replicas)
    )
