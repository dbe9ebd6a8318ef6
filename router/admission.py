"""Who may be sent now, who waits, and who is turned away. Pure: every call gets `now` in model seconds.

A model's rate comes from the plan while one is in force, else from its own configuration; single priorities may be limited
within it. A request that cannot be sent (rate used up, or no usable endpoint) waits in one bounded room, more important ones
in front and tenants in fair turns (`router.fairness`), until its deadline; among equals who came first or, where the model says
so, the shortest prompt, because then the most requests are in time. When the room is full, the least important request of the
longest line is shed; a newcomer that is no more important than everybody waiting is shed itself, unless a tenant has
more waiting than its own.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Literal

from router.fairness import Shares, gives_way, may_displace
from router.policy import Path

FEW = 4  # so many are taken out of a line one by one: they mostly stand in front
Reason = Literal["rate", "starting", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """`rate_rps` None: unlimited. `burst` is how many requests may come at once (default: one second's worth, at least 1).
    `in_flight`: how many may be under way at once (None: any number; one is let in always). `by_priority` bounds single request
    priorities within it; of the burst they may use as large a part as of the rate."""

    rate_rps: float | None = None
    burst: float | None = None
    in_flight: float | None = None
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
        """Another rate from now on; what was saved is kept, up to the new burst."""
        self._fill(now)
        self._rate = rate
        self._burst = _burst(rate, burst)
        self._level = min(self._level, self._burst)

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


@dataclass(slots=True, kw_only=True, eq=False)
class Ticket:
    """One request at the door. `tenant` (whose API key; None: nobody's) shares by `weight`. `paid`: its token was already taken
    (it comes back after an engine failed). Among those of one priority (and tenant) that wait the smallest `length` comes
    first, then who came first."""

    model: str
    priority: int
    tokens: float
    deadline_s: float
    paths: tuple[Path, ...] = ()
    length: float = 0.0
    tenant: str | None = None
    weight: float = 1.0
    paid: bool = False
    seq: int = 0
    waits: bool = False  # in the waiting room
    waits_paid: bool = False  # and had paid when it came in

    def __hash__(self) -> int:
        # As any object's own. Said here because a compiled class that compares loses it.
        return id(self)

    def __lt__(self, other: Ticket) -> bool:
        return (-self.priority, self.length, self.seq) < (-other.priority, other.length, other.seq)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`reason` rate: the admitted rate is used up; starting: no endpoint became usable in time; full: the room is full of
    requests that are at least as important."""

    reason: Reason
    retry_after_s: float


@dataclass(slots=True)
class Room:
    """What the endpoints of a way's first stage can take yet: requests, and tokens."""

    requests: float
    tokens: float

    @property
    def is_open(self) -> bool:
        return self.requests >= 1.0 and self.tokens > 0.0

    def take(self, tokens: float) -> bool:
        """Whether there is a place, and take it."""
        if not self.is_open:
            return False
        self.requests -= 1.0
        self.tokens -= tokens
        return True


@dataclass(slots=True)
class _Line:
    """A model's waiting requests and its limits."""

    importance: int
    own: RateLimit
    waiting: list[Ticket] = field(default_factory=list)
    limit: RateLimit = RateLimit()
    bucket: TokenBucket | None = None
    by_priority: dict[str, TokenBucket] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)
    paid: int = 0  # of those that wait
    deadlines: list[tuple[float, int, Ticket]] = field(default_factory=list)  # a heap; those that left are skipped

    def earliest_s(self) -> float:
        """The first deadline of those that wait; infinity when nobody does."""
        heap = self.deadlines
        while heap and not heap[0][2].waits:
            heappop(heap)
        return heap[0][0] if heap else inf


class Admission:
    """The door of one router process. `own` gives each model's importance (priority class) and its own limit;
    `under_way(model)` tells how many of its requests are with ready engines now."""

    def __init__(
        self,
        own: Mapping[str, tuple[int, RateLimit]],
        *,
        room: int,
        starting_retry_after_s: float,
        now: float,
        under_way: Callable[[str], int] = lambda model: 0,
    ) -> None:
        self._lines = {model: _Line(importance=importance, own=limit) for model, (importance, limit) in own.items()}
        self._room = room
        self._under_way = under_way
        self._starting_retry_after_s = starting_retry_after_s
        self._seq = 0
        self._waiting = 0
        self.plan_version = 0
        self._plan_expires_s: float | None = None
        for line in self._lines.values():
            _limit(line, line.own, now)

    # -- the plan ------------------------------------------------------------------------------------------------------

    @property
    def plan_in_force(self) -> bool:
        """False: no plan came yet, or the last one expired, and the models' own limits hold."""
        return self._plan_expires_s is not None

    def put_plan(self, version: int, limits: Mapping[str, RateLimit], *, valid_s: float, now: float) -> bool:
        """Admit at these rates until `now + valid_s`. Models that are absent are unlimited; unknown ones are ignored. False:
        the version is older than the one in force, and nothing changed."""
        if version < self.plan_version:
            return False
        self.plan_version = version
        self._plan_expires_s = now + valid_s
        for model, line in self._lines.items():
            _limit(line, limits.get(model, RateLimit()), now)
        return True

    def expire(self, now: float) -> bool:
        """Whether the plan has just run out; then the models' own limits hold from now on."""
        if self._plan_expires_s is None or now < self._plan_expires_s:
            return False
        self._plan_expires_s = None
        for line in self._lines.values():
            _limit(line, line.own, now)
        return True

    def limit_of(self, model: str) -> RateLimit:
        return self._lines[model].limit

    # -- requests ------------------------------------------------------------------------------------------------------

    def offer(self, ticket: Ticket, now: float, usable: bool) -> Literal["admitted", "waiting"] | Refusal:
        """A request arrives. After "waiting", `pump` returns it later, or it is among those that `victims` returned."""
        line = self._lines[ticket.model]
        self._seq += 1
        ticket.seq = ticket.seq or self._seq
        if ticket.paid:
            line.shares.refund(ticket)
        placed = ticket.paid or self._places(ticket.model, line) >= 1.0
        if usable and not line.waiting and placed and self._affords(line, ticket, now):
            self._let_in(line, ticket)
            return "admitted"
        if self._waiting >= self._room and not self._outranks(ticket):
            return Refusal(reason="full", retry_after_s=self._retry_after(line, usable))
        insort(line.waiting, ticket)
        line.shares.enters(ticket)
        heappush(line.deadlines, (ticket.deadline_s, ticket.seq, ticket))
        ticket.waits, ticket.waits_paid = True, ticket.paid
        line.paid += ticket.paid
        self._waiting += 1
        return "waiting"

    def admits(self, ticket: Ticket, now: float) -> bool:
        """Let a new request in if it can come in at once; else nothing has changed, and `offer` is for it."""
        line = self._lines[ticket.model]
        if line.waiting or self._places(ticket.model, line) < 1.0 or not self._affords(line, ticket, now):
            return False
        self._let_in(line, ticket)
        return True

    def has_token(self, ticket: Ticket, now: float) -> bool:
        """Whether the rate alone would let this request in now."""
        line = self._lines[ticket.model]
        return ticket.paid or line.bucket is None or line.bucket.wait_s(now) == 0.0

    def overflow(self) -> list[tuple[Ticket, Refusal]]:
        """Those who must leave so that the room is within its bound: the least important of the longest line."""
        out = []
        while self._waiting > self._room:
            line = self._least_important()
            assert line is not None
            ticket = gives_way(line.waiting)
            self._remove(line, ticket)
            out.append((ticket, Refusal(reason="full", retry_after_s=self._retry_after(line, True))))
        return out

    def pump(
        self,
        now: float,
        usable: Callable[[Ticket], bool],
        fits: Callable[[Ticket], bool] | None = None,
        full: Callable[[], bool] | None = None,
    ) -> tuple[list[Ticket], list[tuple[Ticket, Refusal]]]:
        """Who may be sent now, in this order, and whose deadline has passed. A request whose pools cannot take it does not hold
        up others. `fits` (default: `usable`) is asked last, and whom it lets in comes in: it may count places. `full`: whether
        it would let in nobody of all that wait, so that a crowd need not be asked one by one."""
        fits = fits or usable
        shut = full is not None and full()
        admitted: list[Ticket] = []
        refused: list[tuple[Ticket, Refusal]] = []
        if not self._waiting:
            return admitted, refused
        for model, line in self._lines.items():
            if not line.waiting:
                continue
            places = self._places(model, line)
            overdue = now >= line.earliest_s()
            gone: list[Ticket] = []
            for ticket in line.shares.order(line.waiting):
                if not overdue and (shut or (places < 1.0 and not line.paid)):
                    break  # without a place nobody behind comes in either, and nobody has to go
                if now >= ticket.deadline_s:
                    can = usable(ticket)
                    reason: Reason = "rate" if can else "starting"
                    refused.append((ticket, Refusal(reason=reason, retry_after_s=self._retry_after(line, can))))
                    gone.append(ticket)
                elif not shut and (ticket.paid or places >= 1.0) and self._affords(line, ticket, now) and fits(ticket):
                    places -= 1.0
                    self._let_in(line, ticket)
                    admitted.append(ticket)
                    gone.append(ticket)
                    shut = full is not None and full()
            if len(gone) > FEW:
                left = set(gone)
                line.waiting = [ticket for ticket in line.waiting if ticket not in left]
            for ticket in gone:
                if len(gone) <= FEW:
                    line.waiting.remove(ticket)
                self._left(line, ticket)
        return admitted, refused

    def leave(self, ticket: Ticket) -> None:
        """The client of a waiting request went away."""
        line = self._lines[ticket.model]
        if ticket in line.waiting:
            self._remove(line, ticket)

    def _remove(self, line: _Line, ticket: Ticket) -> None:
        line.waiting.remove(ticket)
        self._left(line, ticket)

    def _left(self, line: _Line, ticket: Ticket) -> None:
        line.shares.leaves(ticket)
        line.paid -= ticket.waits_paid
        ticket.waits = ticket.waits_paid = False
        self._waiting -= 1

    def next_event_s(self, now: float) -> float | None:
        """When `pump` should run at the latest (a token, a deadline, the plan's end); None: nobody waits and no plan can
        expire."""
        times = [] if self._plan_expires_s is None else [self._plan_expires_s]
        for line in self._lines.values():
            if line.waiting:
                times.append(line.earliest_s())
                buckets: Iterable[TokenBucket] = [*line.by_priority.values(), *([line.bucket] if line.bucket else [])]
                waits = [bucket.wait_s(now) for bucket in buckets]
                times += [now + wait for wait in waits if 0.0 < wait < float("inf")]
        return min(times, default=None)

    def waiting(self, model: str) -> list[Ticket]:
        return self._lines[model].waiting

    @property
    def bounds_in_flight(self) -> bool:
        """Whether what ends may let somebody in who waits."""
        return any(line.waiting and line.limit.in_flight is not None for line in self._lines.values())

    def _places(self, model: str, line: _Line) -> float:
        """How many more requests may be under way now."""
        most = line.limit.in_flight
        return float("inf") if most is None else max(1.0, most) - self._under_way(model)

    def _affords(self, line: _Line, ticket: Ticket, now: float) -> bool:
        """Whether the rate lets it in now."""
        if ticket.paid:
            return True
        if line.by_priority and (single := line.by_priority.get(str(ticket.priority))) and single.wait_s(now) > 0.0:
            return False
        return line.bucket is None or line.bucket.wait_s(now) == 0.0

    def _let_in(self, line: _Line, ticket: Ticket) -> None:
        if not ticket.paid:
            if line.by_priority and (single := line.by_priority.get(str(ticket.priority))):
                single.take()
            if line.bucket is not None:
                line.bucket.take()
            ticket.paid = True
        if ticket.tenant is not None:
            line.shares.charge(ticket)

    def _outranks(self, ticket: Ticket) -> bool:
        line = self._least_important()
        if line is None:
            return False
        mine = self._lines[ticket.model]
        last = line.waiting[-1]
        theirs_rank, my_rank = (line.importance, last.priority), (mine.importance, ticket.priority)
        if line is mine and may_displace(ticket, line.waiting):
            return True
        return theirs_rank < my_rank or (theirs_rank == my_rank and len(line.waiting) > len(mine.waiting) + 1)

    def _least_important(self) -> _Line | None:
        lines = [line for line in self._lines.values() if line.waiting]
        return min(lines, key=lambda line: (line.importance, line.waiting[-1].priority, -len(line.waiting)), default=None)

    def _retry_after(self, line: _Line, usable: bool) -> float:
        if not usable:
            return self._starting_retry_after_s
        rate = line.limit.rate_rps
        return min(60.0, (len(line.waiting) + 1) / rate) if rate else self._starting_retry_after_s


def _limit(line: _Line, limit: RateLimit, now: float) -> None:
    line.limit = limit
    if limit.rate_rps is None:
        line.bucket = None
    elif line.bucket is None:
        line.bucket = TokenBucket(limit.rate_rps, limit.burst, now)
    else:
        line.bucket.change(limit.rate_rps, limit.burst, now)
    kept = {}
    for priority, rate in limit.by_priority.items():
        burst = None if limit.burst is None or not limit.rate_rps else limit.burst * rate / limit.rate_rps
        bucket = line.by_priority.get(priority)
        if bucket is None:
            bucket = TokenBucket(rate, burst, now)
        else:
            bucket.change(rate, burst, now)
        kept[priority] = bucket
    line.by_priority = kept


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
