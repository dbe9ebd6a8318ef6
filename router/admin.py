"""[I/O] The admin listener: what the planner tells the router and asks of it, the metrics, and health.

Shapes are those of the planner's port records: endpoints by whole state and version, drains that answer what is still in
flight, admission that expires, and the state. Malformed input is answered 400 and changes nothing.
"""

from __future__ import annotations

import hmac
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pool_planner.types import Role
from router import openapi
from router.accounting import ModelState, Progress
from router.adaptive import Waiting
from router.admission import Ticket
from router.compiled_set import ROUTER
from router.config import AdminConfig, QueueConfig
from router.door import Door
from router.endpoints import Endpoints, Pool
from router.http1 import ClientConnection
from router.limits import RateLimit
from router.message import Request
from router.metrics import BLOCK_TOKENS, CONTENT_TYPE, PoolGauges, Scrape, TenantMetrics, WorkerGauges, priority_label, render
from router.openai import error_body
from router.types import EndpointSpec

# Bounds that no planner comes near, and beyond which numbers cannot be counted with or told in JSON.
Rate = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Version = Annotated[int, Field(ge=1, lt=2**53)]
MOST_S = 1e9


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _EndpointMessage(_Message):
    id: str = Field(min_length=1, max_length=256)
    url: str = Field(pattern=r"^https?://[^/\s?#]+(/[^\s?#]*)?$")
    state: Literal["starting", "ready", "draining"]
    bootstrap_port: int | None = Field(default=None, gt=0, le=65535)


class _PoolMessage(_Message):
    name: str
    role: Role
    endpoints: tuple[_EndpointMessage, ...]


class _EndpointsMessage(_Message):
    version: Version
    pools: tuple[_PoolMessage, ...]


class _DrainMessage(_Message):
    pool: str
    endpoints: tuple[str, ...]
    deadline_s: float = Field(le=MOST_S, allow_inf_nan=False)


class _GroupMessage(_Message):
    model: str
    admitted_rps: Rate | None
    burst: Rate | None = None
    in_flight: Rate | None = None
    in_flight_by_pool: dict[str, Rate] = Field(default_factory=dict)
    by_priority: dict[str, Rate] = Field(default_factory=dict)


class _AdmissionMessage(_Message):
    """`valid_s`: model seconds after which the plan no longer holds (three rounds); default: the configuration's."""

    version: Version
    groups: tuple[_GroupMessage, ...]
    valid_s: float | None = Field(default=None, gt=0, le=MOST_S, allow_inf_nan=False)


MESSAGES: Mapping[str, type[BaseModel]] = {
    "PUT /admin/endpoints": _EndpointsMessage,
    "POST /admin/drain": _DrainMessage,
    "PUT /admin/admission": _AdmissionMessage,
}


