"""[I/O] One source of metrics a pool: does a pool's own frontend show the series that the router shows for it?

A Dynamo pool behind the router has a frontend of its own, with the same series under the same namespace. Who scrapes both
counts every request twice, and the planner scales for twice the load. So one ready endpoint of each pool is asked for its
metrics now and then; what is found is told, and `metrics_source: frontend` makes the router leave its series of the pool out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping

from router.endpoints import Pool
from router.exchange import Collected, EngineFailed
from router.upstream import Upstream

FIRST_S = 2.0
EVERY_S = 60.0
ANSWER_S = 5.0
_SERIES = re.compile(rb'^dynamo_frontend_requests_total\{[^}]*dynamo_namespace="([^"]*)"', re.MULTILINE)


def namespaces_in(exposition: bytes) -> frozenset[str]:
    """The namespaces whose requests a frontend counts, as labels carry them.

    >>> sorted(namespaces_in(b'dynamo_frontend_requests_total{model="m",dynamo_namespace="a-b"} 3'))
    ['a_b']
    """
    return frozenset(found.decode("utf-8", "replace").replace("-", "_") for found in _SERIES.findall(exposition))


class Duplicates:
    """`found` by pool: whether its own frontend counts what the router counts. Intervals are wall seconds."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        *,
        upstream: Upstream,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        speed: float,
        say: Callable[[str], None],
    ) -> None:
        self._pools = [pool for pool in pools.values() if pool.config.metrics_source == "router"]
        self._upstream = upstream
        self._loop = loop
        self._now = now
        self._speed = speed
        self._say = say
        self._task: asyncio.Task[None] | None = None
        self.found: dict[str, bool] = {}

    def start(self) -> None:
        self._task = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        await asyncio.sleep(FIRST_S)
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Ask one endpoint of each pool that has one."""
        for pool in self._pools:
            if pool.ready:
                twice = await self._counts_too(pool)
                if twice and not self.found.get(pool.name):
                    self._say(
                        f"pool {pool.name}: its own frontend exports the requests of {pool.config.namespace_label!r} too; "
                        "whoever scrapes both counts them twice. Scrape one of them, and set metrics_source: frontend if it is "
                        "the pool's own"
                    )
                self.found[pool.name] = twice

    async def _counts_too(self, pool: Pool) -> bool:
        link = pool.ready[0].link
        exchange = Collected(self._now, self._now() + ANSWER_S * self._speed)
        payload = b"GET %b/metrics HTTP/1.1\r\nhost: %b\r\n\r\n" % (link.base_path, link.host_header)
        try:
            await self._upstream.run(link, payload, exchange)
        except EngineFailed:
            return self.found.get(pool.name, False)
        return exchange.status == 200 and pool.config.namespace_label in namespaces_in(exchange.body)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
