"""[I/O] One completion request from arrival to its last byte: who asks, admission, attempts, retries, accounting.

The order of things is here; one attempt is in `router.attempt`. A request is tried again (elsewhere, where there is an
elsewhere) as long as nothing of an answer went to the client, the retry budget allows it, and its deadline has not come. A
client that goes away cancels the coroutine, and with it the engine's work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from router.accounting import AccessLog, ModelState, Progress
from router.admission import Refusal, Ticket
from router.attempt import Attempts
from router.config import KeyConfig, RouterConfig
from router.door import Door
from router.endpoints import Endpoints
from router.http1 import ClientConnection
from router.identity import Keys, complete
from router.lane import Lane
from router.limits import RetryBudget
from router.message import Request
from router.openai import BadRequest, Call, error_body, parse, prefix_blocks
from router.openings import Room
from router.policy import Ask, Path
from router.relay import Failure, pass_on
from router.tracing import Tracing
from router.upstream import Upstream


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
        tracing: Tracing | None,
    ) -> None:
        self._config = config
        self._models = models
        self._pools = endpoints.pools
        self._door = door
        self.attempts = Attempts(
            config.timeouts, endpoints=endpoints, door=door, upstream=upstream, loop=loop, now=now, keys=keys
        )
        self.upstream = upstream
        self.loop = loop
        self._now = now
        self._speed = speed
        self._access_log = access_log
        self._tracing = tracing
        self._keys = keys
        self._budget = RetryBudget(ratio=config.retry.ratio, burst=config.retry.burst)
        self._running: set[Progress] = set()

    def running(self) -> list[Progress]:
        """The requests on their way."""
        return list(self._running)

    # -- one request -----------------------------------------------------------------------------------------------------

    def serve(self, request: Request, client: ClientConnection) -> Awaitable[None] | Lane | None:
        """Answer one POST of a completion: at once (None), by the short way, or by the long one, which is to be awaited."""
        arrived = self._now()
        try:
            key = self._keys.owner(request.authorization)
            call = parse(request.body)
            complete(call, request.hints, key)
        except BadRequest as error:
            self._answer(client, request, error.status, error.body)
            return None
        model = self._models.get(call.model) or self._models.get("*")
        if model is None or (key is not None and key.models is not None and call.model not in key.models):
            text = f"The model `{call.model[:256]}` does not exist."
            body = error_body(text, kind="invalid_request_error", code="model_not_found", param="model")
            self._answer(client, request, 404, body)
            return None
        self._budget.request()
        if model.tokenizer is not None:
            return self._counted(request, client, call, key, model, arrived)
        ask = self._ask(model, call)
        paths = model.stages.paths(ask, self._load)
        path = paths[0]
        if not path.prefill and not path.instead_of and self.usable(path):
            ticket = self._ticket(model, call, ask, paths, key, arrived)
            if self._door.enters(ticket):
                progress, span = self._begin(request, call, key, model, ask, paths, arrived)
                progress.admitted()
                lane = Lane(self, progress, ticket, client, span)
                lane.start(path)
                return lane
        return self._long(request, client, call, key, model, ask, paths, arrived)

    async def _counted(
        self, request: Request, client: ClientConnection, call: Call, key: KeyConfig | None, model: ModelState, arrived: float
    ) -> None:
        """As the long way, after the prompt's tokens were counted."""
        assert model.tokenizer is not None
        call.counted = await model.tokenizer.count(call)
        ask = self._ask(model, call)
        await self._long(request, client, call, key, model, ask, model.stages.paths(ask, self._load), arrived)

    async def _long(
        self,
        request: Request,
        client: ClientConnection,
        call: Call,
        key: KeyConfig | None,
        model: ModelState,
        ask: Ask,
        paths: tuple[Path, ...],
        arrived: float,
    ) -> None:
        """The way of requests that may have to wait: for admission, for two engines one after the other, for a connection."""
        progress, span = self._begin(request, call, key, model, ask, paths, arrived)
        ticket = self._ticket(model, call, ask, paths, key, arrived)
        try:
            verdict = self._door.try_enter(ticket)
            if verdict is not True:
                refusal = await self._wait(ticket, verdict)
                if refusal is not None:
                    progress.shed()
                    self._turn_away(client, request, refusal)
                    return
            progress.admitted()
            await self.persist(progress, ticket, client, set(), None)
        except asyncio.CancelledError:
            progress.end("cancelled", self._now())
            raise
        finally:
            self.end(progress, span)

    def _ask(self, model: ModelState, call: Call) -> Ask:
        lengths = model.lengths
        blocks = prefix_blocks(call) if model.by_prefix else ()
        return Ask(lengths.isl(call), lengths.osl(call), call.ttft_ms, call.itl_ms, call.priority, blocks)

    def _ticket(
        self, model: ModelState, call: Call, ask: Ask, paths: tuple[Path, ...], key: KeyConfig | None, arrived: float
    ) -> Ticket:
        ticket = Ticket(
            model=model.name,
            priority=call.priority or 0,
            tokens=ask.isl_tokens,
            deadline_s=arrived + self._patience_s(model, paths),
            paths=paths,
            length=ask.isl_tokens if model.config.waiting_order == "shortest" else 0.0,
        )
        if key is not None:
            ticket.tenant, ticket.weight = key.name, key.weight
        return ticket

    def _begin(
        self,
        request: Request,
        call: Call,
        key: KeyConfig | None,
        model: ModelState,
        ask: Ask,
        paths: tuple[Path, ...],
        arrived: float,
    ) -> tuple[Progress, Any]:
        tenant = self._keys.tenants[key.name] if key is not None else None
        progress = Progress(model, request, call, ask, arrived, [self._pools[name] for name in paths[0].assigned], tenant)
        self._running.add(progress)
        return progress, self._tracing.begin(request) if self._tracing is not None else None

    def end(self, progress: Progress, span: Any) -> None:
        """The request's last act, whatever came of it."""
        progress.end("failed", self._now())
        self._running.discard(progress)
        if self._access_log is not None:
            self._access_log.write(progress, self._now())
        if self._tracing is not None:
            self._tracing.end(span, progress)

    async def _enter(self, ticket: Ticket) -> Refusal | None:
        verdict = self._door.try_enter(ticket)
        return None if verdict is True else await self._wait(ticket, verdict)

    async def _wait(self, ticket: Ticket, verdict: Refusal | bool) -> Refusal | None:
        """After the door has not let it in at once: why it may not come in at all, or None once it may."""
        refusal = verdict if isinstance(verdict, Refusal) else await self._door.wait(ticket)
        if refusal is not None and refusal.reason == "starting" and self._served(ticket.paths):
            return replace(refusal, reason="full")  # all that could take it had enough to do
        return refusal

    async def persist(
        self, progress: Progress, ticket: Ticket, client: ClientConnection, tried: set[str], failure: Failure | None
    ) -> None:
        """Attempt until the client has an answer. `failure`: of an attempt that was made already."""
        attempts = 0
        while True:
            if failure is not None:
                if not failure.free:
                    attempts += 1
                    if attempts >= self._config.retry.attempts or not self._budget.take():
                        self._give_up(progress, failure, client)
                        return
                progress.retried()
                failure = None
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
            failure = await self.attempts.run(progress, path, tried, client)
            if failure is None:
                return

    # -- choosing --------------------------------------------------------------------------------------------------------

    def _patience_s(self, model: ModelState, paths: tuple[Path, ...]) -> float:
        """How long a request may wait: for its turn a part of what its SLA leaves, for a replica to start the whole time."""
        most = self._config.queue.deadline_s
        if model.config.patience_s is None:
            return most
        return min(most, model.config.patience_s) if self._served(paths) else most

    def _served(self, paths: tuple[Path, ...]) -> bool:
        """Whether some way has ready endpoints at every stage, full or not."""
        stages = [[stage for stage in (path.prefill, path.serve) if stage] for path in paths]
        return any(all(any(self._pools[name].ready for name in stage) for stage in path) for path in stages)

    def _load(self, name: str) -> float:
        return self._pools[name].load()

    def usable(self, path: Path, without: set[str] | frozenset[str] = frozenset()) -> bool:
        """Whether every stage of a path has a usable endpoint now."""
        pools = self._pools
        if path.instead_of and not any(pools[name].broken for name in path.instead_of):
            return False
        if path.prefill:
            return any(pools[name].usable(without) and self.attempts.readers(path, name, without) for name in path.prefill)
        for name in path.serve:  # noqa: SIM110 (asked for every request: a generator costs more than its answer)
            if pools[name].usable(without):
                return True
        return False

    def room(self, path: Path) -> Room:
        """What the first stage of a usable way can take yet."""
        rooms = [self._pools[name].room() for name in path.prefill or path.serve]
        return Room(sum(requests for requests, _ in rooms), sum(tokens for _, tokens in rooms))

    def _path(self, paths: tuple[Path, ...], tried: set[str]) -> Path | None:
        for path in paths:
            if self.usable(path, tried):
                return path
        return None

    # -- the router's own answers ----------------------------------------------------------------------------------------

    def _give_up(self, progress: Progress, failure: Failure, client: ClientConnection) -> None:
        if failure.kept is not None:
            failure.kept.pass_on()
        elif failure.collected is not None:
            pass_on(client, progress.request, failure.collected)
        elif failure.timed_out:
            body = error_body("The engine took too long to answer.", kind="server_error", code="engine_timeout")
            self._answer(client, progress.request, 504, body)
        else:
            body = error_body("The engine failed before it answered.", kind="server_error", code="engine_unavailable")
            self._answer(client, progress.request, 502, body, extra=b"retry-after: 1\r\n")

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
