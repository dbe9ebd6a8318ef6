"""[I/O] Where the /metrics of a deployment are when no URL is configured: its pods, asked of the Kubernetes API.

    pods of the DGD ──► those that serve: frontends (they route), or the engines themselves with `vllm_series` ──► URLs

Pods are told by the name of their DGD, as everywhere; where the label is missing, by their Dynamo namespace. Pods come and
go, so a list older than `REFRESH_S` is read again before an observation; an API server that does not answer costs a second and
news.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pool_planner.config import PlannerConfig
from pool_planner.metrics.names import PoolSeries, normalised
from pool_planner.metrics.scrape import RouterScrape
from pool_planner.types import ClusterUnavailable, MetricsUnavailable, Observation, WorkerLoad

DGD_LABEL = "nvidia.com/dynamo-graph-deployment-name"
NAMESPACE_LABEL = "nvidia.com/dynamo-namespace"
TYPE_LABEL = "nvidia.com/dynamo-component-type"
ROUTING = ("frontend", "router")
SERVING = ("worker", "prefill", "decode", "main")
PORTS = ("metrics", "system", "http")  # names of container ports, the first that there is
PORT = 8000  # where frontends and engines listen when no port has a name
REFRESH_S = 10.0
LIST_S = 5.0  # wall seconds after which the list is given up, for now
PATIENCE_S = 1.0  # wall seconds that an observation waits for the list of pods
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Pods(Protocol):
    """What is needed of the Kubernetes API (`connectors.kubernetes_api.KubernetesApi`). Blocks. Raises ClusterUnavailable."""

    def list(
        self, path: str, *, resource: str, selector: str = "", deadline_s: float = ...
    ) -> tuple[list[dict[str, Any]], str]: ...


def metrics_urls(
    pods: Iterable[Mapping[str, Any]], *, dgd: str, dynamo_namespace: str, types: Sequence[str]
) -> tuple[str, ...]:
    """The /metrics of the pods of a deployment that have one of the component `types`, run and are ready; sorted.

    >>> pod = {"metadata": {"labels": {DGD_LABEL: "chat", TYPE_LABEL: "frontend"}},
    ...        "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]}}
    >>> metrics_urls([pod], dgd="chat", dynamo_namespace="demo-chat", types=ROUTING)
    ('http://10.0.0.7:8000/metrics',)
    """
    found = set()
    for pod in pods:
        metadata, status = pod.get("metadata", {}), pod.get("status", {})
        labels = metadata.get("labels") or {}
        if not _belongs(labels, dgd, dynamo_namespace) or labels.get(TYPE_LABEL, "").lower() not in types:
            continue
        ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or ())
        address = status.get("podIP")
        if status.get("phase") != "Running" or metadata.get("deletionTimestamp") or not ready or not address:
            continue
        host = f"[{address}]" if ":" in address else address
        found.add(f"http://{host}:{_port(pod)}{(metadata.get('annotations') or {}).get('prometheus.io/path', '/metrics')}")
    return tuple(sorted(found))


def _belongs(labels: Mapping[str, str], dgd: str, dynamo_namespace: str) -> bool:
    if DGD_LABEL in labels:
        return labels[DGD_LABEL] == dgd
    label = "dynamo_namespace"
    return normalised(label, labels.get(NAMESPACE_LABEL, "")) == normalised(label, dynamo_namespace)


def _port(pod: Mapping[str, Any]) -> int:
    """The port that the pod's annotation names, else the first named container port that shows metrics, else 8000."""
    noted = str((pod["metadata"].get("annotations") or {}).get("prometheus.io/port", ""))
    if noted.isdigit():
        return int(noted)
    named = {
        port.get("name"): int(port["containerPort"])
        for container in pod.get("spec", {}).get("containers") or ()
        for port in container.get("ports") or ()
        if "containerPort" in port
    }
    return next((named[name] for name in PORTS if name in named), PORT)


class Discovery:
    """Finds a deployment's /metrics. `kubernetes_namespace`: where its pods are."""

    def __init__(
        self, pods: Pods, *, kubernetes_namespace: str, dgd: str, dynamo_namespace: str, types: Sequence[str] = ROUTING
    ) -> None:
        self._pods = pods
        self._path = f"/api/v1/namespaces/{kubernetes_namespace}/pods"
        self._dgd, self._dynamo_namespace, self._types = dgd, dynamo_namespace, tuple(types)

    def find(self) -> tuple[str, ...]:
        """The URLs now; none is no error here. Blocks. Raises ClusterUnavailable."""
        items, _ = self._pods.list(self._path, resource="pods", selector=TYPE_LABEL, deadline_s=LIST_S)
        return metrics_urls(items, dgd=self._dgd, dynamo_namespace=self._dynamo_namespace, types=self._types)

    def __str__(self) -> str:
        return f"{self._path}: ready pods of DGD {self._dgd} with {TYPE_LABEL} of {', '.join(self._types)}"


def discovery_of(config: PlannerConfig, *, dgd: str, connect: Callable[[], Pods] | None = None) -> Discovery | None:
    """The discovery that a configuration asks for: in environment kubernetes, where it names no URL and reads workers or has no
    Prometheus to ask. `connect`: the way to the API server (None: as every pod has it). Raises ClusterUnavailable."""
    needed = config.enable_load_scaling or config.metric_pulling_prometheus_endpoint is None
    if config.environment != "kubernetes" or config.router_metrics_urls or not needed:
        return None
    if connect is None:
        from pool_planner.connectors.kubernetes_api import connect as to_kubernetes

        connect = to_kubernetes
    return Discovery(
        connect(),
        kubernetes_namespace=kubernetes_namespace(config.namespace, dgd),
        dgd=dgd,
        dynamo_namespace=config.namespace,
        types=SERVING if config.extensions.vllm_series else ROUTING,
    )


def kubernetes_namespace(dynamo_namespace: str, dgd: str) -> str:
    """The operator calls a deployment's Dynamo namespace {Kubernetes namespace}-{DGD}; where it is called otherwise, the
    namespace of this pod counts, else the one of the same name.

    >>> kubernetes_namespace("serving-chat-main", "chat-main")
    'serving'
    """
    if dynamo_namespace.endswith(f"-{dgd}") and len(dynamo_namespace) > len(dgd) + 1:
        return dynamo_namespace.removesuffix(f"-{dgd}")
    try:
        return OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        return dynamo_namespace


class DiscoveredScrape:
    """A `RouterScrape` over the pods that there are. A pod that is gone takes its counters along; a new one begins at its
    first reading, as ever. `clock`: wall seconds, to know when to look again."""

    def __init__(
        self,
        discovery: Discovery,
        series: Sequence[PoolSeries],
        *,
        timeout_s: float,
        token: str | None = None,
        refresh_s: float = REFRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._discovery = discovery
        self._scrape = RouterScrape((), series, timeout_s=timeout_s, token=token)
        self.refresh_s = refresh_s
        self._clock = clock
        self._looked_s: float | None = None
        self._looking: asyncio.Task[tuple[str, ...]] | None = None
        self._problem = ""

    async def sample(self) -> None:
        await self._look()
        await self._scrape.sample()

    async def observe(self, now_s: float) -> Mapping[str, Observation]:
        await self._look()
        return await self._scrape.observe(now_s)

    def worker_loads(self) -> Mapping[str, tuple[WorkerLoad, ...]]:
        return self._scrape.worker_loads()

    def pending(self, pool: str) -> tuple[float | None, float | None]:
        return self._scrape.pending(pool)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await self._scrape.close()

    async def _look(self) -> None:
        """Read the list of pods again when it is old. An API server that takes long is not waited for: the pods that are known
        are read meanwhile. Raises MetricsUnavailable while no pod is known."""
        now = self._clock()
        looking = self._looking
        if looking is None and (self._looked_s is None or now - self._looked_s >= self.refresh_s):
            self._looked_s = now
            self._looking = asyncio.create_task(asyncio.to_thread(self._discovery.find))
        if self._looking is not None:
            if looking is None or not self._scrape.urls:  # once for each list, or as long as there is nothing else to read
                await asyncio.wait({self._looking}, timeout=PATIENCE_S)
            self._take_found(self._looking)
        if not self._scrape.urls:
            self._looked_s = None  # look again at the next call
            raise MetricsUnavailable(self._problem)

    def _take_found(self, looking: asyncio.Task[tuple[str, ...]]) -> None:
        if not looking.done():
            self._problem = f"{self._discovery}: no answer yet"
            return
        self._looking = None
        try:
            self._scrape.urls = looking.result()
            self._problem = f"{self._discovery}: there are none"
        except ClusterUnavailable as error:
            self._problem = f"{self._discovery}: {error}"
