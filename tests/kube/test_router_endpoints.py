"""The router's endpoints from EndpointSlices on a real API server, as a user who may read nothing else.

The API refuses slices with loopback addresses, so the endpoints are only seen and not asked here.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.kube.proxy import Proxy
from tests.kube.server import ApiServer, call
from tests.router.conftest import Running, StartRouter, until
from tests.router.conftest import start_router as start_router

GROUP = "/apis/discovery.k8s.io/v1beta1/namespaces"


def piece(name: str, *endpoints: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1beta1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "engines"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def pod(name: str, address: str, ready: bool = True) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": ready},
        "targetRef": {"kind": "Pod", "name": name},
    }


def seen(router: Running) -> dict[str, tuple[str, str]]:
    return {one.id: (one.url, one.state) for one in router.app.endpoints.pools["a"].endpoints.values() if one.known}


async def test_endpoints_follow_the_slices_of_a_service(
    server: ApiServer, namespace: str, start_router: StartRouter, tmp_path: Path
) -> None:
    server.role(
        namespace, "person", [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]}]
    )
    path = f"{GROUP}/{namespace}/endpointslices"

    async def change(method: str, name: str, body: Any = None) -> None:
        where = path if method == "POST" else f"{path}/{name}"
        await asyncio.to_thread(call, server.admin, method, where, body)

    await change("POST", "one", piece("one", pod("pod-1", "10.1.0.1")))
    proxy = Proxy(server)
    proxy.start()
    discovery = {
        "service": f"{namespace}/engines:http",
        "kubeconfig": str(server.kubeconfig(tmp_path / "kubeconfig", "person", proxy.url)),
    }
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: seen(router) == {"pod-1": ("http://10.1.0.1:8000", "ready")}, within_s=20)

    await change("POST", "two", piece("two", pod("pod-2", "10.1.0.2", ready=False)))
    await until(lambda: seen(router).get("pod-2") == ("http://10.1.0.2:8000", "starting"), within_s=10)
    await change("PUT", "two", piece("two", pod("pod-2", "10.1.0.2"), pod("pod-3", "10.1.0.3")))
    await until(lambda: [state for _, state in seen(router).values()] == ["ready"] * 3, within_s=10)
    await change("DELETE", "one")
    await until(lambda: sorted(seen(router)) == ["pod-2", "pod-3"], within_s=10)

    # The API server goes away: what was known holds, and is told. It comes back, and changes are seen again.
    await asyncio.to_thread(proxy.stop)
    await change("DELETE", "two")
    await until(lambda: router.app.discovery.troubles["a"] is not None, within_s=20)
    assert sorted(seen(router)) == ["pod-2", "pod-3"]
    await asyncio.to_thread(proxy.start)
    await until(lambda: seen(router) == {} and router.app.discovery.troubles["a"] is None, within_s=30)
    await asyncio.to_thread(proxy.stop)


async def test_without_the_right_to_read_it_is_told(
    server: ApiServer, namespace: str, start_router: StartRouter, tmp_path: Path
) -> None:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", "hpa")
    discovery = {"service": f"{namespace}/engines", "kubeconfig": str(kubeconfig)}
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: "403" in str(router.app.discovery.troubles["a"]), within_s=20)
