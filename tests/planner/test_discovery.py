"""Finding a deployment's /metrics through the Kubernetes API: the rules as a table, and the whole way over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from kubernetes import client as kubernetes_client

from pool_planner.connectors.kubernetes_api import KubernetesApi
from pool_planner.metrics.discovery import (
    DGD_LABEL,
    NAMESPACE_LABEL,
    ROUTING,
    SERVING,
    TYPE_LABEL,
    DiscoveredScrape,
    Discovery,
    discovery_of,
    metrics_urls,
)
from pool_planner.metrics.source import source_of
from pool_planner.setup import PlannerSetup
from pool_planner.types import MetricsUnavailable
from tests.planner.story import config, pool
from tests.planner.test_metrics import POOL, Router


def pod(name: str, **changes: Any) -> dict[str, Any]:
    """A ready frontend of the DGD chat at 127.0.0.1."""
    values: dict[str, Any] = {
        "labels": {DGD_LABEL: "chat", TYPE_LABEL: "frontend", NAMESPACE_LABEL: "demo-chat"},
        "annotations": {},
        "ports": [],
        "ip": "127.0.0.1",
        "phase": "Running",
        "ready": "True",
        "deleted": None,
        **changes,
    }
    return {
        "metadata": {
            "name": name,
            "namespace": "demo",
            "labels": values["labels"],
            "annotations": values["annotations"],
            **({"deletionTimestamp": values["deleted"]} if values["deleted"] else {}),
        },
        "spec": {"containers": [{"name": "main", "ports": values["ports"]}]},
        "status": {
            "phase": values["phase"],
            "podIP": values["ip"],
            "conditions": [{"type": "Ready", "status": values["ready"]}],
        },
    }


HTTP = {"name": "http", "containerPort": 8000}
SYSTEM = {"name": "system", "containerPort": 9090}
RULES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("a frontend without named ports", {}, ("http://127.0.0.1:8000/metrics",)),
    ("the port that shows metrics wins", {"ports": [HTTP, SYSTEM]}, ("http://127.0.0.1:9090/metrics",)),
    ("the annotation wins over ports", {"ports": [HTTP], "annotations": {"prometheus.io/port": "81"}}, ("http://127.0.0.1:81/metrics",)),
    ("an IPv6 address", {"ip": "fd00::7"}, ("http://[fd00::7]:8000/metrics",)),
    ("not ready", {"ready": "False"}, ()),
    ("ending", {"deleted": "2026-01-01T00:00:00Z"}, ()),
    ("not placed yet", {"ip": None}, ()),
    ("another DGD", {"labels": {DGD_LABEL: "code", TYPE_LABEL: "frontend"}}, ()),
    ("a worker", {"labels": {DGD_LABEL: "chat", TYPE_LABEL: "worker"}}, ()),
    ("no DGD label, the namespace in the other spelling", {"labels": {TYPE_LABEL: "Frontend", NAMESPACE_LABEL: "demo_chat"}}, ("http://127.0.0.1:8000/metrics",)),
    ("no labels", {"labels": None}, ()),
]  # fmt: skip


@pytest.mark.parametrize(("case", "changes", "wanted"), RULES, ids=[rule[0] for rule in RULES])
def test_which_pods_are_read(case: str, changes: dict[str, Any], wanted: tuple[str, ...]) -> None:
    assert metrics_urls([pod("p", **changes)], dgd="chat", dynamo_namespace="demo-chat", types=ROUTING) == wanted


class Cluster:
    """An API server that lists pods, and the routers in them."""

    def __init__(self) -> None:
        self.pods: list[dict[str, Any]] = []
        self.status = 200
        self.asked: list[str] = []
        self.runners: list[web.AppRunner] = []

    async def serve(self, path: str, answer: Any) -> int:
        app = web.Application()
        app.router.add_get(path, answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.runners.append(runner)
        return int(runner.addresses[0][1])

    async def begin(self) -> KubernetesApi:
        async def answer(request: web.Request) -> web.Response:
            self.asked.append(request.path_qs)
            if self.status != 200:
                return web.json_response({"kind": "Status", "message": "no"}, status=self.status)
            return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.pods})

        configuration = kubernetes_client.Configuration()
        configuration.host = f"http://127.0.0.1:{await self.serve('/{tail:.*}', answer)}"
        return KubernetesApi(configuration)

    async def add(self, name: str, router: Router) -> dict[str, Any]:
        async def text(_: web.Request) -> web.Response:
            return web.Response(text=router.text())

        made = pod(name, ports=[{"name": "http", "containerPort": await self.serve("/metrics", text)}])
        self.pods.append(made)
        return made


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    yield made
    for runner in made.runners:
        await runner.cleanup()


async def test_routers_are_found_and_their_comings_and_goings_followed(cluster: Cluster) -> None:
    api = await cluster.begin()
    discovery = Discovery(api, kubernetes_namespace="demo", dgd="chat", dynamo_namespace="demo-chat")
    now = [0.0]
    scrape = DiscoveredScrape(discovery, [POOL], timeout_s=2.0, refresh_s=10.0, clock=lambda: now[0])
    try:
        with pytest.raises(MetricsUnavailable, match="there are none"):
            await scrape.observe(0.0)
        one, two = Router().serve(100), Router().serve(100)
        first = await cluster.add("one", one)
        await scrape.observe(10.0)
        one.serve(6)
        assert (await scrape.observe(20.0))["chat-decode"].requests == 6.0
        await cluster.add("two", two)
        asked = len(cluster.asked)
        await scrape.sample()
        assert len(cluster.asked) == asked, "the list is not read more often than it changes"
        now[0] = 10.0
        two.serve(50)
        await scrape.observe(30.0)
        one.serve(1)
        two.serve(3)
        both = (await scrape.observe(40.0))["chat-decode"]
        assert both.requests == 4.0, "what a router had counted before it was found is no traffic of now"

        cluster.status, now[0] = 403, 20.0
        two.serve(2)
        assert (await scrape.observe(50.0))["chat-decode"].requests == 2.0, "an API server that says no costs nothing but news"
        cluster.status, now[0] = 200, 30.0
        cluster.pods.remove(first)
        two.serve(5)
        left = (await scrape.observe(60.0))["chat-decode"]
        assert (left.requests, left.front_door_up) == (5.0, True), "who was removed is not missed"
    finally:
        await scrape.close()
    assert cluster.asked[0].startswith("/api/v1/namespaces/demo/pods?")


async def test_a_configuration_without_a_url_discovers_in_kubernetes_only(cluster: Cluster) -> None:
    api = await cluster.begin()
    load: dict[str, Any] = {"enable_load_scaling": True, "load_adjustment_interval": 10, "namespace": "demo-chat"}

    def found(**changes: Any) -> Discovery | None:
        return discovery_of(config(**{**load, "environment": "kubernetes", **changes}), dgd="chat", connect=lambda: api)

    prometheus = {"metric_pulling_prometheus_endpoint": "http://127.0.0.1:9"}
    assert found(environment="virtual") is None
    assert found(load_router_metrics_url="http://127.0.0.1:9/metrics") is None
    assert found(enable_load_scaling=False, **prometheus) is None
    assert "namespaces/demo/pods" in str(found(**prometheus))
    engines = found(extensions={"vllm_series": True})
    assert engines is not None
    cluster.pods = [pod("engine", labels={DGD_LABEL: "chat", TYPE_LABEL: SERVING[0]}), pod("frontend", ip="127.0.0.2")]
    assert await asyncio.to_thread(engines.find) == ("http://127.0.0.1:8000/metrics",)
    settings = config(**load, environment="kubernetes")
    source = source_of(PlannerSetup(config=settings, pools=(pool(),)), [POOL], discovery=found())
    assert isinstance(source, DiscoveredScrape)
    await source.close()
