"""The router's endpoints and pools in virtual time: an engine behind each endpoint, and what is counted for the planners. Pure.

A `Station` is a pool as one router process sees it (`router.endpoints` without sockets): who is ready, what is under way where,
and the pool's picker. Sums are kept as they change, so that nothing here costs more in a larger pool than it must.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from global_planner.replay.engine import Replica
from global_planner.replay.least_loaded import LeastLoaded
from global_planner.replay.prefix_cache import PrefixCache
from pool_planner.types import Role
from router.config import OutlierConfig
from router.config_pools import PoolConfig
from router.ejection import Ejection, next_trial
from router.openings import Room
from router.policy import Ask, LeastTokens, Picker, usable

State = Literal["starting", "ready", "draining"]
ANYTHING = Ask(isl_tokens=1.0)


class Endpoint:
    """One engine, and what the router has under way there; `unstarted`: prompts that no token has followed yet (counted only
    where selection is adaptive). `engine` None: its process does not serve yet, or is gone. `counted`: it is
    among the station's ready ones."""

    __slots__ = (
        "cache",
        "counted",
        "due_s",
        "ending",
        "engine",
        "id",
        "in_flight",
        "isl_tokens",
        "itl_s",
        "known",
        "outstanding_tokens",
        "pending_kv",
        "state",
        "station",
        "ttft_s",
        "unstarted",
        "unstarted_tokens",
    )

    def __init__(self, id: str, station: Station) -> None:
        self.id = id
        self.station = station
        self.state: State = "starting"
        self.known = True
        self.counted = False
        self.ending = False
        self.engine: Replica | None = None
        self.due_s = float("inf")
        self.in_flight = 0
        self.outstanding_tokens = 0.0
        self.unstarted = 0
        self.unstarted_tokens = 0.0
        self.pending_kv = 0
        self.cache: PrefixCache | None = None
        self.ttft_s: float | None = None
        self.isl_tokens: float | None = None
        self.itl_s: float | None = None


class Station:
    """One pool. `started`, `offered` (by request priority), `shed` count as the router's series do; `prompts`: lengths of
    those that arrived since somebody took them, `answers`: (isl, osl, TTFT s, ITL s or NaN, duration s) of the requests that
    were answered through it since then. `crowd`: requests
    that are with ready endpoints. `broken`: it has endpoints that should work and do not. `ready` may be picked; of
    those that were ejected as too slow, `on_trial` get one request at a time."""

    __slots__ = (
        "_index",
        "_max_in_flight",
        "_max_tokens",
        "_picker",
        "answers",
        "broken",
        "config",
        "crowd",
        "ejection",
        "endpoints",
        "name",
        "offered",
        "on_trial",
        "prompts",
        "ready",
        "role",
        "shed",
        "started",
        "waiting",
        "waiting_tokens",
    )

    def __init__(self, config: PoolConfig, picker: Picker, outliers: OutlierConfig | None = None) -> None:
        self.config = config
        self.name = config.name
        self.role: Role = config.role
        self.endpoints: dict[str, Endpoint] = {}
        self.ready: list[Endpoint] = []
        self.broken = False
        self.on_trial: list[Endpoint] = []
        self.ejection = Ejection(outliers, config.pick)
        self.started = 0
        self.offered: dict[int, int] = {0: 0}
        self.shed = 0
        self.crowd = 0
        self.waiting = 0
        self.waiting_tokens = 0.0
        self.prompts: list[int] = []
        self.answers: list[tuple[int, int, float, float, float]] = []
        self._picker = picker
        self._max_in_flight = config.max_in_flight
        self._max_tokens = config.max_outstanding_tokens
        self._index: LeastLoaded[Endpoint] | None = LeastLoaded(picker) if type(picker) is LeastTokens else None

    def refresh(self) -> None:
        """Recompute who may be picked; those that nobody knows any more go when they are idle."""
        for endpoint in [one for one in self.endpoints.values() if not one.known]:
            if endpoint.in_flight == 0 and endpoint.pending_kv == 0:
                del self.endpoints[endpoint.id]
        ready = [one for one in self.endpoints.values() if _is_ready(one)]
        self.ready, self.on_trial = self.ejection.divide(ready)
        for endpoint in self.endpoints.values():
            endpoint.counted = False
        for endpoint in self.ready:
            endpoint.counted = True
        self.broken = any(one.state == "ready" and one.known and one.engine is None for one in self.endpoints.values())
        self.crowd = sum([one.in_flight for one in self.ready])
        if self._index is not None:
            self._index.rebuild(self.ready)

    def usable(self, without: Collection[str] = ()) -> Sequence[Endpoint]:
        return usable(self.ready, max_in_flight=self._max_in_flight, without=without, max_tokens=self._max_tokens)

    @property
    def can_take(self) -> bool:
        """Whether some endpoint is usable."""
        if self._index is None or self._max_in_flight is not None:
            return bool(self.usable())
        return bool(self.ready) and (self._max_tokens is None or self._index.lightest_tokens() < self._max_tokens)

    def can_serve(self, without: Collection[str]) -> bool:
        """Whether some endpoint beside these is usable."""
        return bool(self.usable(without)) if without else self.can_take

    def room(self) -> Room:
        """Requests and tokens that its usable endpoints can take yet, as `router.endpoints.Pool.room`."""
        free = self.usable()
        requests = tokens = float("inf") if free else 0.0
        if self._max_in_flight is not None:
            requests = float(sum([self._max_in_flight - one.in_flight for one in free]))
        if self._max_tokens is not None:
            tokens = sum([self._max_tokens - one.outstanding_tokens for one in free])
        return Room(requests, tokens)

    def pick(self, ask: Ask | None, without: Collection[str]) -> Endpoint | None:
        """One usable endpoint, or None; as `router.endpoints.Pool.pick`. `ask` may be absent where the pool picks by load."""
        if self.on_trial and (tried := next_trial(self.on_trial, without)) is not None:
            return tried
        if self._index is not None and not without and self._max_in_flight is None:
            return self._index.pick() if self.can_take else None
        candidates = self.usable(without)
        if not candidates:
            return None
        return candidates[0] if len(candidates) == 1 else self._picker.pick(candidates, ask or ANYTHING)

    def load(self) -> float:
        """Outstanding tokens for each usable endpoint; infinite without one."""
        if not self.ready:
            return float("inf")
        return sum(endpoint.outstanding_tokens for endpoint in self.ready) / len(self.ready)

    def arrived(self, priority: int, isl: int) -> None:
        """A request was assigned to the pool."""
        self.prompts.append(isl)
        self.started += 1
        self.offered[priority] = self.offered.get(priority, 0) + 1

    def sent(self, endpoint: Endpoint, tokens: float) -> None:
        """A request of so many tokens went to an endpoint."""
        endpoint.in_flight += 1
        self.crowd += endpoint.counted
        endpoint.outstanding_tokens += tokens
        if self._index is not None:
            self._index.moved(endpoint.id, endpoint.outstanding_tokens, endpoint.in_flight)

    def ended(self, endpoint: Endpoint, tokens: float) -> None:
        endpoint.in_flight -= 1
        self.crowd -= endpoint.counted
        endpoint.outstanding_tokens -= tokens
        if self._index is not None:
            self._index.moved(endpoint.id, endpoint.outstanding_tokens, endpoint.in_flight)


def _is_ready(endpoint: Endpoint) -> bool:
    return endpoint.state == "ready" and endpoint.known and endpoint.engine is not None
