"""[I/O] The client side of HTTP/1.1: pooled connections to engines, and the time-outs of what runs over them.

A connection carries one exchange at a time and goes back to its pool when the answer was whole. Phase time-outs are kept by
one sweep over the running exchanges, not by a timer each.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from router.exchange import EngineFailed, Exchange

MAX_HEAD_BYTES = 256 * 1024
MAX_IDLE = 512


class EngineConnection:
    """One connection to an engine; carries one exchange at a time."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._head: bytes | None = b""
        self._complete = False
        self._surplus = False
        self._got_bytes = False
        self._paused = False
        self._keep = False
        self.used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not asyncio.Transport by inheritance, only by what they can do.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, payload: bytes, exchange: Exchange) -> None:
        self._exchange = exchange
        self._head = b""
        self._complete = False
        self._got_bytes = False
        if self._transport is None or self._transport.is_closing():
            self._fail("send", "the connection was closed", stale=self.used)
            return
        self.resume_reading()
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()
            return
        self._got_bytes = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                self._fail("stream", f"the answer is not valid HTTP: {type(error).__name__}")
                return
            self._surplus = True
        if exchange.over:
            self.abort()
            return
        if self._head is not None:
            # The head came with this data, or ends in a later one: only what follows it is the body.
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > MAX_HEAD_BYTES:
                    self._fail("first_byte", "the answer's headers are too long")
                return
            data = self._head[end + 4 :]
            self._head = None
        if self._surplus:
            self._fail("stream", "the engine sent more than its answer")
            return
        exchange.on_raw(data, self._complete)
        if self._complete:
            self._finish(exchange)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._exchange is not None:
            self._exchange.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        exchange.status = self._parser.get_status_code()
        # To be asked here: at the end of the message the parser has forgotten its headers.
        self._keep = self._parser.should_keep_alive()
        exchange.framed = exchange.status in (204, 304) or any(
            name in (b"content-length", b"transfer-encoding") for name, _ in exchange.headers
        )
        exchange.on_head()

    def on_body(self, piece: bytes) -> None:
        if self._exchange is not None:
            self._exchange.on_piece(piece)

    def on_message_complete(self) -> None:
        self._surplus = self._complete
        self._complete = True

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        self.used = True
        exchange.on_end()
        if exchange.framed and self._keep and not self._surplus:
            self._link.give_back(self)
        else:
            self.abort()
        exchange.end()

    def eof_received(self) -> bool | None:
        return None

    def pause_writing(self) -> None:
        """A long request is kept until the engine takes it: it is whole, and bounded where it came in."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._link.forget(self)
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.status and not exchange.framed and exc is None:
            # Neither length nor chunks: the answer ends where the connection ends.
            self._complete = True
            exchange.on_raw(b"", True)
            self._exchange = None
            exchange.on_end()
            exchange.end()
            return
        phase = "stream" if self._got_bytes else "first_byte"
        self._fail(phase, "the connection was lost", stale=self.used and not self._got_bytes)

    def _fail(self, phase: str, text: str, *, stale: bool = False) -> None:
        exchange, self._exchange = self._exchange, None
        self.abort()
        if exchange is not None:
            exchange.on_end()
            exchange.end(EngineFailed(phase, text, stale=stale))

    def abort(self) -> None:
        """Drop the connection; the engine sees a client that has gone, and stops the work."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()


class EngineLink:
    """The connections to one engine."""

    __slots__ = ("_idle", "_loop", "_port", "_ssl", "base_path", "host", "host_header")

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        parts = urlsplit(url)
        self._loop = loop
        self.host = parts.hostname or ""
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._ssl else 80)
        self._idle: list[EngineConnection] = []
        self.base_path = parts.path.rstrip("/").encode()
        self.host_header = parts.netloc.rpartition("@")[2].encode()

    def idle(self) -> EngineConnection | None:
        """A connection that is there and carries nothing now."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None

    async def connect(self, timeout_wall_s: float) -> EngineConnection:
        """A new connection. Raises EngineFailed (phase connect)."""
        try:
            async with asyncio.timeout(timeout_wall_s):
                made = EngineConnection(self)
                # It is a protocol by what it can do.
                protocol = cast(asyncio.BaseProtocol, made)
                await self._loop.create_connection(lambda: protocol, self.host, self._port, ssl=self._ssl)
        except TimeoutError as error:
            raise EngineFailed("connect", "no connection in time", timed_out=True) from error
        except OSError as error:
            raise EngineFailed("connect", f"cannot connect: {type(error).__name__}", refused=True) from error
        return made

    def give_back(self, connection: EngineConnection) -> None:
        if len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.abort()

    def forget(self, connection: EngineConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Drop what is idle; running exchanges end on their own connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()


class Upstream:
    """Runs exchanges, and ends those whose phase takes too long."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        *,
        speed: float,
        connect_s: float,
        shortest_s: float,
    ) -> None:
        self._loop = loop
        self._now = now
        self._connect_wall_s = connect_s / speed
        self._interval_wall_s = max(0.01, min(0.25, shortest_s / speed / 8))
        self.running: dict[Exchange, EngineConnection] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def begin(self, connection: EngineConnection, payload: bytes, exchange: Exchange) -> None:
        """Send over a connection that is free. Whoever begins calls `forget` when the exchange has ended."""
        self.running[exchange] = connection
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._interval_wall_s, self._sweep)
        exchange.on_start(connection)
        connection.send(payload, exchange)

    def forget(self, exchange: Exchange) -> EngineConnection | None:
        """It is not running any more; what it ran over."""
        return self.running.pop(exchange, None)

    async def run(self, link: EngineLink, payload: bytes, exchange: Exchange, *, fresh: bool = False) -> None:
        """Send, and wait until the answer is whole. Raises EngineFailed. Cancellation drops the connection at once. `fresh`:
        not over a connection that was used before."""
        while True:
            connection = (None if fresh else link.idle()) or await link.connect(self._connect_wall_s)
            done: asyncio.Future[None] = self._loop.create_future()
            exchange.over = False
            exchange.ended = _Waiting(done).end
            try:
                self.begin(connection, payload, exchange)
                await done
                return
            except EngineFailed as error:
                if not error.stale or fresh:
                    raise
                # The engine closed an idle connection just as it was used: the same call on a new one is no retry.
                fresh = True
            except asyncio.CancelledError:
                connection.abort()
                raise
            finally:
                self.running.pop(exchange, None)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._now()
        for exchange, connection in list(self.running.items()):
            if now > exchange.deadline_s and not exchange.over:
                phase = "first_byte" if exchange.first_s is None else "stream"
                connection.abort()
                exchange.end(EngineFailed(phase, "the engine took too long", timed_out=True))
        if self.running:
            self._sweeper = self._loop.call_later(self._interval_wall_s, self._sweep)


class _Waiting:
    """Wakes whoever waits for an exchange's end."""

    __slots__ = ("_done",)

    def __init__(self, done: asyncio.Future[None]) -> None:
        self._done = done

    def end(self, error: EngineFailed | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
