"""Engines and clients that misbehave, each over real sockets. Stated once: before the first byte a request is tried
elsewhere; after it the client is told, and never takes half an answer for a whole one."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest

from tests.router.conftest import MODEL, Running, StartEngine, StartRouter, until
from tests.router.engines import (
    DONE,
    SSE_HEAD,
    FakeEngine,
    Script,
    answering,
    chat_chunk,
    chunk,
    cut,
    first,
    hang,
    plain,
    sending,
)

BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


async def disaggregated(
    start_router: StartRouter, start_engine: StartEngine, **more: object
) -> tuple[Running, list[FakeEngine]]:
    """Two prefill and two decode engines: p1, p2, d1, d2."""
    engines = [await start_engine(f"{role[0]}{i}", role) for role in ("prefill", "decode") for i in (1, 2)]
    router = await start_router([{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}], **more)
    await router.put_endpoints(1, {"p": ("prefill", engines[:2]), "d": ("decode", engines[2:])})
    return router, engines


BEFORE_THE_FIRST_BYTE: dict[str, Script] = {
    "reset": cut,
    "500": answering(500, {"error": {"message": "boom"}}),
    "503 with a hint": answering(503, {}, retry_after="1"),
    "429": answering(429, {}),
    "garbage": sending(b"\x00\x01 not HTTP at all\r\n\r\n"),
    "head only, then reset": sending(SSE_HEAD, 0.01, then_cut=True),
    "half a head": sending(b"HTTP/1.1 200 OK\r\nContent-", 0.01, then_cut=True),
    "chunk size only, then reset": sending(SSE_HEAD + b"2f\r\n", 0.01, then_cut=True),
    "closed without an answer": sending(then_cut=True),
}


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("script", BEFORE_THE_FIRST_BYTE.values(), ids=BEFORE_THE_FIRST_BYTE.keys())
async def test_what_fails_before_the_first_byte_is_tried_elsewhere(
    start_router: StartRouter, start_engine: StartEngine, script: Script, role: str
) -> None:
    router, engines = await disaggregated(start_router, start_engine)
    failing = {"prefill": engines[:2], "decode": engines[2:]}[role]
    # Whichever of the two comes first fails, once.
    once = first(script)
    for engine in failing:
        engine.script = once
    answer = await router.stream()
    assert answer.endswith(DONE)
    assert sum(len(engine.calls) for engine in failing) == 2
    outcomes = router.app.models[MODEL].outcomes
    assert [outcomes.total(one) for one in ("offered", "retried", "completed", "failed")] == [1, 1, 1, 0]


async def test_an_engine_killed_while_it_works(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Killed during the prefill, then another during the wait for the first token: each request is answered by a survivor."""
    router, engines = await disaggregated(start_router, start_engine)
    for role in (engines[:2], engines[2:]):
        for engine in role:
            engine.script = hang
        call = asyncio.ensure_future(router.stream())
        await until(lambda role=role: sum(engine.running for engine in role) == 1)  # type: ignore[misc]
        victim = next(engine for engine in role if engine.running)
        for engine in role:
            engine.script = None
        before = len(victim.calls)
        await victim.kill()
        assert (await call).endswith(DONE)
        # The dead one is found out at once by a refused connection, and the next requests do not wait for it.
        for _ in range(3):
            assert (await router.stream()).endswith(DONE)
        assert len(victim.calls) == before


