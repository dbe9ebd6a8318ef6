"""Whose turn it is among tenants of one priority: weighted fair queueing by tokens. Pure.

Every tenant has a virtual time, the tokens that it was given divided by its weight; who has had least comes next, and a
tenant's own requests keep their order. A tenant that comes back after a pause starts where the others are, so that what was not
asked for is not saved up (start-time fair queueing, Goyal, Vin and Cheng, 1996; but charged when a request is let in, not when
it comes, so that what expires or is shed costs its tenant nothing). When the room is full, the tenant with most waiting gives
up its newest.

Requests without a tenant (nobody needs a key) are one tenant: then the order is that of arrival, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heapreplace
from typing import Protocol, TypeVar

MAX_CLASSES = 64


class Turn(Protocol):
    """What fairness reads of a request. `weight` is its tenant's."""

    @property
    def tenant(self) -> str | None: ...

    @property
    def weight(self) -> float: ...

    @property
    def priority(self) -> int: ...

    @property
    def tokens(self) -> float: ...


T = TypeVar("T", bound=Turn)


class _Class:
    """One priority: the virtual time now, where each tenant is, and how many requests of it wait."""

    __slots__ = ("given", "now", "waiting")

    def __init__(self) -> None:
        self.now = 0.0
        self.given: dict[str, float] = {}
        self.waiting: dict[str, int] = {}


class Shares:
    """What the tenants of one line have been given. Tenants are as many as there are keys; priorities are kept apart, those
    that nobody waits in only as long as there are at most `MAX_CLASSES`."""

    __slots__ = ("_classes",)

    def __init__(self) -> None:
        self._classes: dict[int, _Class] = {}

    def enters(self, one: Turn) -> None:
        """A request waits from now on."""
        if one.tenant is not None:
            of = self._class(one.priority)
            self._start(of, one.tenant)
            of.waiting[one.tenant] = of.waiting.get(one.tenant, 0) + 1

    def leaves(self, one: Turn) -> None:
        """It waits no more, for whatever reason."""
        if one.tenant is not None:
            of = self._class(one.priority)
            of.waiting[one.tenant] -= 1
            if not of.waiting[one.tenant]:
                del of.waiting[one.tenant]

    def charge(self, one: Turn) -> None:
        """A request is let in; one that waited, before it `leaves`."""
        if one.tenant is not None:
            of = self._class(one.priority)
            start = self._start(of, one.tenant)
            of.now = max(of.now, start)
            of.given[one.tenant] = start + cost(one)

    def refund(self, one: Turn) -> None:
        """It was let in and comes back, because somebody took its place or an engine failed."""
        if one.tenant is not None:
            given = self._class(one.priority).given
            given[one.tenant] = given.get(one.tenant, 0.0) - cost(one)

    def order(self, waiting: Sequence[T]) -> Iterable[T]:
        """The waiting requests (more important first, then by arrival) in the order in which they should be tried. It is
        decided one at a time: what `charge` is told between two of them counts."""
        return self._by_class(waiting) if self._classes else waiting

    def _by_class(self, waiting: Sequence[T]) -> Iterator[T]:
        first = 0
        while first < len(waiting):
            priority, last = waiting[first].priority, first
            lines: dict[str, list[T]] = {}
            while last < len(waiting) and waiting[last].priority == priority:
                lines.setdefault(waiting[last].tenant or "", []).append(waiting[last])
                last += 1
            yield from self._in_turn(lines, priority) if len(lines) > 1 else waiting[first:last]
            first = last

    def _in_turn(self, lines: dict[str, list[T]], priority: int) -> Iterator[T]:
        given = self._class(priority).given
        for line in lines.values():
            line.reverse()
        # Equals go by name, so that equal inputs give equal outputs.
        turns = [(given.get(tenant, 0.0), tenant) for tenant in lines]
        heapify(turns)
        while turns:
            tenant = turns[0][1]
            line = lines[tenant]
            yield line.pop()
            if line:
                heapreplace(turns, (given.get(tenant, 0.0), tenant))
            else:
                heappop(turns)

    def _start(self, of: _Class, tenant: str) -> float:
        """Where the tenant is; nobody who had nothing waiting is behind those who wait, or was last let in where none does."""
        start = of.given.get(tenant, 0.0)
        if tenant not in of.waiting:
            start = max(start, min((of.given[name] for name in of.waiting), default=of.now))
            of.given[tenant] = start
        return start

    def _class(self, priority: int) -> _Class:
        found = self._classes.get(priority)
        if found is None:
            if len(self._classes) >= MAX_CLASSES:
                for unused in [name for name, of in self._classes.items() if not of.waiting][:1]:
                    del self._classes[unused]
            found = self._classes[priority] = _Class()
        return found


def cost(one: Turn) -> float:
    """What a request takes of its tenant's share: its tokens (at least one) by the tenant's weight."""
    return max(1.0, one.tokens) / one.weight


def backlog(waiting: Iterable[Turn]) -> dict[str | None, float]:
    """By tenant: the cost of what waits."""
    found: dict[str | None, float] = {}
    for one in waiting:
        found[one.tenant] = found.get(one.tenant, 0.0) + cost(one)
    return found


def gives_way(waiting: Sequence[T]) -> T:
    """Who leaves a full room, of at least one waiting request (ordered as for `Shares.order`): of the lowest priority, the
    newest of the tenant that has most waiting for its weight."""
    priority, tenant = waiting[-1].priority, waiting[-1].tenant
    lowest = [one for one in waiting if one.priority == priority]
    if any(one.tenant != tenant for one in lowest):
        of = backlog(lowest)
        # Of equals the one whose request came last.
        tenant = max(reversed(lowest), key=lambda one: of[one.tenant]).tenant
    return next(one for one in reversed(lowest) if one.tenant == tenant)


def may_displace(newcomer: Turn, waiting: Sequence[Turn]) -> bool:
    """Whether somebody of the newcomer's own line and priority gives way to it: a tenant with more waiting than the newcomer's
    would have with it. `waiting` is not empty."""
    priority = newcomer.priority
    if newcomer.tenant is None or waiting[-1].priority != priority:
        return False
    of = backlog(one for one in waiting if one.priority == priority)
    return max(of.values()) > of.get(newcomer.tenant, 0.0) + cost(newcomer)
