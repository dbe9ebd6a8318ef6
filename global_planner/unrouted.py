"""The Router port where no router of ours stands before the engines (Dynamo's own does). Pure.

A replica that is told to drain is taken for empty at once: what it still serves is finished, or not, by its own termination.
That is why a planner with this port says that no drained scale-down can be promised.
"""

from __future__ import annotations

from collections.abc import Sequence

from global_planner.ports import EndpointLoad, GroupAdmission, PoolEndpoints, RouterState


class Unrouted:
    """Remembers what it is told, and has nothing in flight."""

    def __init__(self) -> None:
        self._endpoints: dict[str, EndpointLoad] = {}

    async def state(self) -> RouterState:
        return RouterState(processes=0, endpoints=dict(self._endpoints))

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None:
        self._endpoints = {
            item.id: EndpointLoad(id=item.id, state=item.state, in_flight=0, outstanding_tokens=0)
            for pool in pools
            for item in pool.endpoints
        }

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None:
        for id_ in endpoints:
            self._endpoints[id_] = EndpointLoad(id=id_, state="draining", in_flight=0, outstanding_tokens=0)

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None:
        """Nobody enforces it."""
