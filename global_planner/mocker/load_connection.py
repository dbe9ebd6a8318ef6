"""[I/O] HTTP/1.1 as the load needs it: kept connections, one request at a time on each, pieces noted as they arrive.

A general client costs several times the processor time, which a load generator that shares two cores with what it measures
does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import cast

import httptools

from global_planner.mocker.load_answer import Body


class ConnectionFailed(Exception):
    """The connection could not be made or broke. `clean`: not a byte of an answer had come, so a retry is harmless."""

    def __init__(self, text: str, *, clean: bool) -> None:
        super().__init__(text)
        self.clean = clean


class Exchange:
    """One request on its way: `status` is None until the head of an answer came."""

    __slots__ = ("body", "done", "retry_after", "status")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status: int | None = None
        self.retry_after: bytes | None = None
        self.body = Body()
        self.done: asyncio.Future[None] = loop.create_future()


class Connection(asyncio.Protocol):
    """One connection; `exchange` is what it carries now (None: idle)."""

    def __init__(self, now: Callable[[], float], on_idle: Callable[[Connection], None]) -> None:
        self._now = now
        self._on_idle = on_idle
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._at = 0.0
        self.exchange: Exchange | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        assert self._transport is not None and self.exchange is None
        self.exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._transport.writelines((head, body))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:  # nobody asked
            self.close()
            return
        self._at = self._now()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"connection lost: {exc}" if exc is not None else "connection closed by the server")

    # ---- httptools ------------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.exchange is not None and name.lower() == b"retry-after":
            self.exchange.retry_after = value

    def on_headers_complete(self) -> None:
        if self.exchange is not None:
            self.exchange.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        if self.exchange is not None:
            self.exchange.body.add(piece, self._at)

    def on_message_complete(self) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if not exchange.done.done():
            exchange.done.set_result(None)
        if self._parser.should_keep_alive() and self.open:
            self._on_idle(self)
        else:
            self.close()

    def _fail(self, text: str) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.done.done():
            exchange.done.set_exception(ConnectionFailed(text, clean=exchange.status is None))


class Connections:
    """All connections to one server; idle ones are used again, the last one first."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []

    async def ask(self, head: bytes, body: bytes) -> Exchange:
        """Send a request and wait for its whole answer. Raises ConnectionFailed; cancelling drops the connection."""
        connection = self._take()
        if connection is None:
            try:
                _, connection = await self._loop.create_connection(self._make, self._host, self._port)
            except OSError as error:
                raise ConnectionFailed(f"cannot connect: {error}", clean=True) from error
        exchange = Exchange(self._loop)
        connection.send(exchange, head, body)
        try:
            await exchange.done
        finally:
            if connection.exchange is exchange:  # cancelled: what still comes belongs to nobody
                connection.exchange = None
                connection.close()
        return exchange

    def close(self) -> None:
        for connection in self._idle:
            connection.close()

    def _make(self) -> Connection:
        return Connection(perf_counter, self._idle.append)  # the loop's own clock has a resolution of 1 ms

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return None
