"""[I/O] Where a planner's observations come from, by its configuration: a Prometheus, or the routers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pool_planner.metrics.discovery import DiscoveredScrape, Discovery
from pool_planner.metrics.names import PoolSeries
from pool_planner.metrics.prometheus import PrometheusAccess, PrometheusSource
from pool_planner.metrics.scrape import RouterScrape
from pool_planner.setup import PlannerSetup, SetupError
from pool_planner.types import Observation


class Source(Protocol):
    """What a planner's loop asks for. Each call raises MetricsUnavailable."""

    async def sample(self) -> None:
        """Read the workers' gauges once more within this interval."""

    async def observe(self, now_s: float) -> Mapping[str, Observation]:
        """End the interval: observations by pool."""

    async def close(self) -> None: ...


def source_of(
    setup: PlannerSetup,
    series: Sequence[PoolSeries],
    *,
    router_urls: Sequence[str] = (),
    token: str | None = None,
    discovery: Discovery | None = None,
) -> Source:
    """The source that `setup.config` names. `router_urls`: known /metrics URLs, where the configuration gives none;
    `discovery` finds them where neither does.

    Raises SetupError when there is neither a Prometheus nor a router to ask, or no router although load-based scaling is on.
    """
    config, extensions = setup.config, setup.config.extensions
    urls = config.router_metrics_urls or tuple(router_urls)
    scrape: RouterScrape | DiscoveredScrape | None = None
    if urls:
        scrape = RouterScrape(urls, series, timeout_s=extensions.metrics_timeout_s, token=token)
    elif discovery is not None:
        scrape = DiscoveredScrape(discovery, series, timeout_s=extensions.metrics_timeout_s, token=token)
    if config.metric_pulling_prometheus_endpoint is None:
        if scrape is None:
            raise SetupError(
                "metric_pulling_prometheus_endpoint, load_router_metrics_url: neither is given, nothing to observe"
            )
        return scrape
    if config.enable_load_scaling and scrape is None and not extensions.vllm_series:
        raise SetupError("load_router_metrics_url: load-based scaling reads the router's worker gauges; no URL is known")
    access = PrometheusAccess(
        endpoint=config.metric_pulling_prometheus_endpoint,
        token_file=None if extensions.prometheus_token_file is None else Path(extensions.prometheus_token_file),
        ca_file=None if extensions.prometheus_ca_file is None else Path(extensions.prometheus_ca_file),
        timeout_s=extensions.metrics_timeout_s,
    )
    return PrometheusSource(
        access, series, first_interval_s=setup.tick_s, scrape=scrape if config.enable_load_scaling else None
    )
