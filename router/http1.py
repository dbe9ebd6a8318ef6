"""[I/O] The server side of HTTP/1.1: connections of clients, as raw asyncio protocols over httptools.

One `ClientConnection` a socket. It collects whole requests (bodies are bounded), gives them to the application one at a time
in arrival order, and lets the application write the answer's bytes straight to the socket. A client that goes away cancels
the application's task. Slow clients are cut off by one sweep over all connections, not by a timer each.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import httptools

from router.config import LimitsConfig
from router.message import CONTINUE, HINT_HEADERS, NOT_FORWARDED, Request, status_line
from router.openai import error_body

MAX_PIPELINED = 16
LINGER_S = 2.0


class Flow(Protocol):
    """Whatever fills a client's socket, and must pause while the client does not read."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class UnderWay(Protocol):
    """An answer that is being made without a task. It calls the connection's `served` when it has ended; `cancel` ends it
    because the client has gone."""

    def cancel(self) -> object: ...


# Answers at once (None), or says what has to be waited for until it has, or who goes on with it.
Application = Callable[[Request, "ClientConnection"], Awaitable[None] | UnderWay | None]


class ClientConnection:
    """One client's socket. The application answers with `respond`, or with `write` and at the end `finish`; `extra` holds
    header lines that every answer of this request gets."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser: Any = None
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._offered: Request | None = None
        self._offered_length = 0
        self._carried: Request | None = None
        self._url = b""
        self._parts: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._in_head = True
        self._expects_continue = False
        self._pending: deque[Request] = deque()
        self._answering: UnderWay | None = None
        self._finished = True
        self._keep_alive = True
        self._refused = False
        self._flow: Flow | None = None
        self._blocked = False
        self.deadline = 0.0
        self.extra = b""

    # -- the socket ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio.Transport by inheritance, only by what they can do.
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= self._limits.max_connections:
            self._transport.abort()
            self._transport = None
            return
        self._parser = httptools.HttpRequestParser(self)
        self._server.connections.add(self)
        self.deadline = self._server.loop_time() + self._limits.header_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._pending.clear()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        if self._refused or self._transport is None:
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400, "The request is not valid HTTP.")
        if self._in_head and self._head_bytes > self._limits.max_header_bytes:
            self._refuse(431, f"The request's headers are longer than {self._limits.max_header_bytes} bytes.")
        # Not in the parser's call: what goes wrong in an answer is no fault of the request's.
        if self._pending and self._answering is None:
            self._begin(self._pending.popleft())

    def _decline(self, rest: bytes) -> None:
        """A request that offers another protocol is read as plain HTTP/1.1. The parser stops after its head then: a body is
        read by a new one, from a head that offers nothing."""
        request, self._offered = self._offered, None
        if request is None or request.method == b"CONNECT":
            self._refuse(405, "There is no tunnel here.")
            return
        self._carried = request
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % self._offered_length + rest)

    def eof_received(self) -> bool | None:
        return None

    def pause_writing(self) -> None:
        self._blocked = True
        if self._flow is not None:
            self._flow.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._flow is not None:
            self._flow.resume_reading()

    # -- the parser's calls ---------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._carried is not None:
            return
        self._request = Request()
        self._url = b""
        self._offered_length = 0
        self._parts = []
        self._body_bytes = 0
        self._in_head = True
        self._expects_continue = False
        if self._answering is None:
            self.deadline = self._server.loop_time() + self._limits.header_timeout_s

    def on_url(self, url: bytes) -> None:
        if self._carried is None:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if request is None or self._carried is not None:
            return
        lower = name.lower()
        if lower not in NOT_FORWARDED:
            request.forward.append(b"%b: %b\r\n" % (name, value))
            if lower in HINT_HEADERS:
                request.hints[HINT_HEADERS[lower]] = value
        elif lower == b"content-length":
            if value.isdigit():
                self._offered_length = int(value)
                if self._offered_length > self._limits.max_body_bytes:
                    self._refuse(413, f"The request body is longer than {self._limits.max_body_bytes} bytes.")
        elif lower == b"authorization":
            request.authorization = value
        elif lower == b"x-request-id":
            request.request_id = value[:128]
        elif lower == b"origin":
            request.origin = value
        elif lower == b"expect":
            self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._request is not None and self._carried is None:
            # To be asked here: at the end of the message the parser has forgotten its headers.
            self._request.keep_alive = self._parser.should_keep_alive()
        # Not before an earlier request's answer: it would be out of turn.
        first = self._answering is None and not self._pending
        if self._expects_continue and not self._refused and first and self._transport is not None:
            self._transport.write(CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse(413, f"The request body is longer than {self._limits.max_body_bytes} bytes.")
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._carried is None and self._request is not None:
            self._request.method = self._parser.get_method()
            self._request.version = self._parser.get_http_version()
            if self._parser.should_upgrade():
                # Its body, if it has one, was not read yet: `data_received` hears of the offer next.
                self._offered = self._request
                return
        self._carried = None
        request, self._request = self._request, None
        self._in_head = True
        self._head_bytes = 0
        if request is None or self._refused:
            return
        request.path, _, request.query = self._url.partition(b"?")
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._pending.append(request)
        if len(self._pending) > MAX_PIPELINED + (self._answering is None):
            self._abort()

    # -- one request at a time -------------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        self.deadline = float("inf")
        self._finished = False
        self.extra = b""
        self._keep_alive = request.keep_alive and not self._server.closing and not self._refused
        answered = False
        try:
            unfinished = self._server.application(request, self)
            answered = True
        finally:
            if not answered:
                self._abort()
        if unfinished is None:
            self.served()
        elif isinstance(unfinished, Awaitable):
            self._answering = self._server.loop.create_task(self._wait(unfinished))
        else:
            self._answering = unfinished

    async def _wait(self, unfinished: Awaitable[None]) -> None:
        try:
            await unfinished
        finally:
            self.served()

    def served(self) -> None:
        """The answer has ended, whole or not: the next request's turn."""
        self._answering = None
        self._flow = None
        if not self._finished or not self._keep_alive:
            # An answer that was not finished cannot be told from a whole one, except by cutting the connection.
            self._close() if self._finished else self._abort()
        elif self._pending:
            self._begin(self._pending.popleft())
        elif self._request is None:
            self.deadline = self._server.loop_time() + self._limits.keepalive_s
        else:
            self.deadline = self._server.loop_time() + self._limits.header_timeout_s

    # -- for the application ----------------------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        return self._transport is None

    @property
    def will_close(self) -> bool:
        """Whether the connection ends after this answer: the answer must say so."""
        return not self._keep_alive

    def close_after(self) -> None:
        """The answer's end can only be told by closing."""
        self._keep_alive = False

    def fill_from(self, flow: Flow | None) -> None:
        """`flow` fills the socket from now on; it is paused while the client does not read. None: nothing does."""
        self._flow = flow
        if self._blocked and flow is not None:
            flow.pause_reading()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finish(self) -> None:
        self._finished = True

    def respond(
        self, status: int, body: bytes, *, content_type: bytes = b"application/json", extra: bytes = b"", head: bool = False
    ) -> None:
        """A whole answer. `extra` holds further header lines, each with its CRLF; `head`: without the body."""
        close = b"" if self._keep_alive else b"connection: close\r\n"
        self.write(
            b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b%b\r\n%b"
            % (status_line(status), content_type, len(body), self.extra, extra, close, b"" if head else body)
        )
        self._finished = True

    # -- endings ----------------------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read as a request, and close: where it ends is not known."""
        if self._refused:
            return
        self._refused = True
        if self._answering is not None or self._pending:
            # An earlier request is being answered, or is about to be: no answer may overtake it.
            self._keep_alive = False
            while len(self._pending) > (self._answering is None):
                self._pending.pop()
            return
        self._keep_alive = False
        self.respond(status, error_body(message, kind="invalid_request_error"))
        # Closing now, with bytes of the client unread, would reset the connection and lose the answer: say the end, and
        # throw away what still comes until the client has closed too, or the sweep does.
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
        self.deadline = self._server.loop_time() + LINGER_S

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Cut the connection off if it is idle for too long, or takes too long to send a request."""
        if now < self.deadline or self._transport is None:
            return
        if self._transport.is_closing():
            # A client that does not even take the goodbye is not waited for.
            self._transport.abort()
        elif self._request is not None and not self._refused:
            self._refuse(408, "The request took too long to arrive.")
        else:
            self._close()
            self.deadline = now + LINGER_S

    def shut_down(self) -> None:
        """No further request on this connection: close now if it is idle, else after the answer."""
        self._keep_alive = False
        if self._answering is None:
            self._close()

    @property
    def busy(self) -> bool:
        return self._answering is not None


class HttpServer:
    """A listening socket and its connections."""

    def __init__(self, application: Application, limits: LimitsConfig, loop: asyncio.AbstractEventLoop) -> None:
        self.application = application
        self.limits = limits
        self.loop = loop
        self.loop_time = loop.time
        self.connections: set[ClientConnection] = set()
        self.closing = False
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int, *, reuse_port: bool = False, tls: ssl.SSLContext | None = None) -> int:
        """Start to listen; the port that was given. Raises OSError when the address cannot be had."""
        self._server = await self.loop.create_server(
            self._connection, host, port, backlog=4096, reuse_port=reuse_port or None, ssl=tls
        )
        self._sweep()
        # uvloop's is a list, which a compiled module would not take for the tuple that asyncio's is.
        listening: Any = self._server
        bound: int = listening.sockets[0].getsockname()[1]
        return bound

    def _connection(self) -> asyncio.BaseProtocol:
        # It is a protocol by what it can do.
        return cast(asyncio.BaseProtocol, ClientConnection(self))

    def _sweep(self) -> None:
        now = self.loop_time()
        for connection in list(self.connections):
            connection.sweep(now)
        interval = max(0.05, min(1.0, self.limits.header_timeout_s / 4, self.limits.keepalive_s / 4))
        self._sweeper = self.loop.call_later(interval, self._sweep)

    async def close(self, grace_s: float) -> bool:
        """Accept nothing more, let running answers end for up to `grace_s` wall seconds, then cut. Whether all ended."""
        self.closing = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.shut_down()
        end = self.loop_time() + grace_s
        while self.loop_time() < end and any(connection.busy for connection in self.connections):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        finished = not any(connection.busy for connection in self.connections)
        for connection in list(self.connections):
            connection._abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return finished
