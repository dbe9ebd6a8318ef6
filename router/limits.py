"""How many may come in: rates with bursts, of a model and of single priorities, and the budget of retries. Pure: every call
gets `now` in model seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """`rate_rps` None: unlimited. `burst` is how many requests may come at once (default: one second's worth, at least 1).
    `in_flight`: how many may be under way at once (None: any number; one is let in always), `in_flight_by_pool` with single
    pools (see `router.crowds`). `by_priority` bounds single request priorities within it; of the burst they may use as large a
    part as of the rate."""

    rate_rps: float | None = None
    burst: float | None = None
    in_flight: float | None = None
    in_flight_by_pool: Mapping[str, float] = field(default_factory=dict)
    by_priority: Mapping[str, float] = field(default_factory=dict)


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float | None, now: float) -> None:
        self._rate = rate
        self._burst = _burst(rate, burst)
        self._level = self._burst
        self._at = now

    def change(self, rate: float, burst: float | None, now: float) -> None:
        """Another rate from now on; what was saved is kept, up to the new burst. Where nobody was let in, nobody is inside: who
        waited for a model to wake would wait once more for the first token."""
        self._fill(now)
        closed = self._rate <= 0.0
        self._rate = rate
        self._burst = _burst(rate, burst)
        self._level = self._burst if closed else min(self._level, self._burst)

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate)
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until one token is there (0: now); infinite at rate 0."""
        self._fill(now)
        # The epsilon absorbs rounding: after exactly wait_s the token must be there.
        if self._level >= 1.0 - 1e-9:
            return 0.0
        return (1.0 - self._level) / self._rate if self._rate > 0 else float("inf")

    def take(self) -> None:
        self._level = max(0.0, self._level - 1.0)


def _burst(rate: float, burst: float | None) -> float:
    """At least one request can come at once, unless none may come at all."""
    return 0.0 if rate <= 0.0 else max(1.0, rate if burst is None else burst)


class Gate:
    """What a model may admit now: a limit with the tokens saved under it, of all requests and of single priorities."""

    __slots__ = ("_all", "_by_priority", "limit")

    def __init__(self, limit: RateLimit, now: float) -> None:
        self._all: TokenBucket | None = None
        self._by_priority: dict[str, TokenBucket] = {}
        self.put(limit, now)

    def put(self, limit: RateLimit, now: float) -> None:
        """Another limit from now on; what was saved is kept, up to the new bursts."""
        self.limit = limit
        if limit.rate_rps is None:
            self._all = None
        elif self._all is None:
            self._all = TokenBucket(limit.rate_rps, limit.burst, now)
        else:
            self._all.change(limit.rate_rps, limit.burst, now)
        kept = {}
        for priority, rate in limit.by_priority.items():
            burst = None if limit.burst is None or not limit.rate_rps else limit.burst * rate / limit.rate_rps
            bucket = self._by_priority.get(priority)
            if bucket is None:
                bucket = TokenBucket(rate, burst, now)
            else:
                bucket.change(rate, burst, now)
            kept[priority] = bucket
        self._by_priority = kept

    def has_token(self, now: float) -> bool:
        """Whether the rate alone, whatever the priority, lets somebody in now."""
        return self._all is None or self._all.wait_s(now) == 0.0

    def opens(self, priority: int, now: float) -> bool:
        """Whether a request of this priority finds a token now."""
        if self._by_priority and (single := self._by_priority.get(str(priority))) and single.wait_s(now) > 0.0:
            return False
        return self._all is None or self._all.wait_s(now) == 0.0

    def take(self, priority: int) -> None:
        """A request of this priority comes in."""
        if self._by_priority and (single := self._by_priority.get(str(priority))):
            single.take()
        if self._all is not None:
            self._all.take()

    def next_tokens_s(self, now: float) -> list[float]:
        """When buckets that are empty have their next token; those without a rate never do."""
        buckets = [*self._by_priority.values(), *([self._all] if self._all else [])]
        waits = [bucket.wait_s(now) for bucket in buckets]
        return [now + wait for wait in waits if 0.0 < wait < float("inf")]


class RetryBudget:
    """Retries may be at most `ratio` of the requests, plus `burst` saved: a failing pool does not get its load doubled."""

    __slots__ = ("_burst", "_level", "_ratio")

    def __init__(self, *, ratio: float, burst: float) -> None:
        self._ratio = ratio
        self._burst = burst
        self._level = burst

    def request(self) -> None:
        if self._level < self._burst:
            self._level = min(self._burst, self._level + self._ratio)

    def take(self) -> bool:
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
