"""Endpoints from files, DNS and Kubernetes: what each says, what happens when it falls silent, and that nothing is dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from router import kubernetes_watch
from router.config import ConfigError, validate
from router.slices import Slices
from router.types import EndpointSpec
from tests.router.conftest import Running, StartEngine, StartRouter, until
from tests.router.engines import DONE, FakeEngine


def piece(name: str, *endpoints: dict[str, Any], ports: Any = ({"name": "http", "port": 80},)) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": "1"}, "ports": list(ports), "endpoints": list(endpoints)}


def at(address: str, name: str | None = None, **conditions: bool) -> dict[str, Any]:
    target = {"targetRef": {"kind": "Pod", "name": name}} if name else {}
    return {"addresses": [address], "conditions": conditions, **target}


def told(slices: Slices) -> list[tuple[str, str, str]]:
    return [(one.id, one.url, one.state) for one in slices.endpoints()]


CONDITIONS = [
    ({}, "ready"),
    ({"ready": True}, "ready"),
    ({"ready": True, "serving": True, "terminating": False}, "ready"),
    ({"ready": False}, "starting"),
    ({"ready": False, "serving": True, "terminating": True}, "draining"),
    ({"ready": False, "serving": False, "terminating": True}, "draining"),
]


@pytest.mark.parametrize(("conditions", "state"), CONDITIONS)
def test_conditions(conditions: dict[str, bool], state: str) -> None:
    slices = Slices("", "http")
    slices.replace([piece("s", at("10.0.0.1", "pod-1", **conditions))])
    assert told(slices) == [("pod-1", "http://10.0.0.1:80", state)]


PORTS = [
    ("", [{"name": "http", "port": 80}], "http://10.0.0.1:80"),
    ("http", [{"name": "metrics", "port": 81}, {"name": "http", "port": 80}], "http://10.0.0.1:80"),
    ("81", [{"name": "metrics", "port": 81}, {"name": "http", "port": 80}], "http://10.0.0.1:81"),
    ("", [{"name": "metrics", "port": 81}, {"name": "http", "port": 80}], None),  # which one?
    ("grpc", [{"name": "http", "port": 80}], None),
    ("http", None, None),
]


@pytest.mark.parametrize(("wanted", "ports", "url"), PORTS)
def test_ports(wanted: str, ports: Any, url: str | None) -> None:
    slices = Slices(wanted, "http")
    slices.replace([{**piece("s", at("10.0.0.1")), "ports": ports}])
    assert [one.url for one in slices.endpoints()] == ([] if url is None else [url])


def test_a_service_is_the_sum_of_its_slices() -> None:
    slices = Slices("http", "https")
    slices.replace([piece("one", at("10.0.0.1", "a"), at("fd00::2", "b", ready=False)), piece("two", at("10.0.0.3", "c"))])
    assert told(slices) == [
        ("a", "https://10.0.0.1:80", "ready"),
        ("b", "https://[fd00::2]:80", "starting"),
        ("c", "https://10.0.0.3:80", "ready"),
    ]
    # "b" moves to another slice and is in both for a moment: once, in its better state.
    assert slices.apply("MODIFIED", piece("two", at("10.0.0.3", "c"), at("fd00::2", "b")))
    assert told(slices)[1] == ("b", "https://[fd00::2]:80", "ready")
    assert slices.apply("DELETED", piece("one"))
    assert [name for name, _, _ in told(slices)] == ["b", "c"]
    assert not slices.apply("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    slices.apply("ADDED", {"metadata": {"name": "empty"}, "ports": None, "endpoints": None})
    assert len(slices.endpoints()) == 2


def test_a_port_named_bootstrap_is_sglangs() -> None:
    slices = Slices("http", "http")
    slices.replace([piece("s", at("10.0.0.1"), ports=[{"name": "http", "port": 80}, {"name": "bootstrap", "port": 8998}])])
    assert slices.endpoints() == (EndpointSpec(id="10.0.0.1", url="http://10.0.0.1:80", bootstrap_port=8998),)


WRONG = [
    ({}, "name exactly one of file, dns and service (has: none)"),
    ({"file": "x", "dns": "a:1"}, "name exactly one of file, dns and service (has: file, dns)"),
    ({"dns": "engines"}, "discovery.dns"),
    ({"service": "engines"}, "discovery.service"),
]


@pytest.mark.parametrize(("discovery", "text"), WRONG)
def test_refused(discovery: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate({"models": [{"model": "m", "pools": [{"name": "a", "role": "agg", "discovery": discovery}]}]})
    assert text in str(refusal.value)


def test_static_and_discovered_at_once_is_refused() -> None:
    pool = {"name": "a", "role": "agg", "endpoints": ["http://a:1"], "discovery": {"dns": "a:1"}}
    with pytest.raises(ConfigError, match="pool 'a' has both endpoints and discovery"):
        validate({"models": [{"model": "m", "pools": [pool]}]})


# ---- over sockets ---------------------------------------------------------------------------------------------------


async def ids(router: Running) -> dict[str, str]:
    return {one["id"]: one["state"] for one in (await router.state())["pools"][0]["endpoints"]}


async def test_a_file_that_changes_drops_nothing(start_router: StartRouter, start_engine: StartEngine, tmp_path: Path) -> None:
    """Streams run all the time while the file moves the pool from one engine to another and back, ten times."""
    one, two = await start_engine("one", itl_s=0.01), await start_engine("two", itl_s=0.01)
    path = tmp_path / "engines.yaml"

    def write(*engines: FakeEngine) -> None:
        whole = path.with_suffix(".tmp")
        whole.write_text("\n".join(f"- {{id: {engine.name}, url: '{engine.url}'}}" for engine in engines))
        whole.replace(path)

    write(one)
    router = await start_router([{"name": "a", "role": "agg", "discovery": {"file": str(path), "every_s": 0.02}}])
    moving = True

    async def ask() -> int:
        count = 0
        while moving:
            assert (await router.stream()).endswith(DONE)
            count += 1
        return count

    asking = [asyncio.ensure_future(ask()) for _ in range(4)]
    for turn in range(10):
        write(two if turn % 2 == 0 else one)
        before = len(one.calls), len(two.calls)
        await until(lambda turn=turn, before=before: (len(two.calls), len(one.calls))[turn % 2] > before[1 - turn % 2] + 4)  # type: ignore[misc]
    moving = False
    assert sum(await asyncio.gather(*asking)) > 20
    assert router.app.models["demo/chat"].outcomes.total("retried") == 0
    # Unreadable is not empty: what was known holds, and is told.
    path.write_text("- {url: nonsense}")
    await until(lambda: router.app.discovery.troubles["a"] is not None)
    assert (await ids(router)) == {"one": "ready"}
    assert "global_planner_router_discovery_up{" in await router.metrics()
    assert 'role="agg"} 0' in (await router.metrics()).split("discovery_up{")[1].split("\n")[0]
    # An empty list is zero.
    path.write_text("[]")
    await until(lambda: router.app.discovery.troubles["a"] is None)
    assert (await ids(router)) == {}


async def test_drains_and_the_planners_word_stand(start_router: StartRouter, start_engine: StartEngine, tmp_path: Path) -> None:
    """What was told to drain drains on though its source calls it ready; once the planner names endpoints, theirs count."""
    one, two = await start_engine("one"), await start_engine("two")
    path = tmp_path / "engines.json"
    path.write_text(json.dumps([{"id": "one", "url": one.url}, {"id": "two", "url": two.url}]))
    router = await start_router([{"name": "a", "role": "agg", "discovery": {"file": str(path), "every_s": 0.02}}])
    await until(lambda: len(router.app.endpoints.pools["a"].ready) == 2)
    drain = {"pool": "a", "endpoints": ["one"], "deadline_s": 9.0}
    async with router.session.post(router.admin + "/admin/drain", json=drain) as answer:
        assert answer.status == 200
    await asyncio.sleep(0.1)
    assert (await ids(router)) == {"one": "draining", "two": "ready"}
    await router.put_endpoints(1, {"a": ("agg", [one])})
    await asyncio.sleep(0.1)
    assert (await ids(router)) == {"one": "ready"}


async def test_dns(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine()
    discovery = {"dns": f"localhost:{engine.port}", "every_s": 0.02}
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: bool(router.app.endpoints.pools["a"].ready))
    assert f"127.0.0.1:{engine.port}" in await ids(router)
    assert (await router.chat())[0] == 200


async def test_a_name_that_nobody_has_is_nobody_in_the_end(start_router: StartRouter) -> None:
    discovery = {"dns": "engines.invalid:80", "every_s": 0.02}
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: router.app.discovery.troubles["a"] != "not asked yet")
    assert "engines.invalid" in str(router.app.discovery.troubles["a"])
    assert not router.app.endpoints.pools["a"].endpoints


# ---- a scripted API server: what a real one does only in bad weather ----------------------------------------------------


Api = Callable[[list[Any]], Awaitable[tuple[str, list[str]]]]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """api(script): a server that follows the script, one step a request: a dict is a list, a list the events of a watch that
    then ends, a number a status. Returns the path of a kubeconfig and the requests seen."""
    runners = []

    async def start(script: list[Any]) -> tuple[str, list[str]]:
        seen: list[str] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            seen.append(f"{request.path.split('/')[3]} {request.query.get('resourceVersion', 'list')}")
            assert request.query["labelSelector"] == "kubernetes.io/service-name=engines"
            step = script.pop(0) if script else None
            if step is None:
                await asyncio.sleep(3600)
            if isinstance(step, int):
                return web.json_response({"kind": "Status", "code": step}, status=step)
            if isinstance(step, dict):
                return web.json_response(step)
            response = web.StreamResponse()
            await response.prepare(request)
            for event in step or ():
                data = json.dumps(event).encode() + b"\n"
                # In two pieces: events need not come whole.
                await response.write(data[:7])
                await response.write(data[7:])
            return response

        app = web.Application()
        app.router.add_get("/{tail:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        port = runner.addresses[0][1]
        path = tmp_path / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        user = {"name": "u", "user": {"token": "secret"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        path.write_text(json.dumps({"clusters": [cluster], "users": [user], "contexts": [context], "current-context": "x"}))
        return str(path), seen

    yield start
    for runner in runners:
        await runner.cleanup()


def listed(version: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": list(items)}


def event(kind: str, version: str, item: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": {**item, "metadata": {**item.get("metadata", {}), "resourceVersion": version}}}


async def test_a_watch_goes_on_where_it_ended_and_starts_anew_when_it_is_too_old(
    start_router: StartRouter, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "BACKOFF_S", (0.02, 0.05))
    first, second = piece("s", at("10.0.0.1", "a")), piece("s", at("10.0.0.1", "a"), at("10.0.0.2", "b"))
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    kubeconfig, seen = await api(
        [
            503,  # the first list fails
            404,  # then the cluster turns out to be an old one, without v1
            listed("5", first),
            [event("BOOKMARK", "7", {})],
            [event("MODIFIED", "9", second)],
            [gone],
            404,
            listed("20"),
        ]
    )
    discovery = {"service": "prod/engines:http", "kubeconfig": kubeconfig}
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: len(seen) == 9, within_s=10)
    assert seen == [
        "v1 list",
        "v1 list",
        "v1beta1 list",
        "v1beta1 5",
        "v1beta1 7",
        "v1beta1 9",
        "v1 list",
        "v1beta1 list",
        "v1beta1 20",
    ]
    assert await ids(router) == {}


async def test_an_api_server_that_falls_silent_changes_nothing(start_router: StartRouter, api: Api) -> None:
    kubeconfig, _ = await api([listed("5", piece("s", at("10.0.0.1", "a"))), 500, 500, 500])
    discovery = {"service": "prod/engines", "kubeconfig": kubeconfig}
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: "500" in str(router.app.discovery.troubles["a"]), within_s=10)
    assert await ids(router) == {"a": "ready"}
    assert "EndpointSlices of prod/engines" in str((await router.state())["pools"][0]["discovery"])


async def test_without_credentials_it_is_told(start_router: StartRouter, tmp_path: Path) -> None:
    discovery = {"service": "prod/engines", "kubeconfig": str(tmp_path / "missing")}
    router = await start_router([{"name": "a", "role": "agg", "discovery": discovery}])
    await until(lambda: "ConfigException" in str(router.app.discovery.troubles["a"]), within_s=10)
