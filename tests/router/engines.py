"""Engines that do what a test says, over real sockets: a few lines of HTTP/1.1, a record of what came in, and a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pool_planner.types import Role


@dataclass
class Seen:
    """One request as the engine got it, and how it ended."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    cut: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


Script = Callable[["FakeEngine", Seen, asyncio.StreamWriter], Awaitable[None]]


def chat_chunk(text: str, **more: Any) -> bytes:
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps({**body, "choices": [choice], **more}).encode() + b"\n\n"


def usage_chunk(prompt: int, completion: int) -> bytes:
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return b"data: " + json.dumps({**body, "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def plain(status: int, body: object, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n{lines}\r\n"
    return head.encode() + data


def prompt_tokens(body: dict[str, Any]) -> int:
    text = "".join(message["content"] for message in body["messages"]) if "messages" in body else body.get("prompt", "")
    return max(1, -(-len(text) // 4))


@dataclass
class FakeEngine:
    """Serves like an engine of its role unless `script` says otherwise. `tokens` words are answered, `itl_s` apart."""

    name: str = "e"
    role: Role = "agg"
    tokens: int = 5
    itl_s: float = 0.0
    prefill_s: float = 0.0
    script: Script | None = None
    healthy: bool = True
    exposition: bytes = b""
    seen: list[Seen] = field(default_factory=list)
    running: int = 0
    connections: int = 0

    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def calls(self) -> list[Seen]:
        return [one for one in self.seen if one.path.startswith("/v1/")]

    async def start(self, port: int = 0) -> FakeEngine:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def kill(self) -> None:
        """Like a killed process: nobody listens any more and every connection is reset."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        # A RuntimeError is what uvloop raises for a write on a connection that was aborted.
        with contextlib.suppress(ConnectionError, RuntimeError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip("\r\n").split("\r\n")
                method, path, _ = first.split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                seen = Seen(method, path, headers, raw)
                self.seen.append(seen)
                await self._answer(seen, reader, writer)
        self._writers.discard(writer)
        writer.close()

    async def _answer(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.path == "/health":
            writer.write(plain(200 if self.healthy else 503, {}))
            return
        if seen.path == "/metrics":
            writer.write(plain(200, self.exposition, content_type="text/plain"))
            return
        self.running += 1
        work = asyncio.ensure_future((self.script or FakeEngine.serve)(self, seen, writer))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                seen.cut = True
                work.cancel()
                raise ConnectionResetError
            work.result()
        finally:
            self.running -= 1
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
            work.cancel()
        await writer.drain()

    async def serve(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        body = seen.body
        if self.role == "prefill":
            await asyncio.sleep(self.prefill_s)
            params = {"do_remote_prefill": True, "remote_engine_id": self.name, "remote_block_ids": [1, 2]}
            writer.write(plain(200, {"id": "p", "choices": [], "kv_transfer_params": params}))
            return
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self.tokens
        words = [f"{self.name}{i} " for i in range(min(self.tokens, limit))]
        usage = {"prompt_tokens": prompt_tokens(body), "completion_tokens": len(words)}
        usage["total_tokens"] = sum(usage.values())
        if not body.get("stream"):
            await asyncio.sleep(self.itl_s * len(words))
            writer.write(plain(200, completion("".join(words), body, usage)))
            return
        writer.write(SSE_HEAD)
        for word in words:
            writer.write(chunk(chat_chunk(word) if "messages" in body else text_chunk(word)))
            await asyncio.sleep(self.itl_s)
        if (body.get("stream_options") or {}).get("include_usage"):
            writer.write(chunk(usage_chunk(usage["prompt_tokens"], usage["completion_tokens"])))
        writer.write(chunk(DONE) + b"0\r\n\r\n")


def text_chunk(text: str) -> bytes:
    body = {"id": "c", "object": "text_completion", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**body, "choices": [{"index": 0, "text": text, "finish_reason": None}]}).encode() + b"\n\n"


def completion(text: str, body: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    if "messages" in body:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


# ---- scripts --------------------------------------------------------------------------------------------------------


def answering(status: int, body: object, **headers: str) -> Script:
    async def script(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(status, body, **headers))

    return script


def sending(*pieces: bytes | float, then_cut: bool = False) -> Script:
    """Bytes as they are; a number is a pause in seconds."""

    async def script(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            else:
                await asyncio.sleep(piece)
        if then_cut:
            writer.transport.abort()

    return script


async def cut(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Reset the connection before anything was answered."""
    writer.transport.abort()


async def hang(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def first(script: Script, times: int = 1) -> Script:
    """Follow the script for the first calls, then serve."""
    left = [times]

    async def both(engine: FakeEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        left[0] -= 1
        await (script if left[0] >= 0 else FakeEngine.serve)(engine, seen, writer)

    return both