async def test_killed_between_prefill_and_decode(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Decode replicas die while the prefill runs: with none left the request waits, and a new one serves it."""
    router, engines = await disaggregated(start_router, start_engine)
    for engine in engines[:2]:
        engine.prefill_s = 0.05
    call = asyncio.ensure_future(router.stream())
    await until(lambda: engines[0].running + engines[1].running == 1)
    for engine in engines[2:]:
        await engine.kill()
    fresh = await start_engine("d3", "decode")
    await asyncio.sleep(0.1)
    assert not call.done()
    await router.put_endpoints(2, {"p": ("prefill", engines[:2]), "d": ("decode", [fresh])})
    assert b"d30 " in await call


async def test_a_stream_that_breaks_is_told_and_never_looks_whole(start_router: StartRouter, start_engine: StartEngine) -> None:
    router, engines = await disaggregated(start_router, start_engine)
    for script, told in (
        (sending(SSE_HEAD, chunk(chat_chunk("a")), chunk(chat_chunk("b")), 0.02, then_cut=True), True),
        (sending(SSE_HEAD, chunk(chat_chunk("a")), chunk(chat_chunk("b"))[:-9], 0.02, then_cut=True), False),
        (sending(SSE_HEAD, chunk(chat_chunk("a")), 0.02, b"zz\r\nno chunk\r\n"), None),
    ):
        for engine in engines[2:]:
            engine.script = script
        got = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            async with router.session.post(router.base + "/v1/chat/completions", data=BODY) as answer:
                async for piece in answer.content.iter_any():
                    got += piece
        assert got.startswith(chat_chunk("a"))
        assert DONE not in got
        assert told is None or (b'"engine_failed"' in got) == told
    assert sum(len(engine.calls) for engine in engines[2:]) == 3


async def test_an_engine_that_hangs_is_left_in_time(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Phases have time-outs in model time: 20 s at speed 100 are 0.2 s. A silent engine is left for another; a stream that
    stops is cut; with nobody else, the client gets 504."""
    timeouts = {"prefill_s": 20.0, "first_byte_s": 20.0, "idle_s": 20.0}
    router, engines = await disaggregated(start_router, start_engine, speed=100.0, timeouts=timeouts)
    once = first(hang)
    engines[0].script = engines[1].script = once
    assert (await router.stream()).endswith(DONE)
    once = first(sending(SSE_HEAD, 3600.0))
    engines[2].script = engines[3].script = once
    assert (await router.stream()).endswith(DONE)
    engines[2].script = engines[3].script = sending(SSE_HEAD, chunk(chat_chunk("a")), 3600.0)
    with pytest.raises(aiohttp.ClientPayloadError):
        await router.stream()
    await until(lambda: engines[2].running + engines[3].running == 0)
    engines[2].script = engines[3].script = hang
    status, body, _ = await router.chat()
    assert (status, body["error"]["code"]) == (504, "engine_timeout")


async def test_nobody_listens(start_router: StartRouter, start_engine: StartEngine) -> None:
    """One of two engines is down: nothing is noticed. Then the other goes too: requests wait for it to come back, found by a
    probe."""
    one, two = await start_engine("one"), await start_engine("two")
    health = {"backoff_s": 1.0}
    router = await start_router([{"name": "a", "role": "agg"}], speed=20.0, health=health)
    await router.put_endpoints(1, {"a": ("agg", [one, two])})
    await two.kill()
    for _ in range(4):
        assert (await router.chat())[0] == 200
    assert (await router.endpoint("two"))["healthy"] is False
    assert "retried" in await router.metrics()
    await one.kill()
    call = asyncio.ensure_future(router.chat())
    await asyncio.sleep(0.05)
    assert not call.done()
    await two.start(two.port)
    status, body, _ = await call
    assert (status, body["choices"][0]["message"]["content"][:3]) == (200, "two")


async def test_decode_only_when_every_prefill_endpoint_is_broken(start_router: StartRouter, start_engine: StartEngine) -> None:
    router, engines = await disaggregated(start_router, start_engine)
    for engine in engines[:2]:
        await engine.kill()
    answer = await router.stream()
    assert answer.endswith(DONE)
    [call] = [call for engine in engines[2:] for call in engine.calls]
    assert "kv_transfer_params" not in call.body


async def test_a_fault_of_every_replica_is_passed_on_after_the_last_attempt(
    start_router: StartRouter, start_engine: StartEngine
) -> None:
    router, engines = await disaggregated(start_router, start_engine, retry={"attempts": 3})
    for engine in engines[2:]:
        engine.script = answering(500, {"error": {"message": "poison"}})
    status, body, _ = await router.chat()
    assert (status, body) == (500, {"error": {"message": "poison"}})
    assert sum(len(engine.calls) for engine in engines[2:]) == 3
    for engine in engines[2:]:
        engine.script = cut
    async with router.session.post(router.base + "/v1/chat/completions", data=BODY) as answer:
        text = await answer.text()
        assert answer.status in (502, 503)
    # Nobody outside learns where the engines are.
    assert not any(str(engine.port) in text for engine in engines)


async def test_retries_stay_within_the_budget(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine("one", script=answering(500, {}))
    router = await start_router(
        [{"name": "a", "role": "agg", "endpoints": [engine.url]}], retry={"ratio": 0.0, "burst": 5.0}, health={"failures": 1000}
    )
    for _ in range(10):
        assert (await router.chat())[0] == 500
    assert len(engine.calls) == 15


async def test_an_idle_connection_that_the_engine_closed(start_router: StartRouter, start_engine: StartEngine) -> None:
    """The engine closes its idle connection just as the router uses it: no retry is spent, nothing is noticed."""

    async def close_second(engine: FakeEngine, seen: object, writer: asyncio.StreamWriter) -> None:
        if len(engine.calls) == 2:
            writer.transport.abort()
            return
        writer.write(plain(200, {"ok": len(engine.calls)}))

    engine = await start_engine(script=close_second)
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], retry={"ratio": 0, "burst": 0})
    assert [(await router.chat())[1]["ok"] for _ in range(2)] == [1, 3]


