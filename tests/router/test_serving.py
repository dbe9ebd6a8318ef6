"""What a client sees when everything works: hand-off, bytes passed through, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.router.conftest import MODEL, StartEngine, StartRouter, until
from tests.router.engines import DONE, SSE_HEAD, answering, chat_chunk, chunk, hang, sending

PD = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}]


async def test_prefill_hands_over_to_decode(start_router: StartRouter, start_engine: StartEngine) -> None:
    prefill, decode = await start_engine("pre", "prefill"), await start_engine("dec", "decode", tokens=3)
    router = await start_router(PD)
    await router.put_endpoints(1, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})

    status, body, headers = await router.chat("tell me", max_tokens=9, stream_options=None, min_tokens=4)

    assert status == 200
    assert body["choices"][0]["message"]["content"] == "dec0 dec1 dec2 "
    [asked] = prefill.calls
    assert asked.body["max_tokens"] == asked.body["max_completion_tokens"] == asked.body["min_tokens"] == 1
    assert asked.body["stream"] is False
    assert "stream_options" not in asked.body
    assert asked.body["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
    [answered] = decode.calls
    assert answered.body["max_tokens"] == 9
    assert answered.body["min_tokens"] == 4
    assert answered.body["kv_transfer_params"]["remote_engine_id"] == "pre"
    # One id names the request everywhere.
    assert asked.headers["x-request-id"] == answered.headers["x-request-id"] == headers["x-request-id"]


async def test_decode_prefills_itself_when_nothing_was_handed_over(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    prefill, decode = (
        await start_engine("pre", "prefill", script=answering(200, {"id": "x"})),
        await start_engine("dec", "decode"),
    )
    router = await start_router(PD)
    await router.put_endpoints(1, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})
    status, _, _ = await router.chat()
    assert status == 200
    assert "kv_transfer_params" not in decode.calls[0].body


async def test_bytes_pass_through_both_ways(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Unknown fields, odd spacing and unicode reach the engine as they are; the stream reaches the client as it was
    framed."""
    events = [chat_chunk("a", unknown={"x": [1, None]}), b": comment\n\n", chat_chunk("\u00e9\n"), DONE]
    engine = await start_engine(script=sending(SSE_HEAD, *(chunk(event) for event in events), b"0\r\n\r\n"))
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    raw = b'{ "model":"demo/chat" , "messages":[{"role":"user","content":"h\xc3\xa9 \\u00e9"}],"stream":true, "n":{"b":1.50}}\n'

    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    head = b"POST /v1/chat/completions?debug=1 HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nX-Custom: kept\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    writer.write(head % len(raw) + raw)
    got_head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readuntil(b"0\r\n\r\n")
    writer.close()

    assert engine.calls[0].raw == raw
    assert engine.calls[0].path == "/v1/chat/completions?debug=1"
    assert engine.calls[0].headers["x-custom"] == "kept"
    assert engine.calls[0].headers["x-request-id"] == "mine"
    assert body == b"".join(chunk(event) for event in events) + b"0\r\n\r\n"
    assert b"x-request-id: mine\r\n" in got_head
    assert got_head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("cut_at", range(0, 60, 7))
async def test_the_head_may_come_in_pieces(start_router: StartRouter, start_engine: StartEngine, cut_at: int) -> None:
    whole = SSE_HEAD + chunk(chat_chunk("x")) + chunk(DONE) + b"0\r\n\r\n"
    at = max(1, len(SSE_HEAD) - 30 + cut_at)
    engine = await start_engine(script=sending(whole[:at], 0.01, whole[at : at + 3], 0.01, whole[at + 3 :]))
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    assert await router.stream() == chat_chunk("x") + DONE


