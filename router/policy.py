"""Which pool, and which endpoint in it: filter, score, pick. Pure.

A request first gets a *route* through the stage of each role: the pools to try, the chosen one first. The chosen pool comes
from a grid, from the prompt length limits of the pools, or from a fixed chain. Within a pool the usable endpoints are left
over by the filter, and one picker takes one of them. Pickers keep only what they need to be fair (a turn, a ring); the load
they read is the endpoints' own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from math import ceil
from typing import NamedTuple, Protocol, TypeVar

from pool_planner.types import Role
from router.config_pools import AxisConfig, GridConfig, ModelConfig, Pick

# ---- which pool -----------------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """What of a request decides where it goes. Targets in model ms; None: the request names none. `osl_tokens` is how long the
    answer will probably be; `blocks` are hashes of ever longer beginnings of the prompt (only where a pool picks by them).

    A tuple, because one is made for every request, and a frozen dataclass takes four times as long to make."""

    isl_tokens: float
    osl_tokens: float = 256.0
    ttft_ms: float | None = None
    itl_ms: float | None = None
    priority: int | None = None
    blocks: tuple[int, ...] = ()

    def along(self, axis: str) -> float | None:
        """The request's coordinate on a grid's axis. At the decode stage the context is the prompt."""
        if axis in ("isl_tokens", "context_tokens"):
            return self.isl_tokens
        return self.ttft_ms if axis == "ttft_ms" else self.itl_ms


def cell(value: float | None, axis: AxisConfig) -> int:
    """Index of the axis' cell that holds `value`: clamp(int((x - min) / ((max - min) / resolution)), 0, resolution - 1); a
    missing value is the middle of the range."""
    x = (axis.min + axis.max) / 2 if value is None else value
    position = (x - axis.min) / ((axis.max - axis.min) / axis.resolution)
    return max(0, min(int(max(-1.0, min(position, float(axis.resolution)))), axis.resolution - 1))


class Stage:
    """The pools of one role of a model, and the rule that picks among them. `load(pool)` breaks ties between pools of equal
    limit: outstanding tokens for each usable endpoint, infinite where there is none."""

    def __init__(self, model: ModelConfig, role: Role) -> None:
        self._pools = model.role_pools(role)
        self.names = tuple(pool.name for pool in self._pools)
        self._grid: GridConfig | None = model.grids.get(role)
        self._cells = self._grid.flat_cells() if self._grid else ()
        self._priority_retry = model.priority_retry
        self._spill = model.spill
        self._ttft_ms = model.default_ttft_ms
        self._itl_ms = model.default_itl_ms

    def route(self, ask: Ask, load: Callable[[str], float]) -> tuple[str, ...]:
        """Pools to try, the chosen one first; never empty for a stage that has pools."""
        if len(self.names) == 1:
            return self.names
        if self._grid and self._grid.chain:
            return self._grid.chain
        chosen = self._by_grid(ask, self._grid) if self._grid else self._by_limit(ask, load)
        return (chosen, *self._alternatives(chosen, ask, load))

    def _by_grid(self, ask: Ask, grid: GridConfig) -> str:
        if ask.priority is not None:
            for rule in grid.overrides:
                if rule.min_priority <= ask.priority <= rule.max_priority:
                    return rule.pool
        defaults = {"ttft_ms": self._ttft_ms, "itl_ms": self._itl_ms}
        index = 0
        for axis in grid.axes:
            value = ask.along(axis.by)
            index = index * axis.resolution + cell(defaults.get(axis.by) if value is None else value, axis)
        return self._cells[index]

    def _by_limit(self, ask: Ask, load: Callable[[str], float]) -> str:
        fitting = [pool for pool in self._pools if pool.isl_max_tokens is None or ask.isl_tokens <= pool.isl_max_tokens]
        pools = fitting or self._pools
        limits = [pool.isl_max_tokens if pool.isl_max_tokens is not None else float("inf") for pool in pools]
        # A prompt too long for every pool goes to the longest: the engine says by how much it is too long.
        wanted = min(limits) if fitting else max(limits)
        equal = [pool.name for pool, limit in zip(pools, limits, strict=True) if limit == wanted]
        return equal[0] if len(equal) == 1 else min(equal, key=load)

    def _alternatives(self, chosen: str, ask: Ask, load: Callable[[str], float]) -> list[str]:
        order = {pool.name: pool.order for pool in self._pools}
        at = order[chosen]
        after: list[str] = []
        if self._priority_retry and at is not None:
            faster = [(-rank, name) for name, rank in order.items() if rank is not None and rank < at]
            after += [name for _, name in sorted(faster, key=lambda item: item[0])]
        if self._spill:
            fitting = [
                (pool.isl_max_tokens or float("inf"), load(pool.name), pool.name)
                for pool in self._pools
                if pool.name != chosen
                and pool.name not in after
                and (pool.isl_max_tokens is None or ask.isl_tokens <= pool.isl_max_tokens)
            ]
            after += [name for _, _, name in sorted(fitting)]
        return after


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One way through a model's stages: a prefill pool of `prefill` (empty: none), then a pool of `serve` (decode or
    aggregated), each in the order to be tried. `instead_of`: this way is only for when those pools have endpoints that fail
    (decode-only)."""

    prefill: tuple[str, ...]
    serve: tuple[str, ...]
    instead_of: tuple[str, ...] = ()

    @property
    def assigned(self) -> tuple[str, ...]:
        """The pools that a request on this way is counted for on arrival."""
        return (*self.prefill[:1], *self.serve[:1])


