"""Finding a deployment's /metrics among the pods of a real API server, as a user who may list pods and nothing else.

There is no kubelet: the test says what pods have become, at loopback addresses where their routers answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web

from pool_planner.metrics.discovery import DGD_LABEL, NAMESPACE_LABEL, TYPE_LABEL, DiscoveredScrape, discovery_of
from pool_planner.metrics.source import source_of
from pool_planner.setup import PlannerSetup
from pool_planner.types import MetricsUnavailable, Observation
from tests.kube.server import ApiServer, call, free_port
from tests.planner.story import config, pool
from tests.planner.test_metrics import POOL, Router

READY = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}


class Deployment:
    """The pods of a DGD, and what answers in them."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self._runners: list[web.AppRunner] = []

    async def add(self, name: str, router: Router, *, dgd: str = "chat", kind: str = "frontend", status: Any = None) -> None:
        async def text(_: web.Request) -> web.Response:
            return web.Response(text=router.text())

        app = web.Application()
        app.router.add_get("/metrics", text)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        labels = {DGD_LABEL: dgd, TYPE_LABEL: kind, NAMESPACE_LABEL: f"{self.namespace}-{dgd}"}
        port = {"name": "http", "containerPort": int(runner.addresses[0][1])}
        await self.ask("POST", self.path, {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"nodeName": "somewhere", "containers": [{"name": "main", "image": "none", "ports": [port]}]},
        })  # fmt: skip
        await self.becomes(name, {**READY, "podIP": "127.0.0.1"} if status is None else status)

    async def becomes(self, name: str, status: Mapping[str, Any]) -> None:
        await self.ask("PATCH", f"{self.path}/{name}/status", {"status": status})

    async def ask(self, method: str, path: str, body: Any) -> None:
        await asyncio.to_thread(call, self.server.admin, method, path, body)

    async def end(self) -> None:
        for runner in self._runners:
            await runner.cleanup()


@pytest.fixture
async def deployment(server: ApiServer, namespace: str) -> AsyncIterator[Deployment]:
    made = Deployment(server, namespace)
    yield made
    await made.end()


async def test_the_pods_of_a_deployment_are_read_as_they_come_and_go(deployment: Deployment) -> None:
    server, namespace = deployment.server, deployment.namespace
    settings = config(environment="kubernetes", namespace=f"{namespace}-chat")
    reached = [server.api("person")]

    class Newest:
        def list(self, *args: Any, **kwargs: Any) -> Any:
            return reached[-1].list(*args, **kwargs)

    discovery = discovery_of(settings, dgd="chat", connect=Newest)
    assert discovery is not None
    setup = PlannerSetup(config=settings, pools=(pool("decode"),))
    source = source_of(setup, [POOL], discovery=discovery)
    assert isinstance(source, DiscoveredScrape)
    source.refresh_s = 0.0

    async def seen(now: float) -> Observation:
        return (await source.observe(now))["chat-decode"]

    try:
        with pytest.raises(MetricsUnavailable, match="403"):
            await source.observe(0.0)
        server.role(namespace, "person", [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}])
        with pytest.raises(MetricsUnavailable, match="there are none"):
            await source.observe(0.0)

        one, two, starting = Router().serve(100), Router().serve(100), Router().serve(100)
        await deployment.add("one", one)
        await deployment.add("worker", Router().serve(7), kind="worker")
        await deployment.add("theirs", Router().serve(7), dgd="other")
        await deployment.add("starting", starting, status={"phase": "Pending"})
        await seen(10.0)
        one.serve(6)
        assert (await seen(20.0)).requests == 6.0, "one frontend is ready; the others are no frontends of this deployment"

        await deployment.becomes("starting", {**READY, "podIP": "127.0.0.1"})
        await deployment.add("two", two)
        await seen(30.0)
        for router in (one, two, starting):
            router.serve(2)
        assert (await seen(40.0)).requests == 6.0

        await deployment.ask("DELETE", f"{deployment.path}/one", None)  # with nobody to end it, it stays, and is ending
        one.serve(50)
        two.serve(1)
        left = await seen(50.0)
        assert (left.requests, left.front_door_up) == (1.0, True)

        reached.append(server.api("person", port=free_port()))
        two.serve(3)
        begun = time.monotonic()
        assert (await seen(60.0)).requests == 3.0
        assert time.monotonic() - begun < 4.0, "an API server that is away is not waited for"
    finally:
        await source.close()
