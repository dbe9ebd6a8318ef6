"""[I/O] One completion request from arrival to its last byte: admission, prefill, hand-off, decode, retries, accounting.

The order of things is here and nowhere else. A request is tried again (elsewhere, where there is an elsewhere) as long as
nothing of an answer went to the client, the retry budget allows it, and its deadline has not come. A client that goes away
cancels the coroutine, and with it the engine's work.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

from router.accounting import AccessLog, ModelState, Progress
from router.admission import Refusal, RetryBudget, Ticket
from router.config import RouterConfig
from router.door import Door
from router.endpoints import Endpoint, Endpoints, Pool
from router.exchange import RETRIABLE, Collected, EngineFailed, Relayed
from router.http1 import ClientConnection
from router.identity import Keys, complete
from router.message import Request
from router.openai import BadRequest, decode_body, error_body, handed_over, parse, prefill_body, prefix_blocks
from router.policy import Ask, Path
from router.upstream import Upstream

_BROKEN_OFF = error_body("The engine failed in the middle of the answer.", kind="server_error", code="engine_failed")


@dataclass(slots=True)
class _Failure:
    """Why an attempt must be repeated. `kept`: an engine's own refusal, to be passed on if nothing better comes."""

    text: str
    free: bool = False
    kept: Relayed | None = None
    collected: Collected | None = None
    timed_out: bool = False


