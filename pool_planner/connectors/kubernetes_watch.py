"""[I/O] One collection of the API server, kept up to date by list and watch, so that whoever reads it makes no call.

A thread lists, then watches from the version of the list; bookmarks move that version on, a watch that is too old (410) lists
again, and a broken one goes on from where it was, with jittered back-off. Objects are read once, when they change.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from pool_planner.connectors.kubernetes_api import Forbidden, Gone, KubernetesApi, NotFound
from pool_planner.types import ClusterUnavailable, WorldError

_Item = TypeVar("_Item")

STALE_S = 30.0
"""So long the collection is believed without a watch; longer, and nobody knows what has changed."""
WATCH_S = 300.0
BACKOFF_S = 0.2
BACKOFF_MAX_S = 5.0
MISSING_AGAIN_S = 60.0
"""A collection that is not there, or not allowed, is tried again after so long, if nobody says otherwise."""


class Watched(Generic[_Item]):
    """The objects of one collection by (namespace, name), each as `read` makes it of what the API server sends, grouped by
    `group` (None: in no group). `optional`: a collection that does not exist (404) is empty. `again_s`: after so long one that
    is not there, or not allowed, is tried again."""

    def __init__(
        self,
        api: KubernetesApi,
        path: str,
        *,
        resource: str,
        read: Callable[[Mapping[str, Any]], _Item],
        group: Callable[[_Item], Hashable | None],
        selector: str = "",
        optional: bool = False,
        again_s: float = MISSING_AGAIN_S,
    ) -> None:
        self._api, self._path, self._resource, self._selector = api, path, resource, selector
        self._read, self._group, self._optional, self._again_s = read, group, optional, again_s
        self._changed = threading.Condition()
        self._items: dict[tuple[str, str], _Item] = {}
        self._groups: dict[Hashable, dict[tuple[str, str], _Item]] = {}
        self._nobody: Mapping[tuple[str, str], _Item] = {}
        self._version = ""
        self._connected = False
        self._lost_at: float | None = None
        self._watched_at: float | None = None
        self._problem = "not listed yet"
        self._lists_done = 0
        self._lists_wanted = 1
        self._stopping = False
        self._response: Any = None
        self.lists = 0
        self.changes = 0
        """Counts what was seen to change: while it stays, so does the collection."""
        self.forbidden: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"watch {resource}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._hang_up()

    # ---- reading: no calls -------------------------------------------------------------------------------------------

    def members(self, group: Hashable) -> Mapping[tuple[str, str], _Item]:
        """The objects of a group; a new mapping whenever one of them changed, the same one otherwise."""
        with self._changed:
            return self._groups.get(group, self._nobody)

    def items(self) -> list[_Item]:
        with self._changed:
            return list(self._items.values())

    def check(self) -> None:
        """Raises ClusterUnavailable when nobody can say any more what the collection holds."""
        with self._changed:
            if self._lists_done == 0:
                raise ClusterUnavailable(f"{self._resource}: {self._problem}")
            lost = 0.0 if self._connected or self._lost_at is None else time.monotonic() - self._lost_at
        if lost > STALE_S:
            raise ClusterUnavailable(f"{self._resource}: not seen for {lost:.0f} s: {self._problem}")

    def listed(self, timeout_s: float) -> bool:
        """Wait until it was listed once, or is known to be forbidden."""
        return self._wait(lambda: self._lists_done > 0 or self.forbidden is not None, timeout_s)

    def list_again(self, timeout_s: float) -> bool:
        """List consistently, from now; False when that did not succeed in time."""
        with self._changed:
            self._lists_wanted += 1
            wanted = self._lists_wanted
            self._changed.notify_all()
        self._hang_up()
        return self._wait(lambda: self._lists_done >= wanted or self.forbidden is not None, timeout_s)

    def wait_for(self, seen: Callable[[Mapping[tuple[str, str], _Item]], bool], timeout_s: float) -> bool:
        """Wait until the objects are as `seen` wants them."""
        return self._wait(lambda: seen(self._items), timeout_s)

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(until, timeout_s)

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            if not self._stopping:  # an error of ours: its trace is printed, and the collection is stale from now on
                self._lost("the thread that watches it has ended")

    def _follow(self) -> None:
        failures = 0
        while not self._stopping:
            wait_s = 0.0
            try:
                if self._lists_done < self._lists_wanted:
                    self._list()
                self._watch()
                failures = 0
            except Gone as error:
                self._lost(str(error), list_again=True)
            except Forbidden as error:
                if self._was_seen():
                    # What was allowed a moment ago: an API server that has just started says no until it has read its roles.
                    failures += 1
                    self._lost(str(error), list_again=True)
                    wait_s = _back_off_s(failures)
                else:
                    self.forbidden = str(error)
                    self._lost(str(error), list_again=True)
                    wait_s = self._again_s
            except NotFound as error:
                if self._optional:
                    self._replace([], "")
                self._lost(str(error), list_again=True, known_empty=self._optional)
                wait_s = self._again_s
            except WorldError as error:
                failures += 1
                self._lost(str(error))
                wait_s = _back_off_s(failures)
            self._pause(wait_s)

    def _was_seen(self) -> bool:
        """Whether we were let watch it until just now."""
        with self._changed:
            return self._watched_at is not None and time.monotonic() - self._watched_at < STALE_S

    def _pause(self, wait_s: float) -> None:
        with self._changed:
            wanted = self._lists_wanted
            self._changed.wait_for(lambda: self._stopping or self._lists_wanted > wanted, wait_s)

    def _list(self) -> None:
        with self._changed:
            answers = self._lists_wanted
        raw, version = self._api.list(self._path, resource=self._resource, selector=self._selector)
        self.lists += 1
        self._replace(raw, version, answers)

    def _replace(self, raw: list[dict[str, Any]], version: str, answers: int | None = None) -> None:
        items = {_key(item): self._read(item) for item in raw}
        groups: dict[Hashable, dict[tuple[str, str], _Item]] = {}
        for key, item in items.items():
            if (group := self._group(item)) is not None:
                groups.setdefault(group, {})[key] = item
        with self._changed:
            self._items, self._groups, self._version = items, groups, version
            self.changes += 1
            self.forbidden = None
            self._lost_at = time.monotonic()
            self._lists_done = self._lists_wanted if answers is None else answers
            self._changed.notify_all()

    def _watch(self) -> None:
        timeout_s = WATCH_S * random.uniform(0.8, 1.2)
        events = self._api.watch(
            self._path,
            version=self._version,
            resource=self._resource,
            selector=self._selector,
            timeout_s=timeout_s,
            opened=self._opened,
        )
        for kind, raw in events:
            self._take(kind, raw)
            if self._stopping or self._lists_done < self._lists_wanted:
                break
        with self._changed:
            self._connected, self._response = False, None
            self._lost_at = self._watched_at = time.monotonic()

    def _opened(self, response: Any) -> None:
        with self._changed:
            self._response = response
            self._connected = response.status == 200
            if self._connected:
                self._watched_at = time.monotonic()
            self._changed.notify_all()
            superseded = self._stopping or self._lists_done < self._lists_wanted
        if superseded:
            self._hang_up()

    def _take(self, kind: str, raw: Mapping[str, Any]) -> None:
        version = str((raw.get("metadata") or {}).get("resourceVersion", ""))
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            with self._changed:
                self._version = version or self._version
            return
        key = _key(raw)
        item = None if kind == "DELETED" else self._read(raw)
        with self._changed:
            self._version = version or self._version
            before = self._items.get(key)
            if item == before:  # nothing of what is read: a heartbeat, or somebody else's annotation
                return
            self._items.pop(key, None)
            if before is not None:
                self._regroup(self._group(before), key, None)
            if item is not None:
                self._items[key] = item
                self._regroup(self._group(item), key, item)
            self.changes += 1
            self._changed.notify_all()

    def _regroup(self, group: Hashable | None, key: tuple[str, str], item: _Item | None) -> None:
        if group is None:
            return
        members = {name: one for name, one in self._groups.get(group, {}).items() if name != key}
        if item is not None:
            members[key] = item
        if members:
            self._groups[group] = members
        else:
            self._groups.pop(group, None)

    def _lost(self, why: str, *, list_again: bool = False, known_empty: bool = False) -> None:
        with self._changed:
            self._problem = why
            if self._connected:
                self._watched_at = time.monotonic()
            if self._connected or self._lost_at is None:
                self._lost_at = time.monotonic()
            self._connected, self._response = known_empty, None
            if list_again:
                self._lists_wanted = max(self._lists_wanted, self._lists_done + 1)
            self._changed.notify_all()

    def _hang_up(self) -> None:
        """End the watch under way. Closing alone would leave the thread in its read; shutting the socket down wakes it."""
        with self._changed:
            response = self._response
        if response is None:
            return
        with contextlib.suppress(OSError, AttributeError):
            response.connection.sock.shutdown(socket.SHUT_RDWR)


def _back_off_s(failures: int) -> float:
    return random.uniform(0.5, 1.0) * float(min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(failures - 1, 10)))


def _key(raw: Mapping[str, Any]) -> tuple[str, str]:
    metadata = raw.get("metadata") or {}
    return str(metadata.get("namespace", "")), str(metadata.get("name", ""))
