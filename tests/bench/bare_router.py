"""The least that a router in Python can be, as a peer of `tests.bench.router`: uvloop, httptools, orjson, and nothing else.

It reads whole requests, parses the JSON, takes the engines in turn, and passes bytes on over pooled connections. No limits, no
admission, no retries, no metrics, no time-outs. What it costs on a machine is what is left of Python's and the kernel's part
when a router does nothing; what ours costs beyond it is ours.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop


class Engine(asyncio.Protocol):
    """One connection to an engine; bytes that come go to `client` as they are."""

    def __init__(self, idle: list[Engine]) -> None:
        self._idle = idle
        self._parser: Any = httptools.HttpResponseParser(self)
        self._complete = False
        self.client: Any = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._complete = False
        self._parser.feed_data(data)
        self.client.write(data)
        if self._complete:
            self._idle.append(self)

    def on_message_complete(self) -> None:
        self._complete = True


class Client(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, engines: list[tuple[str, int, list[Engine]]]) -> None:
        self._engines = engines
        self._parser: Any = httptools.HttpRequestParser(self)
        self._lines: list[bytes] = []
        self._parts: list[bytes] = []
        self._url = b""
        self._turn = id(self) >> 6
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url
        self._lines, self._parts = [], []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() != b"host":
            self._lines.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._parts)
        assert orjson.loads(body)["model"]
        self._turn += 1
        host, port, idle = self._engines[self._turn % len(self._engines)]
        payload = b"POST %b HTTP/1.1\r\nhost: x\r\n%b\r\n%b" % (self._url, b"".join(self._lines), body)
        if idle:
            engine = idle.pop()
            engine.client = self._transport
            engine.transport.write(payload)
        else:
            task = asyncio.get_running_loop().create_task(self._first(host, port, idle, payload))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _first(self, host: str, port: int, idle: list[Engine], payload: bytes) -> None:
        _, engine = await asyncio.get_running_loop().create_connection(lambda: Engine(idle), host, port)
        engine.client = self._transport
        engine.transport.write(payload)


async def serve(port: int, urls: list[str]) -> None:
    engines: list[tuple[str, int, list[Engine]]] = [(urlsplit(u).hostname or "", urlsplit(u).port or 80, []) for u in urls]
    server = await asyncio.get_running_loop().create_server(lambda: Client(engines), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engines", nargs="+", required=True, metavar="URL")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.engines))


if __name__ == "__main__":
    main()
