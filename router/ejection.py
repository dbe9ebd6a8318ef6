"""Who of a pool may be picked where one of its endpoints is slow, and when that one is tried again. Pure.

`router.outliers` says which endpoint is far slower than its siblings; here is what follows from it for those who pick, in the
live router and in the replay alike: the others are picked among, whoever has been away long enough gets one request at a time,
and a pool of which all are away has them all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Protocol, TypeVar

from router.config import OutlierConfig
from router.config_pools import Pick
from router.outliers import Outliers, Verdict

AFTER_S = 0.001  # behind the end of an ejection: then it is surely over


class Tried(Protocol):
    """What is read of an endpoint."""

    @property
    def id(self) -> str: ...

    @property
    def in_flight(self) -> int: ...


E = TypeVar("E", bound=Tried)


class Ejection:
    """The slow endpoints of one pool, whose picker is `pick`; `config` None or not enabled: nobody is ever away."""

    __slots__ = ("_compares_ttft", "_outliers")

    def __init__(self, config: OutlierConfig | None, pick: Pick) -> None:
        self._outliers = Outliers(config) if config is not None and config.enabled else None
        # Where prompts go to whom has their beginning, the time to the first token says what was cached, not who is slow.
        self._compares_ttft = pick != "prefix_affinity"

    @property
    def out(self) -> list[str]:
        """Who is away, the longest first; those on trial among them."""
        return [] if self._outliers is None else self._outliers.out

    def answered(self, endpoint: str, now: float, *, ttft: float | None, itl: float | None) -> list[Verdict]:
        """A whole answer of an endpoint, as samples of `router.outliers`; what follows from it. Whoever asks divides the pool
        anew (`divide`) where anything does."""
        if self._outliers is None or (ttft is None and itl is None):
            return []
        return self._outliers.record(endpoint, now, ttft=ttft if self._compares_ttft else None, itl=itl)

    def divide(self, ready: list[E]) -> tuple[list[E], list[E]]:
        """Of the endpoints that could serve: who may be picked, and who is on trial."""
        outliers = self._outliers
        if outliers is None:
            return ready, []
        outliers.present([one.id for one in ready])
        away = set(outliers.out)
        if not away:
            return ready, []
        return [one for one in ready if one.id not in away] or ready, [one for one in ready if outliers.on_trial(one.id)]

    def try_again(self, now: float) -> bool:
        """Whether somebody has been away long enough, and is on trial from now on."""
        return self._outliers is not None and bool(self._outliers.expired(now))


def next_trial(on_trial: Sequence[E], without: Collection[str]) -> E | None:
    """Who of those on trial gets this request, which was tried at `without` already: one that has none; None: nobody."""
    for endpoint in on_trial:
        if endpoint.in_flight == 0 and endpoint.id not in without:
            return endpoint
    return None


class Trials:
    """When those that are away are tried again, over all pools of a router. `due_s`: the first time; infinity when nobody is
    away."""

    __slots__ = ("_times", "due_s")

    def __init__(self) -> None:
        self._times: list[tuple[float, str]] = []
        self.due_s = inf

    def note(self, pool: str, verdicts: Iterable[Verdict]) -> int:
        """How many endpoints of the pool were ejected; their time is noted."""
        ejected = 0
        for one in verdicts:
            if one.action == "eject":
                heappush(self._times, (one.until_s + AFTER_S, pool))
                ejected += 1
        if ejected:
            self.due_s = self._times[0][0]
        return ejected

    def due(self, now: float) -> list[str]:
        """The pools of those whose time is over; it comes no second time."""
        pools = []
        while self._times and self._times[0][0] <= now:
            pools.append(heappop(self._times)[1])
        self.due_s = self._times[0][0] if self._times else inf
        return pools
