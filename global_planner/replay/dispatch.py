"""The router in virtual time: admission, the way through the stages, prefill, hand-off, decode, retries. Pure.

The order of things is that of `router.dispatch`, and every choice is made by the router's own code: `policy.Stages` for the
way, its pickers for the endpoint (`ways`, behind an index where that is the same), `admission.Admission` for who may enter, who
waits and who is let in next, `ejection` for who is too slow to be picked. Only calls have become events: an engine is told
`submit`, and what it answers comes back through `engine_events`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, nan

import numpy as np

from global_planner.replay.arrivals import Row
from global_planner.replay.engine_spec import EngineRequest
from global_planner.replay.lanes import NEVER, Flight, Lane
from global_planner.replay.scores import FAILED, SHED, Scores
from global_planner.replay.stations import Endpoint, Station
from global_planner.replay.ways import Ways
from pool_planner.performance.profile import Profile
from router.admission import Admission, Ticket
from router.config import RouterConfig
from router.ejection import Trials
from router.limits import RateLimit, RetryBudget
from router.outliers import per_thousand
from router.policy import Ask, Path, picker


class Dispatch:
    """Serves the requests of a workload over the stations. `profiles` by pool; `told_lengths` as in `lanes.Lane`.
    `changed(endpoint)` is called whenever an engine was given something, so that its next event can be looked up again;
    `met_zero(model)` when a request finds no endpoint that could take it."""

    def __init__(
        self,
        config: RouterConfig,
        *,
        profiles: Mapping[str, Profile],
        told_lengths: bool,
        scores: Scores,
        changed: Callable[[Endpoint, float], None],
        met_zero: Callable[[str, float], None],
        limited: bool,
        seed: np.random.SeedSequence,
    ) -> None:
        draws = np.random.default_rng(seed)

        def below(most: int) -> int:
            return int(draws.integers(most))

        self.stations = {
            pool.name: Station(pool, picker(pool.pick, below=below), config.outliers)
            for model in config.models
            for pool in model.pools
        }
        self.ejected = dict.fromkeys(self.stations, 0)
        self._trials = Trials()
        self.lanes = {
            model.model: Lane(index, model, self.stations, profiles, told_lengths=told_lengths)
            for index, model in enumerate(config.models)
        }
        self._ways = Ways(self.stations)
        own = {m.model: (m.priority_class, RateLimit(rate_rps=m.own_admitted_rps, burst=m.own_burst)) for m in config.models}
        queue = config.queue
        self.admission = Admission(
            own,
            room=queue.limit,
            starting_retry_after_s=queue.starting_retry_after_s,
            now=0.0,
            under_way=lambda model: self.lanes[model].under_way,
            inside=lambda pool: self.stations[pool].crowd,
        )
        self.flights: dict[str, Flight] = {}
        self.pump_at_s = inf
        self._limited = limited
        self._deadline_s = queue.deadline_s
        self._total_s = config.timeouts.total_s
        self._attempts = config.retry.attempts
        self._budget = RetryBudget(ratio=config.retry.ratio, burst=config.retry.burst)
        self._waiting: dict[int, Flight] = {}  # by the number of their tickets
        self._serial = 0
        self._scores = scores
        self._changed = changed
        self._met_zero = met_zero

    @property
    def busy(self) -> bool:
        """Whether a request is under way or waits."""
        return bool(self.flights) or bool(self._waiting)

    def give_up(self, now: float) -> None:
        """The play is over: what is still here was not answered."""
        for flight in [*self.flights.values(), *self._waiting.values()]:
            self._fail(flight, now)
        self.flights.clear()
        self._waiting.clear()

    # -- requests ----------------------------------------------------------------------------------------------------------

    def arrive(self, lane: Lane, row: Row) -> None:
        """A request comes to the front door."""
        now = row[0]
        self._serial += 1
        flight = Flight(str(self._serial), lane, row)
        if lane.needs_ask:
            flight.ask = Ask(
                isl_tokens=flight.isl,
                osl_tokens=flight.osl_tokens,
                priority=flight.priority or None,
                blocks=flight.blocks if lane.by_prefix else (),
            )
        route = flight.route = lane.route(flight.isl, flight.ask)
        for station in route.assigned:
            station.arrived(flight.priority, flight.isl)
        self._budget.request()
        ticket = flight.ticket = Ticket(
            model=lane.model,
            priority=flight.priority,
            tokens=flight.isl,
            deadline_s=now + (min(self._deadline_s, lane.patience_s) if route.served else self._deadline_s),
            paths=route.paths,
            length=flight.isl if lane.shortest_first else 0.0,
        )
        if self._enter(flight, ticket, now):
            self._persist(flight, now)

    def _enter(self, flight: Flight, ticket: Ticket, now: float) -> bool:
        """Whether it may be sent now; else it waits, or was turned away."""
        usable = (not flight.tried and flight.route.open) or any(self._ways.usable(path, flight.tried) for path in ticket.paths)
        verdict = self.admission.offer(ticket, now, usable)
        if verdict == "admitted":
            return True
        if not usable:
            self._met_zero(flight.lane.model, now)
        if verdict != "waiting":
            self._turn_away(flight, now)
            return False
        self._waiting[ticket.seq] = flight
        for station in flight.route.assigned:
            station.waiting += 1
            station.waiting_tokens += flight.isl
        for victim, _ in self.admission.overflow():
            self._turn_away(self._leave(victim), now)
        if ticket.seq in self._waiting:
            if self.admission.has_token(ticket, now):
                self.pump(now)
            else:
                self._schedule(now)
        return False

    def _leave(self, ticket: Ticket) -> Flight:
        """Out of the waiting room."""
        flight = self._waiting.pop(ticket.seq)
        for station in flight.route.assigned:
            station.waiting -= 1
            station.waiting_tokens -= flight.isl
        return flight

    def pump(self, now: float) -> None:
        """Let in whoever can come in now, and turn away whoever has waited too long."""
        if self._trials.due_s <= now:
            self._try_again(now)
        admitted, refused = self.admission.turn(now, self._usable, self._ways.room)
        entering = [self._leave(ticket) for ticket in admitted]
        leaving = [self._leave(ticket) for ticket, _ in refused]
        for flight in leaving:
            self._turn_away(flight, now)
        for flight in entering:
            self._persist(flight, now)
        self._schedule(now)

    def _usable(self, path: Path) -> bool:
        return self._ways.usable(path, NEVER)

    def _schedule(self, now: float) -> None:
        told, due_s = self.admission.next_event_s(now), self._trials.due_s
        at = due_s if told is None or due_s < told else told
        # At least a millisecond: an event that is due but cannot be served must not spin.
        self.pump_at_s = max(now + 0.001, at)

    def put_plan(self, version: int, limits: Mapping[str, RateLimit], *, valid_s: float, now: float) -> None:
        """What the plan admits from now on; nothing where the policy under test has no admission."""
        if self._limited:
            self.admission.put_plan(version, limits, valid_s=valid_s, now=now)
            self.pump(now)

    def _persist(self, flight: Flight, now: float) -> None:
        """Attempt until it is under way, waits again, or is given up."""
        route = flight.route
        if not flight.tried and route.open:
            station = route.prefill or route.serve
            endpoint = station.pick(flight.ask, NEVER)
            assert endpoint is not None
            self._send(flight, endpoint, now, prefill=route.prefill is not None, fetched=False)
            return
        while True:
            path = self._ways.of(flight)
            if path is None and flight.tried:
                flight.tried = NEVER
                path = self._ways.of(flight)
            if path is None:
                if not self._enter(flight, flight.ticket, now):
                    return
                if self._ways.of(flight) is None:
                    # Let in although nothing is usable: only a limit of single endpoints does that, and it frees places.
                    self._fail(flight, now)
                    return
                continue
            if self._attempt(flight, path, now):
                return

    def _attempt(self, flight: Flight, path: Path, now: float) -> bool:
        """Send it along a path; False: an endpoint that was there is not there any more."""
        chosen = self._ways.first(path, flight)
        if chosen is None:
            return False
        self._send(flight, chosen, now, prefill=bool(path.prefill), fetched=False)
        return True

    def _send(self, flight: Flight, endpoint: Endpoint, now: float, *, prefill: bool, fetched: bool) -> None:
        """One call to an engine: a prefill whose blocks are held for decode, or one that generates the answer."""
        tokens = float(flight.isl) if prefill else flight.isl + flight.osl_tokens
        flight.at, flight.sent_s, flight.sent_tokens = endpoint, now, tokens
        engine = endpoint.engine
        assert engine is not None
        cached = 0
        if flight.blocks and endpoint.cache is not None and not fetched:
            cached = endpoint.cache.take(flight.blocks)
        request = EngineRequest(
            id=flight.id,
            isl=flight.isl,
            osl=1 if prefill else flight.osl,
            cached_tokens=cached,
            kv_transferred=fetched,
            hold_kv=prefill,
        )
        self.flights[flight.id] = flight
        if flight.lane.predictors:
            flight.lane.expect(flight, endpoint, now)
            if not fetched:
                flight.begins(endpoint)
        endpoint.station.sent(endpoint, tokens)
        if engine.submit(now, request) is not None:
            # The engine's own refusal of what it can never serve (too long, too large): the client is told.
            self._over(flight, endpoint)
            del self.flights[flight.id]
            self._done_with_prefill(flight)
            self._fail(flight, now)
        self._changed(endpoint, now)

    # -- what engines say ----------------------------------------------------------------------------------------------------

    def engine_events(self, endpoint: Endpoint, now: float) -> None:
        """Move an engine on to `now`, and go on with the requests that this brings a step further."""
        engine = endpoint.engine
        assert engine is not None
        station = endpoint.station
        for event in engine.advance(now):
            kind = event.kind
            flight = self.flights.get(event.id)
            if flight is None or flight.at is not endpoint:
                continue  # the blocks of a prefill expired whose request is elsewhere
            if station.role == "prefill":
                if kind == "finished":
                    self._prefilled(flight, endpoint, now)
            elif kind == "first_token":
                flight.first_s = now
                flight.begun()
                self._done_with_prefill(flight)
            elif kind == "finished":
                self._answered(flight, endpoint, now)
        if self._waiting and (station.config.is_bounded or self.admission.bounds_in_flight):
            self.pump(now)

    def _prefilled(self, flight: Flight, endpoint: Endpoint, now: float) -> None:
        """A prefill is done: a decode engine fetches its blocks."""
        station = endpoint.station
        self._over(flight, endpoint)
        endpoint.isl_tokens = flight.isl
        endpoint.ttft_s = now - flight.sent_s
        flight.prefill = endpoint
        endpoint.pending_kv += 1
        del self.flights[flight.id]
        self._compare(endpoint, now, per_thousand(endpoint.ttft_s, flight.isl), None)
        decode = self._ways.decode(flight, station)
        assert endpoint.engine is not None
        if decode is None:
            # No decode endpoint is left: the prompt is computed again when there is one.
            endpoint.engine.cancel(now, flight.id)
            self._done_with_prefill(flight)
            self._persist(flight, now)
            return
        self._send(flight, decode, now, prefill=False, fetched=True)
        endpoint.engine.pull(now, flight.id)

    def _over(self, flight: Flight, endpoint: Endpoint) -> None:
        """A call to an engine has ended, however."""
        endpoint.station.ended(endpoint, flight.sent_tokens)
        flight.begun()

    def _done_with_prefill(self, flight: Flight) -> None:
        """Decode has its first token, or the request is over: nobody reads the prefill's blocks any more."""
        endpoint = flight.prefill
        if endpoint is not None:
            flight.prefill = None
            endpoint.pending_kv -= 1
            self._freed(endpoint)

    def _answered(self, flight: Flight, endpoint: Endpoint, now: float) -> None:
        station, lane = endpoint.station, flight.lane
        self._over(flight, endpoint)
        self._freed(endpoint)
        del self.flights[flight.id]
        duration_s = now - flight.arrived_s
        if duration_s > self._total_s:
            self._fail(flight, now)  # the router had hung up; the engine did not know
            return
        osl = flight.osl
        ttft_s = flight.first_s - flight.arrived_s
        itl_s = (now - flight.first_s) / (osl - 1) if osl > 1 else nan
        lane.learn_osl(osl)
        if flight.expected:
            lane.learn(flight, itl_s)
        endpoint.isl_tokens = flight.isl
        if station.role == "agg":
            endpoint.ttft_s = ttft_s
        if osl > 1:
            endpoint.itl_s = itl_s
        first = per_thousand(flight.first_s - flight.sent_s, flight.isl) if station.role == "agg" else None
        self._compare(endpoint, now, first, itl_s if osl > 1 else None)
        answer = (flight.isl, osl, ttft_s, itl_s, duration_s)
        for each in flight.route.assigned:
            each.answers.append(answer)
        self._scores.completed(lane.index, flight.priority, flight.arrived_s, ttft_s, itl_s)

    # -- slowness ----------------------------------------------------------------------------------------------------------

    def _compare(self, endpoint: Endpoint, now: float, ttft: float | None, itl: float | None) -> None:
        """A whole answer of an endpoint, as samples of `router.outliers`: somebody may be left alone from now on."""
        station = endpoint.station
        verdicts = station.ejection.answered(endpoint.id, now, ttft=ttft, itl=itl)
        if verdicts:
            self.ejected[station.name] += self._trials.note(station.name, verdicts)
            station.refresh()
            self.pump(now)

    def _try_again(self, now: float) -> None:
        """Those whose time is over get single requests."""
        for name in self._trials.due(now):
            station = self.stations[name]
            if station.ejection.try_again(now):
                station.refresh()

    def lost(self, endpoint: Endpoint, now: float) -> None:
        """The engine of an endpoint is gone at once, with all that it had. Requests of which nothing was answered yet are tried
        elsewhere, as far as the retry budget goes; the others are broken off."""
        endpoint.engine = None
        endpoint.station.refresh()
        broken = [flight for flight in self.flights.values() if flight.at is endpoint]
        for flight in broken:
            del self.flights[flight.id]
            self._over(flight, endpoint)
            self._done_with_prefill(flight)
            flight.tried = {*flight.tried, endpoint.id}
            started = flight.first_s == flight.first_s
            flight.tries += 1
            if started or flight.tries >= self._attempts or not self._budget.take():
                self._fail(flight, now)
            else:
                self._scores.retried(flight.lane.index, flight.priority)
                self._persist(flight, now)

    def _freed(self, endpoint: Endpoint) -> None:
        if not endpoint.known and endpoint.in_flight == 0 and endpoint.pending_kv == 0:
            endpoint.station.refresh()

    # -- ends --------------------------------------------------------------------------------------------------------------

    def _turn_away(self, flight: Flight, now: float) -> None:
        for station in flight.route.assigned:
            station.shed += 1
        self._scores.missed(flight.lane.index, flight.priority, flight.arrived_s, SHED, flight.osl)

    def _fail(self, flight: Flight, now: float) -> None:
        self._scores.missed(flight.lane.index, flight.priority, flight.arrived_s, FAILED, flight.osl)
