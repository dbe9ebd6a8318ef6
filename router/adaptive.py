"""Adaptive selection: the cheapest pool that is predicted to meet a request's targets. Pure.

A pool's profile says what a request costs an engine that is alone with it; the queue at the engine that would get it says
what comes on top; and what completed requests showed corrects both, slowly (`pool_planner.performance.correction`).

- TTFT at a prefill pool: the prompts ahead at its least loaded engine, one after the other, then this one. Ahead is also an
  engine's part of the prompts that wait in the router for the pool.
- ITL at a decode pool: the profile at the KV usage of its least loaded engine with this request in it.
- An aggregated pool does both: its prompts wait for those that have no first token yet, and a step's length on top.

Cost is what the request takes of a replica's time, times the replica's price: for prefill its own time alone, for decode its
tokens at the highest throughput that the ITL target allows. It depends on the request and on nothing that moves, so pools
do not swap places because of their load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Protocol

from pool_planner.performance.correction import Correction
from pool_planner.performance.profile import Profile, ProfileError
from pool_planner.types import Role
from router.config_pools import ModelConfig, PoolConfig
from router.policy import Ask

MAX_SEQUENCES = 1024.0
CONTEXT_STEPS = 20  # to a factor of e: 5 %
MAX_KNOWN = 4096


class Loaded(Protocol):
    """What a prediction reads of an endpoint. `unstarted` requests of `unstarted_tokens` prompt tokens have no first token
    yet; `outstanding_tokens` counts prompts and expected answers of everything in flight."""

    @property
    def in_flight(self) -> int: ...

    @property
    def outstanding_tokens(self) -> float: ...

    @property
    def unstarted(self) -> int: ...

    @property
    def unstarted_tokens(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Model ms; None: the role has no such latency. `cost` in the unit of the pools' prices."""

    ttft_ms: float | None
    itl_ms: float | None
    cost: float

    def excess(self, ttft_ms: float, itl_ms: float) -> float:
        """By which factor the worse of the latencies misses its target (at most 1: none does)."""
        return max(
            0.0 if self.ttft_ms is None else self.ttft_ms / ttft_ms, 0.0 if self.itl_ms is None else self.itl_ms / itl_ms
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits in the router for a pool: requests, and their prompt tokens."""

    requests: int = 0
    tokens: float = 0.0


NOBODY = Waiting()


class Predictor:
    """One pool: its profile, its price, and what its answers have corrected. Raises ProfileError where the profile lacks what
    the role needs."""

    def __init__(self, config: PoolConfig, profile: Profile, *, ttft_ms: float) -> None:
        self.role: Role = config.role
        self.price_per_ms = config.cost_per_hour / 3_600_000.0
        self.prefill, self.decode = profile.prefill, profile.decode
        self.correction = Correction()
        self._sla_ms = ttft_ms
        self._token_ms: dict[tuple[int, float], float] = {}
        if self.role != "decode" and self.prefill is None:
            raise ProfileError(f"{config.profile}: pool {config.name!r} is a {self.role} pool and needs a prefill curve")
        if self.role != "prefill" and self.decode is None:
            raise ProfileError(f"{config.profile}: pool {config.name!r} is a {self.role} pool and needs a decode curve")

    def predict(
        self, endpoints: Sequence[Loaded], isl: float, osl: float, itl_target_ms: float, waiting: Waiting = NOBODY
    ) -> Prediction:
        """For a request of `isl` prompt and about `osl` answer tokens, sent to the least loaded of at least one endpoint,
        behind its part of those that wait."""
        requests, tokens = waiting.requests / len(endpoints), waiting.tokens / len(endpoints)
        ttft = itl = None
        step = 0.0
        if self.decode is not None and self.role != "prefill":
            at = min(endpoints, key=lambda one: one.outstanding_tokens)
            # Half of what will be written is there on average.
            running = max(at.outstanding_tokens - at.in_flight * osl / 2.0, 0.0) + tokens + requests * osl / 2.0
            resident = running + isl + osl / 2.0
            context = resident / (at.in_flight + requests + 1)
            step = self.decode.itl_ms(resident / self.decode.max_kv_tokens, context)
            itl = self.correction.itl_ms(step)
        if self.prefill is not None and self.role != "decode":
            at = min(endpoints, key=lambda one: one.unstarted_tokens)
            ahead = at.unstarted + requests
            first = self.prefill.ttft_ms((at.unstarted_tokens + tokens) / ahead) * ahead if ahead else 0.0
            ttft = max(0.0, first + self.prefill.ttft_ms(isl) + step + self.correction.ttft_offset_ms)
        return Prediction(ttft_ms=ttft, itl_ms=itl, cost=self.cost(isl, osl, itl_target_ms))

    def cost(self, isl: float, osl: float, itl_target_ms: float) -> float:
        """What the request takes of a replica, in money."""
        busy_ms = 0.0
        if self.prefill is not None and self.role != "decode":
            busy_ms += self.prefill.ttft_ms(isl)
        if self.role != "prefill":
            busy_ms += osl * self.token_ms(isl + osl / 2.0, itl_target_ms)
        return busy_ms * self.price_per_ms

    def token_ms(self, context: float, itl_target_ms: float) -> float:
        """Replica milliseconds a token where as many sequences run as the ITL target allows; contexts within a few per cent
        are taken for one."""
        curve = self.decode
        if curve is None:
            return 0.0
        bucket = (round(CONTEXT_STEPS * log(max(context, 1.0))), itl_target_ms)
        known = self._token_ms.get(bucket)
        if known is None:
            context = exp(bucket[0] / CONTEXT_STEPS)
            one = context / curve.max_kv_tokens
            sequences = min(MAX_SEQUENCES, max(1.0, curve.max_kv_usage(itl_target_ms, context) / one))
            if len(self._token_ms) >= MAX_KNOWN:
                self._token_ms.clear()
            known = self._token_ms[bucket] = curve.itl_ms(sequences * one, context) / sequences
        return known

    def learn(self, predicted: Prediction, *, ttft_ms: float | None, itl_ms: float | None) -> None:
        """After an answer with these latencies where `predicted` was expected."""
        if self.role != "decode":
            self.correction = self.correction.with_ttft(observed_ms=ttft_ms, expected_ms=predicted.ttft_ms, sla_ms=self._sla_ms)
        if self.role != "prefill":
            self.correction = self.correction.with_itl(observed_ms=itl_ms, expected_ms=predicted.itl_ms)


class AdaptiveStage:
    """The pools of one role, in the order in which a request should try them. `ready(pool)` are the endpoints that may be
    used now, `waiting(pool)` is what waits for them in the router."""

    def __init__(
        self,
        model: ModelConfig,
        role: Role,
        predictors: Mapping[str, Predictor],
        ready: Callable[[str], Sequence[Loaded]],
        waiting: Callable[[str], Waiting] = lambda pool: NOBODY,
    ) -> None:
        assert model.default_ttft_ms is not None and model.default_itl_ms is not None
        self._pools = model.role_pools(role)
        self._predictors = predictors
        self._ready = ready
        self._waiting = waiting
        self._ttft_ms = model.default_ttft_ms
        self._itl_ms = model.default_itl_ms

    def route(self, ask: Ask, load: Callable[[str], float]) -> tuple[str, ...]:
        """Every pool of the stage: first those that meet the targets, cheapest first; then those that miss them, least missed
        first; last those without an endpoint. Pools whose `isl_max_tokens` is too small come only where none is big enough.
        `load(pool)` decides between equals."""
        ttft_ms = ask.ttft_ms or self._ttft_ms
        itl_ms = ask.itl_ms or self._itl_ms
        pools = [pool for pool in self._pools if pool.isl_max_tokens is None or ask.isl_tokens <= pool.isl_max_tokens]
        if not pools:
            longest = max(pool.isl_max_tokens or 0 for pool in self._pools)
            pools = [pool for pool in self._pools if pool.isl_max_tokens == longest]
        ranked: list[tuple[tuple[float, ...], str]] = []
        for pool in pools:
            endpoints = self._ready(pool.name)
            if not endpoints:
                ranked.append(((2.0,), pool.name))
                continue
            ahead = self._waiting(pool.name)
            predicted = self._predictors[pool.name].predict(endpoints, ask.isl_tokens, ask.osl_tokens, itl_ms, ahead)
            excess = predicted.excess(ttft_ms, itl_ms)
            rank = (0.0, predicted.cost) if excess <= 1.0 else (1.0, excess)
            ranked.append(((*rank, load(pool.name)), pool.name))
        return tuple(name for _, name in sorted(ranked))
