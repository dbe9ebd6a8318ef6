"""What a plan says: proposals with their curves, holds with their reasons, and the numbers behind them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pool_planner.config import PlannerConfig
from pool_planner.expectation import Expectation
from pool_planner.performance.demand import HEADROOM, Capacity
from pool_planner.performance.priorities import PriorityMix
from pool_planner.scaling.limits import Want, fit_to_gpus
from pool_planner.scaling.load import LoadNeed
from pool_planner.scaling.throughput import Need
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.state import PoolState
from pool_planner.types import DemandCurve, Grant, Hold, Proposal, Report

VALID_TICKS = 3  # a report outlives two that are lost
VALID_AT_LEAST_S = 30.0


def proposal(
    pool: PoolSetup,
    config: PlannerConfig,
    now: float,
    *,
    wanted: int,
    reasons: Sequence[str],
    capacity: Capacity | None = None,
    expectation: Expectation | None = None,
    throughput: Need | None = None,
    load: LoadNeed | None = None,
    observed_rps: float = 0.0,
    lately_rps: float | None = None,
    idle: bool = False,
    priorities: PriorityMix | None = None,
    prefix_hit_rate: float | None = None,
) -> Proposal:
    """The report of a pool that is known. Without a model, or when idle (`idle`), there is no curve: then `wanted` says all.
    `lately_rps`: see `Arrivals.counted_rps`."""
    curve: DemandCurve | None = None
    headroom: tuple[float, ...] | None = None
    load_rps = observed_rps
    if capacity is not None and expectation is not None and not idle:
        load_rps = expectation.load_rps
        curve, headroom = capacity.curve(load_rps, lately_rps), capacity.attainment(HEADROOM * load_rps)
        if load is not None and load.verdict == "up" and load.replicas is not None:
            # Live load shows that fewer do not suffice, whatever the profile says.
            curve = replace(curve, attainment=_scaled(curve.attainment, load.replicas))
            headroom = _scaled(headroom, load.replicas)
    return Proposal(
        pool=pool.name,
        at_s=now,
        expires_at_s=_expiry(config, now),
        load_rps=load_rps,
        wanted=wanted,
        curve=curve,
        attainment_headroom=headroom,
        predicted_replicas=throughput.replicas if throughput is not None else None,
        load_replicas=load.replicas if load is not None else None,
        forecast=expectation.forecast if expectation is not None else None,
        reasons=tuple(reasons),
        load_by_priority=None if priorities is None else priorities.split(load_rps),
        prefix_hit_rate=prefix_hit_rate,
        expected_rps=None if curve is None or expectation is None else expectation.expected_rps,
    )


def _scaled(values: tuple[float, ...], replicas: int) -> tuple[float, ...]:
    return tuple(min(value, n / replicas) if n < replicas else value for n, value in enumerate(values))


def within_gpus(reports: Sequence[Report], setup: PlannerSetup) -> list[Report]:
    """The proposals fitted to the planner's own GPU limits; pools on hold keep theirs out of it."""
    sizes = {pool.name: pool for pool in setup.pools}
    wants = [
        Want(
            pool=report.pool,
            replicas=report.wanted,
            gpus_per_replica=sizes[report.pool].gpus_per_replica,
            least=sizes[report.pool].min_replicas,
            most=sizes[report.pool].max_replicas,
        )
        for report in reports
        if isinstance(report, Proposal)
    ]
    given, reason = fit_to_gpus(wants, most=setup.max_gpus, least=setup.min_gpus)
    return [
        replace(report, wanted=given[report.pool], reasons=(reason, *report.reasons))
        if reason is not None and isinstance(report, Proposal) and given[report.pool] != report.wanted
        else report
        for report in reports
    ]


def advice(report: Report) -> Report:
    if isinstance(report, Hold):
        return report
    reason = "; ".join((f"no_operation: would run {report.wanted} replicas", *report.reasons))
    return Hold(pool=report.pool, at_s=report.at_s, reason=reason, expires_at_s=report.expires_at_s)


def hold(pool: PoolSetup, config: PlannerConfig, now: float, reason: str) -> Hold:
    return Hold(pool=pool.name, at_s=now, reason=reason, expires_at_s=_expiry(config, now))


def _expiry(config: PlannerConfig, now: float) -> float:
    return now + max(VALID_AT_LEAST_S, VALID_TICKS * config.tick_s)


def numbers(
    pool: PoolSetup, state: PoolState, grant: Grant | None, capacity: Capacity | None, report: Proposal
) -> dict[str, float]:
    """What is worth plotting beside the report itself."""
    numbers: dict[str, float] = {
        "wanted": float(report.wanted),
        "planned_rps": report.load_rps,
        "arrival_cv2": state.arrivals.cv2,
        "ttft_offset_ms": state.correction.ttft_offset_ms,
        "itl_factor": state.correction.itl_factor,
        "itl_slope": state.correction.itl_slope,
        "regression_points_ttft": float(len(state.ttft.points)),
        "regression_points_itl": float(len(state.itl.points)),
    }
    for kind, window, sla_ms in (("ttft", state.ttft, pool.ttft_ms), ("itl", state.itl, pool.itl_ms)):
        line = window.line()
        if line is not None:
            numbers[f"regression_slope_{kind}"] = line.slope
            limit = line.load_at(sla_ms)
            numbers |= {} if limit is None else {f"regression_limit_{kind}": limit}
    if report.forecast is not None:
        numbers |= {
            "horizon_s": report.forecast.horizon_s,
            "forecast_rps": report.forecast.requests_per_s,
            "forecast_high_rps": report.forecast.requests_per_s_high,
            "forecast_age_s": report.forecast.age_s,
        }
        for score in state.forecaster.accuracy()["requests"][:1]:
            numbers |= {} if score.rmae is None else {"forecast_rmae": score.rmae}
            numbers |= {} if score.wape is None else {"forecast_wape": score.wape}
    if grant is not None and grant.cold_start_s is not None:
        numbers["cold_start_s"] = grant.cold_start_s
    if grant is not None and grant.replicas_ready is not None:
        numbers["ready"] = float(grant.replicas_ready)
        if capacity is not None:
            numbers["capacity_one_rps"] = capacity.rps[min(1, len(capacity.rps) - 1)]
            numbers["capacity_ready_rps"] = capacity.rps[min(grant.replicas_ready, len(capacity.rps) - 1)]
    return numbers


# What each part of a decision came to, in words of a fixed set: for metrics, which cannot carry sentences.
VERDICTS: Mapping[str, tuple[str, ...]] = {
    "throughput": ("off", "minimum", "covered", "short"),
    "load": ("off", "unknown", "up", "stay", "down"),
    "outcome": ("hold", "raise", "keep", "lower"),
}


def verdicts(
    pool: PoolSetup, before: int | None, wanted: int, throughput: Need | None, load: LoadNeed | None
) -> dict[str, str]:
    """One of VERDICTS for each part; `before`: wanted by the plan before this one."""
    by_forecast = "off"
    if throughput is not None:
        by_forecast = "short" if throughput.short else "minimum" if throughput.replicas <= pool.min_replicas else "covered"
    outcome = "keep" if before is None or wanted == before else "raise" if wanted > before else "lower"
    return {"throughput": by_forecast, "load": "off" if load is None else load.verdict, "outcome": outcome}
