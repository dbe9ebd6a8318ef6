"""Requests of a replay and the ways that they can take: what the router knows of a model and of one of its requests. Pure.

The ways are the router's own (`policy.Stages`, and `adaptive.AdaptiveStage` where the topology selects so); here they come with
the stations that they name, and those that depend on nothing but a prompt's length are found once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import inf, nan

from global_planner.replay.arrivals import Row
from global_planner.replay.stations import Endpoint, Station
from pool_planner.performance.profile import Profile
from pool_planner.types import Role
from router.adaptive import AdaptiveStage, Prediction, Predictor
from router.admission import Ticket
from router.config_pools import ModelConfig
from router.policy import Ask, Path, Stages
from router.policy import Route as Choose

KEEP_OSL = 0.98  # as router.openai.Lengths: what answers have taught about the next one
FIRST_OSL = 256.0
NEVER: frozenset[str] = frozenset()
MANY_ROUTES = 4096  # ways that are kept; with few pools there are never so many


class Flight:
    """One request on its way. `osl_tokens`: how long the router expects its answer to be. `sent_tokens`: what it counts for at
    the endpoint where it is. `expected`: what adaptive selection predicted of its calls, and when they were made."""

    __slots__ = (
        "arrived_s",
        "ask",
        "at",
        "blocks",
        "expected",
        "first_s",
        "id",
        "isl",
        "lane",
        "osl",
        "osl_tokens",
        "prefill",
        "priority",
        "route",
        "sent_s",
        "sent_tokens",
        "ticket",
        "tried",
        "tries",
        "unstarted",
    )

    def __init__(self, id: str, lane: Lane, row: Row) -> None:
        self.id = id
        self.lane = lane
        self.arrived_s, _, self.isl, self.osl, self.priority, self.blocks = row
        self.osl_tokens = lane.expected_osl(self.osl)
        self.first_s = nan
        self.sent_s = 0.0
        self.sent_tokens = 0.0
        self.tries = 0
        self.at: Endpoint | None = None
        self.unstarted: Endpoint | None = None
        self.prefill: Endpoint | None = None
        self.tried: set[str] | frozenset[str] = NEVER
        self.ask: Ask | None = None
        self.expected: tuple[tuple[Predictor, Prediction, float], ...] = ()
        self.route: Route
        self.ticket: Ticket

    def begins(self, endpoint: Endpoint) -> None:
        """Its prompt goes to an engine: until `begun` it counts there among those that have no token yet."""
        self.unstarted = endpoint
        endpoint.unstarted += 1
        endpoint.unstarted_tokens += self.isl

    def begun(self) -> None:
        endpoint = self.unstarted
        if endpoint is not None:
            self.unstarted = None
            endpoint.unstarted -= 1
            endpoint.unstarted_tokens -= self.isl


class Route:
    """The ways of a request through the stages (`policy.Stages.paths`), with the stations that they name."""

    __slots__ = ("assigned", "paths", "plain", "prefill", "serve")

    def __init__(self, paths: tuple[Path, ...], stations: Mapping[str, Station]) -> None:
        self.paths = paths
        self.assigned = tuple(stations[name] for name in paths[0].assigned)
        first = paths[0]
        self.prefill = stations[first.prefill[0]] if first.prefill else None
        self.serve = stations[first.serve[0]]
        # Then a ready endpoint is a usable one, and what the wanted pools take needs no look at the others.
        self.plain = all(station.config.max_in_flight is None for station in (*self.assigned, self.serve)) and (
            self.prefill is None or self.prefill.config.kv_format == self.serve.config.kv_format
        )

    @property
    def open(self) -> bool:
        """Whether the wanted pools can take a request now; False also where that needs a closer look."""
        return self.plain and self.serve.can_take and (self.prefill is None or self.prefill.can_take)

    @property
    def served(self) -> bool:
        """Whether the wanted pools have ready endpoints, full or not."""
        return bool(self.serve.ready) and (self.prefill is None or bool(self.prefill.ready))


class Lane:
    """One model at the router. `profiles` by pool, for adaptive selection; `told_lengths`: clients name the length of their
    answers (`max_tokens`)."""

    def __init__(
        self,
        index: int,
        config: ModelConfig,
        stations: Mapping[str, Station],
        profiles: Mapping[str, Profile],
        *,
        told_lengths: bool,
    ) -> None:
        self.index = index
        self.model = config.model
        self.predictors: dict[str, Predictor] = {}
        if config.selection == "adaptive":
            assert config.default_ttft_ms is not None and config.default_itl_ms is not None
            self.predictors = {
                pool.name: Predictor(pool, profiles[pool.name], ttft_ms=config.default_ttft_ms) for pool in config.pools
            }
        self._itl_ms = config.default_itl_ms or 0.0

        def adaptive(role: Role) -> Choose:
            return AdaptiveStage(config, role, self.predictors, lambda name: stations[name].ready).route

        self.stages = Stages(config, adaptive if self.predictors else None)
        self.by_prefix = any(pool.pick == "prefix_affinity" for pool in config.pools)
        self.needs_ask = bool(config.grids) or self.by_prefix or bool(self.predictors)
        self.shortest_first = config.waiting_order == "shortest"
        self.patience_s = inf if config.patience_s is None else config.patience_s
        self._osl_tokens = FIRST_OSL
        self._told_lengths = told_lengths
        self._stations = stations
        self._own = [stations[pool.name] for pool in config.pools]
        # Without a grid or predictions, and with limits that all differ, a way depends only on the limits a prompt is within.
        limits = {
            role: [pool.isl_max_tokens or inf for pool in config.role_pools(role)] for role in ("prefill", "decode", "agg")
        }
        plain = not config.grids and not self.predictors and all(len(set(each)) == len(each) for each in limits.values())
        self._limits = sorted({limit for each in limits.values() for limit in each if limit < inf})
        self._known: list[Route | None] | None = [None] * (len(self._limits) + 1) if plain else None
        self._routes: dict[tuple[Path, ...], Route] = {}

    @property
    def under_way(self) -> int:
        """Requests that are with ready engines now."""
        return sum([station.crowd for station in self._own])

    def expected_osl(self, osl: int) -> float:
        """Tokens that an answer of `osl` will probably have, as the router sees it."""
        return min(self._osl_tokens, osl) if self._told_lengths else self._osl_tokens

    def learn_osl(self, osl: int) -> None:
        """An answer had so many tokens."""
        self._osl_tokens += (osl - self._osl_tokens) * (1.0 - KEEP_OSL)

    def route(self, isl: int, ask: Ask | None) -> Route:
        """The ways for a prompt of so many tokens; what is known to depend on its length only is found once."""
        if self._known is None:
            return self._route(ask or Ask(isl_tokens=isl))
        place = bisect_left(self._limits, isl)
        known = self._known[place]
        if known is None:
            known = self._known[place] = self._route(ask or Ask(isl_tokens=isl))
        return known

    def _route(self, ask: Ask) -> Route:
        paths = self.stages.paths(ask, lambda name: self._stations[name].load())
        route = self._routes.get(paths)
        if route is None:
            if len(self._routes) >= MANY_ROUTES:
                self._routes.clear()
            route = self._routes[paths] = Route(paths, self._stations)
        return route

    # ---- what adaptive selection predicts, and learns ------------------------------------------------------------------

    def expect(self, flight: Flight, endpoint: Endpoint, now: float) -> None:
        """A request goes to this endpoint now: note what is predicted, to learn from it."""
        station = endpoint.station
        predictor = self.predictors[station.name]
        assert flight.ask is not None
        predicted = predictor.predict([endpoint], flight.ask.isl_tokens, flight.ask.osl_tokens, self._itl_ms)
        before = tuple(one for one in flight.expected if one[0].role != station.role)
        flight.expected = (*before, (predictor, predicted, now))

    def learn(self, flight: Flight, itl_s: float) -> None:
        """A request was answered; `itl_s` NaN: it has none. What it waited before it was sent is no engine's doing."""
        for predictor, predicted, began_s in flight.expected:
            predictor.learn(
                predicted,
                ttft_ms=(flight.first_s - began_s) * 1000.0,
                itl_ms=None if itl_s != itl_s else itl_s * 1000.0,
            )