MAX_WAYS = 1024


Route = Callable[[Ask, Callable[[str], float]], tuple[str, ...]]


class Stages:
    """All stages of a model. `adaptive(role)` gives the routes of a model that selects so, instead of `Stage`."""

    def __init__(self, model: ModelConfig, adaptive: Callable[[Role], Route] | None = None) -> None:
        roles: tuple[Role, ...] = ("prefill", "decode", "agg")
        route = adaptive or (lambda role: Stage(model, role).route)
        self._routes = {role: route(role) for role in roles if model.role_pools(role)}
        self._decode_only = model.decodes_alone
        # Few orders of pools are ever asked for: the same ways are the same objects.
        self._known: dict[tuple[tuple[str, ...], ...], tuple[Path, ...]] = {}

    def paths(self, ask: Ask, load: Callable[[str], float]) -> tuple[Path, ...]:
        """The ways to serve a request, the wanted one first; never empty."""
        order = tuple([route(ask, load) for route in self._routes.values()])
        known = self._known.get(order)
        if known is None:
            if len(self._known) >= MAX_WAYS:
                self._known.clear()
            known = self._known[order] = tuple(self._ways(dict(zip(self._routes, order, strict=True))))
        return known

    def _ways(self, routes: Mapping[Role, tuple[str, ...]]) -> Iterator[Path]:
        decode, prefill = routes.get("decode", ()), routes.get("prefill", ())
        if prefill and decode:
            yield Path(prefill=prefill, serve=decode)
        if "agg" in routes:
            yield Path(prefill=(), serve=routes["agg"])
        if prefill and decode and self._decode_only:
            yield Path(prefill=(), serve=decode, instead_of=prefill)


# ---- which endpoint -------------------------------------------------------------------------------------------------


class Candidate(Protocol):
    """What a picker reads of an endpoint."""

    @property
    def id(self) -> str: ...

    @property
    def in_flight(self) -> int: ...

    @property
    def outstanding_tokens(self) -> float: ...


C = TypeVar("C", bound=Candidate)


def usable(
    ready: Sequence[C], *, max_in_flight: int | None, without: Collection[str], max_tokens: int | None = None
) -> Sequence[C]:
    """The filter: ready endpoints that are below their limits (requests, outstanding tokens) and not excluded (those that
    failed this request)."""
    if max_in_flight is None and max_tokens is None and not without:
        return ready
    most = float("inf") if max_in_flight is None else max_in_flight
    tokens = float("inf") if max_tokens is None else max_tokens
    return [
        endpoint
        for endpoint in ready
        if endpoint.in_flight < most and endpoint.outstanding_tokens < tokens and endpoint.id not in without
    ]


class Picker(Protocol):
    """Takes one of at least one usable endpoint."""

    def pick(self, endpoints: Sequence[C], ask: Ask) -> C: ...


class RoundRobin:
    """Each in turn. The turn is a position, not an endpoint, so a changing membership stays fair on average."""

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, endpoints: Sequence[C], ask: Ask) -> C:
        self._turn += 1
        return endpoints[self._turn % len(endpoints)]


