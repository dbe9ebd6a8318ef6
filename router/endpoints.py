"""[I/O] Which engines exist, which may be used, and how loaded each is, as this process sees it.

The planner's word is whole state by version (`put`); a drain comes by name (`drain`) and ends when a newer whole state says
`ready`. A pool that the planner has not named yet has its configured or its discovered endpoints. Endpoints that left take no
new requests, and stay visible until their last request ended. Health is the router's own finding: a refused connection, or
several failures in a row, take an endpoint out until a probe succeeds; one that answers much slower than its siblings is left
alone for a time (`router.outliers`, `router.ejection`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from pool_planner.types import Role
from router.config import HealthConfig, OutlierConfig
from router.config_pools import PoolConfig
from router.ejection import Ejection, Trials, next_trial
from router.exchange import Collected, EngineFailed
from router.metrics import PoolMetrics
from router.outliers import Verdict
from router.policy import Ask, Picker, usable
from router.types import EndpointSpec, EndpointState
from router.upstream import EngineLink, Upstream


class Endpoint:
    """One engine. Load counts what this process has sent and not yet seen ended; `unstarted`: of a prompt that no token has
    followed yet (an aggregated pool counts it only where selection is adaptive)."""

    __slots__ = (
        "backoff_s",
        "bootstrap_port",
        "drained",
        "failures",
        "healthy",
        "id",
        "in_flight",
        "isl_tokens",
        "itl_s",
        "known",
        "link",
        "outstanding_tokens",
        "pending_kv",
        "state",
        "ttft_s",
        "unstarted",
        "unstarted_tokens",
        "url",
    )

    def __init__(self, id: str, url: str, state: EndpointState, link: EngineLink) -> None:
        self.id = id
        self.url = url
        self.state: EndpointState = state
        self.link = link
        self.bootstrap_port: int | None = None
        self.known = True
        self.drained = False
        self.in_flight = 0
        self.outstanding_tokens = 0.0
        self.unstarted = 0
        self.unstarted_tokens = 0.0
        self.pending_kv = 0
        self.healthy = True
        self.failures = 0
        self.backoff_s = 0.0
        self.ttft_s: float | None = None
        self.isl_tokens: float | None = None
        self.itl_s: float | None = None

    @property
    def idle(self) -> bool:
        return self.in_flight == 0 and self.pending_kv == 0


class Pool:
    """One pool: its endpoints, the picker among them, and its series. `by_planner`: the planner has named its endpoints;
    `ready` may be picked, `on_trial` gets one request at a time."""

    __slots__ = (
        *("by_planner", "config", "endpoints", "metrics", "model", "name", "on_trial", "ejection", "picker", "ready", "role"),
        *("bounded", "namespace"),
    )

    def __init__(self, config: PoolConfig, model: str, picker: Picker, outliers: OutlierConfig | None = None) -> None:
        self.config = config
        self.name = config.name
        self.role: Role = config.role
        self.model = model
        self.namespace = config.namespace_label
        self.bounded = config.is_bounded
        self.picker = picker
        self.by_planner = False
        self.endpoints: dict[str, Endpoint] = {}
        self.ready: list[Endpoint] = []
        self.on_trial: list[Endpoint] = []
        self.ejection = Ejection(outliers, config.pick)
        self.metrics = PoolMetrics(model=model, pool=config.name, role=config.role, namespace=config.namespace_label)

    def refresh(self) -> None:
        """Recompute who may be picked; endpoints that nobody knows any more go when they are idle."""
        for endpoint in [one for one in self.endpoints.values() if not one.known and one.idle]:
            endpoint.link.close()
            del self.endpoints[endpoint.id]
        ready = [one for one in self.endpoints.values() if one.state == "ready" and one.healthy and one.known]
        self.ready, self.on_trial = self.ejection.divide(ready)

    def usable(self, without: Collection[str] = ()) -> Sequence[Endpoint]:
        if not without and not self.bounded:
            return self.ready
        config = self.config
        return usable(self.ready, max_in_flight=config.max_in_flight, without=without, max_tokens=config.max_outstanding_tokens)

    def pick(self, ask: Ask, without: Collection[str] = ()) -> Endpoint | None:
        """One usable endpoint, or None."""
        if self.on_trial and (tried := next_trial(self.on_trial, without)) is not None:
            return tried
        candidates = self.usable(without)
        if not candidates:
            return None
        return candidates[0] if len(candidates) == 1 else self.picker.pick(candidates, ask)

    def room(self) -> tuple[float, float]:
        """Requests and tokens that its usable endpoints can take yet; infinite where nothing bounds them."""
        config, free = self.config, self.usable()
        requests = tokens = float("inf") if free else 0.0
        if config.max_in_flight is not None:
            requests = float(sum(config.max_in_flight - one.in_flight for one in free))
        if config.max_outstanding_tokens is not None:
            tokens = sum(config.max_outstanding_tokens - one.outstanding_tokens for one in free)
        return requests, tokens

    @property
    def broken(self) -> bool:
        """Whether it has endpoints that should work and do not."""
        return any(one.state == "ready" and one.known and not one.healthy for one in self.endpoints.values())

    def load(self) -> float:
        """Outstanding tokens for each usable endpoint; infinite without one."""
        if not self.ready:
            return float("inf")
        return sum(endpoint.outstanding_tokens for endpoint in self.ready) / len(self.ready)


class Endpoints:
    """All pools of the router and the planner's word about them. `changed` is called when something may have become
    usable; `say` takes what people should read."""

    def __init__(
        self,
        pools: Iterable[Pool],
        *,
        loop: asyncio.AbstractEventLoop,
        upstream: Upstream,
        now: Callable[[], float],
        speed: float,
        health: HealthConfig,
        changed: Callable[[], None],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.pools = {pool.name: pool for pool in pools}
        self.version = 0
        self.named = False
        self._loop = loop
        self._upstream = upstream
        self._now = now
        self._speed = speed
        self._health = health
        self._changed = changed
        self._say = say
        self._trials = Trials()
        self._trial: asyncio.TimerHandle | None = None
        self._probes: set[asyncio.Task[None]] = set()
        for pool in self.pools.values():
            for url in pool.config.endpoints:
                name = url.split("://", 1)[1].rstrip("/")
                pool.endpoints[name] = Endpoint(name, url, "ready", EngineLink(url, loop))
            pool.refresh()

    # -- the planner's word --------------------------------------------------------------------------------------------

    def put(self, version: int, pools: Mapping[str, Sequence[EndpointSpec]]) -> list[str]:
        """The whole state. Older versions change nothing; the same version again changes nothing either. Returns the names of
        pools that this router does not have."""
        unknown = sorted(set(pools) - set(self.pools))
        if version <= self.version:
            return unknown
        self.version = version
        self.named = True
        for pool in self.pools.values():
            if pool.name not in pools and (pool.config.endpoints or pool.config.discovery is not None):
                continue
            pool.by_planner = True
            self._replace(pool, {spec.id: spec for spec in pools.get(pool.name, ())})
        self._changed()
        return unknown

    def discovered(self, pool: Pool, found: Iterable[EndpointSpec]) -> None:
        """The pool's endpoints, all of them, where somebody else than the planner knows. What was told to drain drains on
        until it is gone."""
        if pool.by_planner:
            return
        specs = {spec.id: spec for spec in found}
        for endpoint in pool.endpoints.values():
            if endpoint.drained and endpoint.id in specs and endpoint.url == specs[endpoint.id].url:
                specs[endpoint.id] = replace(specs[endpoint.id], state="draining")
        self._replace(pool, specs)
        self._changed()

    def _replace(self, pool: Pool, specs: dict[str, EndpointSpec]) -> None:
        for endpoint in pool.endpoints.values():
            if endpoint.id not in specs:
                endpoint.known = False
                endpoint.state = "draining"
        for spec in specs.values():
            known = pool.endpoints.get(spec.id)
            if known is None or known.url != spec.url:
                # Another address under the same name is another engine: what runs on the old one ends there.
                known = pool.endpoints[spec.id] = Endpoint(spec.id, spec.url, spec.state, EngineLink(spec.url, self._loop))
            endpoint = known
            if spec.state == "ready" and endpoint.state == "starting":
                endpoint.healthy, endpoint.failures, endpoint.backoff_s = True, 0, 0.0
            endpoint.state = spec.state
            endpoint.drained = endpoint.drained and spec.state == "draining"
            endpoint.bootstrap_port = spec.bootstrap_port
            endpoint.known = True
        pool.refresh()

    def drain(self, pool: Pool, ids: Iterable[str]) -> None:
        """Send nothing new to these endpoints until a newer whole state says `ready`."""
        for name in ids:
            endpoint = pool.endpoints.get(name)
            if endpoint is not None:
                endpoint.state = "draining"
                endpoint.drained = True
        pool.refresh()

    # -- health --------------------------------------------------------------------------------------------------------

    def succeeded(self, endpoint: Endpoint) -> None:
        endpoint.failures = 0
        endpoint.backoff_s = 0.0

    def failed(self, pool: Pool, endpoint: Endpoint, *, refused: bool) -> None:
        """Count a failed call; a refused connection leaves no doubt and counts as enough of them."""
        endpoint.failures = self._health.failures if refused else endpoint.failures + 1
        if endpoint.healthy and endpoint.failures >= self._health.failures:
            endpoint.healthy = False
            endpoint.link.close()
            pool.refresh()
            probe = self._loop.create_task(self._probe(pool, endpoint))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)

    async def _probe(self, pool: Pool, endpoint: Endpoint) -> None:
        """Ask after the engine's health, less and less often, until it answers or is gone."""
        while not endpoint.healthy and pool.endpoints.get(endpoint.id) is endpoint and endpoint.known:
            endpoint.backoff_s = min(self._health.backoff_max_s, max(self._health.backoff_s, 2.0 * endpoint.backoff_s))
            await asyncio.sleep(endpoint.backoff_s / self._speed)
            exchange = Collected(self._now, self._now() + self._health.backoff_max_s)
            link = endpoint.link
            payload = b"GET %b/health HTTP/1.1\r\nhost: %b\r\n\r\n" % (link.base_path, link.host_header)
            try:
                await self._upstream.run(link, payload, exchange)
            except EngineFailed:
                continue
            if exchange.status == 200:
                # Half open: it may be asked again, and its first failure takes it out again, for longer.
                endpoint.healthy, endpoint.failures = True, self._health.failures - 1
                pool.refresh()
                self._changed()

    # -- slowness ------------------------------------------------------------------------------------------------------

    def answered(self, pool: Pool, endpoint: Endpoint, *, ttft: float | None = None, itl: float | None = None) -> None:
        """A whole answer of an endpoint, as samples of `router.outliers`."""
        verdicts = pool.ejection.answered(endpoint.id, self._now(), ttft=ttft, itl=itl)
        if verdicts:
            self._follow(pool, verdicts)

    def _follow(self, pool: Pool, verdicts: list[Verdict]) -> None:
        pool.metrics.ejected += self._trials.note(pool.name, verdicts)
        self._await_trial()
        for one in verdicts:
            if one.action == "restore":
                self._say(f"pool {pool.name}: {one.endpoint} is as fast as its siblings again")
                continue
            away_s = one.until_s - self._now()
            if one.own is not None and one.siblings is not None:
                unit = "1000 prompt tokens" if one.signal == "ttft" else "an output token"
                self._say(
                    f"pool {pool.name}: {one.endpoint} takes {one.own * 1000.0:.0f} ms for {unit} where its siblings take "
                    f"{one.siblings * 1000.0:.0f}; it gets nothing for {away_s:.0f} s"
                )
        pool.refresh()
        self._changed()

    def _await_trial(self) -> None:
        if self._trial is not None:
            self._trial.cancel()
            self._trial = None
        if self._trials.due_s < float("inf"):
            # At least a millisecond: the loop's clock may wake a little early, and must not spin.
            after_s = max(0.001, (self._trials.due_s - self._now()) / self._speed)
            self._trial = self._loop.call_later(after_s, self._try_again)

    def _try_again(self) -> None:
        now = self._now()
        for name in self._trials.due(now):
            pool = self.pools[name]
            if pool.ejection.try_again(now):
                pool.refresh()
        self._await_trial()

    def close(self) -> None:
        if self._trial is not None:
            self._trial.cancel()
        for probe in self._probes:
            probe.cancel()
        for pool in self.pools.values():
            for endpoint in pool.endpoints.values():
                endpoint.link.close()
