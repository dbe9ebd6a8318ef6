"""[I/O] The Cluster port over the virtual cluster's API. Every failure becomes ClusterUnavailable or Conflict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp
from pydantic import ValidationError

from global_planner.mocker.cluster_api import PoolsAnswer, PoolView, ScaleOrder
from global_planner.types import Cancel, Grow, Holding, NodeRoom, PoolSpec, Replica, Shrink
from pool_planner.clock import SpeedClock
from pool_planner.types import ClusterUnavailable, Conflict

TIMEOUT_WALL_S = 2.0


class VirtualCluster:
    """The pools of `pools` as the virtual cluster at `url` holds them; a context manager, entered on a running event loop.
    `timeout_s` bounds each call, in wall seconds: it guards against a stuck process, not against a slow model."""

    def __init__(self, url: str, pools: Sequence[PoolSpec], clock: SpeedClock, *, timeout_s: float = TIMEOUT_WALL_S) -> None:
        self._url = url.rstrip("/")
        self._pools = tuple(pool.name for pool in pools)
        self._clock = clock
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def observe(self) -> tuple[Holding, ...]:
        """The holdings of our pools; one that the cluster does not know is unknown, never empty. Raises
        ClusterUnavailable."""
        answer = await self._read()
        found = {view.name: view for view in answer.pools}
        return tuple(
            _holding(found[name], answer.at_s)
            if name in found
            else Holding(pool=name, at_s=answer.at_s, spec=None, unknown=f"the cluster has no pool {name!r}")
            for name in self._pools
        )

    async def nodes(self) -> tuple[NodeRoom, ...] | None:
        """The GPUs of the cluster's nodes; None: it has none. Raises ClusterUnavailable."""
        nodes = (await self._read()).nodes
        if nodes is None:
            return None
        return tuple(NodeRoom(node=n.name, gpu_type=n.gpu_type, gpus=n.gpus, free_gpus=n.free_gpus) for n in nodes)

    async def _read(self) -> PoolsAnswer:
        status, body = await self._call("GET", "/v1/pools")
        if status != 200:
            raise ClusterUnavailable(f"{self._url}/v1/pools: status {status}: {_told(body)}")
        try:
            answer = PoolsAnswer.model_validate_json(body)
        except ValidationError as error:
            raise ClusterUnavailable(f"{self._url}/v1/pools: an answer that is not ours: {error.errors()[0]}") from error
        apart_s = abs(answer.at_s - self._clock.now())
        if self._clock.wall(apart_s) > self._timeout_s:
            raise ClusterUnavailable(f"{self._url}: its clock is {apart_s:.0f} model seconds from ours: another system's")
        return answer

    async def apply(self, step: Shrink | Grow | Cancel) -> None:
        """Order `step.after` replicas. Raises Conflict (nothing was written) or ClusterUnavailable (it may have been)."""
        victims = step.victims if isinstance(step, Shrink | Cancel) else ()
        order = ScaleOrder(replicas=step.after, victims=victims, resource_version=step.version)
        status, body = await self._call("PUT", f"/v1/pools/{step.pool}/scale", order.model_dump_json())
        if status == 409:
            raise Conflict(f"{step.pool}: {_told(body)}")
        if status != 200:
            raise ClusterUnavailable(f"{step.pool}: status {status}: {_told(body)}")

    async def _call(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        if self._session is None:
            raise ClusterUnavailable(f"{self._url}{path}: the client is not open")
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.request(method, self._url + path, data=body, headers=headers) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterUnavailable(f"{self._url}{path}: {type(error).__name__}: {error}") from error


def _holding(view: PoolView, at_s: float) -> Holding:
    return Holding(
        pool=view.name,
        at_s=at_s,
        spec=view.replicas,
        version=view.resource_version,
        replicas=tuple(
            Replica(
                id=item.id,
                state=item.state,
                url=item.url,
                since_s=item.since_s,
                unschedulable=item.unschedulable,
                progress_at_s=item.progress_at_s,
                nodes=item.nodes,
            )
            for item in view.items
        ),
        gpus_per_replica=view.gpus_per_replica,
        nodes_per_replica=view.nodes_per_replica,
        # The longest of the last ones: a horizon that is too short leaves a pool without what it ordered.
        cold_start_s=max(view.cold_starts_s, default=None),
    )


def _told(body: bytes) -> str:
    """The sentence in a refusal, or the beginning of whatever it was."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), str):
        return str(told["error"])
    return body[:200].decode(errors="replace")
