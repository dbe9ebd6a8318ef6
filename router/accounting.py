"""[I/O] What is remembered of a request while it runs, and what its end adds to the series and to what the model has
taught."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import orjson

from router.adaptive import AdaptiveStage, Prediction, Predictor, Waiting
from router.config_pools import ModelConfig
from router.endpoints import Endpoint, Pool
from router.exchange import Relayed
from router.message import Request
from router.metrics import FrontendMetrics, OutcomeMetrics, TenantMetrics
from router.openai import Call, Lengths, cached_in, usage_in
from router.outliers import per_thousand
from router.policy import Ask, Stages
from router.tokens import Tokenizer

LONG_TOKENS = 16.0


class ModelState:
    """One model of the configuration, and what the router has learned about it. `frontends` by namespace label;
    `counted_elsewhere`: the namespaces whose own frontends are the source of metrics."""

    __slots__ = (
        "by_prefix",
        "config",
        "counted_elsewhere",
        "frontends",
        "lengths",
        "name",
        "outcomes",
        "predictors",
        "stages",
        "tokenizer",
    )

    def __init__(
        self,
        config: ModelConfig,
        predictors: Mapping[str, Predictor],
        ready: Callable[[str], Sequence[Endpoint]],
        waiting: Callable[[str], Waiting],
    ) -> None:
        """`predictors` by pool, where selection is adaptive; `ready(pool)`: the endpoints that may be used now;
        `waiting(pool)`: what waits for it in the router."""
        self.config = config
        self.name = config.model
        self.predictors = predictors
        self.tokenizer = Tokenizer(config.tokenizer) if config.tokenizer else None
        adaptive = config.selection == "adaptive"
        self.stages = Stages(
            config, (lambda role: AdaptiveStage(config, role, predictors, ready, waiting).route) if adaptive else None
        )
        self.by_prefix = any(pool.pick == "prefix_affinity" for pool in config.pools)
        self.lengths = Lengths()
        self.outcomes = OutcomeMetrics(config.model)
        self.counted_elsewhere = {
            pool.namespace_label for pool in config.pools if pool.metrics_source == "frontend" and pool.role != "decode"
        }
        namespaces = dict.fromkeys(pool.namespace_label for pool in config.pools if pool.role != "decode")
        self.frontends: Mapping[str, FrontendMetrics] = {
            namespace: FrontendMetrics(model=config.model, namespace=namespace) for namespace in namespaces
        }


class Progress:
    """One request on its way. Its end is counted once."""

    __slots__ = (
        "_assigned",
        "_counts",
        "_expected",
        "_prefill",
        "_prefilled_s",
        "_sent_s",
        "_serving",
        "arrived_s",
        "ask",
        "call",
        "exchange",
        "frontend",
        "kv_pending",
        "model",
        "outcome",
        "request",
        "status",
        "tenant",
        "tokens",
        "ttft_s",
    )

    def __init__(
        self,
        model: ModelState,
        request: Request,
        call: Call,
        ask: Ask,
        arrived_s: float,
        assigned: list[Pool],
        tenant: TenantMetrics | None = None,
    ) -> None:
        self.model = model
        self.request = request
        self.call = call
        self.ask = ask
        self.arrived_s = arrived_s
        self.tenant = tenant
        self.status: int | None = None
        self.kv_pending = False
        self.exchange: Relayed | None = None
        self.outcome: str | None = None
        self.ttft_s: float | None = None
        self.tokens: float | None = None
        self._assigned = assigned
        self._prefill: tuple[Pool, Endpoint] | None = None
        self._serving: tuple[Pool, Endpoint] | None = None
        self._prefilled_s: float | None = None
        self._sent_s = arrived_s
        self._expected: list[tuple[Predictor, Prediction, float]] = []
        priority = call.priority or 0
        for pool in assigned:
            pool.metrics.arrived(priority, ask.isl_tokens)
        self.frontend = model.frontends[assigned[0].namespace]
        self.frontend.started += 1
        self._counts = model.outcomes.of(priority)
        self._counts["offered"] += 1

    def expects(self, pool: Pool, endpoint: Endpoint, now: float) -> None:
        """The request goes to this endpoint now: note what is predicted, to learn from it."""
        predictors = self.model.predictors
        if predictors and (predictor := predictors.get(pool.name)) is not None:
            itl_ms = self.ask.itl_ms or self.model.config.default_itl_ms or 0.0
            predicted = predictor.predict([endpoint], self.ask.isl_tokens, self.ask.osl_tokens, itl_ms)
            self._expected = [one for one in self._expected if one[0].role != pool.role] + [(predictor, predicted, now)]

    def admitted(self) -> None:
        self._counts["admitted"] += 1

    def retried(self) -> None:
        self._counts["retried"] += 1

    def shed(self) -> None:
        for pool in self._assigned:
            pool.metrics.shed += 1
        if self.tenant is not None:
            self.tenant.shed += 1
        self.end("shed", self.arrived_s)

    def prefilled(self, pool: Pool, endpoint: Endpoint, now: float, began_s: float) -> None:
        """A prefill call succeeded: until decode says otherwise, its end is the first token."""
        self._prefill = (pool, endpoint)
        self._prefilled_s = now
        endpoint.isl_tokens = self.ask.isl_tokens
        endpoint.ttft_s = now - began_s

    def relaying(self, pool: Pool, endpoint: Endpoint, exchange: Relayed, began_s: float) -> None:
        self._serving = (pool, endpoint)
        self._sent_s = began_s
        self.exchange = exchange

    @property
    def serving(self) -> tuple[Pool, Endpoint] | None:
        return self._serving

    def generated(self) -> float:
        """Tokens that the running answer has so far (estimate)."""
        return self.model.lengths.of_events(self.exchange.events) if self.exchange is not None else 0.0

    def end(self, outcome: str, now: float) -> None:
        """The first end counts; later ones are what unwinding calls."""
        if self.outcome is None:
            self.outcome = outcome
            self._counts[outcome] += 1

    def answered_by_prefill(self, pool: Pool, now: float) -> None:
        """The whole answer was the prefill engine's: one token, and nothing to decode."""
        self.end("completed", now)
        self.frontend.requests += 1
        pool.metrics.completed += 1
        self.ttft_s = now - self.arrived_s
        self.tokens = 1.0
        self.status = 200
        if self.tenant is not None:
            self.tenant.count(self.ask.isl_tokens, 1.0)

    def answered(self, pool: Pool, endpoint: Endpoint, exchange: Relayed, now: float) -> tuple[float | None, float | None]:
        """The whole answer went out. Returns the endpoint's samples (ttft, itl) for `router.outliers`; None: it has none."""
        self.end("completed", now)
        frontend = self.frontend
        frontend.requests += 1
        pool.metrics.completed += 1
        if self._prefill is not None:
            self._prefill[0].metrics.completed += 1
        if exchange.status != 200:
            return None, None
        isl, osl, itl_s = self._measure(pool, exchange)
        if self.tenant is not None:
            self.tenant.count(isl, osl or 0.0)
        for predictor, predicted, began_s in self._expected:
            # From when it was sent: what it waited before that is no engine's doing.
            ttft_ms = None if self.ttft_s is None else (self.arrived_s + self.ttft_s - began_s) * 1000.0
            predictor.learn(predicted, ttft_ms=ttft_ms, itl_ms=None if itl_s is None else itl_s * 1000.0)
        duration_s = now - self.arrived_s
        endpoint.isl_tokens = isl
        if self.ttft_s is not None and pool.role == "agg":
            endpoint.ttft_s = self.ttft_s
        if itl_s is not None:
            endpoint.itl_s = itl_s
        ttft_s = self.ttft_s
        frontend.observe(ttft_s, itl_s, isl, osl, duration_s)
        pool.metrics.observe(ttft_s, itl_s, isl, osl, duration_s)
        if self._prefill is not None:
            self._prefill[0].metrics.observe(ttft_s, itl_s, isl, osl, duration_s)
        first_s = exchange.first_s if exchange.is_stream and pool.role == "agg" else None
        if itl_s is None and osl is not None and osl >= LONG_TOKENS and not exchange.is_stream:
            # The first token is in it, but hardly counts.
            itl_s = (now - self._sent_s) / osl
        return None if first_s is None else per_thousand(first_s - self._sent_s, isl), itl_s

    def _measure(self, pool: Pool, exchange: Relayed) -> tuple[float, float | None, float | None]:
        """(ISL, OSL, ITL in s) of a whole answer, from its usage where it tells, else estimated; sets TTFT and tokens."""
        lengths = self.model.lengths
        tail = exchange.tail
        prompt, completion = usage_in(tail)
        if prompt is not None:
            lengths.learn_isl(self.call, prompt)
            # After a hand-over the answer is decode's, and what it found there are the blocks that prefill sent.
            if self._prefill is None and (cached := cached_in(tail)) is not None:
                pool.metrics.cache_queried_tokens += prompt
                pool.metrics.cached_tokens += min(cached, prompt)
        isl = float(prompt) if prompt is not None else self.ask.isl_tokens
        osl: float | None = completion
        first_s, last_s = exchange.first_s, exchange.last_s
        if exchange.is_stream:
            if completion is not None:
                lengths.learn_events(exchange.events, completion)
            else:
                osl = lengths.of_events(exchange.events)
        else:
            first_s = self._prefilled_s
        self.ttft_s = None if first_s is None else first_s - self.arrived_s
        self.tokens = osl
        if osl is not None:
            lengths.learn_osl(osl)
        if osl is None or first_s is None or last_s is None or osl < 2.0:
            return isl, osl, None
        return isl, osl, (last_s - first_s) / (osl - 1.0)


class AccessLog:
    """One JSON object a line for each request."""

    def __init__(self, path: str) -> None:
        self._out: TextIO = sys.stdout if path == "-" else open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115

    def write(self, progress: Progress, now: float) -> None:
        exchange = progress.exchange
        serving = progress.serving
        line = {
            "at_s": round(progress.arrived_s, 6),
            "request_id": progress.request.request_id.decode("latin-1"),
            "model": progress.model.name,
            "key": progress.tenant.name if progress.tenant is not None else None,
            "priority": progress.call.priority or 0,
            "outcome": progress.outcome,
            "status": exchange.status if exchange is not None else progress.status,
            "isl_tokens": progress.ask.isl_tokens,
            "osl_tokens": progress.tokens,
            "ttft_ms": None if progress.ttft_s is None else round(progress.ttft_s * 1000.0, 3),
            "duration_ms": round((now - progress.arrived_s) * 1000.0, 3),
            "pool": serving[0].name if serving else None,
            "endpoint": serving[1].id if serving else None,
        }
        self._out.write(orjson.dumps(line).decode() + "\n")

    def close(self) -> None:
        self._out.flush()
        if self._out is not sys.stdout:
            self._out.close()
