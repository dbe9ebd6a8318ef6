"""What one observation teaches: traffic, lengths, arrivals, the load regression, the correction. Pure.

Also what makes an observation unusable: unknown is a value, and the reason for it a sentence.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pool_planner.config import PlannerConfig
from pool_planner.performance.correction import Correction
from pool_planner.performance.expected import expected
from pool_planner.performance.priorities import HALF_LIFE_S
from pool_planner.performance.work import Engine, Shape
from pool_planner.scaling.load import load_points
from pool_planner.setup import PoolSetup
from pool_planner.state import PoolState
from pool_planner.types import Grant, Histogram, Observation

STALE_TICKS = 2.5  # an observation older than this many ticks says nothing about now
_NUMBERS = (
    *("requests", "completed", "shed", "queued_requests", "queued_tokens"),
    *("isl_tokens", "osl_tokens", "ttft_ms", "itl_ms", "duration_s", "prefix_hit_rate"),
)
CALM = 0.75  # utilisation above which latencies tell about the queue, not about the engine
CALM_STAYS = 2.0  # a pool must have been calm, with the same replicas, for this many stays of a request


def clean(observation: Observation) -> Observation:
    """`observation` with every number that is not finite or below 0 made unknown, so that none of them goes further."""
    wrong: dict[str, Any] = {
        name: None
        for name in _NUMBERS
        if (value := getattr(observation, name)) is not None and not (math.isfinite(value) and value >= 0.0)
    }
    by_priority = observation.requests_by_priority
    if by_priority is not None and not all(math.isfinite(count) and count >= 0.0 for count in by_priority.values()):
        wrong["requests_by_priority"] = None
    return replace(observation, **wrong) if wrong else observation


def why_unknown(observation: Observation | None, *, now: float, config: PlannerConfig) -> str | None:
    """Why nothing can be decided on `observation` (a clean one), or None when it is fresh and complete enough. Load-based
    scaling alone can do without the traffic where it knows the workers."""
    tick_s = config.tick_s
    if observation is None:
        return "no observation"
    age_s = now - observation.at_s
    if age_s > STALE_TICKS * tick_s:
        return f"the last observation is {age_s:.0f} s old"
    if observation.requests is None and (config.enable_throughput_scaling or not observation.workers):
        return "the number of requests is unknown"
    if observation.front_door_up is not True and not observation.requests:
        return "no request was seen, and the front door is not known to be up: silence is not idleness"
    if not observation.interval_s > 0.0 or not math.isfinite(observation.interval_s):
        return f"the observed interval is {observation.interval_s} s"
    return None


def offered(observation: Observation, *, arrivals: bool) -> float | None:
    """Requests that count as demand: arrivals, or completions as the guide has it."""
    return observation.requests if arrivals else observation.completed


def is_new(state: PoolState, observation: Observation) -> bool:
    """Whether `observation` is later than what was learned last; the same one twice teaches nothing."""
    return state.observation is None or observation.at_s > state.observation.at_s


def learn(state: PoolState, observation: Observation, pool: PoolSetup, config: PlannerConfig) -> PoolState:
    """The state after `observation`."""
    if not is_new(state, observation):
        return state
    requests = offered(observation, arrivals=config.extensions.offered_load)
    partial = observation.front_door_up is not True
    state.forecaster.learn(
        None if partial else requests,
        observation.isl_tokens,
        observation.osl_tokens if pool.role != "prefill" else None,
        at_s=observation.at_s,
        interval_s=observation.interval_s,
        uncached=_uncached(observation) if config.extensions.uncached_tokens and pool.role != "decode" else None,
    )
    arrivals = state.arrivals
    if partial or requests is None or (state.observation is not None and state.observation.front_door_up is not True):
        arrivals = arrivals.gap()  # a part of the traffic does not compare with all of it
    state = replace(
        state,
        observation=observation,
        arrivals=arrivals if requests is None else arrivals.after(observation.interval_s, requests),
        isl=state.isl.learn(observation.isl_histogram, observation.at_s, observation.isl_tokens),
        osl=state.osl.learn(observation.osl_histogram, observation.at_s, observation.osl_tokens),
        isl_seen=state.isl_seen + _with_length(observation.isl_tokens, observation.isl_histogram, observation),
        osl_seen=state.osl_seen + _with_length(observation.osl_tokens, observation.osl_histogram, observation),
        priorities=state.priorities.learn(observation.requests_by_priority, observation.interval_s),
        prefix_hit_rate=_followed(state.prefix_hit_rate, observation.prefix_hit_rate, observation.interval_s),
    )
    if config.enable_load_scaling:
        state = _regress(state, observation, pool)
    return state


def _uncached(observation: Observation) -> float | None:
    """Mean prompt tokens that no prefix cache had."""
    if observation.isl_tokens is None or observation.prefix_hit_rate is None:
        return None
    return observation.isl_tokens * max(0.0, 1.0 - observation.prefix_hit_rate)


def _followed(known: float | None, seen: float | None, interval_s: float) -> float | None:
    """An average that forgets half of what it was every `HALF_LIFE_S`; what is not seen changes nothing."""
    if seen is None or known is None:
        return known if seen is None else seen
    kept = math.pow(0.5, interval_s / HALF_LIFE_S)
    return seen + (known - seen) * kept


def _with_length(mean_tokens: float | None, histogram: Histogram | None, observation: Observation) -> float:
    """How many requests of the interval a mean length is about; at least one. Prompts are counted when they come, answers when
    they end, so what counted them knows best."""
    if mean_tokens is None:
        return 0.0
    if histogram is not None:
        return max(1.0, sum(count for count in histogram.counts if math.isfinite(count)))
    counted = observation.completed if observation.completed is not None else observation.requests
    return max(1.0, counted or 0.0)


def _regress(state: PoolState, observation: Observation, pool: PoolSetup) -> PoolState:
    """One point for each worker whose gauges moved since the last one."""
    last = dict(state.last_points)
    windows = {"ttft": state.ttft, "itl": state.itl}
    for kind, roles in (("ttft", ("prefill", "agg")), ("itl", ("decode", "agg"))):
        if pool.role not in roles:
            continue
        points = load_points(observation.workers or (), "ttft" if kind == "ttft" else "itl")
        for worker, point in points.items():
            if last.get(f"{kind}:{worker}") != point:
                windows[kind] = windows[kind].with_point(*point)
        last.update({f"{kind}:{worker}": point for worker, point in points.items()})
    alive = {f"{kind}:{worker.worker_id}" for worker in observation.workers or () for kind in windows}
    return replace(
        state, ttft=windows["ttft"], itl=windows["itl"], last_points={key: last[key] for key in last if key in alive}
    )


def correct(
    state: PoolState, observation: Observation, grant: Grant | None, engine: Engine, shape: Shape, config: PlannerConfig
) -> PoolState:
    """The state with what the observed latencies correct in the model (nothing with `no_correction`)."""
    ready = grant.replicas_ready if grant is not None else None
    if config.no_correction or not ready or not observation.requests:
        return state
    if not config.extensions.queueing:
        return replace(state, correction=_ratios(state, observation, ready, engine))
    stay_s = _stay_s(observation)
    # Who is in the pool now came during a whole stay, not only during the last interval.
    over_s = max(stay_s, observation.interval_s)
    rate_rps = state.arrivals.mean_rps(over_s) or observation.requests / observation.interval_s
    model = expected(engine, shape, state.correction, rate_rps=rate_rps, ready=ready)
    queued = (observation.queued_requests or 0.0) > 0.0  # the wait at the door is part of TTFT, and no engine's doing
    calm_since = state.calm_since_s if state.calm_ready == ready else None
    if observation.shed or queued or model.utilisation > CALM:
        calm_since = None
    elif calm_since is None:
        calm_since = observation.at_s
    state = replace(state, calm_since_s=calm_since, calm_ready=ready)
    if calm_since is None or observation.at_s - calm_since < CALM_STAYS * stay_s:
        return state
    correction = state.correction
    if engine.role != "decode":
        correction = correction.with_ttft(observed_ms=observation.ttft_ms, expected_ms=model.ttft_ms, sla_ms=engine.ttft_ms)
    if engine.role != "prefill":
        noise = math.sqrt(state.arrivals.cv2 / max(1.0, rate_rps * over_s))
        correction = correction.with_itl(observed_ms=observation.itl_ms, expected_ms=model.itl_ms, load_noise=noise)
    return replace(state, correction=correction)


def _stay_s(observation: Observation) -> float:
    """How long a request is in the pool (s): its latencies tell of that long ago."""
    if observation.duration_s is not None:
        return observation.duration_s
    return (observation.ttft_ms or 0.0) / 1e3 + (observation.osl_tokens or 0.0) * (observation.itl_ms or 0.0) / 1e3


def _ratios(state: PoolState, observation: Observation, ready: int, engine: Engine) -> Correction:
    """The guide's factors: TTFT over the profile's at this ISL; ITL over the profile's at the concurrency of a replica
    (requests in flight by Little's law) and the mean context."""
    isl, osl = observation.isl_tokens, observation.osl_tokens
    ttft_ms = itl_ms = None
    if engine.prefill is not None and isl is not None:
        ttft_ms = engine.prefill.ttft_ms(isl)
    if engine.decode is not None and isl is not None and osl is not None and observation.duration_s is not None:
        assert observation.requests is not None
        running = observation.requests / ready * observation.duration_s / observation.interval_s
        context = isl + osl / 2.0
        itl_ms = engine.decode.itl_ms(min(1.0, running * context / engine.decode.max_kv_tokens), context)
    return state.correction.with_ratios(
        ttft_ms=observation.ttft_ms, profiled_ttft_ms=ttft_ms, itl_ms=observation.itl_ms, profiled_itl_ms=itl_ms
    )
