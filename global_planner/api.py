"""[I/O] The arbiter's HTTP: reports and requests in, status and metrics out.

    POST /v1/proposals       msgpack ReportBatch → GrantBatch           a credential with these pools
    POST /v1/scale_request   JSON, the central scaling contract         a credential with these pools
    POST /v1/wake            {"model": …}: a request met a pool at zero a credential with `wake`
    GET  /v1/status          JSON: the last round                       any credential
    GET  /metrics /healthz /readyz                                      anybody who can connect

Every body is bounded and read strictly; what a caller may speak for is the topology's word. A request that makes no sense is
answered with 400 and where, and changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
from aiohttp import web

from global_planner.compile import pool_specs
from global_planner.compiled_sets import ARBITER
from global_planner.config import Topology
from global_planner.credentials import Caller, caller_of
from global_planner.explain import known_groups
from global_planner.inbox import Inbox, on_our_clock
from global_planner.own_metrics import render
from global_planner.scale_requests import Ask, ScaleRefused, answer, as_report, asks, read_request
from global_planner.types import PoolSpec, Round
from global_planner.woken import at_zero
from pool_planner import wire
from pool_planner.connectors.global_planner import MSGPACK
from pool_planner.http_server import listen
from pool_planner.metrics.text import CONTENT_TYPE
from pool_planner.types import Grant, GrantBatch, ReportBatch

Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]

OVERDUE_ROUNDS = 3.0
# Wall seconds: they bound how long a caller's connection is held.
DECISION_WITHIN_S = 5.0
BLOCKING_WITHIN_S = 60.0


class Arbiter(Protocol):
    """What the API needs of the arbiter that it belongs to."""

    @property
    def inbox(self) -> Inbox: ...

    @property
    def last_round(self) -> Round | None: ...

    @property
    def leading(self) -> bool:
        """Whether this process decides; one that waits to take over does not."""
        ...

    def now(self) -> float: ...

    def grants(self, pools: Iterable[str]) -> tuple[Grant, ...]: ...

    def hurry(self) -> None:
        """Begin the next round now instead of at its time."""
        ...

    async def round_after(self, round_no: int, within_s: float) -> Round | None:
        """The first round above that number, as soon as it is done; None after so many wall seconds."""
        ...


class ApiServer:
    """The API of one arbiter under one topology."""

    def __init__(self, topology: Topology, arbiter: Arbiter) -> None:
        self._config = topology.api
        self._arbiter = arbiter
        self._interval_s = topology.arbiter.round_interval_s
        self._pools = pool_specs(topology)
        self._names = tuple(pool.name for pool in self._pools)
        self._models = {group.model: tuple(pool.name for pool in group.pools) for group in topology.groups}
        self._intervals_s = {
            pool.name: _interval_s(topology.planner, group.planner, pool.planner) for group, pool in topology.placed_pools()
        }
        self._runner: web.AppRunner | None = None
        self.port = self._config.port

    async def start(self) -> None:
        """Raises OSError when the port is taken."""
        app = web.Application(client_max_size=self._config.max_body_kb * 1024, middlewares=[_told])
        app.router.add_post("/v1/proposals", self._proposals)
        app.router.add_post("/v1/scale_request", self._scale_request)
        app.router.add_post("/v1/wake", self._wake)
        app.router.add_get("/v1/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._ready)
        self._runner, self.port = await listen(app, self._config.host, self._config.port, reuse_port=True)

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # ---- reports and requests --------------------------------------------------------------------------------------

    async def _proposals(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        if request.content_type != MSGPACK:
            raise _refusal(415, f"Content-Type: {request.content_type!r}; {MSGPACK} is needed")
        try:
            batch: ReportBatch = wire.decode(await request.read(), expect=ReportBatch)
        except wire.WireError as error:
            raise _refusal(400, str(error)) from error
        named = {report.pool for report in batch.reports} | {status.pool for status in batch.statuses}
        for pool in sorted(named - caller.pools):
            known = "its pools" if pool in self._names else "a pool of the topology"
            raise _refusal(403, f"{pool!r} is not {known}: {caller.name} may propose for {_listed(caller.pools)}")
        self._arbiter.inbox.put(on_our_clock(batch, self._arbiter.now()), caller.pools)
        grants = GrantBatch(grants=self._arbiter.grants(sorted(named)))
        return web.Response(body=wire.encode(grants), content_type=MSGPACK)

    async def _scale_request(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        try:
            asked = read_request(await request.read())
        except ScaleRefused as error:
            return _json(400, {"status": "error", "message": str(error), "current_replicas": {}})
        try:
            wanted = asks(asked, self._pools, caller.pools, self._intervals_s)
            self._refuse_planned(wanted)
        except ScaleRefused as error:
            return _json(200, {"status": "rejected", "message": str(error), "current_replicas": {}})
        now, inbox = self._arbiter.now(), self._arbiter.inbox
        # In force until the caller can be expected to ask again, three times over, as a planner's report is.
        reports = [
            as_report(ask, inbox.status(ask.pool.name), caller.name, now, 3.0 * self._intervals_s[ask.pool.name])
            for ask in wanted
        ]
        before = self._arbiter.last_round
        inbox.request(reports)
        self._arbiter.hurry()
        # The round that runs now may have read its reports before: the one after it has certainly seen this one.
        number = 0 if before is None else before.inputs.round_no
        done = await self._seen(reports[0].at_s, number)
        told = answer(wanted, done)
        if asked.blocking and told["status"] == "success":
            told = await self._reached(wanted, told)
        return _json(200, told)

    async def _seen(self, since_s: float, number: int) -> Round | None:
        """The first round that began after the request was taken."""
        ends = asyncio.get_running_loop().time() + DECISION_WITHIN_S
        while (left_s := ends - asyncio.get_running_loop().time()) > 0.0:
            done = await self._arbiter.round_after(number, left_s)
            if done is None or done.inputs.at_s >= since_s:
                return done
            number = done.inputs.round_no
            self._arbiter.hurry()
        return None

    async def _reached(self, wanted: Sequence[Ask], told: dict[str, Any]) -> dict[str, Any]:
        """The same answer once all replicas are ready, or with what is missing when it takes too long."""
        ends = asyncio.get_running_loop().time() + BLOCKING_WITHIN_S
        while True:
            done = self._arbiter.last_round
            if done is not None:
                told = answer(wanted, done)
                sums: dict[str, int] = {}
                for ask in wanted:
                    kind = "prefill" if ask.pool.role == "prefill" else "decode"
                    sums[kind] = sums.get(kind, 0) + ask.desired
                if told["status"] != "success" or told["current_replicas"] == sums:
                    return told
            left_s = ends - asyncio.get_running_loop().time()
            if left_s <= 0.0 or self._runner is None:
                return {**told, "message": f"{told['message']}; not all are ready yet"}
            await self._arbiter.round_after(0 if done is None else done.inputs.round_no, left_s)

    def _refuse_planned(self, wanted: Sequence[Ask]) -> None:
        for ask in wanted:
            if self._arbiter.inbox.planned(ask.pool.name, self._arbiter.now()):
                raise ScaleRefused(f"pool {ask.pool.name} has a planner that reports for it; its word goes over requests")

    async def _wake(self, request: web.Request) -> web.Response:
        caller = self._caller(request)
        if not caller.wake:
            raise _refusal(403, f"{caller.name} may not wake models")
        try:
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise _refusal(400, f"not JSON: {error}") from error
        model = body.get("model") if isinstance(body, dict) else None
        if not isinstance(model, str) or set(body) != {"model"}:
            raise _refusal(400, 'the body must be {"model": NAME}')
        pools = self._models.get(model)
        if pools is None:
            raise _refusal(404, f"no model {model[:256]!r} (has: {_listed(self._models)})")
        zero = at_zero(self._arbiter.last_round) & frozenset(pools)
        if zero:
            self._arbiter.inbox.wake(sorted(zero), self._arbiter.now() + self._config.wake_for_s)
            self._arbiter.hurry()
        return _json(200, {"model": model, "woken": sorted(zero)})

    # ---- what can be read ------------------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        self._caller(request)
        return _json(200, status(self._arbiter.last_round, now_s=self._arbiter.now(), leading=self._arbiter.leading))

    async def _metrics(self, _: web.Request) -> web.Response:
        arbiter = self._arbiter
        statuses = arbiter.inbox.statuses()
        code = "compiled" if ARBITER.in_use() else "python"
        text = render(arbiter.last_round, statuses=statuses, now_s=arbiter.now(), leading=arbiter.leading, code=code)
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        """That this process answers at all; its rounds are `readyz`'s."""
        return web.Response(text="ok\n")

    async def _ready(self, _: web.Request) -> web.Response:
        done = self._arbiter.last_round
        if not self._arbiter.leading:
            return web.Response(status=503, text="another process decides\n")
        if done is None:
            return web.Response(status=503, text="no round yet\n")
        age_s = self._arbiter.now() - done.inputs.at_s
        if age_s > OVERDUE_ROUNDS * self._interval_s:
            return web.Response(status=503, text=f"no round for {age_s:.0f} s\n")
        return web.Response(text="ok\n")

    def _caller(self, request: web.Request) -> Caller:
        """Raises 401."""
        tokens = {}
        for credential in self._config.credentials:
            if credential.token_file is not None:
                try:
                    tokens[credential.name] = Path(credential.token_file).read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError):
                    continue
        # An empty token file is one that is being written: nobody has that token.
        tokens = {name: token for name, token in tokens.items() if token}
        caller = caller_of(request.headers.get("Authorization"), self._config.credentials, tokens, self._names)
        if caller is None:
            raise _refusal(401, "Authorization: Bearer TOKEN is needed, with the token of a credential of the topology's api")
        return caller