class LeastTokens:
    """The least outstanding tokens, then the fewest requests; equals take turns. With equal endpoints the difference between
    any two stays within the tokens of one request of the largest size."""

    def __init__(self) -> None:
        self._turn = 0

    def turn(self, count: int) -> int:
        """Whose turn it is now among `count` equals; the next time it is another's."""
        self._turn = (self._turn + 1) % count
        return self._turn

    def pick(self, endpoints: Sequence[C], ask: Ask) -> C:
        count = len(endpoints)
        start = self.turn(count)
        best = endpoints[start]
        tokens, requests = best.outstanding_tokens, best.in_flight
        # Negative indices: from the one after the start all around, without a remainder to compute.
        for index in range(start + 1 - count, start):
            other = endpoints[index]
            load = other.outstanding_tokens
            if load < tokens or (load == tokens and other.in_flight < requests):
                best, tokens, requests = other, load, other.in_flight
        return best


class PowerOfTwo:
    """The less loaded of two at random: nearly as even as the least loaded, at a cost that does not grow with the pool."""

    def __init__(self, below: Callable[[int], int]) -> None:
        self._below = below

    def pick(self, endpoints: Sequence[C], ask: Ask) -> C:
        count = len(endpoints)
        first = endpoints[self._below(count)]
        second = endpoints[self._below(count)]
        return second if second.outstanding_tokens < first.outstanding_tokens else first


class PrefixAffinity:
    """A prompt goes where most of its beginning was already computed, while the load there allows.

    Remembered are the endpoints that served each block of a prompt lately; the deepest block that an endpoint below the bound
    has served decides, and the least loaded of several. A beginning that nobody remembers goes by consistent hashing of its
    first `ROOT_BLOCKS` blocks, so that several router processes agree. The bound is that of consistent hashing with bounded
    loads (Mirrokni, Thorup and Zadimoghaddam, 2018): at most ceil(bound x (requests + 1) / endpoints) requests at one
    endpoint.
    """

    POINTS = 64
    ROOT_BLOCKS = 3
    MAX_BLOCKS = 200_000
    MAX_OWNERS = 32

    def __init__(self, bound: float = 1.25) -> None:
        self._bound = bound
        self._members: tuple[str, ...] = ()
        self._ring: list[int] = []
        self._owners: list[str] = []
        self._served: dict[int, tuple[str, ...]] = {}

    def pick(self, endpoints: Sequence[C], ask: Ask) -> C:
        allowed = ceil(self._bound * (sum(endpoint.in_flight for endpoint in endpoints) + 1) / len(endpoints))
        free = {endpoint.id: endpoint for endpoint in endpoints if endpoint.in_flight < allowed}
        chosen = self._remembered(free, ask) or self._by_ring(endpoints, free, ask)
        self._remember(chosen.id, ask)
        return chosen

    def _remembered(self, free: Mapping[str, C], ask: Ask) -> C | None:
        served = self._served
        for block in reversed(ask.blocks):
            owners = [free[name] for name in served.get(block, ()) if name in free]
            if len(owners) == len(free):
                # Everybody has it, a system prompt perhaps: it says nothing about where the rest was computed.
                return None
            if owners:
                return min(owners, key=lambda endpoint: endpoint.outstanding_tokens)
        return None

    def _by_ring(self, endpoints: Sequence[C], free: Mapping[str, C], ask: Ask) -> C:
        members = tuple(sorted(endpoint.id for endpoint in endpoints))
        if members != self._members:
            self._build(members)
        root = ask.blocks[: self.ROOT_BLOCKS]
        start = bisect_left(self._ring, _point(repr(root[-1:]).encode()))
        for step in range(len(self._ring)):
            owner = self._owners[(start + step) % len(self._owners)]
            if owner in free:
                return free[owner]
        return min(endpoints, key=lambda endpoint: endpoint.outstanding_tokens)

    def _remember(self, name: str, ask: Ask) -> None:
        served = self._served
        for block in ask.blocks:
            # Taken out and put back: the order of the dictionary is that of the last use.
            owners = served.pop(block, ())
            served[block] = owners if name in owners else (*owners[1 - self.MAX_OWNERS :], name)
        if len(served) > self.MAX_BLOCKS:
            for block in list(islice(served, self.MAX_BLOCKS // 4)):
                del served[block]

    def _build(self, members: tuple[str, ...]) -> None:
        points = sorted((_point(f"{member}#{i}".encode()), member) for member in members for i in range(self.POINTS))
        self._members = members
        self._ring = [point for point, _ in points]
        self._owners = [owner for _, owner in points]


def _point(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


def picker(kind: Pick, *, below: Callable[[int], int]) -> Picker:
    """The picker of that name; `below(n)` is a seeded source of integers in [0, n)."""
    if kind == "round_robin":
        return RoundRobin()
    if kind == "power_of_two":
        return PowerOfTwo(below)
    if kind == "prefix_affinity":
        return PrefixAffinity()
    return LeastTokens()
