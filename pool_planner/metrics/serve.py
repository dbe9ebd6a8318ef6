"""[I/O] A planner's own metrics over HTTP, on the port that its configuration names."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from pool_planner.http_server import listen
from pool_planner.metrics.text import CONTENT_TYPE


class MetricsServer:
    """Answers GET /metrics with what `text` gives at that moment, and GET /healthz with 200, or with 503 and what `unwell` says
    when it says anything. Port 0: any free one; `port` says which."""

    def __init__(
        self, text: Callable[[], str], *, port: int, host: str = "127.0.0.1", unwell: Callable[[], str | None] = lambda: None
    ) -> None:
        self._text = text
        self._unwell = unwell
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        """Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        app.router.add_get("/healthz", self._health)
        self._runner, self._port = await listen(app, self._host, self._port)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(body=self._text().encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        wrong = self._unwell()
        return web.Response(text=f"{wrong or 'ok'}\n", status=200 if wrong is None else 503)
