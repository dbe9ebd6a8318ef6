"""The router's least-tokens policy at a cost that does not grow with the pool: an index behind the same choice. Pure.

`router.policy.LeastTokens` looks at every endpoint for every request. Here endpoints stand in buckets of equal load, and a heap
of loads tells the lightest bucket. The choice is the policy's own to the last tie: the plain list is the twin in the tests.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Generic

from router.policy import C, LeastTokens

Load = tuple[float, int]


class LeastLoaded(Generic[C]):
    """The endpoints of one pool that may be picked. `moved` must be told of every change of an endpoint's load. `policy` holds
    whose turn it is among equals, so that picks over a part of the endpoints (by the policy itself) go on with it."""

    __slots__ = ("_buckets", "_endpoints", "_heap", "_loads", "_places", "policy")

    def __init__(self, policy: LeastTokens) -> None:
        self.policy = policy
        self.rebuild(())

    def rebuild(self, endpoints: Sequence[C]) -> None:
        """Other endpoints may be picked from now on, in this order."""
        self._endpoints = tuple(endpoints)
        self._places = {endpoint.id: place for place, endpoint in enumerate(endpoints)}
        self._loads: list[Load] = [(endpoint.outstanding_tokens, endpoint.in_flight) for endpoint in endpoints]
        # Places in increasing order.
        self._buckets: dict[Load, list[int]] = {}
        for place, load in enumerate(self._loads):
            self._buckets.setdefault(load, []).append(place)
        self._heap = list(self._buckets)
        heapify(self._heap)

    def moved(self, id: str, tokens: float, in_flight: int) -> None:
        """The load of an endpoint has changed to this; one that may not be picked is ignored."""
        place = self._places.get(id)
        if place is None:
            return
        buckets, before = self._buckets, self._loads[place]
        bucket = buckets[before]
        if len(bucket) == 1:
            del buckets[before]
        else:
            bucket.remove(place)
        load = self._loads[place] = (tokens, in_flight)
        known = buckets.get(load)
        if known is None:
            buckets[load] = [place]
            heappush(self._heap, load)
        else:
            insort(known, place)

    def lightest_tokens(self) -> float:
        """Outstanding tokens of the endpoint that has the least. There must be one."""
        heap = self._heap
        while heap[0] not in self._buckets:
            heappop(heap)
        return heap[0][0]

    def pick(self) -> C:
        """What `LeastTokens.pick` picks of all endpoints. There must be one."""
        heap, buckets = self._heap, self._buckets
        while heap[0] not in buckets:
            heappop(heap)
        if len(heap) > 4 * len(self._endpoints) + 64:
            # Loads that nobody has any more lie deep in the heap, where they never surface.
            heap = self._heap = list(buckets)
            heapify(heap)
        count = len(self._endpoints)
        if count == 1:  # the router asks its policy only where there is a choice
            return self._endpoints[0]
        start = self.policy.turn(count)
        places = buckets[heap[0]]
        if len(places) == 1:
            return self._endpoints[places[0]]
        after = bisect_left(places, start)
        return self._endpoints[places[after if after < len(places) else 0]]
