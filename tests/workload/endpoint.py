"""An endpoint that does to each request what its script says, over real sockets; unless told otherwise it answers rightly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import orjson

from global_planner.mocker.engine_api import SSE_HEAD, AnswerShape, Call, parse_call

Script = Callable[[Call, asyncio.StreamWriter], Awaitable[None]]
STEP_S = 0.004


@dataclass
class Endpoint:
    """`scripts[i]` is for the i-th request in order of arrival; after the last, `answer`. `seen` holds the requests."""

    scripts: list[Script] = field(default_factory=list)
    model: str = "demo/chat"
    seen: list[tuple[str, Call]] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    async def __aenter__(self) -> Endpoint:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.transport.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1])
                raw = await reader.readexactly(length)
                path = head.split(b" ")[1].decode()
                call = parse_call(raw, chat=path.endswith("/chat/completions"), model=self.model)
                number = len(self.seen)
                self.seen.append((path, call))
                self.heads.append(head)
                await (self.scripts[number] if number < len(self.scripts) else answer)(call, writer)
                await writer.drain()
        writer.close()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def plain(status: int, body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


def shape_of(call: Call) -> AnswerShape:
    return AnswerShape(call, name="x", model="demo/chat", created=1)


async def answer(call: Call, writer: asyncio.StreamWriter) -> None:
    """First token after one step, the middle after another, the rest after a third."""
    shape = shape_of(call)
    if not call.stream:
        await asyncio.sleep(3 * STEP_S)
        writer.write(plain(200, shape.body(engine_model_ms=12.0, engine_ttft_ms=4.0, kv_transfer=None)))
        return
    await asyncio.sleep(STEP_S)
    writer.write(SSE_HEAD + b"transfer-encoding: chunked\r\n\r\n")
    if call.osl > 1:
        writer.write(chunk(shape.chunk(0, 1)))
        await asyncio.sleep(STEP_S)
    if call.osl > 2:
        writer.write(chunk(shape.chunk(1, call.osl - 1)))
        await asyncio.sleep(STEP_S)
    writer.write(chunk(shape.last_chunks(call.osl - 1, engine_model_ms=12.0, engine_ttft_ms=4.0)) + b"0\r\n\r\n")


def refuse(status: int, retry_after: str | None = None) -> Script:
    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        extra = b"" if retry_after is None else f"retry-after: {retry_after}\r\n".encode()
        writer.write(plain(status, orjson.dumps({"error": {"message": "no", "type": "t", "param": None, "code": None}}), extra))

    return script


async def reset(call: Call, writer: asyncio.StreamWriter) -> None:
    """Break the connection before a byte of an answer."""
    writer.transport.abort()


async def hang(call: Call, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def sending(*pieces: bytes, then_cut: bool = False) -> Script:
    """A stream of exactly these bytes."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(chunk(piece))
            await writer.drain()
        if then_cut:
            await asyncio.sleep(STEP_S)
            writer.transport.abort()
        else:
            writer.write(b"0\r\n\r\n")

    return script


def answering_as(change: Callable[[Call], Call]) -> Script:
    """The right answer to another call than the one that came."""

    async def script(call: Call, writer: asyncio.StreamWriter) -> None:
        await answer(change(call), writer)

    return script