ODD_FRAMING = {
    "until the connection closes": (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + chat_chunk("a") + DONE,
        True,
    ),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", True),
    "chunk extensions": (SSE_HEAD + b"2;a=b\r\n{}\r\n0\r\n\r\n", False),
    "empty body": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", False),
}


@pytest.mark.parametrize(("answer", "closes"), ODD_FRAMING.values(), ids=ODD_FRAMING.keys())
async def test_odd_but_legal_framing(start_router: StartRouter, start_engine: StartEngine, answer: bytes, closes: bool) -> None:
    async def script(engine: FakeEngine, seen: object, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        if closes:
            await writer.drain()
            writer.close()

    engine = await start_engine(script=script)
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    async with router.session.post(router.base + "/v1/chat/completions", data=BODY) as got:
        assert got.status == 200
        assert await got.read() in (chat_chunk("a") + DONE, b"{}", b"")


# ---- clients --------------------------------------------------------------------------------------------------------


async def raw(router: Running, *pieces: bytes) -> bytes:
    """Everything that comes back until the router closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0)
    got = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return got


REFUSED = {
    "not HTTP": ([b"hello\r\n\r\n"], b"400"),
    "huge header": ([b"GET /health HTTP/1.1\r\nX: " + b"y" * 70_000], b"431"),
    "endless headers": ([b"GET /health HTTP/1.1\r\n"] + [b"X-%d: y\r\n" % i * 500 for i in range(20)], b"431"),
    "announced too long": ([b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"], b"413"),
    "chunked too long": (
        [b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n"],
        b"413",
    ),
    "two lengths": ([b"POST /v1/completions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"], b"400"),
    "length and chunks": (
        [b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        b"400",
    ),
    "a tunnel": ([b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"], b"405"),
    "slow loris": ([b"POST /v1/completions HTTP/1.1\r\nContent-Le"], b"408"),
    "slow body": ([b"POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"], b"408"),
}


@pytest.mark.parametrize(("pieces", "status"), REFUSED.values(), ids=REFUSED.keys())
async def test_requests_that_are_refused(start_router: StartRouter, pieces: list[bytes], status: bytes) -> None:
    limits = {"max_body_bytes": 100_000, "header_timeout_s": 0.3}
    router = await start_router([{"name": "a", "role": "agg"}], limits=limits)
    got = await raw(router, *pieces)
    assert got.split(b" ", 2)[1] == status
    assert b"connection: close" in got
    assert "message" in json.loads(got.split(b"\r\n\r\n", 1)[1])["error"]


async def test_idle_connections_are_closed_in_the_end(start_router: StartRouter) -> None:
    router = await start_router([{"name": "a", "role": "agg"}], limits={"keepalive_s": 0.1})
    assert (await raw(router, b"GET /health HTTP/1.1\r\n\r\n")).endswith(b'{"status":"ok"}')


async def test_other_ways_to_send(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Expect: 100-continue, HTTP/1.0, Connection: close, an offer to upgrade, a chunked body."""
    engine = await start_engine(tokens=1)
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], limits={"keepalive_s": 0.1})
    ok = b"e0 "
    for head in (
        b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n",
    ):
        got = await raw(router, head % len(BODY) + BODY)
        assert ok in got, head
        assert (b"100 Continue" in got) == (b"Expect" in head)
        assert b"chunked" not in got or b"HTTP/1.0" not in head
    chunked = b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert ok in await raw(router, chunked, chunk(BODY[:10]), chunk(BODY[10:]), b"0\r\n\r\n")