class Admin:
    """Answers the admin listener's requests. `running` are the requests on their way, `ready` says whether clients can be
    served, `troubles` by pool why its endpoints cannot be found (None: they can),
    `duplicates` whether its own frontend shows the same traffic."""

    def __init__(
        self,
        *,
        config: AdminConfig,
        queue: QueueConfig,
        token: str | None,
        models: Mapping[str, ModelState],
        endpoints: Endpoints,
        door: Door,
        running: Callable[[], list[Progress]],
        ready: Callable[[], bool],
        troubles: Mapping[str, str | None],
        duplicates: Mapping[str, bool],
        tenants: Mapping[str, TenantMetrics],
        now: Callable[[], float],
        speed: float,
    ) -> None:
        self._config = config
        self._queue = queue
        self._token = token.encode() if token else None
        self._models = models
        self._endpoints = endpoints
        self._door = door
        self._running = running
        self._ready = ready
        self._troubles = troubles
        self._duplicates = duplicates
        self._tenants = tenants
        self._document = orjson.dumps(openapi.admin(MESSAGES, token=token is not None))
        self._now = now
        self._speed = speed
        self._routes: dict[tuple[bytes, bytes], Callable[[bytes], tuple[int, Any]]] = {
            (b"PUT", b"/admin/endpoints"): self._put_endpoints,
            (b"POST", b"/admin/drain"): self._drain,
            (b"PUT", b"/admin/admission"): self._put_admission,
            (b"GET", b"/admin/state"): self._state,
        }

    def serve(self, request: Request, client: ClientConnection) -> None:
        """Answer one admin request."""
        method, path = request.method, request.path
        if path == b"/health":
            client.respond(200, b'{"status":"ok"}')
        elif path == b"/openapi.json":
            client.respond(200, self._document)
        elif not self._allowed(request):
            client.respond(401, _error("This listener needs the bearer token of its configuration."))
        elif path == b"/ready":
            ready = self._ready()
            client.respond(200 if ready else 503, orjson.dumps({"ready": ready}))
        elif path == b"/metrics" and method in (b"GET", b"HEAD"):
            client.respond(200, render(self.scrape()), content_type=CONTENT_TYPE, head=method == b"HEAD")
        else:
            self._route(method, path, request.body, client)

    def _allowed(self, request: Request) -> bool:
        if self._token is None or (self._config.open_metrics and request.path == b"/metrics"):
            return True
        scheme, _, given = request.authorization.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)

    def _route(self, method: bytes, path: bytes, body: bytes, client: ClientConnection) -> None:
        answer = self._routes.get((method, path))
        if answer is None:
            allowed = [known.decode() for known, at in self._routes if at == path]
            status = 405 if allowed else 404
            text = f"Use {' or '.join(allowed)} here." if allowed else "There is no such path on the admin listener."
            client.respond(status, _error(text))
            return
        try:
            status, result = answer(body)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
            client.respond(400, _error("; ".join(problems)))
            return
        client.respond(status, orjson.dumps(result))

    # -- the planner's word ----------------------------------------------------------------------------------------------

    def _put_endpoints(self, body: bytes) -> tuple[int, Any]:
        message = _EndpointsMessage.model_validate_json(body)
        pools = {pool.name: [EndpointSpec(**one.model_dump()) for one in pool.endpoints] for pool in message.pools}
        wrong = [pool.name for pool in message.pools if (mine := self._pool(pool.name)) and mine.role != pool.role]
        if wrong:
            return 409, {"error": {"message": f"pools with another role here: {', '.join(wrong)}", "type": "conflict"}}
        unknown = self._endpoints.put(message.version, pools)
        return 200, {"version": self._endpoints.version, "unknown_pools": unknown}

    def _drain(self, body: bytes) -> tuple[int, Any]:
        message = _DrainMessage.model_validate_json(body)
        pool = self._pool(message.pool)
        if pool is None:
            return 404, {"error": {"message": f"no pool is named {message.pool!r}", "type": "not_found"}}
        self._endpoints.drain(pool, message.endpoints)
        # An endpoint that is not here any more has nothing in flight.
        found = {name: pool.endpoints.get(name) for name in message.endpoints}
        return 200, {
            "in_flight": {name: one.in_flight if one else 0 for name, one in found.items()},
            "pending_kv": {name: one.pending_kv if one else 0 for name, one in found.items()},
        }

    def _put_admission(self, body: bytes) -> tuple[int, Any]:
        message = _AdmissionMessage.model_validate_json(body)
        limits = {
            group.model: RateLimit(
                rate_rps=group.admitted_rps,
                burst=group.burst,
                in_flight=group.in_flight,
                in_flight_by_pool=group.in_flight_by_pool,
                by_priority=group.by_priority,
            )
            for group in message.groups
        }
        valid_s = message.valid_s if message.valid_s is not None else self._queue.plan_valid_s
        version = self._door.put_plan(message.version, limits, valid_s=valid_s)
        named = {pool for limit in limits.values() for pool in limit.in_flight_by_pool}
        return 200, {
            "version": version,
            "unknown_models": sorted(set(limits) - set(self._models)),
            "unknown_pools": sorted(named - set(self._endpoints.pools)),
        }

    def _pool(self, name: str) -> Pool | None:
        return self._endpoints.pools.get(name)

    # -- what the router knows -------------------------------------------------------------------------------------------

    def _state(self, body: bytes) -> tuple[int, Any]:
        admission = self._door.admission
        admission.expire(self._now())
        waiting = self._waiting()
        return 200, {
            "at_s": self._now(),
            "pid": os.getpid(),
            "speed": self._speed,
            "endpoints_version": self._endpoints.version,
            "admission": {
                "version": admission.plan_version,
                "source": "plan" if admission.plan_in_force else "own",
                "admitted_rps": {name: admission.limit_of(name).rate_rps for name in self._models},
                "in_flight": {name: admission.limit_of(name).in_flight for name in self._models},
                "in_flight_by_pool": {name: dict(admission.limit_of(name).in_flight_by_pool) for name in self._models},
                "by_priority": {name: dict(admission.limit_of(name).by_priority) for name in self._models},
            },
            "pools": [
                {
                    "name": pool.name,
                    "role": pool.role,
                    "duplicate_source": self._duplicates.get(pool.name, False),
                    "discovery": self._troubles.get(pool.name),
                    "endpoints": [
                        {
                            "id": one.id,
                            "url": one.url,
                            "state": one.state,
                            "in_flight": one.in_flight,
                            "outstanding_tokens": round(one.outstanding_tokens),
                            "pending_kv": one.pending_kv,
                            "healthy": one.healthy,
                            "ejected": one.id in away,
                            "last_ttft_ms": None if one.ttft_s is None else one.ttft_s * 1000.0,
                            "last_itl_ms": None if one.itl_s is None else one.itl_s * 1000.0,
                        }
                        for away in [_away(pool)]
                        for one in pool.endpoints.values()
                    ],
                }
                for pool in self._endpoints.pools.values()
            ],
            "groups": [
                {
                    "model": model.name,
                    "group": model.config.group or model.name,
                    "queued": len(admission.waiting(model.name)),
                    "shed": model.outcomes.total("shed"),
                    "by_priority": {
                        priority: {
                            **{outcome: counts[outcome] for outcome in ("offered", "admitted", "shed")},
                            "queued": waiting.get((model.name, priority), 0),
                        }
                        for priority, counts in model.outcomes.by_priority().items()
                    },
                }
                for model in self._models.values()
            ],
        }

    def _waiting(self) -> dict[tuple[str, str], int]:
        """Requests in the queue by model and priority, 0 where a priority was seen and nobody waits."""
        found = {(model.name, priority): 0 for model in self._models.values() for priority in model.outcomes.by_priority()}
        for ticket in self._door.tickets():
            label = priority_label(ticket.priority, self._models[ticket.model].outcomes.by_priority())
            found[ticket.model, label] = found.get((ticket.model, label), 0) + 1
        return found

    def _shares(self, tickets: Iterable[Ticket]) -> list[tuple[TenantMetrics, int]]:
        """Every key's series, and how many of its requests wait."""
        waiting = Counter(self._tenants[ticket.tenant] for ticket in tickets if ticket.tenant is not None)
        return [(tenant, waiting[tenant]) for tenant in dict.fromkeys(self._tenants.values())]

    def scrape(self) -> Scrape:
        """Everything for one answer of /metrics."""
        tickets = self._door.tickets()
        blocks: dict[str, float] = {}
        for progress in self._running():
            if progress.serving is not None:
                name = progress.serving[1].id
                tokens = progress.ask.isl_tokens + progress.generated()
                blocks[name] = blocks.get(name, 0.0) + tokens / BLOCK_TOKENS
        pools = self._endpoints.pools.values()
        admission = self._door.admission
        return Scrape(
            pools=[
                (pool.metrics, _pool_gauges(pool, self._door.waiting_for(pool.name)))
                for pool in pools
                if pool.config.metrics_source == "router"
            ],
            frontends=[
                one
                for model in self._models.values()
                for namespace, one in model.frontends.items()
                if namespace not in model.counted_elsewhere
            ],
            outcomes=[model.outcomes for model in self._models.values()],
            waiting=self._waiting(),
            workers=tuple(
                WorkerGauges(
                    worker_id=one.id,
                    role=pool.role,
                    pool=pool.name,
                    prefill_tokens=one.outstanding_tokens if pool.role == "prefill" else 0.0,
                    decode_blocks=0.0 if pool.role == "prefill" else blocks.get(one.id, 0.0),
                    ttft_s=one.ttft_s,
                    isl_tokens=one.isl_tokens,
                    itl_s=one.itl_s,
                )
                for pool in pools
                for one in pool.endpoints.values()
            ),
            duplicates=[(pool.metrics, self._duplicates[pool.name]) for pool in pools if pool.name in self._duplicates],
            discovery=[(pool.metrics, self._troubles[pool.name] is None) for pool in pools if pool.name in self._troubles],
            tenants=self._shares(tickets),
            queue_requests=len(tickets),
            queue_isl_tokens=sum(ticket.tokens for ticket in tickets),
            code="compiled" if ROUTER.in_use() else "python",
            scalars={
                "plan_in_force": ("gauge", "1 while the planner's admission holds.", float(admission.plan_in_force)),
                "endpoints_version": ("gauge", "Version of the endpoints in force.", float(self._endpoints.version)),
                "clock_speed": ("gauge", "Model seconds that pass in a wall second.", self._speed),
            },
        )


def _away(pool: Pool) -> frozenset[str]:
    """Endpoints that get nothing because they are slow."""
    return frozenset(pool.ejection.out)


def _pool_gauges(pool: Pool, waiting: Waiting) -> PoolGauges:
    states = {"starting": 0, "ready": 0, "draining": 0, "unhealthy": 0, "ejected": 0}
    away = _away(pool)
    for endpoint in pool.endpoints.values():
        if endpoint.state != "ready":
            states[endpoint.state] += 1
        elif not endpoint.healthy:
            states["unhealthy"] += 1
        else:
            states["ejected" if endpoint.id in away else "ready"] += 1
    return PoolGauges(queued_requests=waiting.requests, queued_tokens=waiting.tokens, endpoints=states)


def _error(text: str) -> bytes:
    return error_body(text, kind="invalid_request_error")
