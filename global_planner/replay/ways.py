"""Which ways through the stages are open now, and which endpoint a request gets there. Pure.

A way is the router's (`policy.Path`): an ordered choice of pools for prefill and for decode. What is told here is what the
live router tells of its own endpoints; the stations hold them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from global_planner.replay.lanes import NEVER, Flight
from global_planner.replay.stations import Endpoint, Station
from router.openings import Room
from router.policy import Path


class Ways:
    """The ways over these stations (by the names of their pools). `without`: endpoints that were tried already."""

    __slots__ = ("_stations",)

    def __init__(self, stations: Mapping[str, Station]) -> None:
        self._stations = stations

    def usable(self, path: Path, without: set[str] | frozenset[str]) -> bool:
        """Whether every stage of a path has a usable endpoint now."""
        stations = self._stations
        if path.instead_of and not any(stations[name].broken for name in path.instead_of):
            return False
        if path.prefill:
            return any(stations[name].can_serve(without) and self.readers(path, name, without) for name in path.prefill)
        return any(stations[name].can_serve(without) for name in path.serve)

    def room(self, path: Path) -> Room:
        """What the first stage of a usable way can take yet."""
        rooms = [self._stations[name].room() for name in path.prefill or path.serve]
        return Room(sum([room.requests for room in rooms]), sum([room.tokens for room in rooms]))

    def readers(self, path: Path, prefill: str, without: set[str] | frozenset[str]) -> list[str]:
        """The pools of the path that can serve now and read the KV blocks of this prefill pool."""
        stations = self._stations
        made = stations[prefill].config.kv_format
        return [name for name in path.serve if stations[name].config.kv_format == made and stations[name].can_serve(without)]

    def of(self, flight: Flight) -> Path | None:
        """The best way that a request can take now, beside the endpoints where it was tried."""
        for path in flight.route.paths:
            if self.usable(path, flight.tried):
                return path
        return None

    def first(self, path: Path, flight: Flight) -> Endpoint | None:
        """The endpoint of the first stage, or None: it is not there any more."""
        names: Sequence[str] = path.serve
        if path.prefill:
            names = [name for name in path.prefill if self.readers(path, name, flight.tried)]
        return self.pick(names, flight)

    def pick(self, names: Sequence[str], flight: Flight) -> Endpoint | None:
        """An endpoint of the first of these pools that has a usable one."""
        for name in names:
            endpoint = self._stations[name].pick(flight.ask, flight.tried)
            if endpoint is not None:
                return endpoint
        return None

    def decode(self, flight: Flight, prefill: Station) -> Endpoint | None:
        """Who reads the blocks of a prompt that was computed there, or None: nobody can now."""
        route = flight.route
        if route.plain and route.prefill is prefill and route.serve.ready and not flight.tried:
            return route.serve.pick(flight.ask, NEVER)
        for path in route.paths:
            if prefill.name in path.prefill:
                return self.pick(self.readers(path, prefill.name, flight.tried), flight)
        return None