def status(done: Round | None, *, now_s: float, leading: bool) -> dict[str, Any]:
    """The last round for machines: what each pool has, wants, gets and why, and what to know."""
    if done is None:
        return {"leading": leading, "round": None}
    holdings = {holding.pool: holding for holding in done.inputs.holdings}
    grants = {grant.pool: grant for grant in done.allocation.pools}
    told = known_groups(done.inputs.pools, done.allocation)
    return {
        "leading": leading,
        "round": done.inputs.round_no,
        "age_s": round(now_s - done.inputs.at_s, 3),
        "charged_gpus": dict(done.charged_gpus),
        "budget_gpus": dict(done.inputs.budget.max_gpus),
        "frozen": done.inputs.freeze is not None,
        "conditions": list(done.conditions),
        "groups": [
            {
                "name": grant.group,
                "load_rps": grant.load_rps if grant.group in told else None,
                "attainment": grant.attainment if grant.group in told else None,
                "admitted_rps": grant.admitted_rps,
            }
            for grant in done.allocation.groups
        ],
        "pools": [_pool_status(spec, holdings.get(spec.name), grants.get(spec.name)) for spec in done.inputs.pools],
    }


def _pool_status(spec: PoolSpec, holding: Any, grant: Any) -> dict[str, Any]:
    states = [] if holding is None else [replica.state for replica in holding.replicas]
    known = holding is not None and holding.spec is not None
    return {
        "name": spec.name,
        "role": spec.role,
        "mode": spec.mode,
        "ordered": holding.spec if known else None,
        "ready": states.count("ready") if known else None,
        "starting": states.count("starting") if known else None,
        "unknown": None if holding is None else holding.unknown,
        "wanted": None if grant is None else grant.wanted,
        "granted": None if grant is None else grant.granted,
        "held": None if grant is None else grant.held,
        "reason": "" if grant is None else grant.reason,
    }


def _interval_s(*layers: Mapping[str, Any]) -> float:
    """The adjustment interval that planner settings say, the last layer over the first; the guide's default."""
    found = 180.0
    for layer in layers:
        for name in ("throughput_adjustment_interval", "throughput_adjustment_interval_seconds"):
            found = float(layer.get(name, found))
    return found


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _json(code: int, body: Mapping[str, Any]) -> web.Response:
    return web.Response(status=code, body=orjson.dumps(body), content_type="application/json")


_KINDS: Mapping[int, type[web.HTTPException]] = {
    400: web.HTTPBadRequest,
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    404: web.HTTPNotFound,
    415: web.HTTPUnsupportedMediaType,
}


def _refusal(code: int, text: str) -> web.HTTPException:
    return _KINDS[code](text=text)


@web.middleware
async def _told(request: web.Request, handler: Reply) -> web.StreamResponse:
    """Refusals as JSON, whoever made them."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        response = _json(refusal.status, {"error": refusal.text or refusal.reason})
        if refusal.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        return response
