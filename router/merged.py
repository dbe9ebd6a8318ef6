"""[I/O: `MergedMetrics` listens and asks; `merge` is pure] The metrics of several processes as those of one router.

Counters, histograms and most gauges add up. What a process only says about itself does not: of a latency last seen the larger
one counts, and a condition holds only if it holds in every process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from router.config import LimitsConfig
from router.exchange import Collected, EngineFailed
from router.http1 import ClientConnection, HttpServer
from router.message import Request
from router.metrics import CONTENT_TYPE
from router.openai import error_body
from router.upstream import EngineLink, Upstream

ASK_S = 5.0
_LARGEST = ("_last_", "router_clock_speed", "router_duplicate_source")
_SMALLEST = ("router_plan_in_force", "router_endpoints_version", "router_discovery_up")


def merge(texts: Sequence[str]) -> str:
    """One Prometheus text of several, families and series in the order of their first appearance.

    >>> print(merge(["# TYPE a counter\\na{x=\\"1\\"} 2\\n", "# TYPE a counter\\na{x=\\"1\\"} 3\\na{x=\\"2\\"} 1\\n"]))
    # TYPE a counter
    a{x="1"} 5
    a{x="2"} 1
    <BLANKLINE>
    """
    families: dict[str, tuple[list[str], dict[str, list[float]]]] = {}
    for text in texts:
        comments: list[str] = []
        series: dict[str, list[float]] = {}
        for line in text.splitlines():
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                comments, series = families.setdefault(name, ([], {}))
                if line not in comments:
                    comments.append(line)
            elif line:
                key, _, value = line.rpartition(" ")
                series.setdefault(key, []).append(float(value))
    out = []
    for name, (comments, series) in families.items():
        combine = _rule(name)
        out += comments
        out += [f"{key} {_shown(combine(values))}" for key, values in series.items()]
    return "\n".join([*out, ""])


def _rule(name: str) -> Callable[[list[float]], float]:
    if any(part in name for part in _LARGEST):
        return max
    return min if any(part in name for part in _SMALLEST) else sum


def _shown(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else repr(value)


class MergedMetrics:
    """Answers GET /metrics with what all processes say; 503 as long as one of them does not answer, because a sum without it
    would look like a fall. `ports`: the admin ports of the processes."""

    def __init__(self, host: str, ports: Sequence[int], limits: LimitsConfig, loop: asyncio.AbstractEventLoop) -> None:
        self._host = host
        self._links = [EngineLink(f"http://{f'[{host}]' if ':' in host else host}:{port}", loop) for port in ports]
        self._loop = loop
        self._upstream = Upstream(loop, loop.time, speed=1.0, connect_s=ASK_S, shortest_s=ASK_S)
        self._server = HttpServer(self._serve, limits, loop)

    async def listen(self, port: int) -> int:
        """The port that was given. Raises OSError when the address cannot be had."""
        return await self._server.listen(self._host, port)

    async def _serve(self, request: Request, client: ClientConnection) -> None:
        if request.path == b"/health":
            client.respond(200, b'{"status":"ok"}')
        elif request.path != b"/metrics" or request.method not in (b"GET", b"HEAD"):
            client.respond(404, error_body("Only GET /metrics and /health are here.", kind="invalid_request_error"))
        else:
            answers = await asyncio.gather(*(self._ask(link, request) for link in self._links))
            refusal = next((answer for answer in answers if answer is None or answer.status != 200), None)
            if any(answer is None for answer in answers):
                client.respond(503, error_body("A process of the router does not answer.", kind="service_unavailable"))
            elif refusal is not None:
                client.respond(refusal.status, refusal.body)
            else:
                text = merge([answer.body.decode() for answer in answers if answer is not None])
                client.respond(200, text.encode(), content_type=CONTENT_TYPE, head=request.method == b"HEAD")

    async def _ask(self, link: EngineLink, request: Request) -> Collected | None:
        exchange = Collected(self._loop.time, self._loop.time() + ASK_S)
        shown = b"authorization: %b\r\n" % request.authorization if request.authorization else b""
        try:
            await self._upstream.run(link, b"GET /metrics HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (link.host_header, shown), exchange)
        except EngineFailed:
            return None
        return exchange

    async def close(self) -> None:
        await self._server.close(0.0)
        for link in self._links:
            link.close()
