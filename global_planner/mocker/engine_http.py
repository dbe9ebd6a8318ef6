"""[I/O] The least of HTTP/1.1 that a mock engine needs: a server connection on a bare protocol, and one kind of call to a peer.

No framework, because many engines start on few cores: the import of aiohttp's server alone takes 0.33 s of CPU and 40 MB, a
whole engine on this protocol 0.09 s and 28 MB.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import httptools

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Request:
    """One request as it was read."""

    __slots__ = ("body", "keep_alive", "method", "path", "request_id")

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.body = b""
        self.request_id = b""
        self.keep_alive = True


Application = Callable[[Request, "Connection"], None]


class Connection(asyncio.Protocol):
    """One client's socket. `application` is called with one request at a time and answers now or later, with `respond` or with
    `begin_stream`, `write_event` and `end_stream`; `when_gone` is called if the client goes before that. What a client does not
    read is buffered: an answer is small."""

    def __init__(self, application: Application, connections: set[Connection]) -> None:
        self._application = application
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._head_bytes = 0
        self._reading: Request | None = None
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._expects_continue = False
        self._current: Request | None = None
        self._pending: deque[Request] = deque()
        self._broken = False
        self.when_gone: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        return self._current is not None

    # ---- the socket --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._parser = httptools.HttpRequestParser(self)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        self._pending.clear()
        gone, self.when_gone = self.when_gone, None
        if gone is not None:
            gone()

    # ---- the parser's calls -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._reading = Request()
        self._parts = []
        self._body_bytes = 0
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        if self._reading is not None:
            self._reading.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is None:
            return
        name = name.lower()
        if name == b"x-request-id":
            self._reading.request_id = value[:128]
        elif name == b"expect":
            self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._head_bytes = 0
        if self._expects_continue and self._transport is not None and not self.busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._head_bytes = 0
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        request, self._reading = self._reading, None
        self._head_bytes = 0
        if request is None or self._broken:
            return
        request.method = self._parser.get_method()
        request.path = request.path.partition(b"?")[0]
        request.keep_alive = self._parser.should_keep_alive()
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._pending.append(request)
        if self._current is None:
            self._next()

    # ---- answers -------------------------------------------------------------------------------------------------------

    def respond(self, status: int, body: bytes, *, content_type: bytes = b"application/json", extra: bytes = b"") -> None:
        """A whole answer; `extra` holds further header lines, each with its CRLF."""
        self._write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b"
            % (status, _REASONS[status], content_type, len(body), extra, self._closing_line(), body)
        )
        self._done()

    def begin_stream(self, head: bytes, event: bytes) -> None:
        """Head (without its empty line) and first event in one packet."""
        self._write(b"%btransfer-encoding: chunked\r\n%b\r\n%x\r\n%b\r\n" % (head, self._closing_line(), len(event), event))

    def write_event(self, event: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(event), event))

    def end_stream(self) -> None:
        self._write(b"0\r\n\r\n")
        self._done()

    def close(self) -> None:
        """Close when what was written has left."""
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        while self._current is None and self._pending:
            self._current = self._pending.popleft()
            self._application(self._current, self)

    def _done(self) -> None:
        request, self._current = self._current, None
        self.when_gone = None
        if request is not None and not request.keep_alive:
            self.close()
        elif self._pending:
            self._next()

    def _closing_line(self) -> bytes:
        return b"" if self._current is not None and self._current.keep_alive else b"connection: close\r\n"

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _refuse(self, status: int) -> None:
        """What cannot be read as a request: answer unless another answer is under way, and close."""
        if self._broken:
            return
        self._broken = True
        if not self.busy:
            self._write(b"HTTP/1.1 %d %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % (status, _REASONS[status]))
        self.close()


async def post(host: str, port: int, path: str, body: bytes, *, timeout_wall_s: float) -> int:
    """POST on a connection of its own; the answer's status. Raises OSError (also for an answer that is not HTTP) and
    TimeoutError."""
    async with asyncio.timeout(timeout_wall_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(
                f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
            parts = (await reader.readline()).split(b" ", 2)
        finally:
            writer.close()
    if len(parts) < 2 or not parts[1].isdigit():
        raise ConnectionError(f"{host}:{port} did not answer with HTTP")
    return int(parts[1])
