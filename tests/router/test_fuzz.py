"""Malformed input: whatever comes, the router answers 4xx or closes, blames nobody else (no 5xx), and goes on working."""

from __future__ import annotations

import asyncio
import random

from tests.router.conftest import MODEL, Running, StartEngine, StartRouter
from tests.router.engines import answering

BODY = b'{"model":"demo/chat","messages":[{"role":"user","content":"x"}],"stream":false,"max_tokens":3}'
SEEDS = [
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
    b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\nGET /v1/models/demo/chat HTTP/1.1\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: %d\r\n\r\n%b"
    % (len(BODY), BODY),
]
PIECES = [
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff",
    b":",
    b" ",
    b"\t",
    b"{",
    b"}",
    b'"',
    b"\\u",
    b"1e999",
    b"-1",
    b"[" * 300,
    b"HTTP/1.1",
]
PIECES += [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"]
PIECES += [b"X-Request-Priority: x\r\n", b"null"]


def mutated(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at : at + rng.randint(1, 20)] = b""
        elif kind == 1:
            data[at:at] = rng.choice(PIECES)
        elif kind == 2:
            data[at : at + 1] = bytes([rng.randrange(256)])
        else:
            data[at:at] = data[max(0, at - rng.randint(1, 30)) : at]
    return bytes(data)


async def send(router: Running, data: bytes, rng: random.Random) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    cut = rng.randrange(len(data) + 1)
    writer.write(data[:cut])
    await asyncio.sleep(0)
    writer.write(data[cut:])
    got = b""
    try:
        async with asyncio.timeout(0.05):
            while piece := await reader.read(65536):
                got += piece
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return got


async def test_mutated_requests(start_router: StartRouter, start_engine: StartEngine) -> None:
    engine = await start_engine(script=answering(200, {"choices": []}))
    limits = {"header_timeout_s": 0.2, "keepalive_s": 0.2, "max_body_bytes": 4096}
    router = await start_router([{"name": "a", "role": "agg", "endpoints": [engine.url]}], limits=limits)
    rng = random.Random(7)
    for _ in range(25):
        batch = [mutated(rng) for _ in range(20)]
        answers = await asyncio.gather(*(send(router, data, rng) for data in batch))
        for data, got in zip(batch, answers, strict=True):
            assert b"HTTP/1.1 5" not in got, data
    assert (await router.chat(model=MODEL))[0] == 200


async def test_mutated_admin_requests(start_router: StartRouter) -> None:
    router = await start_router([{"name": "a", "role": "agg"}])
    rng = random.Random(8)
    bodies = [
        b'{"version":1,"pools":[{"name":"a","role":"agg","endpoints":[{"id":"x","url":"http://127.0.0.1:9","state":"ready"}]}]}',
        b'{"version":1,"groups":[{"model":"demo/chat","admitted_rps":2.5,"burst":null,"by_priority":{"1":2}}],"valid_s":3}',
        b'{"pool":"a","endpoints":["x"],"deadline_s":3.5}',
    ]
    paths = [("PUT", "/admin/endpoints"), ("PUT", "/admin/admission"), ("POST", "/admin/drain")]
    for _ in range(150):
        data = bytearray(rng.choice(bodies))
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice(PIECES)
        method, path = rng.choice(paths)
        async with router.session.request(method, router.admin + path, data=bytes(data)) as answer:
            assert answer.status in (200, 400, 404, 409), (path, bytes(data))
    assert (await router.state())["pools"][0]["name"] == "a"
