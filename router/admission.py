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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Literal

from router.crowds import Crowds
from router.fairness import Shares, gives_way, may_displace
from router.limits import Gate, RateLimit
from router.openings import Openings, Room
from router.policy import Path

FEW = 4  # so many are taken out of a line one by one: they mostly stand in front
Reason = Literal["rate", "starting", "full"]


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
class _Line:
    """A model's waiting requests and its limits."""

    importance: int
    own: RateLimit
    gate: Gate
    waiting: list[Ticket] = field(default_factory=list)
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
    `under_way(model)` tells how many of its requests are with ready engines now, `inside(pool)` how many are with those of a
    pool."""

    def __init__(
        self,
        own: Mapping[str, tuple[int, RateLimit]],
        *,
        room: int,
        starting_retry_after_s: float,
        now: float,
        under_way: Callable[[str], int] = lambda model: 0,
        inside: Callable[[str], int] = lambda pool: 0,
    ) -> None:
        self._lines = {
            model: _Line(importance=importance, own=limit, gate=Gate(limit, now)) for model, (importance, limit) in own.items()
        }
        self._room = room
        self._under_way = under_way
        self._crowds = Crowds(inside)
        self._starting_retry_after_s = starting_retry_after_s
        self._seq = 0
        self._waiting = 0
        self.plan_version = 0
        self._plan_expires_s: float | None = None
        self._ways: dict[tuple[Path, ...], int] = {}  # of those that wait, and how many have which

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
            line.gate.put(limits.get(model, RateLimit()), now)
        self._count_crowds()
        return True

    def expire(self, now: float) -> bool:
        """Whether the plan has just run out; then the models' own limits hold from now on."""
        if self._plan_expires_s is None or now < self._plan_expires_s:
            return False
        self._plan_expires_s = None
        for line in self._lines.values():
            line.gate.put(line.own, now)
        self._count_crowds()
        return True

    def _count_crowds(self) -> None:
        """Pools have one model each, so the bounds of all models' pools are one table."""
        limits = [line.gate.limit for line in self._lines.values()]
        self._crowds.put({pool: most for limit in limits for pool, most in limit.in_flight_by_pool.items()})

    def limit_of(self, model: str) -> RateLimit:
        return self._lines[model].gate.limit

    # -- requests ------------------------------------------------------------------------------------------------------

    def offer(self, ticket: Ticket, now: float, usable: bool) -> Literal["admitted", "waiting"] | Refusal:
        """A request arrives. After "waiting", `pump` returns it later, or it is among those that `victims` returned."""
        line = self._lines[ticket.model]
        self._seq += 1
        ticket.seq = ticket.seq or self._seq
        if ticket.paid:
            line.shares.refund(ticket)
        placed = ticket.paid or (self._places(ticket.model, line) >= 1.0 and self._may_begin(ticket, now))
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
        self._ways[ticket.paths] = self._ways.get(ticket.paths, 0) + 1
        return "waiting"

    def admits(self, ticket: Ticket, now: float) -> bool:
        """Let a new request in if it can come in at once; else nothing has changed, and `offer` is for it."""
        line = self._lines[ticket.model]
        if line.waiting or self._places(ticket.model, line) < 1.0 or not self._affords(line, ticket, now):
            return False
        if not self._may_begin(ticket, now):
            return False
        self._let_in(line, ticket)
        return True

    def has_token(self, ticket: Ticket, now: float) -> bool:
        """Whether the rate alone would let this request in now."""
        line = self._lines[ticket.model]
        return ticket.paid or line.gate.has_token(now)

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

    def turn(
        self, now: float, usable: Callable[[Path], bool], room: Callable[[Path], Room]
    ) -> tuple[list[Ticket], list[tuple[Ticket, Refusal]]]:
        """`pump` by the ways that are usable now, and by the room on them (`openings.Openings`), once the plan is known to be
        in force still."""
        self.expire(now)
        if not self._waiting:
            return [], []
        openings = Openings(usable, self._room_within(room, now))
        return self.pump(
            now,
            lambda ticket: openings.usable(ticket.paths),
            lambda ticket: openings.take(ticket.paths, ticket.tokens),
            lambda: openings.full(self._ways),
        )

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
        left = self._ways[ticket.paths] - 1
        if left:
            self._ways[ticket.paths] = left
        else:
            del self._ways[ticket.paths]

    def next_event_s(self, now: float) -> float | None:
        """When `pump` should run at the latest (a token, a deadline, the plan's end); None: nobody waits and no plan can
        expire."""
        times = [] if self._plan_expires_s is None else [self._plan_expires_s]
        for line in self._lines.values():
            if line.waiting:
                times.append(line.earliest_s())
                times += line.gate.next_tokens_s(now)
        return min(times, default=None)

    def waiting(self, model: str) -> list[Ticket]:
        return self._lines[model].waiting

    @property
    def bounds_in_flight(self) -> bool:
        """Whether what ends, or goes from prefill to decode, may let somebody in who waits."""
        for line in self._lines.values():
            if line.waiting and (line.gate.limit.in_flight is not None or line.gate.limit.in_flight_by_pool):
                return True
        return False

    def _places(self, model: str, line: _Line) -> float:
        """How many more requests may be under way now."""
        most = line.gate.limit.in_flight
        return float("inf") if most is None else max(1.0, most) - self._under_way(model)

    def _may_begin(self, ticket: Ticket, now: float) -> bool:
        """Whether the pools on the way that it would rather take have room for one more."""
        return not self._crowds.bounded or not ticket.paths or self._crowds.places(ticket.paths[0], now) >= 1.0

    def _room_within(self, room: Callable[[Path], Room], now: float) -> Callable[[Path], Room]:
        """The room on the ways, as far as their pools may have more."""
        if not self._crowds.bounded:
            return room

        def within(path: Path) -> Room:
            there = room(path)
            there.requests = min(there.requests, self._crowds.places(path, now))
            return there

        return within

    def _affords(self, line: _Line, ticket: Ticket, now: float) -> bool:
        """Whether the rate lets it in now."""
        return ticket.paid or line.gate.opens(ticket.priority, now)

    def _let_in(self, line: _Line, ticket: Ticket) -> None:
        if not ticket.paid:
            line.gate.take(ticket.priority)
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
        rate = line.gate.limit.rate_rps
        return min(60.0, (len(line.waiting) + 1) / rate) if rate else self._starting_retry_after_s
