"""[I/O] One attempt at a request along one path: pick the engines, call them, hand over, and say what failed.

Where prefill comes first, its answer decides what decode is sent; where both are called at once, the failure of either ends
the other. `router.handoff` knows which engine wants what.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial

from router.accounting import Progress
from router.config import TimeoutConfig
from router.door import Door
from router.endpoints import Endpoint, Endpoints, Pool
from router.exchange import RETRIABLE, Collected, EngineFailed, Relayed
from router.handoff import Meeting, as_stream, at_once, handed_over, meeting_body, prefill_body
from router.http1 import ClientConnection
from router.identity import Keys
from router.message import Request
from router.openai import error_body
from router.outliers import per_thousand
from router.policy import Ask, Path
from router.relay import Failure, Refused, Relay, Starts, pass_on
from router.upstream import Upstream

_BROKEN_OFF = error_body("The engine failed in the middle of the answer.", kind="server_error", code="engine_failed")
_EVENTS = b"text/event-stream; charset=utf-8"


class Attempts:
    """Runs attempts over the endpoints."""

    def __init__(
        self,
        timeouts: TimeoutConfig,
        *,
        endpoints: Endpoints,
        door: Door,
        upstream: Upstream,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        keys: Keys,
    ) -> None:
        self._timeouts = timeouts
        self._endpoints = endpoints
        self._pools = endpoints.pools
        self._door = door
        self._upstream = upstream
        self._loop = loop
        self._now = now
        self._keys = keys
        # Rooms must differ between router processes too.
        self._rooms = random.SystemRandom()

    def run(
        self, progress: Progress, path: Path, tried: set[str], client: ClientConnection
    ) -> Coroutine[None, None, Failure | None]:
        """One try along a path, to be awaited at once. None: the client has an answer, whole or broken off."""
        if path.prefill:
            return self._with_prefill(progress, path, tried, client)
        chosen = self.pick(path.serve, progress.ask, tried)
        if chosen is None:
            return _none_left()
        return self._relay(progress, *chosen, progress.call.raw, tried, client)

    async def _with_prefill(self, progress: Progress, path: Path, tried: set[str], client: ClientConnection) -> Failure | None:
        chosen = self.pick([name for name in path.prefill if self.readers(path, name, tried)], progress.ask, tried)
        if chosen is None:
            return Failure("no endpoint is left", free=True)
        try:
            if at_once(progress.model.config.handoff):
                return await self._both(progress, path, *chosen, tried, client)
            return await self._one_after_the_other(progress, path, *chosen, tried, client)
        except Refused as refused:
            pass_on(client, progress.request, refused.answer)
            progress.status = refused.answer.status
            progress.end("completed", self._now())
            return None

    async def _one_after_the_other(
        self, progress: Progress, path: Path, pool: Pool, endpoint: Endpoint, tried: set[str], client: ClientConnection
    ) -> Failure | None:
        engine = progress.model.config.handoff
        answer = await self._prefill(progress, pool, endpoint, prefill_body(progress.call, engine), tried)
        if isinstance(answer, Failure):
            return answer
        handed = handed_over(progress.call, answer, engine)
        if handed.complete is not None:
            self._answer_of_prefill(progress, pool, endpoint, handed.complete, client)
            return None
        endpoint.pending_kv += 1
        pulled = partial(self._pulled, pool, endpoint, progress)
        progress.kv_pending = True
        try:
            chosen = self.pick(self.readers(path, pool.name, tried), progress.ask, tried)
            if chosen is None:
                return Failure("no decode endpoint is left", free=True)
            return await self._relay(progress, *chosen, handed.decode, tried, client, on_first=pulled)
        finally:
            pulled()

    def _pulled(self, pool: Pool, endpoint: Endpoint, progress: Progress) -> None:
        """Decode has its first token: the prefill engine's KV blocks were read."""
        if progress.kv_pending:
            progress.kv_pending = False
            endpoint.pending_kv -= 1
            self._freed(pool, endpoint)

    async def _both(
        self, progress: Progress, path: Path, pool: Pool, endpoint: Endpoint, tried: set[str], client: ClientConnection
    ) -> Failure | None:
        """Prefill and decode at once. Prefill answers when its blocks were pushed, so a prefill that fails leaves decode
        waiting for ever, and the other way round: whoever fails ends both."""
        chosen = self.pick(self.readers(path, pool.name, tried), progress.ask, tried)
        if chosen is None:
            return Failure("no decode endpoint is left", free=True)
        port = endpoint.bootstrap_port or pool.config.bootstrap_port
        meeting = Meeting(host=endpoint.link.host, port=port, room=self._rooms.randrange(2**63))
        body = meeting_body(progress.call, meeting)
        prefill = self._loop.create_task(self._prefill(progress, pool, endpoint, body, tried))
        decode = self._loop.create_task(self._relay(progress, *chosen, body, tried, client))
        try:
            await asyncio.wait({prefill, decode}, return_when=asyncio.FIRST_COMPLETED)
            started = progress.exchange is not None and progress.exchange.started
            if not decode.done() and not started:
                answer = prefill.result()
                if isinstance(answer, Failure):
                    return answer
            return await decode
        finally:
            for task in (prefill, decode):
                task.cancel()
            await asyncio.gather(prefill, decode, return_exceptions=True)

    # -- calls -----------------------------------------------------------------------------------------------------------

    async def _prefill(
        self, progress: Progress, pool: Pool, endpoint: Endpoint, body: bytes, tried: set[str]
    ) -> bytes | Failure:
        """The prefill answer's body, or a failure. Raises Refused when the engine refused the request itself."""
        began = self._now()
        exchange = Collected(self._now, began + self._timeouts.prefill_s)
        payload = self._payload(progress.request, endpoint, body)
        tokens = progress.ask.isl_tokens
        progress.expects(pool, endpoint, began)
        endpoint.in_flight += 1
        endpoint.unstarted += 1
        endpoint.outstanding_tokens += tokens
        endpoint.unstarted_tokens += tokens
        try:
            await self._upstream.run(endpoint.link, payload, exchange)
        except EngineFailed as error:
            return self._failed(pool, endpoint, error, tried)
        finally:
            endpoint.in_flight -= 1
            endpoint.unstarted -= 1
            endpoint.outstanding_tokens -= tokens
            endpoint.unstarted_tokens -= tokens
            self._freed(pool, endpoint)
        if exchange.status in RETRIABLE:
            return self._refused(pool, endpoint, exchange.status, tried, collected=exchange)
        self._endpoints.succeeded(endpoint)
        if exchange.status >= 400:
            raise Refused(exchange)
        now = self._now()
        progress.prefilled(pool, endpoint, now, began)
        self._endpoints.answered(pool, endpoint, ttft=per_thousand(now - began, tokens))
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
    ) -> Failure | None:
        """The call whose answer goes to the client."""
        relay = self.relay(progress, pool, endpoint, body, client, on_first)
        error: EngineFailed | None = None
        try:
            await self._upstream.run(endpoint.link, relay.payload, relay.exchange)
        except EngineFailed as failed:
            error = failed
        except asyncio.CancelledError:
            self.release(relay)
            raise
        return self.relayed(progress, relay, error, tried, client)

    def relay(
        self,
        progress: Progress,
        pool: Pool,
        endpoint: Endpoint,
        body: bytes,
        client: ClientConnection,
        on_first: Callable[[], None] | None = None,
    ) -> Relay:
        """That call before it is sent. Whoever sends it says `relayed` at its end, or `release` when it is given up."""
        timeouts = self._timeouts
        began = self._now()
        progress.expects(pool, endpoint, began)
        tokens = progress.ask.isl_tokens
        starts = Starts(endpoint, tokens) if progress.model.predictors and pool.role == "agg" else None
        last_s = progress.arrived_s + timeouts.total_s
        exchange = Relayed(
            self._now,
            min(began + timeouts.first_byte_s, last_s),
            client=client,
            request_id=progress.request.request_id,
            idle_s=timeouts.idle_s,
            total_s=last_s,
            on_first=on_first if starts is None else starts.end,
            old_client=progress.request.version == "1.0",
        )
        progress.relaying(pool, endpoint, exchange, began)
        payload = self._payload(progress.request, endpoint, body)
        return Relay(pool, endpoint, exchange, payload, tokens + progress.ask.osl_tokens, starts)

    def release(self, relay: Relay) -> None:
        """The engine has nothing more to do for it."""
        if relay.open:
            relay.open = False
            if relay.starts is not None:
                relay.starts.end()
            relay.endpoint.in_flight -= 1
            relay.endpoint.outstanding_tokens -= relay.tokens
            self._freed(relay.pool, relay.endpoint)

    def relayed(
        self, progress: Progress, relay: Relay, error: EngineFailed | None, tried: set[str], client: ClientConnection
    ) -> Failure | None:
        """The call has ended. None: the client has an answer, whole or broken off."""
        pool, endpoint, exchange = relay.pool, relay.endpoint, relay.exchange
        if error is not None:
            failure = self._failed(pool, endpoint, error, tried)
            self.release(relay)
            if not exchange.started:
                return failure
            exchange.break_off(b"data: %b\n\n" % _BROKEN_OFF)
            return None
        self.release(relay)
        if exchange.kept is not None:
            return self._refused(pool, endpoint, exchange.status, tried, kept=exchange)
        self._endpoints.succeeded(endpoint)
        client.finish()
        ttft, itl = progress.answered(pool, endpoint, exchange, self._now())
        if ttft is not None or itl is not None:
            self._endpoints.answered(pool, endpoint, ttft=ttft, itl=itl)
        return None

    def _answer_of_prefill(
        self, progress: Progress, pool: Pool, endpoint: Endpoint, answer: bytes, client: ClientConnection
    ) -> None:
        """The answer ended at its first token: there is nothing to decode."""
        call, kind = progress.call, b"application/json"
        if call.stream:
            options = call.body.get("stream_options")
            wanted = isinstance(options, dict) and options.get("include_usage") is True
            answer, kind = as_stream(answer, include_usage=wanted), _EVENTS
        client.respond(200, answer, content_type=kind, extra=b"x-request-id: %b\r\n" % progress.request.request_id)
        progress.answered_by_prefill(pool, self._now())

    def _payload(self, request: Request, endpoint: Endpoint, body: bytes) -> bytes:
        link = endpoint.link
        target = request.path + b"?" + request.query if request.query else request.path
        # A key of ours is nobody else's business; without keys, what the client says is for the engine.
        passed = request.authorization if not self._keys.required else b""
        return b"POST %b%b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b" % (
            link.base_path,
            target,
            link.host_header,
            len(body),
            request.request_id,
            b"".join(request.forward),
            b"authorization: %b\r\n" % passed if passed else b"",
            body,
        )

    # -- choosing --------------------------------------------------------------------------------------------------------

    def readers(self, path: Path, prefill: str, without: set[str] | frozenset[str]) -> list[str]:
        """The pools of the path that can serve now and read the KV blocks of this prefill pool."""
        pools = self._pools
        made = pools[prefill].config.kv_format
        return [name for name in path.serve if pools[name].config.kv_format == made and pools[name].usable(without)]

    def pick(self, names: tuple[str, ...] | list[str], ask: Ask, tried: set[str]) -> tuple[Pool, Endpoint] | None:
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
        if self._door.waiting and (pool.bounded or self._door.admission.bounds_in_flight):
            if pool.role == "prefill":
                # Not before decode has what is handed over: for this moment it would count for neither.
                self._loop.call_soon(self._door.pump)
            else:
                self._door.pump()

    # -- failures --------------------------------------------------------------------------------------------------------

    def _failed(self, pool: Pool, endpoint: Endpoint, error: EngineFailed, tried: set[str]) -> Failure:
        tried.add(endpoint.id)
        self._endpoints.failed(pool, endpoint, refused=error.refused)
        return Failure(str(error), free=error.refused, timed_out=error.timed_out)

    def _refused(
        self,
        pool: Pool,
        endpoint: Endpoint,
        status: int,
        tried: set[str],
        *,
        kept: Relayed | None = None,
        collected: Collected | None = None,
    ) -> Failure:
        tried.add(endpoint.id)
        if status != 429:
            # An engine that fails fast would look idle and attract everything: it must count as failing.
            self._endpoints.failed(pool, endpoint, refused=False)
        return Failure(f"the engine answered {status}", kept=kept, collected=collected)


async def _none_left() -> Failure:
    return Failure("no endpoint is left", free=True)
