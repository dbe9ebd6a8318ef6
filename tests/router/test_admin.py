"""The protocol between planner and router, told as stories: whole state by version, drains, admission, wake."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.router.conftest import MODEL, Running, StartEngine, StartRouter, until
from tests.router.engines import DONE, SSE_HEAD, FakeEngine, answering, chat_chunk, chunk, hang, sending

PD = [{"name": "p", "role": "prefill", "dynamo_namespace": "demo-chat-main"}, {"name": "d", "role": "decode"}]


async def call(router: Running, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with router.session.request(method, router.admin + path, json=body) as answer:
        return answer.status, await answer.json()


async def test_whole_state_replaces_and_older_versions_are_ignored(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    one, two = await start_engine("one"), await start_engine("two")
    router = await start_router([{"name": "a", "role": "agg"}])

    assert await router.put_endpoints(5, {"a": ("agg", [one, two]), "other": ("agg", [])}) == {
        "version": 5,
        "unknown_pools": ["other"],
    }
    assert (await router.put_endpoints(4, {"a": ("agg", [])}))["version"] == 5
    assert len((await router.state())["pools"][0]["endpoints"]) == 2

    await router.put_endpoints(6, {"a": ("agg", [one, two])}, one="starting")
    for _ in range(4):
        await router.chat()
    assert (len(one.calls), len(two.calls)) == (0, 4)

    await router.put_endpoints(7, {"a": ("agg", [one])})
    await router.chat()
    assert (len(one.calls), len(two.calls)) == (1, 4)
    assert [endpoint["id"] for endpoint in (await router.state())["pools"][0]["endpoints"]] == ["one"]


async def test_a_drain_lets_running_requests_end_and_sends_no_new_ones(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    """Two prefill replicas. One is drained while a request that it prefilled waits for decode: until the first token, its KV
    blocks are pending; after that, it may go."""
    keep, go = await start_engine("keep", "prefill"), await start_engine("go", "prefill")
    decode = await start_engine(
        "dec", "decode", script=sending(SSE_HEAD, 0.15, chunk(chat_chunk("x")), 0.1, chunk(DONE), b"0\r\n\r\n")
    )
    router = await start_router(PD)
    pools = {"p": ("prefill", [go]), "d": ("decode", [decode])}
    await router.put_endpoints(1, pools)
    running = asyncio.ensure_future(router.stream())
    await until(lambda: len(decode.calls) == 1)
    pools["p"] = ("prefill", [keep, go])
    await router.put_endpoints(2, pools)

    drain = {"pool": "p", "endpoints": ["go"], "deadline_s": 60.0}
    assert await call(router, "POST", "/admin/drain", drain) == (200, {"in_flight": {"go": 0}, "pending_kv": {"go": 1}})
    assert (await router.endpoint("go"))["state"] == "draining"
    decode.script = None
    for _ in range(3):
        await router.chat()
    assert (len(keep.calls), len(go.calls)) == (3, 1)

    assert await running == chat_chunk("x") + DONE
    assert await call(router, "POST", "/admin/drain", drain) == (200, {"in_flight": {"go": 0}, "pending_kv": {"go": 0}})

    # Wanted again: a newer whole state says so.
    await router.put_endpoints(3, pools)
    for _ in range(2):
        await router.chat()
    assert len(go.calls) == 2


async def test_an_endpoint_that_left_finishes_what_it_has(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine("old", script=sending(SSE_HEAD, chunk(chat_chunk("x")), 0.1, chunk(DONE), b"0\r\n\r\n"))
    router = await start_router([{"name": "a", "role": "agg"}])
    await router.put_endpoints(1, {"a": ("agg", [engine])})
    running = asyncio.ensure_future(router.stream())
    await until(lambda: len(engine.calls) == 1)
    await router.put_endpoints(2, {"a": ("agg", [])})
    assert (await router.endpoint("old"))["in_flight"] == 1
    assert await running == chat_chunk("x") + DONE
    assert (await router.state())["pools"][0]["endpoints"] == []


async def test_requests_wait_for_a_pool_that_starts_and_wake_the_planner(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    planner = await start_engine("planner", script=answering(200, {}))
    engine = await start_engine("e")
    router = await start_router([{"name": "a", "role": "agg"}], planner_url=planner.url)
    waiting = [asyncio.ensure_future(router.chat()) for _ in range(3)]
    await until(lambda: len(planner.calls) == 1)
    assert planner.calls[0].path == "/v1/wake"
    assert planner.calls[0].body == {"model": MODEL}
    for _ in range(200):  # the wake-up goes out with the first request; the others may still be on their way
        groups = (await router.state())["groups"]
        if groups[0]["queued"] == 3:
            break
        await asyncio.sleep(0.01)
    by_priority = {"0": {"offered": 3, "admitted": 0, "shed": 0, "queued": 3}}
    assert groups == [{"model": MODEL, "group": MODEL, "queued": 3, "shed": 0, "by_priority": by_priority}]
    await router.put_endpoints(1, {"a": ("agg", [engine])})
    assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200, 200, 200]


async def test_a_sleeping_model_answers_503_when_the_deadline_passes(start_router: StartRouter) -> None:
    """20 model seconds an hour of patience: at speed 100 the deadline of 5 s passes in 50 ms."""
    queue = {"deadline_s": 5.0, "starting_retry_after_s": 500.0}
    router = await start_router([{"name": "a", "role": "agg"}], speed=100.0, queue=queue)
    status, body, headers = await router.chat()
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "model_starting", "5")
    assert (await router.state())["groups"][0]["shed"] == 1


async def test_no_more_are_under_way_than_the_plan_says(start_router: StartRouter, start_engine: StartEngine) -> None:
    """The plan lets one request be under way: three come at once, and each begins when the one before it has ended. One that
    finds no place until its deadline is told that the model has enough to do, not that it starts."""
    engine = await start_engine(itl_s=0.004)
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], queue={"deadline_s": 20.0})
    groups = [{"model": MODEL, "admitted_rps": 1000.0, "in_flight": 1.0}]
    assert (await call(router, "PUT", "/admin/admission", {"version": 1, "groups": groups}))[0] == 200
    assert (await router.state())["admission"]["in_flight"] == {MODEL: 1.0}
    most = 0

    async def watched() -> tuple[int, dict[str, Any], dict[str, str]]:
        nonlocal most
        answer = asyncio.ensure_future(router.chat())
        while not answer.done():
            most = max(most, engine.running)
            await asyncio.sleep(0.001)
        return answer.result()

    assert [status for status, _, _ in await asyncio.gather(*(watched() for _ in range(3)))] == [200, 200, 200]
    assert most == 1 and len(engine.calls) == 3


async def test_engines_that_are_full_are_not_said_to_start(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine(script=hang)
    pool = {"name": "a", "role": "agg", "endpoints": [engine.url], "max_in_flight": 1}
    router = await start_router([pool], speed=100.0, queue={"deadline_s": 5.0})
    first = asyncio.ensure_future(router.chat())
    await until(lambda: engine.running == 1)
    status, body, _ = await router.chat()
    assert (status, body["error"]["code"]) == (429, "overloaded")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_the_plans_rate_holds_until_it_expires(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine()
    queue = {"limit": 0, "deadline_s": 1.0}
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], queue=queue, speed=10.0)
    groups = [{"model": MODEL, "admitted_rps": 1.0, "burst": 2.0, "by_priority": {"-1": 0.0}}]
    answer = await call(router, "PUT", "/admin/admission", {"version": 1, "groups": groups, "valid_s": 4.0})
    assert answer == (200, {"version": 1, "unknown_models": [], "unknown_pools": []})
    assert (await router.state())["admission"]["source"] == "plan"

    statuses = [(await router.chat())[0] for _ in range(4)]
    assert statuses[:2] == [200, 200]
    assert 429 in statuses[2:]
    unimportant = {"nvext": {"agent_hints": {"priority": -1}}}
    await asyncio.sleep(0.2)
    assert (await router.chat(**unimportant))[0] == 429

    # 4 model seconds at speed 10; then the configuration's own limits (none) hold, and the state says so.
    await asyncio.sleep(0.4)
    assert (await router.state())["admission"] == {
        "version": 1,
        "source": "own",
        "admitted_rps": {MODEL: None},
        "in_flight": {MODEL: None},
        "in_flight_by_pool": {MODEL: {}},
        "by_priority": {MODEL: {}},
    }
    assert [(await router.chat())[0] for _ in range(4)] == [200] * 4


BAD = {
    "not JSON": ("PUT", "/admin/endpoints", b"{", 400),
    "no version": ("PUT", "/admin/endpoints", b'{"pools": []}', 400),
    "unknown state": (
        "PUT",
        "/admin/endpoints",
        b'{"version":1,"pools":[{"name":"p","role":"prefill","endpoints":[{"id":"x","url":"http://x","state":"up"}]}]}',
        400,
    ),
    "another role": ("PUT", "/admin/endpoints", b'{"version":1,"pools":[{"name":"p","role":"agg","endpoints":[]}]}', 409),
    "negative rate": ("PUT", "/admin/admission", b'{"version":1,"groups":[{"model":"m","admitted_rps":-1}]}', 400),
    "no such pool": ("POST", "/admin/drain", b'{"pool":"x","endpoints":[],"deadline_s":1}', 404),
    "wrong method": ("POST", "/admin/state", b"", 405),
    "no such path": ("GET", "/admin/nothing", b"", 404),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD.values(), ids=BAD.keys())
async def test_malformed_admin_requests_change_nothing(
    start_router: StartRouter, method: str, path: str, body: bytes, status: int
) -> None:
    router = await start_router(PD)
    before = await router.state()
    async with router.session.request(method, router.admin + path, data=body) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["message"]
    after = await router.state()
    assert {**before, "at_s": 0} == {**after, "at_s": 0}


async def test_the_token_guards_all_but_health_and_metrics(start_router: StartRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    router = await start_router(PD, admin={"port": 0, "token_env": "TOKEN"})
    for path, token, status in (
        ("/health", None, 200),
        ("/metrics", None, 200),
        ("/admin/state", None, 401),
        ("/admin/state", "wrong", 401),
        ("/admin/state", "secret", 200),
    ):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with router.session.get(router.admin + path, headers=headers) as answer:
            assert answer.status == status, (path, token)
    async with router.session.get(router.base + "/admin/state") as answer:
        assert answer.status == 404


async def test_metrics_are_what_the_planners_read(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Two streamed requests of 40 tokens with 2 ms between them, at speed 50: latencies are reported in model seconds."""
    prefill: FakeEngine = await start_engine("pre", "prefill", prefill_s=0.01)
    decode = await start_engine("dec", "decode", tokens=40, itl_s=0.002)
    router = await start_router(PD, speed=50.0)
    await router.put_endpoints(1, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})
    for _ in range(2):
        await router.stream("x" * 400, stream_options={"include_usage": True})

    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(await router.metrics()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(name: str, **labels: str) -> float:
        [found] = [v for have, v in samples[name] if labels.items() <= have.items()]
        return found

    at_prefill = {"dynamo_namespace": "demo_chat_main", "model": "demo/chat", "pool": "p", "role": "prefill"}
    at_decode = {"dynamo_namespace": "d", "model": "demo/chat", "pool": "d", "role": "decode"}
    router_ = "dynamo_component_router_"
    for labels in (at_prefill, at_decode):
        assert value(router_ + "requests_started_total", **labels) == 2
        assert value(router_ + "requests_total", **labels) == 2
        assert value(router_ + "input_sequence_tokens_sum", **labels) == 200
        assert value(router_ + "request_duration_seconds_count", **labels) == 2
        assert value("global_planner_router_shed_total", **labels) == 0
        assert value("global_planner_router_queued_requests", **labels) == 0
    assert value(router_ + "output_sequence_tokens_sum", **at_decode) == 80
    ttft = value(router_ + "time_to_first_token_seconds_sum", **at_prefill) / 2
    itl = value(router_ + "inter_token_latency_seconds_sum", **at_decode) / 2
    assert 0.5 <= ttft < 5.0
    assert 0.1 <= itl < 1.0
    assert not [have for have, _ in samples[router_ + "time_to_first_token_seconds_sum"] if have["role"] == "decode"]
    frontend = {"model": "demo/chat", "dynamo_namespace": "demo_chat_main"}
    assert value("dynamo_frontend_requests_total", **frontend) == 2
    assert value("dynamo_frontend_output_sequence_tokens_sum", **frontend) == 80
    worker = {"worker_id": "dec", "dp_rank": "0", "worker_type": "decode", "pool": "d"}
    assert value("dynamo_frontend_worker_last_inter_token_latency_seconds", **worker) == pytest.approx(itl, rel=0.5)
    assert value("dynamo_frontend_worker_active_decode_blocks", **worker) == 0
    assert value("dynamo_frontend_router_queue_pending_requests") == 0
    for outcome, count in {"offered": 2, "admitted": 2, "completed": 2, "shed": 0, "failed": 0, "retried": 0}.items():
        assert value("global_planner_router_requests_total", model="demo/chat", priority="0", outcome=outcome) == count


async def test_load_is_told_by_request_priority(start_router: StartRouter, start_engine: StartEngine) -> None:
    """What the plan needs to admit by priority: offered, admitted, queued and shed of each, and the offered of each pool."""
    prefill = await start_engine("pre", "prefill")
    decode = await start_engine("dec", "decode", tokens=2, itl_s=0.001)
    router = await start_router(PD, speed=1.0, queue={"deadline_s": 1.0})
    await router.put_endpoints(1, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})
    # Priority -1 may not come in at all; priority 7 may.
    groups = [{"model": "demo/chat", "admitted_rps": 100.0, "burst": 100.0, "by_priority": {"-1": 0.0}}]
    await call(router, "PUT", "/admin/admission", {"version": 1, "groups": groups, "valid_s": 60.0})
    waiting = asyncio.create_task(router.chat("x" * 40, nvext={"agent_hints": {"priority": -1}}))
    for _ in range(3):
        await router.stream("x" * 40, nvext={"agent_hints": {"priority": 7}})
    [group] = (await router.state())["groups"]
    assert group["by_priority"]["7"] == {"offered": 3, "admitted": 3, "shed": 0, "queued": 0}
    assert group["by_priority"]["-1"] == {"offered": 1, "admitted": 0, "shed": 0, "queued": 1}
    assert (await router.state())["admission"]["by_priority"] == {"demo/chat": {"-1": 0.0}}
    text = await router.metrics()
    assert 'global_planner_router_waiting_requests{model="demo/chat",priority="-1"} 1' in text
    for pool, role, namespace in (("p", "prefill", "demo_chat_main"), ("d", "decode", "d")):
        labels = f'dynamo_namespace="{namespace}",model="demo/chat",pool="{pool}",role="{role}"'
        assert f'global_planner_router_offered_total{{{labels},priority="7"}} 3' in text
        assert f'global_planner_router_offered_total{{{labels},priority="-1"}} 1' in text
    assert (await waiting)[0] == 429
    [group] = (await router.state())["groups"]
    assert group["by_priority"]["-1"] == {"offered": 1, "admitted": 0, "shed": 1, "queued": 0}
