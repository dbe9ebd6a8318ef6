"""The planner's client of the protocol, against real routers."""

from __future__ import annotations

import asyncio

import pytest

from global_planner.ports import Endpoint, GroupAdmission, PoolEndpoints
from global_planner.router_client import RouterClient
from pool_planner.types import ClusterUnavailable
from tests.router.conftest import MODEL, Running, StartEngine, StartRouter, until
from tests.router.engines import FakeEngine, hang

AGG = [{"name": "a", "role": "agg"}]


def whole(*engines: FakeEngine, **states: str) -> list[PoolEndpoints]:
    listed = tuple(Endpoint(id=e.name, url=e.url, state=states.get(e.name, "ready")) for e in engines)  # type: ignore[arg-type]
    return [PoolEndpoints(name="a", role="agg", endpoints=listed)]


def client_of(*routers: Running) -> RouterClient:
    return RouterClient([router.admin for router in routers], admission_valid_s=30.0)


async def test_two_processes_are_seen_as_one(start_router: StartRouter, start_engine: StartEngine) -> None:
    one, two = await start_engine("one", script=hang), await start_engine("two", script=hang)
    routers = [await start_router(AGG), await start_router(AGG)]
    async with client_of(*routers) as client:
        await client.put_endpoints(whole(one, two))
        calls = [asyncio.ensure_future(router.chat()) for router in routers for _ in range(2)]
        await until(lambda: one.running + two.running == 4)
        state = await client.state()
        assert state.processes == 2
        assert {name: load.in_flight for name, load in state.endpoints.items()} == {"one": 2, "two": 2}
        assert state.endpoints["one"].outstanding_tokens > 0

        await client.drain("a", ["one"], 60.0)
        assert (await client.state()).endpoints["one"].state == "draining"
        await client.put_endpoints(whole(one, two))
        assert (await client.state()).endpoints["one"].state == "ready"

        await client.put_admission([GroupAdmission(model=MODEL, admitted_rps=3.0)])
        assert [(await router.state())["admission"]["admitted_rps"][MODEL] for router in routers] == [1.5, 1.5]
        for call in calls:
            call.cancel()


async def test_a_restarted_process_is_told_again(start_router: StartRouter, start_engine: StartEngine) -> None:
    """The second router stands in for the first after a restart: it knows nothing. Its look at the state repairs that, and an
    endpoint that was being drained stays so."""
    one, two = await start_engine("one"), await start_engine("two")
    before, after = await start_router(AGG), await start_router(AGG)
    async with client_of(before) as client:
        await client.put_endpoints(whole(one, two))
        await client.put_admission([GroupAdmission(model=MODEL, admitted_rps=3.0)])
        await client.drain("a", ["one"], 60.0)
        client._urls = (after.admin,)
        await client.state()
        state = await client.state()
        assert {name: load.state for name, load in state.endpoints.items()} == {"one": "draining", "two": "ready"}
        assert (await after.state())["admission"]["version"] == 1


async def test_a_new_planner_goes_on_from_the_version_in_force(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine("one")
    router = await start_router(AGG)
    await router.put_endpoints(1000, {"a": ("agg", [])})
    async with client_of(router) as first, client_of(router) as second:
        await first.put_endpoints(whole(engine))
        assert (await router.state())["endpoints_version"] == 1001
        await second.put_endpoints(whole(engine))
        await second.put_endpoints(whole())
        # The first one finds that somebody else wrote; it says so once, and then goes on.
        with pytest.raises(ClusterUnavailable, match="1003"):
            await first.put_endpoints(whole(engine))
        assert (await first.state()).endpoints == {}
        await first.put_endpoints(whole(engine))
        assert set((await first.state()).endpoints) == {"one"}


async def test_one_unreachable_process_makes_the_whole_unavailable(start_router: StartRouter) -> None:
    router = await start_router(AGG)
    async with RouterClient([router.admin, "http://127.0.0.1:9"], admission_valid_s=30.0) as client:
        for call in (client.state(), client.put_endpoints([]), client.drain("a", [], 1.0)):
            with pytest.raises(ClusterUnavailable, match=r"127\.0\.0\.1:9"):
                await call


async def test_a_refusal_is_told(start_router: StartRouter) -> None:
    router = await start_router(AGG)
    async with client_of(router) as client:
        with pytest.raises(ClusterUnavailable, match="no pool is named 'b'"):
            await client.drain("b", ["x"], 1.0)


async def test_what_is_not_a_router_is_told(start_engine: StartEngine) -> None:
    engine = await start_engine()
    async with RouterClient([engine.url + "/v1"], admission_valid_s=30.0) as client:
        with pytest.raises(ClusterUnavailable):
            await client.state()
