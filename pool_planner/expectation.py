"""What a pool plans for: the load up to its horizon (`planned_load`), what waits already, and what requests are like. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pool_planner.config import PlannerConfig
from pool_planner.performance.lengths import LengthMix
from pool_planner.performance.work import Shape
from pool_planner.planned_load import planned_load
from pool_planner.setup import PoolSetup
from pool_planner.state import PoolState
from pool_planner.types import Forecast, Grant, Observation

PRIOR_REQUESTS = 5.0  # weight of the lengths that the configuration expects, in requests
LENGTHS_S = 300.0  # over so long it is counted how many requests a forecast of their lengths is about
LOST = 0.6  # of what was expected: a share of hits below it is a cache that is gone, above it noise
MOST_CACHED = 0.95  # whatever the caches say now: a new replica begins with an empty one
LEAST_PATIENCE = 0.1  # of the TTFT target, where prefill alone takes nearly all of it
FULL = 0.9  # of the places in engines: above it, whoever comes waits
DEFAULT_QUANTILE = 0.9  # what a forecast is asked for when planning reads its mean only


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """`load_rps` is planned for, `expected_rps` of it comes in the mean; `forecast` is the one at the horizon; `reasons` say
    what else made the load."""

    load_rps: float
    expected_rps: float
    forecast: Forecast
    shape: Shape
    reasons: tuple[str, ...]


def horizon_s(pool: PoolSetup, grant: Grant | None, config: PlannerConfig) -> float:
    """How far ahead to look (s): replicas ordered now serve after a cold start, and the next decision is a tick away."""
    interval_s = float(config.throughput_adjustment_interval)
    if not config.extensions.cover_cold_start:
        return interval_s
    measured = grant.cold_start_s if grant is not None else None
    return max(interval_s, (measured if measured is not None else pool.cold_start_s) + config.tick_s)


def expect(
    state: PoolState, observation: Observation, grant: Grant | None, pool: PoolSetup, config: PlannerConfig, now: float
) -> Expectation | None:
    """None while nothing is known that could be expected to go on."""
    extensions = config.extensions
    interval_s = float(config.throughput_adjustment_interval)
    reach_s = horizon_s(pool, grant, config)
    quantile = extensions.forecast_quantile
    horizons = sorted({interval_s, reach_s})
    forecasts = [
        state.forecaster.forecast(at_s=now, horizon_s=each, quantile=quantile or DEFAULT_QUANTILE) for each in horizons
    ]
    far = forecasts[-1] or _observed(state, observation, pool, config, now, reach_s)
    if far is None:
        return None
    planned = planned_load(state, [each for each in (*forecasts[:-1], far) if each is not None], grant, pool, config, reach_s)
    load, mean, reasons = planned.load_rps, planned.expected_rps, list(planned.reasons)
    prompt_tokens = far.isl_tokens
    if extensions.length_distribution:
        counted = interval_s * state.arrivals.mean_rps(max(LENGTHS_S, interval_s))  # requests of one interval
        far = replace(
            far,
            isl_tokens=_grounded(
                state.isl.steadied(far.isl_tokens, counted), state.isl_seen, pool.expected_isl(extensions.isl_until_known)
            ),
            osl_tokens=1.0
            if pool.role == "prefill"
            else _grounded(state.osl.steadied(far.osl_tokens, counted), state.osl_seen, extensions.osl_until_known),
        )
        isl, osl = state.isl.mix(far.isl_tokens), state.osl.mix(far.osl_tokens)
    else:
        isl, osl = LengthMix.of_mean(far.isl_tokens), LengthMix.of_mean(far.osl_tokens)
    cached = _cached(state, observation, prompt_tokens, now, reach_s) if extensions.uncached_tokens else 0.0
    if cached > 0.0 and pool.role != "decode":
        reasons.append(f"{cached:.0%} of the prompt tokens are found in prefix caches")
    shape = Shape(isl=isl, osl=osl, arrival_cv2=state.arrivals.cv2, cached=cached)
    if extensions.offered_load:
        # What an arrival within its SLA may find waiting is no backlog; the rest is to be worked off within one horizon,
        # which is when what is ordered now will serve.
        waiting = _waiting_outside(observation, shape, pool, config)
        backlog = waiting - load * _patience_s(shape, pool, config)
        if backlog > 1.0:
            by_tokens = bool(observation.queued_tokens) and extensions.pending_tokens and pool.role != "decode"
            told = f", with {observation.queued_tokens:.0f} prompt tokens" if by_tokens else ""
            reasons.append(f"{observation.queued_requests or waiting:.0f} requests wait{told}")
            load, mean = load + backlog / reach_s, mean + backlog / reach_s
    inside = _waiting_inside(observation, grant, pool) if extensions.offered_load else 0.0
    if inside > 1.0:
        reasons.append(f"{inside:.0f} requests wait in engines that are full")
        load, mean = load + inside / reach_s, mean + inside / reach_s
    return Expectation(load_rps=load, expected_rps=min(load, mean), forecast=far, shape=shape, reasons=tuple(reasons))


def _waiting_outside(observation: Observation, shape: Shape, pool: PoolSetup, config: PlannerConfig) -> float:
    """What waits at the router, in requests like those to come: by prompt tokens where these are the work, and where answers
    are work as well by what is more."""
    requests, tokens = observation.queued_requests or 0.0, observation.queued_tokens
    if not tokens or not config.extensions.pending_tokens or pool.role == "decode":
        return requests
    as_prompts = tokens / max(1.0, shape.isl.mean)
    return as_prompts if pool.role == "prefill" else max(requests, as_prompts)


def _patience_s(shape: Shape, pool: PoolSetup, config: PlannerConfig) -> float:
    """How long (s) a request may wait and still be on time: TTFT is the wait and then its own prefill."""
    sla_s, engine = pool.ttft_ms / 1e3, pool.engine
    if engine is None or engine.prefill is None or pool.role == "decode" or not config.extensions.queueing:
        return sla_s
    return max(LEAST_PATIENCE * sla_s, sla_s - engine.prefill.ttft_ms(shape.computed.mean) / 1e3)


def _cached(state: PoolState, observation: Observation, prompt_tokens: float, now: float, reach_s: float) -> float:
    """The share of prompt tokens that will need no prefill, as forecast; until that is known, as followed over time. A cache
    that has just been lost, with the replica that had it, is not planned with."""
    share, seen = state.prefix_hit_rate, observation.prefix_hit_rate
    if share is None:
        return 0.0
    uncached = state.forecaster.uncached_tokens(at_s=now, horizon_s=reach_s)
    if uncached is not None and prompt_tokens > 0.0:
        share = 1.0 - min(1.0, uncached / prompt_tokens)
    if seen is not None and seen < LOST * share:
        share = seen
    return min(MOST_CACHED, share)


def _grounded(forecast: float, seen: float, prior: float) -> float:
    """A mean length (tokens) after `seen` requests: the first ones are few, and the first answers to end are the short ones."""
    return max(1.0, (seen * forecast + PRIOR_REQUESTS * prior) / (seen + PRIOR_REQUESTS))


def _waiting_inside(observation: Observation, grant: Grant | None, pool: PoolSetup) -> float:
    """How many requests wait inside decoding engines for a place in their batch: neither the router's queue nor ITL shows it.

    By Little's law: those under way (rate x duration) beyond the places, where those that decode (rate x answer x ITL) take all
    of these; a duration that is long for another reason, as a slow prefill, leaves places free.
    """
    known = (observation.completed, observation.duration_s, observation.osl_tokens, observation.itl_ms)
    ready = grant.replicas_ready if grant is not None else None
    if pool.role == "prefill" or not ready or any(value is None for value in known):
        return 0.0
    completed, duration_s, osl, itl_ms = (float(value) for value in known if value is not None)
    rate, places = completed / observation.interval_s, float(ready * pool.max_num_seqs)
    if rate * osl * itl_ms / 1e3 < FULL * places:
        return 0.0
    return max(0.0, rate * duration_s - places)


def _observed(
    state: PoolState, observation: Observation, pool: PoolSetup, config: PlannerConfig, now: float, reach_s: float
) -> Forecast | None:
    """Before the first forecast interval is complete: what was observed of it goes on."""
    seconds = sum(interval for interval, _ in state.arrivals.recent)
    if seconds <= 0.0:
        return None
    rate = sum(count for _, count in state.arrivals.recent) / seconds
    isl, osl = observation.isl_tokens, observation.osl_tokens if pool.role != "prefill" else 1.0
    return Forecast(
        at_s=now,
        horizon_s=reach_s,
        requests_per_s=rate,
        requests_per_s_high=rate,
        quantile=config.extensions.forecast_quantile or DEFAULT_QUANTILE,
        isl_tokens=isl or pool.expected_isl(config.extensions.isl_until_known),
        osl_tokens=osl or config.extensions.osl_until_known,
        predictor="observed",
    )
