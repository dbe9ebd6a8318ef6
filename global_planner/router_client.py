"""[I/O] The planner's side of the protocol with the routers: several processes of the router seen as one (`ports.Router`).

Every process must answer: an endpoint that one unreachable process may still send to cannot be called drained. Versions are
learned from the processes at first contact and rise by one with every write. A process that was restarted has forgotten what
it was told: it is told again as soon as its state shows that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import aiohttp
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from global_planner.ports import EndpointLoad, GroupAdmission, PoolEndpoints, RouterState
from pool_planner.types import ClusterUnavailable

State = Literal["starting", "ready", "draining"]
T = TypeVar("T", bound=BaseModel)
Count = Annotated[int, Field(ge=0)]
# An endpoint that any process still treats as ready is ready: the state that matters most comes first.
_STRONGEST: tuple[State, ...] = ("ready", "starting", "draining")


class _Answer(BaseModel):
    """What a process may add later is ignored; what is missing or mistyped is an unusable answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Endpoint(_Answer):
    id: str
    state: State
    in_flight: Count
    outstanding_tokens: Count
    pending_kv: Count
    healthy: bool
    last_ttft_ms: float | None
    last_itl_ms: float | None


class _Pool(_Answer):
    name: str
    endpoints: tuple[_Endpoint, ...]


class _Group(_Answer):
    model: str
    queued: Count
    shed: Count


class _Admission(_Answer):
    version: Count


class _State(_Answer):
    endpoints_version: Count
    admission: _Admission
    pools: tuple[_Pool, ...]
    groups: tuple[_Group, ...]


class _Version(_Answer):
    version: Count


class _Drained(_Answer):
    in_flight: dict[str, Count]
    pending_kv: dict[str, Count]


