"""What a planner remembers between two plans. Pure.

The records are frozen; the forecaster inside learns in place, so a state belongs to one chain of plans: use only the one
returned last (copy.deepcopy before, to branch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pool_planner.capacity import KnownCapacity
from pool_planner.config import PlannerConfig
from pool_planner.forecast import FitJob, PredictorOptions, Series, TrafficForecastConfig, TrafficForecaster
from pool_planner.performance.arrivals import Arrivals
from pool_planner.performance.correction import Correction
from pool_planner.performance.lengths import LengthHistory
from pool_planner.performance.priorities import PriorityMix
from pool_planner.performance.regression import Window
from pool_planner.scaling.settle import Memory
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.types import Forecast, Observation, PlannerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmBin:
    """Traffic of one forecast interval of a trace: requests, and their mean lengths (None: there were none)."""

    requests: float
    isl_tokens: float | None
    osl_tokens: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """Of one pool. `last_points`: each worker's last (load, latency) pair by kind, because a gauge that did not change says
    nothing new. `isl_seen`, `osl_seen`: requests whose lengths were seen.
    `calm_since_s`: the pool has been below overload with `calm_ready` ready replicas since. `numbers`,
    `verdicts` (see `report`) and `last_reason` are for showing."""

    forecaster: TrafficForecaster
    ttft: Window
    itl: Window
    correction: Correction
    arrivals: Arrivals = field(default_factory=Arrivals)
    isl: LengthHistory = field(default_factory=LengthHistory)
    osl: LengthHistory = field(default_factory=LengthHistory)
    isl_seen: float = 0.0
    osl_seen: float = 0.0
    priorities: PriorityMix = field(default_factory=PriorityMix)
    prefix_hit_rate: float | None = None
    memory: Memory = field(default_factory=Memory)
    last_points: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    calm_since_s: float | None = None
    calm_ready: int | None = None
    capacity: KnownCapacity | None = None
    observation: Observation | None = None
    forecast: Forecast | None = None
    last_reason: str = ""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerState:
    """Of all pools of a planner, by name."""

    pools: Mapping[str, PoolState]


def start(setup: PlannerSetup, *, now: float = 0.0, warmup: Mapping[str, Sequence[WarmBin]] | None = None) -> PlannerState:
    """The state of a planner that has seen nothing, except the bins of `warmup` (by pool, oldest first), which are taken as
    the intervals right before `now`."""
    return PlannerState(
        pools={pool.name: _fresh(pool, setup.config, now, (warmup or {}).get(pool.name, ())) for pool in setup.pools}
    )


def _fresh(pool: PoolSetup, config: PlannerConfig, now: float, warmup: Sequence[WarmBin]) -> PoolState:
    interval_s = float(config.throughput_adjustment_interval)
    forecaster = TrafficForecaster(
        TrafficForecastConfig(
            interval_s=interval_s,
            predictor=config.load_predictor,
            options=PredictorOptions(
                log1p=config.load_predictor_log1p,
                prophet_window_size=config.prophet_window_size,
                kalman_q_level=config.kalman_q_level,
                kalman_q_trend=config.kalman_q_trend,
                kalman_r=config.kalman_r,
                kalman_min_points=config.kalman_min_points,
            ),
            isl_fallback_tokens=pool.expected_isl(config.extensions.isl_until_known),
            # A prefill pool generates one token and never sees how many follow.
            osl_fallback_tokens=1.0 if pool.role == "prefill" else config.extensions.osl_until_known,
        )
    )
    for index, each in enumerate(warmup):
        at_s = now - (len(warmup) - 1 - index) * interval_s
        forecaster.learn(each.requests, each.isl_tokens, each.osl_tokens, at_s=at_s, interval_s=interval_s)
    return PoolState(
        forecaster=forecaster,
        ttft=Window(size=config.load_learning_window),
        itl=Window(size=config.load_learning_window),
        correction=Correction(ttft_offset_ms=pool.ttft_offset_ms),
    )


def fit_jobs(state: PlannerState) -> tuple[tuple[str, Series, FitJob], ...]:
    """Fits worth running off the loop now: (pool, series, job). Bring each result back with `fitted`."""
    return tuple((name, series, job) for name, pool in state.pools.items() for series, job in pool.forecaster.fit_jobs())


def fitted(state: PlannerState, pool: str, series: Series, result: Any, *, now: float) -> PlannerState:
    """The state after the result of a fit, an event like any other: it has a time, so that a recorded run replays."""
    state.pools[pool].forecaster.fitted(series, result, at_s=now)
    return state


def statuses(state: PlannerState, *, now: float) -> tuple[PlannerStatus, ...]:
    """What the planner shows of itself, for each pool."""
    return tuple(
        PlannerStatus(
            pool=name,
            at_s=now,
            observation=pool.observation,
            forecast=pool.forecast,
            last_reason=pool.last_reason,
            numbers=pool.numbers,
        )
        for name, pool in state.pools.items()
    )