async def test_connections_are_reused(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine()
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    for _ in range(20):
        await router.chat()
    assert engine.connections == 1


async def test_models_and_health(start_router: StartRouter, start_engine: StartEngine) -> None:
    router = await start_router(PD)
    for path, status in (
        ("/health", 200),
        ("/ready", 503),
        ("/v1/models", 200),
        ("/v1/models/demo/chat", 200),
        ("/nowhere", 404),
    ):
        async with router.session.get(router.base + path) as answer:
            assert answer.status == status, path
            body = await answer.json()
            made = answer.headers["x-request-id"]
        async with router.session.get(router.base + path, headers={"x-request-id": "mine-7"}) as answer:
            assert answer.headers["x-request-id"] == "mine-7" != made
    assert body["error"]["code"] == "not_found"
    async with router.session.put(router.base + "/v1/chat/completions") as answer:
        assert (answer.status, len(answer.headers["x-request-id"]) > 8) == (405, True)
    await router.put_endpoints(1, {})
    async with router.session.get(router.base + "/ready") as answer:
        assert answer.status == 200


ERRORS = {
    "malformed JSON": (b'{"model": ', 400, "invalid_json"),
    "not an object": (b"[1]", 400, "invalid_json"),
    "deep nesting": (b"[" * 100_000, 400, "invalid_json"),
    "no model": (b'{"messages": []}', 400, "missing_required_parameter"),
    "model is a number": (b'{"model": 7}', 400, "missing_required_parameter"),
    "unknown model": (b'{"model": "nope"}', 404, "model_not_found"),
}


@pytest.mark.parametrize(("raw", "status", "code"), ERRORS.values(), ids=ERRORS.keys())
async def test_errors_have_openai_shape(start_router: StartRouter, raw: bytes, status: int, code: str) -> None:
    router = await start_router(PD)
    async with router.session.post(router.base + "/v1/chat/completions", data=raw) as answer:
        body = await answer.json()
        assert (answer.status, body["error"]["code"]) == (status, code)
        assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_an_engines_own_refusal_passes_through(start_router: StartRouter, start_engine: StartEngine) -> None:
    refusal = {"error": {"message": "too long", "type": "BadRequestError", "code": "context_length_exceeded", "param": None}}
    for role in ("prefill", "agg"):
        engine, decode = await start_engine("x", role, script=answering(400, refusal)), await start_engine("dec", "decode")
        pools = [{"name": "a", "role": role, "endpoints": [engine.url]}]
        pools += [{"name": "d", "role": "decode", "endpoints": [decode.url]}] if role == "prefill" else []
        router = await start_router(pools)
        status, body, _ = await router.chat("x" * 50)
        assert (status, body) == (400, refusal)
        assert len(engine.calls) == 1
        assert not decode.calls


async def test_a_client_that_goes_away_stops_the_engine(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine(script=hang)
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    for sent_first in (False, True):
        engine.script = sending(SSE_HEAD, chunk(chat_chunk("x")), 3600.0) if sent_first else hang
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        body = json.dumps({"model": MODEL, "messages": [], "stream": True}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await until(lambda: engine.running == 1)
        if sent_first:
            await reader.readuntil(b"\n\n")
        writer.close()
        await until(lambda: engine.running == 0)
        assert engine.calls[-1].cut
    [endpoint] = (await router.state())["pools"][0]["endpoints"]
    assert (endpoint["in_flight"], endpoint["outstanding_tokens"]) == (0, 0)


async def test_pipelined_requests_are_answered_in_order(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine()
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1}).encode()
    post = b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(post + b"GET /health HTTP/1.1\r\n\r\n" + post)
    statuses = []
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        statuses.append((head.split(b" ")[1], (await reader.readexactly(length))[:12]))
    writer.close()
    assert [status for status, _ in statuses] == [b"200"] * 3
    assert statuses[1][1] == b'{"status":"o'


async def test_prompts_go_to_the_pool_of_their_length(start_router: StartRouter, start_engine: StartEngine) -> None:
    short, long = await start_engine("s", "prefill"), await start_engine("l", "prefill")
    decode = await start_engine("d", "decode")
    router = await start_router(
        [
            {"name": "short", "role": "prefill", "isl_max_tokens": 100, "endpoints": [short.url]},
            {"name": "long", "role": "prefill", "endpoints": [long.url]},
            {"name": "d", "role": "decode", "endpoints": [decode.url]},
        ]
    )
    await router.chat("x" * 400)
    await router.chat("x" * 404)
    assert (len(short.calls), len(long.calls)) == (1, 1)
    # The short pool is gone: its prompts fit the long one too.
    await short.kill()
    status, _, _ = await router.chat("x" * 40)
    assert (status, len(long.calls)) == (200, 2)


async def test_kv_blocks_go_only_to_those_who_can_read_them(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Two formats. While the decode pool of the short prompts' format is at zero, they are prefilled where decode can read
    it; with no such pair left they wait, and nothing is prefilled for nobody."""
    one, two = await start_engine("p1", "prefill"), await start_engine("p2", "prefill")
    first, second = await start_engine("d1", "decode"), await start_engine("d2", "decode")
    router = await start_router(
        [
            {"name": "p1", "role": "prefill", "kv_format": "x", "isl_max_tokens": 100},
            {"name": "p2", "role": "prefill", "kv_format": "y"},
            {"name": "d1", "role": "decode", "kv_format": "x"},
            {"name": "d2", "role": "decode", "kv_format": "y"},
        ]
    )
    told = {"p1": ("prefill", [one]), "p2": ("prefill", [two]), "d1": ("decode", [first]), "d2": ("decode", [second])}
    await router.put_endpoints(1, told)
    for _ in range(4):
        await router.chat("short")
    assert (len(one.calls), len(first.calls), len(two.calls), len(second.calls)) == (4, 4, 0, 0)
    await router.put_endpoints(2, {**told, "d1": ("decode", [])})
    await router.chat("short")
    assert (len(one.calls), len(two.calls), len(second.calls)) == (4, 1, 1)
    await router.put_endpoints(3, {**told, "d1": ("decode", []), "p2": ("prefill", [])})
    waiting = asyncio.ensure_future(router.chat("short"))
    await asyncio.sleep(0.05)
    assert (waiting.done(), len(one.calls)) == (False, 4)
    await router.put_endpoints(4, told)
    assert (await waiting)[0] == 200
