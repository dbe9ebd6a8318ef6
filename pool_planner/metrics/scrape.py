"""[I/O] Observations straight from routers' /metrics, without a Prometheus between: fetch, remember, compare.

`sample()` reads the workers' gauges in between, `observe()` ends an interval. An interval begins where the last one that could
be observed ended, so an outage loses no arrivals: they are counted in the interval that ends when it is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import aiohttp

from pool_planner.metrics import names, workers
from pool_planner.metrics.exposition import Families, MalformedExposition, parse
from pool_planner.metrics.names import PoolSeries
from pool_planner.metrics.observe import Pair, Snapshot, observation
from pool_planner.types import MetricsUnavailable, Observation, WorkerLoad

MAX_BYTES = 32 * 1024 * 1024
MAX_SAMPLES = 1000


class RouterScrape:
    """The pools that `series` describe, as the instances at `urls` (each a full /metrics URL) show them.

    `timeout_s` is wall time for one instance; all are read at once. `urls` may be replaced at any time; while there are none,
    every reading raises MetricsUnavailable. Not safe for concurrent use.
    """

    def __init__(
        self, urls: Sequence[str], series: Sequence[PoolSeries], *, timeout_s: float = 2.0, token: str | None = None
    ) -> None:
        self.urls = tuple(urls)
        self._series = tuple(series)
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None
        self._before: dict[str, Snapshot] = {}
        self._since_s: float | None = None
        self._samples: dict[str, list[Mapping[str, workers.Gauges]]] = {each.pool: [] for each in self._series}
        self._pending: dict[str, tuple[float | None, float | None]] = {}

    async def sample(self) -> None:
        """Read the workers' gauges once more in this interval. Raises MetricsUnavailable when not every instance answers: a
        part of the routers shows a part of the load."""
        answers, failures = await self._read()
        if failures:
            raise MetricsUnavailable("; ".join(failures))
        self._take_sample(answers)

    async def observe(self, now_s: float) -> Mapping[str, Observation]:
        """By pool: what happened since the last observation; the first one only knows gauges. `now_s` is model time.

        When a part of the instances does not answer, the observations have `front_door_up` False and count the rest. Raises
        MetricsUnavailable (which URL, what) when none answers.
        """
        answers, failures = await self._read()
        if not answers:
            raise MetricsUnavailable("; ".join(failures))
        complete = not failures
        if complete:
            self._take_sample(answers)
        since_s = self._since_s
        pairs = []
        for url, families in answers.items():
            after, before = Snapshot(at_s=now_s, families=families, instance=url), self._before.get(url)
            self._before[url] = after
            if before is not None and since_s is not None and now_s > before.at_s:
                pairs.append(Pair(before=before, after=after, share=min(1.0, (now_s - since_s) / (now_s - before.at_s))))
        self._since_s = now_s
        loads = self.worker_loads() if complete else {}
        return {
            series.pool: observation(
                series,
                pairs,
                at_s=now_s,
                interval_s=now_s - since_s if since_s is not None else 0.0,
                complete=complete,
                workers=(workers.of_vllm(pairs, series) if series.source == "vllm" else loads[series.pool])
                if complete
                else None,
                pending=self.pending(series.pool) if complete else (None, None),
            )
            for series in self._series
        }

    def worker_loads(self) -> Mapping[str, tuple[WorkerLoad, ...]]:
        """By pool: the workers' load over the samples since the last call."""
        loads = {pool: workers.average(samples) for pool, samples in self._samples.items()}
        self._samples = {pool: [] for pool in self._samples}
        return loads

    def pending(self, pool: str) -> tuple[float | None, float | None]:
        """(requests, prompt tokens) that waited in Dynamo's routers at the newest sample; None where none tells."""
        return self._pending.get(pool, (None, None))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _take_sample(self, answers: Mapping[str, Families]) -> None:
        for series in self._series:
            kept = self._samples[series.pool]
            kept.append(workers.sample(answers.values(), series))
            del kept[:-MAX_SAMPLES]
            self._pending[series.pool] = workers.pending(answers.values(), series)

    async def _read(self) -> tuple[dict[str, Families], list[str]]:
        """(what each instance that answers exposes, what is wrong with the others)."""
        urls = self.urls
        if not urls:
            raise MetricsUnavailable("no /metrics URL is known")
        self._before = {url: self._before[url] for url in urls if url in self._before}
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        results = await asyncio.gather(*(self._fetch(self._session, url) for url in urls))
        answers = {url: result for url, result in zip(urls, results, strict=True) if not isinstance(result, str)}
        return answers, [result for result in results if isinstance(result, str)]

    async def _fetch(self, session: aiohttp.ClientSession, url: str) -> Families | str:
        """What the instance exposes, or a sentence that says what is wrong."""
        try:
            async with session.get(url) as answer:
                if answer.status != 200:
                    return f"{url}: HTTP {answer.status}"
                body = await answer.content.read(MAX_BYTES + 1)
                while len(body) <= MAX_BYTES and not answer.content.at_eof():
                    body += await answer.content.read(MAX_BYTES + 1 - len(body))
        except TimeoutError:
            return f"{url}: no answer within {self._timeout.total:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return f"{url}: {type(error).__name__}: {error}"
        if len(body) > MAX_BYTES:
            return f"{url}: more than {MAX_BYTES} bytes"
        try:
            families = parse(body.decode(), names.wanted)
        except UnicodeDecodeError:
            return f"{url}: not UTF-8 text"
        except MalformedExposition as error:
            return f"{url}: malformed metrics: {error}"
        if not any(name != names.START_TIME for name in families):
            return f"{url}: none of the series that a router or frontend exposes"
        return families
