"""Which ways can take whom, in one turn of the door. Pure.

Everybody who waits at one time is told the same: a way is asked once a turn whether it is usable and what it can take yet, and
whoever is let in takes a place, so that one place that is free does not wake all that wait for it. The live door and the replay
ask here; who comes first stands in `router.admission`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from router.policy import Path


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


class Openings:
    """The ways of one turn. `usable(path)`: whether every stage of it has a usable endpoint; `room(path)`: for how much, asked
    only where it is usable."""

    __slots__ = ("_known", "_room", "_rooms", "_usable")

    def __init__(self, usable: Callable[[Path], bool], room: Callable[[Path], Room]) -> None:
        self._usable = usable
        self._room = room
        self._known: dict[Path, bool] = {}
        self._rooms: dict[Path, Room] = {}

    def usable(self, paths: tuple[Path, ...]) -> bool:
        """Whether one of a request's ways can be used, full or not."""
        for path in paths:  # noqa: SIM110 (asked for every request that waits: a generator costs more than its answer)
            if self._can(path):
                return True
        return False

    def take(self, paths: tuple[Path, ...], tokens: float) -> bool:
        """Whether a request of so many tokens finds a place on the first of its ways that has one, and take it."""
        for path in paths:  # noqa: SIM110
            if self._room_of(path).take(tokens):
                return True
        return False

    def full(self, ways: Iterable[tuple[Path, ...]]) -> bool:
        """Whether none of these requests' ways has a place left: then a crowd need not be asked one by one."""
        for paths in ways:
            for path in paths:
                if self._room_of(path).is_open:
                    return False
        return True

    def _can(self, path: Path) -> bool:
        can = self._known.get(path)
        if can is None:
            can = self._known[path] = self._usable(path)
        return can

    def _room_of(self, path: Path) -> Room:
        room = self._rooms.get(path)
        if room is None:
            room = self._rooms[path] = self._room(path) if self._can(path) else Room(0.0, 0.0)
        return room
