"""[I/O] The waiting room in real time: tickets of `router.admission` as futures, and the one timer that wakes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from router.adaptive import NOBODY, Waiting
from router.admission import Admission, Refusal, Ticket
from router.limits import RateLimit
from router.openings import Room
from router.policy import Path


class Door:
    """Lets requests in at the admitted rate, and keeps them waiting until an endpoint can take them.

    `usable(path)` says whether a way has usable endpoints now, `room(path)` for how much. `met_zero(model)` is called when a
    request has to wait for one.
    """

    def __init__(
        self,
        admission: Admission,
        *,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        speed: float,
        usable: Callable[[Path], bool],
        room: Callable[[Path], Room],
        met_zero: Callable[[str], None],
    ) -> None:
        self.admission = admission
        self._loop = loop
        self._now = now
        self._speed = speed
        self._usable = usable
        self._room = room
        self._met_zero = met_zero
        self._futures: dict[Ticket, asyncio.Future[Refusal | None]] = {}
        self._waiting_for: dict[str, tuple[int, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return len(self._futures)

    def waiting_for(self, pool: str) -> Waiting:
        """What waits for a pool, by the ways that the requests would rather take."""
        requests, tokens = self._waiting_for.get(pool, (0, 0.0))
        return Waiting(requests=requests, tokens=tokens) if requests else NOBODY

    def _count(self, ticket: Ticket, more: int) -> None:
        for pool in ticket.paths[0].assigned:
            requests, tokens = self._waiting_for.get(pool, (0, 0.0))
            self._waiting_for[pool] = (requests + more, tokens + more * ticket.tokens)

    def tickets(self) -> list[Ticket]:
        """Everybody who waits now."""
        return list(self._futures)

    def enters(self, ticket: Ticket) -> bool:
        """Whether a request comes in at once whose first way can be used now; if not, `try_enter` is for it."""
        return self.admission.admits(ticket, self._now())

    def try_enter(self, ticket: Ticket) -> Refusal | bool:
        """At once: True (come in), False (`wait` for it), or the refusal."""
        usable = self._can(ticket)
        verdict = self.admission.offer(ticket, self._now(), usable)
        if verdict == "admitted":
            return True
        if not usable:
            self._met_zero(ticket.model)
        return False if verdict == "waiting" else verdict

    async def wait(self, ticket: Ticket) -> Refusal | None:
        """Wait for admission after `try_enter` said False; None: come in."""
        future: asyncio.Future[Refusal | None] = self._loop.create_future()
        self._futures[ticket] = future
        self._count(ticket, 1)
        for victim, refusal in self.admission.overflow():
            self._resolve(victim, refusal)
        if self.admission.has_token(ticket, self._now()):
            # Those in front may wait for other pools: then this one need not.
            self.pump()
        else:
            self._schedule()
        try:
            return await future
        except asyncio.CancelledError:
            if self._futures.pop(ticket, None) is not None:
                self._count(ticket, -1)
                self.admission.leave(ticket)
            else:
                # It was just let in, and does not take its place: somebody else may.
                self._loop.call_soon(self.pump)
            raise

    def put_plan(self, version: int, limits: Mapping[str, RateLimit], *, valid_s: float) -> int:
        """Set what the plan admits; the version in force."""
        self.admission.put_plan(version, limits, valid_s=valid_s, now=self._now())
        self.pump()
        return self.admission.plan_version

    def pump(self) -> None:
        """Let in whoever can come in now, and turn away whoever has waited too long."""
        admitted, refused = self.admission.turn(self._now(), self._usable, self._room)
        for ticket in admitted:
            self._resolve(ticket, None)
        for ticket, refusal in refused:
            self._resolve(ticket, refusal)
        self._schedule()

    def _resolve(self, ticket: Ticket, refusal: Refusal | None) -> None:
        future = self._futures.pop(ticket, None)
        if future is not None:
            self._count(ticket, -1)
            if not future.done():
                future.set_result(refusal)

    def _can(self, ticket: Ticket) -> bool:
        for path in ticket.paths:  # noqa: SIM110 (asked for every request: a generator costs more than its answer)
            if self._usable(path):
                return True
        return False

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._now()
        at = self.admission.next_event_s(now)
        if at is not None:
            # At least a millisecond: an event that is due but cannot be served must not spin.
            self._timer = self._loop.call_later(max(0.001, (at - now) / self._speed), self.pump)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
