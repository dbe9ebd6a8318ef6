"""[I/O] One mock engine behind HTTP: the engine model, moved on by a timer at its next event, answering OpenAI requests.

What the model says happens at a model time is sent when the clock gets there; being late is the stack's fault and never
changes the model's own times, which the answer carries (`engine_model_ms`, `engine_ttft_ms`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from itertools import count

import orjson

from global_planner.mocker.engine_api import (
    SSE_HEAD,
    AnswerShape,
    ApiError,
    Call,
    kv_transfer_params,
    parse_call,
    prefix_blocks,
    refused,
)
from global_planner.mocker.engine_http import Connection, Request, post
from global_planner.mocker.engine_metrics import EngineMetrics
from global_planner.replay.engine import Replica
from global_planner.replay.engine_cost import BLOCK_TOKENS
from global_planner.replay.engine_spec import EngineEvent, EngineRequest, EngineSpec
from global_planner.replay.prefix_cache import PrefixCache
from pool_planner.clock import SpeedClock

PULL_TIMEOUT_WALL_S = 2.0
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)


class _Answer:
    """A request that the engine works on. Times are model seconds."""

    __slots__ = ("call", "connection", "first_s", "id", "last_s", "lines", "shape", "spent_ms", "submitted_s", "tokens")

    def __init__(
        self, answer_id: str, call: Call, connection: Connection, shape: AnswerShape, lines: bytes, now: float
    ) -> None:
        self.id = answer_id
        self.call = call
        self.connection = connection
        self.shape = shape
        self.lines = lines
        self.submitted_s = now
        self.first_s = self.last_s = now
        self.tokens = 0
        self.spent_ms = call.remote.engine_model_ms if call.remote is not None else 0.0


class EngineServer:
    """`serve` is the application of an HTTP connection. Lives on one event loop."""

    def __init__(
        self, spec: EngineSpec, *, replica_id: str, ready_at_s: float, clock: SpeedClock, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._spec = spec
        self._replica_id = replica_id
        self._clock = clock
        self._loop = loop
        self._engine = Replica(spec, ready_at_s=ready_at_s, stream=True)
        self._metrics = EngineMetrics(spec.model, spec.kv_capacity_tokens)
        capacity = spec.prefix_cache_tokens // BLOCK_TOKENS
        self._cache = PrefixCache(capacity, block_tokens=BLOCK_TOKENS) if capacity else None
        self._answers: dict[str, _Answer] = {}
        self._numbers = count(1)
        self._now = clock.now()
        self._timer: asyncio.TimerHandle | None = None
        self._pulls: set[asyncio.Task[None]] = set()
        self._replica_line = b"x-replica-id: %b\r\n" % replica_id.encode("ascii", "replace")
        self._routes: dict[tuple[bytes, bytes], Callable[[Request, Connection], None]] = {
            (b"POST", b"/v1/chat/completions"): lambda request, to: self._complete(request, to, chat=True),
            (b"POST", b"/v1/completions"): lambda request, to: self._complete(request, to, chat=False),
            (b"POST", b"/kv/pull"): self._give_blocks,
            (b"GET", b"/v1/models"): self._tell_models,
            (b"GET", b"/health"): self._tell_health,
            (b"GET", b"/metrics"): self._tell_metrics,
            (b"GET", b"/mock/state"): self._tell_state,
        }
        self.connections: set[Connection] = set()
        self.port = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Accept connections; `port` becomes the port that was given. Raises OSError."""
        server = await self._loop.create_server(lambda: Connection(self.serve, self.connections), host, port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    # ---- requests ------------------------------------------------------------------------------------------------------

    def serve(self, request: Request, to: Connection) -> None:
        route = self._routes.get((request.method, request.path))
        try:
            if route is None:
                known = sorted(method.decode() for method, path in self._routes if path == request.path)
                if known:
                    raise ApiError(405, f"{request.path.decode()} takes {', '.join(known)}.")
                raise ApiError(404, f"There is no {request.path.decode('ascii', 'replace')} here.")
            route(request, to)
        except ApiError as error:
            again = b"retry-after: 1\r\n" if error.retry_after else b""
            to.respond(error.status, error.body, extra=again + self._lines(request))

    def _complete(self, request: Request, to: Connection, *, chat: bool) -> None:
        call = parse_call(request.body, chat=chat, model=self._spec.model)
        now = self._time()
        answer_id = f"{self._replica_id}-{next(self._numbers)}"
        cached = None
        if self._cache is not None and call.remote is None:
            cached = min(self._cache.take(prefix_blocks(call.prompt)), call.isl - 1)  # the last token is always computed
        ask = EngineRequest(
            id=answer_id,
            isl=call.isl,
            osl=call.osl,
            kv_transferred=call.remote is not None,
            hold_kv=call.hold_kv,
            cached_tokens=cached or 0,
        )
        refusal = self._engine.submit(now, ask)
        if refusal is not None:
            raise refused(refusal, self._spec, ask)
        if cached is not None:
            self._metrics.prefix_queries += call.isl
            self._metrics.prefix_hits += cached
        shape = AnswerShape(call, name=answer_id, model=self._spec.model, created=int(time.time()), cached_tokens=cached)
        answer = _Answer(answer_id, call, to, shape, self._lines(request), now)
        self._answers[answer_id] = answer
        to.when_gone = lambda: self._abandon(answer)
        if call.remote is not None:
            pull = self._loop.create_task(self._pull(answer, call.remote.host, call.remote.port, call.remote.request_id))
            self._pulls.add(pull)
            pull.add_done_callback(self._pulls.discard)
        self._metrics.prompt_tokens += call.isl
        self._move_on(now)

    def _abandon(self, answer: _Answer) -> None:
        """The client went away: stop the work."""
        if self._answers.pop(answer.id, None) is not None:
            now = self._time()
            self._engine.cancel(now, answer.id)
            self._move_on(now)

    async def _pull(self, answer: _Answer, host: str, port: int, request_id: str) -> None:
        """Fetch the blocks of a prefill, while the model counts the time of the transfer; compute them if they are gone."""
        body = orjson.dumps({"request_id": request_id})
        try:
            status = await post(host, port, "/kv/pull", body, timeout_wall_s=PULL_TIMEOUT_WALL_S)
            problem = None if status == 200 else f"answered {status}"
        except (OSError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            _log.warning("blocks of %s at %s:%d are lost (%s): computing the prompt here", request_id, host, port, problem)
            now = self._time()
            self._engine.kv_lost(now, answer.id)
            self._move_on(now)

    def _give_blocks(self, request: Request, to: Connection) -> None:
        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError:
            raise ApiError(400, "The request body is not valid JSON.", code="invalid_json") from None
        request_id = body.get("request_id") if isinstance(body, dict) else None
        if not isinstance(request_id, str):
            raise ApiError(400, "request_id must be a text.", param="request_id")
        now = self._time()
        held = self._engine.pull(now, request_id)
        self._move_on(now)
        if not held:
            raise ApiError(404, "These blocks are not held: fetched before, timed out, or never here.", code="kv_not_held")
        to.respond(200, b"{}", extra=self._lines(request))

    # ---- the model's time ----------------------------------------------------------------------------------------------

    def _time(self) -> float:
        """Model time; never back, even if the wall clock is set."""
        self._now = max(self._now, self._clock.now())
        return self._now

    def _wake(self) -> None:
        self._timer = None
        self._move_on(self._time())

    def _move_on(self, now: float) -> None:
        """Do what is due, tell it, and set the timer for what comes next."""
        for event in self._engine.advance(now):
            answer = self._answers.get(event.id)
            if answer is not None:
                self._tell(event, answer)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._engine.next_event_at()
        if due != float("inf"):
            # Loops count in whole milliseconds: a hair less would wake up too early and again.
            delay = self._clock.wall(due - now)
            self._timer = self._loop.call_later(max(delay, 0.0) + 0.0005, self._wake)

    def _tell(self, event: EngineEvent, answer: _Answer) -> None:
        metrics, before = self._metrics, answer.tokens
        fresh = event.tokens - before
        if event.kind == "first_token":
            answer.first_s = event.at_s
            metrics.ttft.observe(event.at_s - answer.submitted_s)
        elif fresh:
            metrics.itl.observe((event.at_s - answer.last_s) / fresh, fresh)
        metrics.generation_tokens += fresh
        answer.last_s = event.at_s
        answer.tokens = event.tokens
        if event.kind == "finished":
            self._end(event.at_s, answer, begin=before if before < event.tokens else 0)
        elif answer.call.stream and event.tokens < answer.call.osl:
            chunk = answer.shape.chunk(before, event.tokens)
            if before:
                answer.connection.write_event(chunk)
            else:
                answer.connection.begin_stream(SSE_HEAD + answer.lines, chunk)

    def _end(self, at_s: float, answer: _Answer, *, begin: int) -> None:
        """The last token came out; a stream has sent tokens [0, `begin`) so far, where one token is all at once."""
        metrics, call = self._metrics, answer.call
        metrics.e2e.observe(at_s - answer.submitted_s)
        metrics.request_prompt.observe(call.isl)
        metrics.request_generation.observe(call.osl)
        del self._answers[answer.id]
        spent_ms = answer.spent_ms + (at_s - answer.submitted_s) * 1e3
        ttft_ms = answer.spent_ms + (answer.first_s - answer.submitted_s) * 1e3
        if call.stream:
            last = answer.shape.last_chunks(begin, engine_model_ms=spent_ms, engine_ttft_ms=ttft_ms)
            if begin:
                answer.connection.write_event(last)
            else:
                answer.connection.begin_stream(SSE_HEAD + answer.lines, last)
            answer.connection.end_stream()
            return
        transfer = None
        if call.hold_kv:
            transfer = kv_transfer_params(
                replica=self._replica_id, request_id=answer.id, port=self.port, engine_model_ms=spent_ms
            )
        body = answer.shape.body(engine_model_ms=spent_ms, engine_ttft_ms=ttft_ms, kv_transfer=transfer)
        answer.connection.respond(200, body, extra=answer.lines)

    # ---- what it tells of itself ---------------------------------------------------------------------------------------

    def _lines(self, request: Request) -> bytes:
        known = b"x-request-id: %b\r\n" % request.request_id if request.request_id else b""
        return self._replica_line + known

    def _tell_models(self, request: Request, to: Connection) -> None:
        spec = self._spec
        model = {"id": spec.model, "object": "model", "created": 0, "owned_by": "mock", "max_model_len": spec.max_model_len}
        to.respond(200, orjson.dumps({"object": "list", "data": [model]}), extra=self._lines(request))

    def _tell_health(self, request: Request, to: Connection) -> None:
        if self._time() < self._engine.ready_at_s:
            raise ApiError(503, "The engine is starting.", kind="service_unavailable", code="engine_starting", retry_after=True)
        to.respond(200, b"{}", extra=self._lines(request))

    def _tell_metrics(self, request: Request, to: Connection) -> None:
        self._move_on(self._time())
        to.respond(200, self._metrics.text(self._engine.load()), content_type=METRICS_TYPE)

    def _tell_state(self, request: Request, to: Connection) -> None:
        self._move_on(self._time())
        load = self._engine.load()
        state = {
            "replica": self._replica_id,
            "role": self._spec.role,
            "running": load.running,
            "waiting": load.waiting,
            "pending_kv": load.pending_kv,
            "kv_usage": load.kv_usage,
            "active_prefill_tokens": load.active_prefill_tokens,
            "active_decode_blocks": load.active_decode_blocks,
            "preemptions": load.preemptions,
            "draining": load.draining,
        }
        to.respond(200, orjson.dumps(state), extra=self._lines(request))

    # ---- the end -------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse what is new; what is in the engine is finished."""
        self._engine.drain()

    @property
    def idle(self) -> bool:
        """Nothing in the engine, no blocks held for others, and every answer written."""
        return self._engine.idle and not self._answers and not self._pulls