class RouterClient:
    """`ports.Router` over the admin listeners at `urls`. Every method raises ClusterUnavailable, naming the process.

    `admission_valid_s`: for how long (model seconds) a plan's rates hold without being sent again; three rounds. `timeout_s`
    is wall time for one call. Use as an async context manager, or call `close`.
    """

    def __init__(
        self, urls: Sequence[str], *, admission_valid_s: float, token: str | None = None, timeout_s: float = 5.0
    ) -> None:
        self._urls = tuple(url.rstrip("/") for url in urls)
        self._admission_valid_s = admission_valid_s
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None
        self._versions: dict[str, int] = {}
        self._last: dict[str, tuple[int, dict[str, Any]]] = {}

    async def __aenter__(self) -> RouterClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    # -- ports.Router --------------------------------------------------------------------------------------------------

    async def state(self) -> RouterState:
        """The state of all processes, merged."""
        states = await self._states()
        for url, state in zip(self._urls, states, strict=True):
            await self._remind(url, state)
        endpoints: dict[str, EndpointLoad] = {}
        queued: dict[str, int] = {}
        shed: dict[str, int] = {}
        for state in states:
            for pool in state.pools:
                for one in pool.endpoints:
                    endpoints[one.id] = _merged(endpoints.get(one.id), one)
            for group in state.groups:
                queued[group.model] = queued.get(group.model, 0) + group.queued
                shed[group.model] = shed.get(group.model, 0) + group.shed
        return RouterState(processes=len(states), endpoints=endpoints, queued=queued, shed=shed)

    async def put_endpoints(self, pools: Sequence[PoolEndpoints]) -> None:
        """The whole state of all pools; pools that are absent have no endpoints."""
        message = [
            {
                "name": pool.name,
                "role": pool.role,
                "endpoints": [{"id": one.id, "url": one.url, "state": one.state} for one in pool.endpoints],
            }
            for pool in pools
        ]
        await self._put("endpoints", {"pools": message})

    async def drain(self, pool: str, endpoints: Sequence[str], deadline_s: float) -> None:
        """Returns when every process has acknowledged; what is still in flight is told by `state`."""
        body = orjson.dumps({"pool": pool, "endpoints": list(endpoints), "deadline_s": deadline_s})
        self._remember_drain(pool, endpoints)
        answers = await self._all("POST", "/admin/drain", body)
        for url, answer in zip(self._urls, answers, strict=True):
            drained = _read(_Drained, answer, url)
            missing = set(endpoints) - set(drained.in_flight)
            if missing:
                raise ClusterUnavailable(f"router {url} did not acknowledge the drain of {', '.join(sorted(missing))}")

    async def put_admission(self, groups: Sequence[GroupAdmission]) -> None:
        """The rates of all models; models that are absent are unlimited."""
        # Each process sees its part of the requests, and admits its part of the rate and of what may be under way.
        part = 1.0 / len(self._urls)
        message = [
            {
                "model": group.model,
                "admitted_rps": None if group.admitted_rps is None else group.admitted_rps * part,
                "burst": None if group.burst is None else group.burst * part,
                "in_flight": None if group.in_flight is None else group.in_flight * part,
                "in_flight_by_pool": {pool: most * part for pool, most in group.in_flight_by_pool.items()},
                "by_priority": {priority: rate * part for priority, rate in group.by_priority.items()},
            }
            for group in groups
        ]
        await self._put("admission", {"groups": message, "valid_s": self._admission_valid_s})

    # -- versions ------------------------------------------------------------------------------------------------------

    async def _put(self, what: str, message: dict[str, Any]) -> None:
        if what not in self._versions:
            await self._learn()
        version = self._versions[what] + 1
        body = orjson.dumps({"version": version, **message})
        # Kept before it is sent: a process that misses it (or is restarted) is told by the next look at its state.
        self._versions[what] = version
        self._last[what] = (version, message)
        for url, answer in zip(self._urls, await self._all("PUT", f"/admin/{what}", body), strict=True):
            self._check(what, _read(_Version, answer, url).version, url)

    def _check(self, what: str, in_force: int, url: str) -> None:
        if in_force > self._versions[what]:
            mine = self._versions.pop(what)
            raise ClusterUnavailable(
                f"router {url} has {what} version {in_force}, written by somebody else (ours was {mine}); its versions are "
                "read again before the next write"
            )

    def _remember_drain(self, pool: str, endpoints: Sequence[str]) -> None:
        """A process that is told again must not take a draining endpoint for ready."""
        _, message = self._last.get("endpoints", (0, {"pools": []}))
        for told in message["pools"]:
            for one in told["endpoints"]:
                if told["name"] == pool and one["id"] in endpoints:
                    one["state"] = "draining"

    async def _learn(self) -> None:
        states = await self._states()
        self._versions = {
            "endpoints": max(state.endpoints_version for state in states),
            "admission": max(state.admission.version for state in states),
        }

    async def _remind(self, url: str, state: _State) -> None:
        """Tell a process again what it does not know (any more)."""
        for what, known in (("endpoints", state.endpoints_version), ("admission", state.admission.version)):
            last = self._last.get(what)
            if last is not None and known < last[0]:
                version, message = last
                answer = await self._call(url, "PUT", f"/admin/{what}", orjson.dumps({"version": version, **message}))
                self._check(what, _read(_Version, answer, url).version, url)

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def _states(self) -> list[_State]:
        answers = await self._all("GET", "/admin/state", None)
        return [_read(_State, answer, url) for url, answer in zip(self._urls, answers, strict=True)]

    async def _all(self, method: str, path: str, body: bytes | None) -> list[bytes]:
        return list(await asyncio.gather(*(self._call(url, method, path, body) for url in self._urls)))

    async def _call(self, url: str, method: str, path: str, body: bytes | None) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        try:
            async with self._session.request(method, url + path, data=body) as answer:
                content = await answer.read()
                if answer.status != 200:
                    text = content[:300].decode("utf-8", "replace")
                    raise ClusterUnavailable(f"router {url}: {method} {path} was answered {answer.status}: {text}")
                return content
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterUnavailable(f"router {url}: {method} {path}: {type(error).__name__}: {error}") from error


def _read(kind: type[T], content: bytes, url: str) -> T:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        problems = f"{error.error_count()} problems"
        raise ClusterUnavailable(f"router {url} answered what is not {kind.__name__.lower()}: {problems}") from error


def _merged(known: EndpointLoad | None, one: _Endpoint) -> EndpointLoad:
    """In-flight counts add up; healthy if any process can use it; the newest latency that is known."""
    if known is None:
        return EndpointLoad(
            id=one.id,
            state=one.state,
            in_flight=one.in_flight,
            outstanding_tokens=one.outstanding_tokens,
            pending_kv=one.pending_kv,
            healthy=one.healthy,
            last_ttft_ms=one.last_ttft_ms,
            last_itl_ms=one.last_itl_ms,
        )
    return EndpointLoad(
        id=one.id,
        state=min(known.state, one.state, key=_STRONGEST.index),
        in_flight=known.in_flight + one.in_flight,
        outstanding_tokens=known.outstanding_tokens + one.outstanding_tokens,
        pending_kv=known.pending_kv + one.pending_kv,
        healthy=known.healthy or one.healthy,
        last_ttft_ms=known.last_ttft_ms if one.last_ttft_ms is None else one.last_ttft_ms,
        last_itl_ms=known.last_itl_ms if one.last_itl_ms is None else one.last_itl_ms,
    )
