"""[I/O] Decisions for an outside system: it fetches them over HTTP, executes them, and says when that is done.

    GET  /v1/decision?after=ID&wait_s=S    the open decision newer than ID (204: none within S seconds)
    POST /v1/decisions/ID/complete         body {} or {"replicas": {POOL: N}} where it could not do all
    PUT  /v1/replicas                      body {"replicas": {POOL: N}}: what it has now; wanted before the first decision
    GET  /v1/state                         everything, for people

`virtual_client` is the other side in Python. With a token every request needs `Authorization: Bearer`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict

from aiohttp import web

from pool_planner.connectors.virtual_book import DECISION_TIMEOUT_S, Book, Superseded, complete, decide, grants, told
from pool_planner.http_server import listen
from pool_planner.types import Grant, PlannerStatus, Proposal, Report

MAX_BODY_BYTES = 64 * 1024
MAX_WAIT_S = 60.0
MOST_REPLICAS = 1_000_000


class VirtualConnector:
    """The books of `pools`, served at `host`:`port` (0: any free one; `port` says which). `wall` turns a duration of the
    planner's clock into wall seconds; `note` is told what becomes of each decision."""

    def __init__(
        self,
        pools: Sequence[str],
        *,
        host: str,
        port: int,
        clock: Callable[[], float],
        note: Callable[[str], None],
        replicas: Mapping[str, int] | None = None,
        token: str | None = None,
        timeout_s: float = DECISION_TIMEOUT_S,
    ) -> None:
        self._pools = frozenset(pools)
        self._host, self._port = host, port
        self._clock = clock
        self._note = note
        self._token = token
        self._book = Book(timeout_s=timeout_s, ready=dict(replicas or {}))
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        """Raises OSError when the port is taken."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_get("/v1/decision", self._decision)
        app.router.add_post("/v1/decisions/{id}/complete", self._complete)
        app.router.add_put("/v1/replicas", self._replicas)
        app.router.add_get("/v1/state", self._state)
        self._runner, self._port = await listen(app, self._host, self._port)

    # ---- Connector -----------------------------------------------------------------------------------------------

    async def grants(self, now_s: float) -> Mapping[str, Grant]:
        return grants(self._book, now_s)

    async def carry_out(self, reports: Sequence[Report], statuses: Sequence[PlannerStatus], now_s: float) -> None:
        asked = {report.pool: report for report in reports if isinstance(report, Proposal)}
        if not asked:
            return
        wanted = {pool: report.wanted for pool, report in asked.items()}
        reasons = {pool: "; ".join(report.reasons) for pool, report in asked.items()}
        before = self._book.last
        self._book, outcome = decide(self._book, wanted, now_s, reasons=reasons)
        if self._book.last is not before and self._book.last is not None:
            self._note(f"decision {self._book.last.id} {outcome}: {dict(self._book.last.replicas)}")
            self._wake()
        elif outcome == "waiting" and before is not None:
            self._note(f"decision {before.id} is not completed yet, so {wanted} waits")

    async def close(self) -> None:
        self._wake()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _wake(self) -> None:
        """Those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    # ---- HTTP ----------------------------------------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._token is not None:
            given = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                return _error(401, "Authorization: Bearer TOKEN is needed")
        return await handler(request)

    async def _decision(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        wait = request.query.get("wait_s", "0")
        try:
            newer_than, wait_s = int(after), float(wait)
        except ValueError:
            return _error(400, f"after={after!r}, wait_s={wait!r}: a whole number and seconds are needed")
        if not 0.0 <= wait_s <= MAX_WAIT_S:
            return _error(400, f"wait_s={wait}: must be in 0..{MAX_WAIT_S:g}")
        ends = asyncio.get_running_loop().time() + wait_s
        while True:
            last, changed = self._book.last, self._changed
            if last is not None and self._book.open and last.id > newer_than:
                return web.json_response(asdict(last))
            left_s = ends - asyncio.get_running_loop().time()
            if left_s <= 0.0 or self._runner is None:
                return web.Response(status=204)
            try:
                await asyncio.wait_for(changed.wait(), left_s)
            except TimeoutError:
                continue

    async def _complete(self, request: web.Request) -> web.Response:
        number = request.match_info["id"]
        try:
            replicas = await self._body(request)
            self._book = complete(self._book, int(number), replicas)
        except Superseded as error:
            return _error(409, str(error))
        except ValueError as error:
            return _error(400, str(error))
        self._note(f"decision {number} completed: {dict(self._book.ready)}")
        return web.json_response({"ready": dict(self._book.ready)})

    async def _replicas(self, request: web.Request) -> web.Response:
        try:
            replicas = await self._body(request)
            if replicas is None:
                raise ValueError('replicas: is missing; {"replicas": {POOL: N}} is needed')
        except ValueError as error:
            return _error(400, str(error))
        self._book = told(self._book, replicas)
        return web.json_response({"ready": dict(self._book.ready)})

    async def _state(self, _: web.Request) -> web.Response:
        book = self._book
        return web.json_response(
            {
                "now_s": self._clock(),
                "pools": sorted(self._pools),
                "ready": dict(book.ready),
                "open": book.open,
                "last": None if book.last is None else asdict(book.last),
                "given_up": book.given_up,
            }
        )

    async def _body(self, request: web.Request) -> dict[str, int] | None:
        """`replicas` of the body, None when it has none. Raises ValueError with what is wrong."""
        raw = await request.read()
        try:
            body = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict) or not set(body) <= {"replicas"}:
            raise ValueError('the body must be {"replicas": {POOL: N}} or {}')
        replicas = body.get("replicas")
        if replicas is None:
            return None
        if not isinstance(replicas, dict):
            raise ValueError("replicas: must be a mapping of pools to numbers")
        for pool, count in replicas.items():
            if pool not in self._pools:
                raise ValueError(f"replicas.{pool}: no such pool (has: {', '.join(sorted(self._pools))})")
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_REPLICAS:
                raise ValueError(f"replicas.{pool}: {count!r} must be a whole number from 0 to {MOST_REPLICAS}")
        return replicas


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
