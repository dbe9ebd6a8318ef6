"""[I/O] One router process: the public listener, the admin listener, and everything between them.

`RouterApp` wires the parts together and has three verbs: `start`, `stop`, and answering the public paths.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path as FilePath

import orjson

from pool_planner.clock import SpeedClock
from router.accounting import AccessLog, ModelState
from router.admin import Admin
from router.admission import Admission
from router.config import ConfigError, RouterConfig
from router.discovery import Discovery
from router.dispatch import Dispatch
from router.door import Door
from router.duplicates import Duplicates
from router.endpoints import Endpoints, Pool
from router.exchange import Collected, EngineFailed
from router.forms import predictors_of
from router.http1 import ClientConnection, HttpServer, UnderWay
from router.identity import Keys
from router.limits import RateLimit
from router.message import Request
from router.openai import BadRequest, error_body
from router.openapi import public
from router.policy import picker
from router.tracing import Tracing
from router.types import WAKE_EVERY_S
from router.upstream import EngineLink, Upstream
from router.web import PREFLIGHT, Origins, tls_of

COMPLETION_PATHS = frozenset([b"/v1/chat/completions", b"/v1/completions"])


def steady(clock: SpeedClock) -> Callable[[], float]:
    """Model time that agrees with the shared clock when this process starts, and no step of the wall clock can move it
    later."""
    monotonic = time.monotonic
    speed = clock.speed
    offset = clock.now() - monotonic() * speed
    return lambda: monotonic() * speed + offset


class RouterApp:
    """One router process. `start` returns (public port, admin port); `say` takes what people should read."""

    def __init__(
        self,
        config: RouterConfig,
        clock: SpeedClock,
        loop: asyncio.AbstractEventLoop,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config = config
        self._loop = loop
        self._now = now = steady(clock)
        self._speed = speed = clock.speed
        self._woken: dict[str, float] = {}
        self._wakes: set[asyncio.Task[None]] = set()
        timeouts = config.timeouts
        self._upstream = Upstream(
            loop,
            now,
            speed=speed,
            connect_s=timeouts.connect_s,
            shortest_s=min(timeouts.prefill_s, timeouts.first_byte_s, timeouts.idle_s),
        )
        self.models = {
            model.model: ModelState(
                model,
                predictors_of(model),
                lambda name: self.endpoints.pools[name].ready,
                lambda name: self.door.waiting_for(name),
            )
            for model in config.models
        }
        generator = random.Random(0)
        pools = [
            Pool(pool, model.model, picker(pool.pick, below=generator.randrange), config.outliers)
            for model in config.models
            for pool in model.pools
        ]
        self.endpoints = Endpoints(
            pools,
            loop=loop,
            upstream=self._upstream,
            now=now,
            speed=speed,
            health=config.health,
            changed=lambda: self.door.pump(),
            say=say,
        )
        self.discovery = Discovery(self.endpoints, loop)
        self.duplicates = Duplicates(self.endpoints.pools, upstream=self._upstream, loop=loop, now=now, speed=speed, say=say)
        own = {m.model: (m.priority_class, RateLimit(rate_rps=m.own_admitted_rps, burst=m.own_burst)) for m in config.models}
        admission = Admission(
            own,
            room=config.queue.limit,
            starting_retry_after_s=config.queue.starting_retry_after_s,
            now=now(),
            under_way=self._under_way,
            inside=self._inside,
        )
        self.door = Door(
            admission,
            loop=loop,
            now=now,
            speed=speed,
            usable=lambda path: self.dispatch.usable(path),
            room=lambda path: self.dispatch.room(path),
            met_zero=self._met_zero,
        )
        self._keys = Keys(config.keys)
        self._log = AccessLog(config.access_log) if config.access_log else None
        self._tracing = Tracing(config.tracing) if config.tracing is not None else None
        self.dispatch = Dispatch(
            config,
            models=self.models,
            endpoints=self.endpoints,
            door=self.door,
            upstream=self._upstream,
            loop=loop,
            now=now,
            speed=speed,
            keys=self._keys,
            access_log=self._log,
            tracing=self._tracing,
        )
        self.admin = Admin(
            config=config.admin,
            queue=config.queue,
            token=_token(config),
            models=self.models,
            endpoints=self.endpoints,
            door=self.door,
            running=self.dispatch.running,
            ready=self.ready,
            troubles=self.discovery.troubles,
            duplicates=self.duplicates.found,
            tenants=self._keys.tenants,
            now=now,
            speed=speed,
        )
        self._planner = EngineLink(config.planner_url, loop) if config.planner_url else None
        self._public = HttpServer(self.serve, config.limits, loop)
        self._private = HttpServer(self.admin.serve, config.limits, loop)
        self._stopping = False
        self._origins = Origins(config.listen.cors_origins) if config.listen.cors_origins else None
        self._prefix = os.urandom(6).hex().encode()
        self._numbers = count(1)
        self._document = orjson.dumps(public(keys=self._keys.required))

    async def start(self, *, reuse_port: bool = False) -> tuple[int, int]:
        """Listen; with `reuse_port`, beside other processes on the public port. Raises OSError when an address cannot be
        had."""
        listen, admin = self.config.listen, self.config.admin
        admin_port = await self._private.listen(admin.host, admin.port)
        self.discovery.start()
        self.duplicates.start()
        tls = tls_of(listen.tls) if listen.tls is not None else None
        port = await self._public.listen(listen.host, listen.port, reuse_port=reuse_port, tls=tls)
        return port, admin_port

    async def stop(self) -> bool:
        """Let running requests end within `timeouts.shutdown_s`; whether all did."""
        self._stopping = True
        finished = await self._public.close(self.config.timeouts.shutdown_s / self._speed)
        await self._private.close(0.0)
        for wake in self._wakes:
            wake.cancel()
        await self.discovery.close()
        self.duplicates.close()
        self.door.close()
        self.endpoints.close()
        if self._log is not None:
            self._log.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        return finished

    def ready(self) -> bool:
        """Whether clients may be sent here: endpoints are known (from the planner or the configuration), and it is not
        stopping."""
        known = self.endpoints.named or any(pool.endpoints for pool in self.endpoints.pools.values())
        return known and not self._stopping

    # -- the public listener -------------------------------------------------------------------------------------------

    def serve(self, request: Request, client: ClientConnection) -> Awaitable[None] | UnderWay | None:
        """Answer one request of a client; what has to be waited for, if anything."""
        path, method = request.path, request.method
        if not request.request_id:
            request.request_id = b"%b-%x" % (self._prefix, next(self._numbers))
        if request.origin and self._origins is not None:
            client.extra = self._origins.answer(request)
        if method == b"POST" and path in COMPLETION_PATHS:
            return self.dispatch.serve(request, client)
        named = b"x-request-id: %b\r\n" % request.request_id
        if method == b"OPTIONS" and request.origin and self._origins is not None:
            client.respond(204, b"", extra=named + (PREFLIGHT if client.extra else b""))
        elif path in COMPLETION_PATHS:
            client.respond(405, _error("Use POST here.", "method_not_allowed"), extra=named + b"allow: POST\r\n")
        elif method not in (b"GET", b"HEAD"):
            client.respond(404, _error("There is no such path.", "not_found"), extra=named)
        else:
            status, body = self._get(path, request.authorization)
            client.respond(status, body, head=method == b"HEAD", extra=named)
        return None

    def _get(self, path: bytes, authorization: bytes) -> tuple[int, bytes]:
        if path == b"/health":
            return 200, b'{"status":"ok"}'
        if path == b"/ready":
            ready = self.ready()
            return 200 if ready else 503, orjson.dumps({"ready": ready})
        if path == b"/openapi.json":
            return 200, self._document
        try:
            self._keys.owner(authorization)
        except BadRequest as error:
            return error.status, error.body
        if path == b"/v1/models":
            return 200, orjson.dumps({"object": "list", "data": [_card(name) for name in self.models]})
        if path.startswith(b"/v1/models/"):
            name = path.removeprefix(b"/v1/models/").decode("utf-8", "replace")
            if name in self.models:
                return 200, orjson.dumps(_card(name))
            return 404, _error(f"The model `{name[:256]}` does not exist.", "model_not_found")
        return 404, _error("There is no such path.", "not_found")

    # -- waking --------------------------------------------------------------------------------------------------------

    def _under_way(self, model: str) -> int:
        """Requests of a model that are with ready engines now."""
        return sum(one.in_flight for pool in self.endpoints.pools.values() if pool.model == model for one in pool.ready)

    def _inside(self, pool: str) -> int:
        """Requests that are with the ready engines of a pool now."""
        return sum(one.in_flight for one in self.endpoints.pools[pool].ready)

    def _met_zero(self, model: str) -> None:
        """A request waits for an endpoint: ask the planner for one, not more than every few seconds."""
        now = self._now()
        if self._planner is None or now < self._woken.get(model, float("-inf")) + WAKE_EVERY_S:
            return
        self._woken[model] = now
        task = self._loop.create_task(self._wake(self._planner, model, now))
        self._wakes.add(task)
        task.add_done_callback(self._wakes.discard)

    async def _wake(self, planner: EngineLink, model: str, now: float) -> None:
        body = orjson.dumps({"model": model})
        head = b"POST %b/v1/wake HTTP/1.1\r\nhost: %b\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        proof = _proof(self.config.planner_token_file)
        exchange = Collected(self._now, now + WAKE_EVERY_S)
        # A planner that cannot be reached sees the queue in the metrics, and is called again by the next request.
        try:
            await self._upstream.run(
                planner, head % (planner.base_path, planner.host_header, proof, len(body)) + body, exchange
            )
        except EngineFailed:
            self._woken.pop(model, None)


def _proof(token_file: str | None) -> bytes:
    """The Authorization header for the planner; none without a token, which the planner will refuse. Read anew each time:
    tokens are rotated, and wakes are rare."""
    if token_file is None:
        return b""
    try:
        token = FilePath(token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return b""
    return b"authorization: Bearer %b\r\n" % token.encode()


def _card(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "global-planner"}


def _error(text: str, code: str) -> bytes:
    return error_body(text, kind="invalid_request_error", code=code)


def _token(config: RouterConfig) -> str | None:
    """The admin token, from where the configuration says. Raises ConfigError when it is not there."""
    if config.admin.token_env:
        token = os.environ.get(config.admin.token_env, "")
        if not token:
            raise ConfigError(f"admin.token_env: the environment has no {config.admin.token_env}")
        return token
    if config.admin.token_file:
        try:
            token = FilePath(config.admin.token_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"admin.token_file: {error}") from error
        if not token:
            raise ConfigError(f"admin.token_file: {config.admin.token_file} is empty")
        return token
    return None
