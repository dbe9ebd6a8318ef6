"""Three ways to hand KV blocks over: the bodies as tables, and pairs of engines that really insist on them, over sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from router.handoff import Meeting, as_stream, handed_over, meeting_body, prefill_body
from router.openai import parse
from tests.router.conftest import MODEL, Running, StartEngine, StartRouter, until
from tests.router.engines import DONE, FakeEngine, Script, Seen, answering, cut, hang, plain

PD = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}]


def call(**body: Any) -> Any:
    return parse(json.dumps({"model": "m", **body}).encode())


NOTHING = [b"{}", b'{"kv_transfer_params": null}', b"[]", b"oops", b"", b'{"choices":[]}', b'{"choices":[7]}']


@pytest.mark.parametrize("engine", ["vllm", "trtllm"])
@pytest.mark.parametrize("answer", NOTHING)
def test_where_nothing_is_handed_over_decode_gets_the_clients_bytes(engine: Any, answer: bytes) -> None:
    asked = call(messages=[])
    assert handed_over(asked, answer, engine).decode is asked.raw


def test_vllm_bodies() -> None:
    asked = call(messages=[], stream=True, stream_options={"include_usage": True}, max_tokens=9, min_tokens=4, top_k=3)
    body = json.loads(prefill_body(asked, "vllm"))
    assert (body["max_tokens"], body["max_completion_tokens"], body["min_tokens"], body["top_k"]) == (1, 1, 1, 3)
    assert (body["stream"], "stream_options" in body) == (False, False)
    assert body["kv_transfer_params"]["do_remote_decode"] is True
    params = {"remote_block_ids": [4]}
    decode = handed_over(asked, json.dumps({"kv_transfer_params": params}).encode(), "vllm").decode
    assert json.loads(decode) == {**asked.body, "kv_transfer_params": params}
    assert decode.startswith(asked.raw[:-1])


def test_trtllm_bodies() -> None:
    asked = call(messages=[{"role": "user", "content": "x"}], stream=True, stream_options={}, max_tokens=9)
    body = json.loads(prefill_body(asked, "trtllm"))
    assert body == {**{k: v for k, v in asked.body.items() if k != "stream_options"}, "stream": False} | {
        "disaggregated_params": {"request_type": "context_only"}
    }
    params = {"request_type": "context_only", "first_gen_tokens": [7], "ctx_request_id": 1, "encoded_opaque_state": "AA=="}
    choice = {"index": 0, "finish_reason": "length", "disaggregated_params": params}
    answer = json.dumps({"choices": [choice], "prompt_token_ids": [1, 2]}).encode()
    decode = json.loads(handed_over(asked, answer, "trtllm").decode)
    assert decode["disaggregated_params"] == {**params, "request_type": "generation_only"}
    assert (decode["prompt_token_ids"], decode["stream"]) == ([1, 2], True)
    text = json.loads(handed_over(call(prompt="abc"), answer, "trtllm").decode)
    assert text["prompt"] == [1, 2]


def test_sglang_bodies_are_the_same_for_both() -> None:
    asked = call(messages=[])
    body = json.loads(meeting_body(asked, Meeting(host="::1", port=8998, room=2**62)))
    assert body == {**asked.body, "bootstrap_host": "[::1]", "bootstrap_port": 8998, "bootstrap_room": 2**62}


def test_a_complete_answer_as_a_stream() -> None:
    message = {"role": "assistant", "content": "yes"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {"id": "c", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 2}}
    events = as_stream(json.dumps(answer).encode(), include_usage=True).split(b"\n\n")
    parsed = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert events[-2:] == [b"data: [DONE]", b""]
    assert parsed[0]["choices"] == [{"index": 0, "delta": message, "finish_reason": "stop"}]
    assert (parsed[0]["object"], parsed[1]["usage"]) == ("chat.completion.chunk", {"total_tokens": 2})


# ---- TensorRT-LLM over sockets ---------------------------------------------------------------------------------------


def context(finish_reason: str = "length") -> Script:
    async def script(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        body = seen.body
        assert body["disaggregated_params"] == {"request_type": "context_only"}
        assert body["stream"] is False
        params = {"request_type": "context_only", "ctx_request_id": 5, "first_gen_tokens": [9]}
        choice = {"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": finish_reason}
        answer = {"id": "c", "object": "chat.completion", "choices": [{**choice, "disaggregated_params": params}]}
        writer.write(plain(200, {**answer, "prompt_token_ids": [3, 4]}))

    return script


async def generation(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    params = seen.body["disaggregated_params"]
    if params["request_type"] != "generation_only" or params["ctx_request_id"] != 5 or seen.body["prompt_token_ids"] != [3, 4]:
        writer.write(plain(400, {"error": {"message": "not what context made"}}))
        return
    await FakeEngine.serve(engine, seen, writer)


async def test_trtllm_pairs(start_router: StartRouter, start_engine: StartEngine) -> None:
    prefill = await start_engine("p", "prefill", script=context())
    decode = await start_engine("d", "decode", script=generation)
    router = await start_router(PD, model={"handoff": "trtllm"})
    await router.put_endpoints(1, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})
    assert (await router.stream()).endswith(DONE)
    assert (await router.chat())[0] == 200
    # An answer that ends at its first token is the prefill engine's; a client that streams gets it as events.
    prefill.script = context("stop")
    before = len(decode.calls)
    status, body, _ = await router.chat()
    assert (status, body["choices"]) == (
        200,
        [{"index": 0, "message": {"role": "assistant", "content": "one"}, "finish_reason": "stop"}],
    )
    streamed = await router.stream()
    assert b'"delta":{"role":"assistant","content":"one"}' in streamed
    assert streamed.endswith(DONE)
    assert len(decode.calls) == before
    assert 'dynamo_frontend_requests_total{dynamo_namespace="p",model="demo/chat"} 4' in await router.metrics()


# ---- SGLang over sockets ---------------------------------------------------------------------------------------------


class Rooms:
    """The bootstrap servers of all prefill engines: a pair proceeds only when both are in one room."""

    def __init__(self) -> None:
        self.pushed: dict[tuple[int, int], asyncio.Event] = {}

    def room(self, body: dict[str, Any]) -> asyncio.Event:
        assert body["bootstrap_host"] == "127.0.0.1"
        return self.pushed.setdefault((body["bootstrap_port"], body["bootstrap_room"]), asyncio.Event())

    async def prefill(self, engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        self.room(seen.body).set()
        writer.write(plain(200, {"choices": []}))

    async def decode(self, engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        await self.room(seen.body).wait()
        await FakeEngine.serve(engine, seen, writer)


async def sglang(start_router: StartRouter, start_engine: StartEngine) -> tuple[Running, list[FakeEngine], Rooms]:
    rooms = Rooms()
    engines = [await start_engine(f"p{i}", "prefill", script=rooms.prefill) for i in (1, 2)]
    engines += [await start_engine(f"d{i}", "decode", script=rooms.decode) for i in (1, 2)]
    pools = [{**PD[0], "bootstrap_port": 7001}, PD[1]]
    router = await start_router(pools, model={"handoff": "sglang"})
    await router.put_endpoints(1, {"p": ("prefill", engines[:2]), "d": ("decode", engines[2:])})
    return router, engines, rooms


async def test_sglang_pairs_meet_in_rooms_of_their_own(start_router: StartRouter, start_engine: StartEngine) -> None:
    router, engines, rooms = await sglang(start_router, start_engine)
    answers = await asyncio.gather(*(router.stream(f"q{i}") for i in range(20)))
    assert all(answer.endswith(DONE) for answer in answers)
    assert len(rooms.pushed) == 20
    assert {port for port, _ in rooms.pushed} == {7001}
    prefill = [seen.raw for engine in engines[:2] for seen in engine.calls]
    assert sorted(prefill) == sorted(seen.raw for engine in engines[2:] for seen in engine.calls)
    state = await router.state()
    assert all(not one["in_flight"] and not one["outstanding_tokens"] for pool in state["pools"] for one in pool["endpoints"])


@pytest.mark.parametrize("script", [cut, answering(500, {})], ids=["reset", "500"])
async def test_an_sglang_half_that_fails_ends_the_other(
    start_router: StartRouter, start_engine: StartEngine, script: Script
) -> None:
    """The first prefill fails while its decode waits for blocks that will never come, then the first decode does: both times
    another pair serves, and nobody goes on working for nothing."""
    router, engines, _ = await sglang(start_router, start_engine)
    for failing in (engines[:2], engines[2:]):
        usual = failing[0].script
        left = [1]

        async def once(
            engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter, usual: Any = usual, left: list[int] = left
        ) -> None:
            left[0] -= 1
            await (script if left[0] >= 0 else usual)(engine, seen, writer)

        for engine in failing:
            engine.script = once
        assert (await asyncio.wait_for(router.stream(), 5)).endswith(DONE)
        await until(lambda: not any(engine.running for engine in engines))
        for engine in failing:
            engine.script = usual
    assert router.app.models[MODEL].outcomes.total("retried") == 2


async def test_sglang_refusals_and_clients_that_go(start_router: StartRouter, start_engine: StartEngine) -> None:
    router, engines, _ = await sglang(start_router, start_engine)
    refusal = {"error": {"message": "too long", "type": "BadRequestError"}}
    for engine in engines[:2]:
        engine.script = answering(400, refusal)
    status, body, _ = await router.chat()
    assert (status, body) == (400, refusal)
    await until(lambda: not any(engine.running for engine in engines))
    for engine in engines[:2]:
        engine.script = hang
    call = asyncio.ensure_future(router.chat())
    await until(lambda: sum(engine.running for engine in engines) == 2)
    call.cancel()
    await until(lambda: not any(engine.running for engine in engines))


async def test_without_prefill_an_sglang_request_waits(start_router: StartRouter, start_engine: StartEngine) -> None:
    router, engines, _ = await sglang(start_router, start_engine)
    for engine in engines[:2]:
        await engine.kill()
    waiting = asyncio.ensure_future(router.chat())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    assert not any(engine.running for engine in engines[2:])
    waiting.cancel()
