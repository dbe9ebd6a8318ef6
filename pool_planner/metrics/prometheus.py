"""[I/O] Observations from a Prometheus server: raw counters at two moments, compared by the same maths as a direct scrape.

Raw counters, and not `increase()`, because Prometheus would extrapolate each instance by itself and hide which of them did
not answer. Each instance is read at the time of its own last scrape (`timestamp(up)`), so an interval between two plans that
is no multiple of the scrape interval is not miscounted. The server knows the past: the first observation has an interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from prometheus_api_client.exceptions import PrometheusApiClientException
from prometheus_api_client.prometheus_connect import PrometheusConnect
from urllib3.util.retry import Retry

from pool_planner.metrics import names, workers
from pool_planner.metrics.discovery import DiscoveredScrape
from pool_planner.metrics.exposition import Families, Series
from pool_planner.metrics.names import PoolSeries
from pool_planner.metrics.observe import Pair, Snapshot, observation
from pool_planner.metrics.scrape import RouterScrape
from pool_planner.types import MetricsUnavailable, Observation, WorkerLoad

Instance = tuple[str, str]  # job, instance


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusAccess:
    """How to reach the server. The token file is read for every query, because tokens are rotated. `timeout_s` is wall time
    of one query. `ca_file`: what signed the server's certificate (None: the system's)."""

    endpoint: str
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = 5.0


class PrometheusSource:
    """The pools that `series` describe, as the server knows them. Times are Unix seconds, the server's own.

    `stale_s`: an instance that was not scraped for this long does not answer. `scrape`: read the workers' gauges straight from
    the routers, because a server that scrapes every 15 s has seen one of three samples of a load interval.
    """

    def __init__(
        self,
        access: PrometheusAccess,
        series: Sequence[PoolSeries],
        *,
        first_interval_s: float,
        stale_s: float = 60.0,
        scrape: RouterScrape | DiscoveredScrape | None = None,
    ) -> None:
        self._access = access
        self._series = tuple(series)
        self._first_interval_s = first_interval_s
        self._stale_s = stale_s
        self._scrape = scrape
        session = requests.Session()
        session.verify = True if access.ca_file is None else str(access.ca_file)
        session.trust_env = False
        self._client = PrometheusConnect(
            url=access.endpoint.rstrip("/"),
            session=session,
            retry=Retry(total=0),
            timeout=access.timeout_s,  # type: ignore[arg-type]  # seconds; requests takes fractions
            method="POST",
        )
        self._before: dict[Instance, Snapshot] = {}
        self._since_s: float | None = None
        self._scraped_s = 0.0
        self._last: Mapping[str, Observation] = {}

    async def sample(self) -> None:
        """Read the workers' gauges once more in this interval. Raises MetricsUnavailable."""
        if self._scrape is not None:
            await self._scrape.sample()

    async def observe(self, now_s: float) -> Mapping[str, Observation]:
        """By pool: what happened since the last observation, or in the first interval before `now_s`. The same observation
        again (with its own time) while no instance was scraped anew. Raises MetricsUnavailable (what, and which server)."""
        if self._since_s is None:
            begin_s = now_s - self._first_interval_s
            self._before = (await asyncio.to_thread(self._read, begin_s, {}))[0]
            self._since_s = begin_s
        after, silent = await asyncio.to_thread(self._read, now_s, self._before)
        if not after:
            raise MetricsUnavailable(f"{self._access.endpoint}: no instance exposes {self._described()}")
        scraped_s = max(snapshot.at_s for snapshot in after.values())
        if self._last and scraped_s <= self._scraped_s:
            return self._last
        self._scraped_s = scraped_s
        interval_s = now_s - self._since_s
        pairs = [
            Pair(before=before, after=snapshot, share=interval_s / (snapshot.at_s - before.at_s))
            for instance, snapshot in after.items()
            if (before := self._before.get(instance)) is not None and snapshot.at_s > before.at_s
        ]
        loads = await self._worker_loads()
        self._last = {
            series.pool: observation(
                series,
                pairs,
                at_s=now_s,
                interval_s=interval_s,
                complete=not silent,
                workers=workers.of_vllm(pairs, series) if series.source == "vllm" else loads.get(series.pool),
                pending=self._scrape.pending(series.pool) if self._scrape is not None and loads else (None, None),
            )
            for series in self._series
        }
        self._before = {**{key: self._before[key] for key in silent if key in self._before}, **after}
        self._since_s = now_s
        return self._last

    async def close(self) -> None:
        self._client.close()
        if self._scrape is not None:
            await self._scrape.close()

    async def _worker_loads(self) -> Mapping[str, tuple[WorkerLoad, ...]]:
        """Worker gauges fail alone: throughput-based scaling needs none of them."""
        if self._scrape is None:
            return {}
        try:
            await self._scrape.sample()
        except MetricsUnavailable:
            self._scrape.worker_loads()
            return {}
        return self._scrape.worker_loads()

    # ---- the server --------------------------------------------------------------------------------------------------

    def _read(self, at_s: float, known: Mapping[Instance, Snapshot]) -> tuple[dict[Instance, Snapshot], set[Instance]]:
        """(what each instance that was scraped lately exposes, instances that are down or stale)."""
        families: dict[Instance, dict[str, dict[str, Series]]] = {}
        for selector in self._selectors():
            for sample in self._query(selector, at_s):
                labels = dict(sample.labels)
                name = labels.pop("__name__", "")
                instance = (labels.get("job", ""), labels.get("instance", ""))
                key = ",".join(f"{label}={value!r}" for label, value in sorted(labels.items()))
                families.setdefault(instance, {}).setdefault(name, {})[key] = Series(labels, sample.value)
        instances = {*families, *known}
        up, scraped = self._health(instances, at_s)
        fresh: dict[Instance, Snapshot] = {}
        silent: set[Instance] = set()
        for instance in instances:
            scraped_s = scraped.get(instance)
            if up.get(instance) == 0.0 or (scraped_s is not None and at_s - scraped_s > self._stale_s):
                silent.add(instance)
            elif instance in families:
                found: Families = families[instance]
                at = at_s if scraped_s is None else scraped_s
                fresh[instance] = Snapshot(at_s=at, families=found, instance=instance[1])
        return fresh, silent

    def _health(self, instances: set[Instance], at_s: float) -> tuple[dict[Instance, float], dict[Instance, float]]:
        """(`up`, time of the last scrape) of each instance that the server scrapes itself."""
        if not instances:
            return {}, {}
        selector = f"up{{instance=~{_regex(instance for _, instance in instances)}}}"
        return tuple(  # type: ignore[return-value]
            {(s.labels.get("job", ""), s.labels.get("instance", "")): s.value for s in self._query(query, at_s)}
            for query in (selector, f"timestamp({selector})")
        )

    def _selectors(self) -> list[str]:
        """One selector for each set of labels that pools are told by; what is compared more loosely is filtered here."""
        found: dict[str, None] = {}
        for series in self._series:
            matchers = [f"__name__=~{_quoted(_name_pattern(series))}"]
            for label, value in sorted(series.match.items()):
                wanted = names.normalised(label, value)
                pattern = _escaped(wanted).replace("_", "[-_]") if label == "dynamo_namespace" else _escaped(wanted)
                matchers.append(f"{label}=~{_quoted('(?i)' + pattern if label in ('model', 'model_name') else pattern)}")
            found["{" + ",".join(matchers) + "}"] = None
        return list(found)

    def _described(self) -> str:
        return ", ".join(sorted({f"{series.names.prefix}* with {dict(series.match)}" for series in self._series}))

    def _query(self, query: str, at_s: float) -> list[Series]:
        """The instant vector of `query` at `at_s`. Raises MetricsUnavailable."""
        endpoint = self._access.endpoint
        try:
            self._client.headers = self._headers()
            vector: Any = self._client.custom_query(query, params={"time": f"{at_s:.3f}"})
            return [Series(each["metric"], float(each["value"][1])) for each in vector]
        except requests.Timeout as error:
            raise MetricsUnavailable(f"{endpoint}: no answer within {self._access.timeout_s:g} s") from error
        except requests.RequestException as error:
            raise MetricsUnavailable(f"{endpoint}: {type(error).__name__}: {error}") from error
        except PrometheusApiClientException as error:
            raise MetricsUnavailable(f"{endpoint}: {str(error)[:500]}") from error
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise MetricsUnavailable(f"{endpoint}: not the answer of a Prometheus: {type(error).__name__}: {error}") from error
        except OSError as error:
            raise MetricsUnavailable(f"{self._access.token_file}: token cannot be read: {error}") from error

    def _headers(self) -> dict[str, str]:
        if self._access.token_file is None:
            return {}
        return {"Authorization": f"Bearer {self._access.token_file.read_text(encoding='utf-8').strip()}"}


def _name_pattern(series: PoolSeries) -> str:
    shed = "" if series.source != "router" else "|global_planner_router_.+"
    return f"{_escaped(series.names.prefix)}.+{shed}"


def _regex(values: Any) -> str:
    return _quoted("|".join(_escaped(value) for value in sorted(set(values))))


def _escaped(text: str) -> str:
    """`text` as an RE2 pattern that matches exactly it."""
    return "".join(f"\\{char}" if char in r"\.+*?()|[]{}^$" else char for char in text)


def _quoted(pattern: str) -> str:
    """A PromQL string literal."""
    return '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'