async def test_a_slow_client_slows_its_engine_and_nobody_else(start_router: StartRouter, start_engine: StartEngine) -> None:
    """20 MB toward a client that does not read: the router stops reading from the engine and keeps little of it."""
    big = chat_chunk("x" * 100_000)
    engine = await start_engine(script=sending(SSE_HEAD, *[chunk(big)] * 200, chunk(DONE), b"0\r\n\r\n"))
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    client = socket.create_connection(("127.0.0.1", router.port))
    client.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(client, POST)
    await until(lambda: engine.running == 1)
    await asyncio.sleep(0.2)
    assert engine.running == 1
    [connection] = [one for one in router.app._public.connections if one.busy]
    assert connection._transport is not None
    assert connection._transport.get_write_buffer_size() < 2_000_000
    reader, writer = await asyncio.open_connection(sock=client)
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        piece = await asyncio.wait_for(reader.read(1 << 20), 5)
        assert piece
        got = got[-5:] + piece
    writer.close()


async def test_an_engine_that_half_closes(start_router: StartRouter, start_engine: StartEngine) -> None:
    """It ends its side in the middle of an answer and keeps reading: before the first byte another serves, after it the answer
    is cut. An answer that was whole is whole."""

    def closing(*pieces: bytes) -> Script:
        async def script(engine: FakeEngine, seen: object, writer: asyncio.StreamWriter) -> None:
            for piece in pieces:
                writer.write(piece)
            await writer.drain()
            writer.write_eof()
            await asyncio.sleep(0.3)

        return script

    router, engines = await disaggregated(start_router, start_engine)
    once = first(closing(SSE_HEAD))
    engines[2].script = engines[3].script = once
    assert (await router.stream()).endswith(DONE)
    engines[2].script = engines[3].script = closing(SSE_HEAD, chunk(chat_chunk("a")))
    with pytest.raises(aiohttp.ClientPayloadError):
        await router.stream()
    engines[2].script = engines[3].script = closing(SSE_HEAD, chunk(DONE), b"0\r\n\r\n")
    assert await router.stream() == DONE


async def test_a_client_that_half_closes_is_gone(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Nobody can tell it from one that has left, and an engine must not work for nobody."""
    engine = await start_engine(script=hang)
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(POST)
    await until(lambda: engine.running == 1)
    writer.write_eof()
    await until(lambda: engine.running == 0)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert router.app.models[MODEL].outcomes.total("cancelled") == 1


async def test_garbage_in_events_is_the_clients_to_judge(start_router: StartRouter, start_engine: StartEngine) -> None:
    """What an engine sends as events goes on byte for byte, and teaches the router nothing."""
    garbage = b'data: {"usage": {"prompt_tokens": "many", "completion_tokens": -3\xff\n\n:\n\ndata\r\ndata: [DON'
    engine = await start_engine(script=sending(SSE_HEAD, chunk(garbage[:40]), chunk(garbage[40:]), b"0\r\n\r\n"))
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}])
    before = router.app.models[MODEL].lengths._tokens
    assert await router.stream() == garbage
    assert router.app.models[MODEL].lengths._tokens == before
    assert (await router.state())["pools"][0]["endpoints"][0]["healthy"] is True
