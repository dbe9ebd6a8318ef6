"""Slow endpoints that are left alone for a time, as the live router does it (`router.outliers`), in virtual time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from math import inf

from global_planner.replay.stations import Endpoint, Station
from router.outliers import Verdict

AFTER_S = 0.001  # behind the end of an ejection: then it is surely over


class Ejections:
    """What whole answers say about who is slow. `due_s`: when somebody's time is over, and `try_again` must be called.
    `ejected` counts by pool."""

    __slots__ = ("_stations", "_trials", "due_s", "ejected")

    def __init__(self, stations: Mapping[str, Station]) -> None:
        self._stations = stations
        self._trials: list[tuple[float, str]] = []
        self.due_s = inf
        self.ejected: dict[str, int] = dict.fromkeys(stations, 0)

    def answered(self, endpoint: Endpoint, now: float, ttft: float | None, itl: float | None) -> bool:
        """A whole answer of an endpoint, as samples of `router.outliers`; whether that changes who may be picked."""
        station = endpoint.station
        if station.outliers is None or (ttft is None and itl is None):
            return False
        verdicts = station.outliers.record(endpoint.id, now, ttft=ttft if station.compares_ttft else None, itl=itl)
        if not verdicts:
            return False
        self._follow(station, verdicts)
        return True

    def _follow(self, station: Station, verdicts: list[Verdict]) -> None:
        for one in verdicts:
            if one.action == "eject":
                self.ejected[station.name] += 1
                heappush(self._trials, (one.until_s + AFTER_S, station.name))
                self.due_s = self._trials[0][0]
        station.refresh()

    def try_again(self, now: float) -> None:
        """Those whose time is over get single requests."""
        while self._trials and self._trials[0][0] <= now:
            station = self._stations[heappop(self._trials)[1]]
            if station.outliers is not None and station.outliers.expired(now):
                station.refresh()
        self.due_s = self._trials[0][0] if self._trials else inf