class Dispatch:
    """Serves completion requests over the endpoints."""

    def __init__(
        self,
        config: RouterConfig,
        *,
        models: dict[str, ModelState],
        endpoints: Endpoints,
        door: Door,
        upstream: Upstream,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        speed: float,
        keys: Keys,
        access_log: AccessLog | None,
    ) -> None:
        self._config = config
        self._models = models
        self._endpoints = endpoints
        self._pools = endpoints.pools
        self._door = door
        self._upstream = upstream
        self._loop = loop
        self._now = now
        self._speed = speed
        self._access_log = access_log
        self._keys = keys
        self._budget = RetryBudget(ratio=config.retry.ratio, burst=config.retry.burst)
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)
        self._running: set[Progress] = set()

    def running(self) -> list[Progress]:
        """The requests on their way."""
        return list(self._running)

    # -- one request -----------------------------------------------------------------------------------------------------

    async def serve(self, request: Request, client: ClientConnection) -> None:
        """Answer one POST of a completion."""
        arrived = self._now()
        if not request.request_id:
            request.request_id = f"{self._prefix}-{next(self._numbers):x}".encode()
        try:
            key = self._keys.owner(request.authorization)
            call = parse(request.body)
            complete(call, request.hints, key)
        except BadRequest as error:
            self._answer(client, request, error.status, error.body)
            return
        model = self._models.get(call.model) or self._models.get("*")
        if model is None or (key is not None and key.models is not None and call.model not in key.models):
            text = f"The model `{call.model[:256]}` does not exist."
            body = error_body(text, kind="invalid_request_error", code="model_not_found", param="model")
            self._answer(client, request, 404, body)
            return
        ask = Ask(
            isl_tokens=model.lengths.isl(call),
            ttft_ms=call.ttft_ms,
            itl_ms=call.itl_ms,
            priority=call.priority,
            blocks=prefix_blocks(call) if model.by_prefix else (),
        )
        paths = model.stages.paths(ask, self._load)
        progress = Progress(model, request, call, ask, arrived, [self._pools[name] for name in paths[0].assigned])
        self._budget.request()
        self._running.add(progress)
        ticket = Ticket(
            model=model.name,
            priority=call.priority or 0,
            tokens=ask.isl_tokens,
            deadline_s=arrived + self._config.queue.deadline_s,
            paths=paths,
        )
        try:
            refusal = await self._enter(ticket)
            if refusal is not None:
                progress.shed()
                self._turn_away(client, request, refusal)
                return
            progress.admitted()
            await self._persist(progress, ticket, client)
        except asyncio.CancelledError:
            progress.end("cancelled", self._now())
            raise
        finally:
            progress.end("failed", self._now())
            self._running.discard(progress)
            if self._access_log is not None:
                self._access_log.write(progress, self._now())

    async def _enter(self, ticket: Ticket) -> Refusal | None:
        verdict = self._door.try_enter(ticket)
        if verdict is True:
            return None
        return await self._door.wait(ticket) if verdict is False else verdict

    async def _persist(self, progress: Progress, ticket: Ticket, client: ClientConnection) -> None:
        """Attempt until the client has an answer."""
        tried: set[str] = set()
        attempts = 0
        while True:
            path = self._path(ticket.paths, tried)
            if path is None and tried:
                tried.clear()
                path = self._path(ticket.paths, tried)
            if path is None:
                refusal = await self._enter(ticket)
                if refusal is not None:
                    self._turn_away(client, progress.request, refusal)
                    return
                if self._path(ticket.paths, tried) is None:
                    # Somebody else took the place in the same moment.
                    await asyncio.sleep(0)
                continue
            failure = await self._attempt(progress, path, tried, client)
            if failure is None:
                return
            if not failure.free:
                attempts += 1
                if attempts >= self._config.retry.attempts or not self._budget.take():
                    self._give_up(progress, failure, client)
                    return
            progress.retried()

    async def _attempt(self, progress: Progress, path: Path, tried: set[str], client: ClientConnection) -> _Failure | None:
        """One try along a path. None: the client has an answer, whole or broken off."""
        names = [name for name in path.prefill if self._readers(path, name, tried)] if path.prefill else path.serve
        chosen = self._pick(names, progress.ask, tried)
        if chosen is None:
            return _Failure("no endpoint is left", free=True)
        if not path.prefill:
            return await self._relay(progress, *chosen, progress.call.raw, tried, client)
        pool, endpoint = chosen
        answer = await self._prefill(progress, pool, endpoint, tried, client)
        if not isinstance(answer, bytes):
            return answer
        params = handed_over(answer)
        endpoint.pending_kv += 1
        pulled = partial(self._pulled, pool, endpoint, progress)
        progress.kv_pending = True
        try:
            chosen = self._pick(self._readers(path, pool.name, tried), progress.ask, tried)
            if chosen is None:
                return _Failure("no decode endpoint is left", free=True)
            body = decode_body(progress.call, params)
            return await self._relay(progress, *chosen, body, tried, client, on_first=pulled)
        finally:
            pulled()

    def _pulled(self, pool: Pool, endpoint: Endpoint, progress: Progress) -> None:
        """Decode has its first token: the prefill engine's KV blocks were read."""
        if progress.kv_pending:
            progress.kv_pending = False
            endpoint.pending_kv -= 1
            self._freed(pool, endpoint)

    # -- calls -----------------------------------------------------------------------------------------------------------

    async def _prefill(
        self, progress: Progress, pool: Pool, endpoint: Endpoint, tried: set[str], client: ClientConnection
    ) -> bytes | _Failure | None:
        """The prefill answer's body; a failure; or None when the engine refused the request itself and the client was
        told."""
        began = self._now()
        exchange = Collected(self._loop, self._now, began + self._config.timeouts.prefill_s)
        payload = self._payload(progress.request, endpoint, prefill_body(progress.call))
        tokens = progress.ask.isl_tokens
        endpoint.in_flight += 1
        endpoint.outstanding_tokens += tokens
        try:
            await self._upstream.run(endpoint.link, payload, exchange)
        except EngineFailed as error:
            return self._failed(pool, endpoint, error, tried)
        finally:
            endpoint.in_flight -= 1
            endpoint.outstanding_tokens -= tokens
            self._freed(pool, endpoint)
        if exchange.status in RETRIABLE:
            return self._refused(pool, endpoint, exchange.status, tried, collected=exchange)
        self._endpoints.succeeded(endpoint)
        if exchange.status >= 400:
            self._pass_on(client, progress.request, exchange)
            progress.end("completed", self._now())
            return None
        progress.prefilled(pool, endpoint, self._now(), began)
        return exchange.body

    async def _relay(
        self,
        progress: Progress,
        pool: Pool,
        endpoint: Endpoint,
        body: bytes,
        tried: set[str],
        client: ClientConnection,
        *,
        on_first: Callable[[], None] | None = None,
    ) -> _Failure | None:
        """The call whose answer goes to the client."""
        timeouts = self._config.timeouts
        began = self._now()
        exchange = Relayed(
            self._loop,
            self._now,
            min(began + timeouts.first_byte_s, progress.arrived_s + timeouts.total_s),
            client=client,
            request_id=progress.request.request_id,
            idle_s=timeouts.idle_s,
            total_s=progress.arrived_s + timeouts.total_s,
            on_first=on_first,
            old_client=progress.request.version == "1.0",
        )
        payload = self._payload(progress.request, endpoint, body)
        tokens = progress.ask.isl_tokens + progress.model.lengths.osl(progress.call)
        endpoint.in_flight += 1
        endpoint.outstanding_tokens += tokens
        progress.relaying(pool, endpoint, exchange)
        try:
            await self._upstream.run(endpoint.link, payload, exchange)
        except EngineFailed as error:
            failure = self._failed(pool, endpoint, error, tried)
            if not exchange.started:
                return failure
            exchange.break_off(b"data: %b\n\n" % _BROKEN_OFF)
            return None
        finally:
            endpoint.in_flight -= 1
            endpoint.outstanding_tokens -= tokens
            self._freed(pool, endpoint)
        if exchange.kept is not None:
            return self._refused(pool, endpoint, exchange.status, tried, kept=exchange)
        self._endpoints.succeeded(endpoint)
        client.finish()
        progress.answered(pool, endpoint, exchange, self._now())
        return None

    def _payload(self, request: Request, endpoint: Endpoint, body: bytes) -> bytes:
        link = endpoint.link
        target = request.path + b"?" + request.query if request.query else request.path
        # A key of ours is nobody else's business; without keys, what the client says is for the engine.
        passed = request.authorization if not self._keys.required else b""
        lines = [*request.forward, b"authorization: %b\r\n" % passed] if passed else request.forward
        return b"POST %b%b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
            link.base_path,
            target,
            link.host_header,
            len(body),
            request.request_id,
            b"".join(lines),
            body,
        )

    # -- choosing --------------------------------------------------------------------------------------------------------

    def _load(self, name: str) -> float:
        return self._pools[name].load()

    def usable(self, path: Path, without: set[str] | frozenset[str] = frozenset()) -> bool:
        """Whether every stage of a path has a usable endpoint now."""
        pools = self._pools
        if path.instead_of and not any(pools[name].broken for name in path.instead_of):
            return False
        if path.prefill:
            return any(pools[name].usable(without) and self._readers(path, name, without) for name in path.prefill)
        return any(pools[name].usable(without) for name in path.serve)

    def _readers(self, path: Path, prefill: str, without: set[str] | frozenset[str]) -> list[str]:
        """The pools of the path that can serve now and read the KV blocks of this prefill pool."""
        pools = self._pools
        made = pools[prefill].config.kv_format
        return [name for name in path.serve if pools[name].config.kv_format == made and pools[name].usable(without)]

    def _path(self, paths: tuple[Path, ...], tried: set[str]) -> Path | None:
        for path in paths:
            if self.usable(path, tried):
                return path
        return None

    def _pick(self, names: tuple[str, ...] | list[str], ask: Ask, tried: set[str]) -> tuple[Pool, Endpoint] | None:
        """The first pool with a usable endpoint, and the endpoint; None: no pool has one."""
        for name in names:
            pool = self._pools[name]
            endpoint = pool.pick(ask, tried)
            if endpoint is not None:
                return pool, endpoint
        return None

    def _freed(self, pool: Pool, endpoint: Endpoint) -> None:
        if not endpoint.known and endpoint.idle:
            pool.refresh()
        if pool.config.max_in_flight is not None and self._door.waiting:
            self._door.pump()

    # -- failures --------------------------------------------------------------------------------------------------------

    def _failed(self, pool: Pool, endpoint: Endpoint, error: EngineFailed, tried: set[str]) -> _Failure:
        tried.add(endpoint.id)
        self._endpoints.failed(pool, endpoint, refused=error.refused)
        return _Failure(str(error), free=error.refused, timed_out=error.timed_out)

    def _refused(
        self,
        pool: Pool,
        endpoint: Endpoint,
        status: int,
        tried: set[str],
        *,
        kept: Relayed | None = None,
        collected: Collected | None = None,
    ) -> _Failure:
        tried.add(endpoint.id)
        if status != 429:
            # An engine that fails fast would look idle and attract everything: it must count as failing.
            self._endpoints.failed(pool, endpoint, refused=False)
        return _Failure(f"the engine answered {status}", kept=kept, collected=collected)

    def _give_up(self, progress: Progress, failure: _Failure, client: ClientConnection) -> None:
        if failure.kept is not None:
            failure.kept.pass_on()
        elif failure.collected is not None:
            self._pass_on(client, progress.request, failure.collected)
        elif failure.timed_out:
            body = error_body("The engine took too long to answer.", kind="server_error", code="engine_timeout")
            self._answer(client, progress.request, 504, body)
        else:
            body = error_body("The engine failed before it answered.", kind="server_error", code="engine_unavailable")
            self._answer(client, progress.request, 502, body, extra=b"retry-after: 1\r\n")

    def _pass_on(self, client: ClientConnection, request: Request, exchange: Collected) -> None:
        """Give the client an engine's own words."""
        fields = dict(exchange.headers)
        kind = fields.get(b"content-type", b"application/json")
        after = fields.get(b"retry-after")
        extra = b"retry-after: %b\r\n" % after if after else b""
        client.respond(
            exchange.status, exchange.body, content_type=kind, extra=extra + b"x-request-id: %b\r\n" % request.request_id
        )

    def _turn_away(self, client: ClientConnection, request: Request, refusal: Refusal) -> None:
        """429 for a rate that is used up, 503 while nothing can serve; both say when to come back, in wall seconds."""
        after = max(1, -int(-refusal.retry_after_s // self._speed))
        if refusal.reason == "starting":
            text, status, kind = "The model is starting; try again later.", 503, "service_unavailable"
            code = "model_starting"
        else:
            text, status, kind = "More requests than the model can serve now; try again later.", 429, "rate_limit_exceeded"
            code = "overloaded" if refusal.reason == "full" else "rate_limit_exceeded"
        body = error_body(text, kind=kind, code=code)
        self._answer(client, request, status, body, extra=b"retry-after: %d\r\n" % after)

    def _answer(self, client: ClientConnection, request: Request, status: int, body: bytes, *, extra: bytes = b"") -> None:
        client.respond(status, body, extra=extra + b"x-request-id: %b\r\n" % request.request_id)
