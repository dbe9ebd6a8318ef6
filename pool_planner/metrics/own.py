"""What a planner exposes of itself, as Prometheus text. Pure; `serve` answers it over HTTP.

`global_planner_pool_*` has one series a pool; `dynamo_planner_*` are the names that existing dashboards read, which tell
prefill from decode by name, so pools of one role are summed (counts) or taken together at the worst (latencies).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pool_planner.metrics.text import CONTENT_TYPE, MetricsText
from pool_planner.report import VERDICTS
from pool_planner.scaling.load import prefill_load
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.state import PlannerState, PoolState
from pool_planner.types import Hold, Observation, Proposal, Report

__all__ = ["CONTENT_TYPE", "gauges_of", "render"]

_OWN = "global_planner_pool_"
_DYNAMO = "dynamo_planner_"

# name of PoolState.numbers -> what it is
_NUMBERS: Mapping[str, str] = {
    "planned_rps": "Load planned for, requests/s.",
    "forecast_rps": "Forecast load at the horizon, requests/s.",
    "forecast_high_rps": "Its upper quantile, requests/s.",
    "forecast_age_s": "Age of the newest data behind the forecast, s.",
    "forecast_rmae": "Recent error of the forecast over that of repeating the last value; below 1 it earns its keep.",
    "forecast_wape": "Recent absolute error of the forecast over the volume.",
    "horizon_s": "How far ahead is planned, s.",
    "arrival_cv2": "Squared coefficient of variation of the times between arrivals.",
    "ttft_offset_ms": "What live TTFT corrects in the model, ms.",
    "itl_factor": "What live ITL corrects in the model.",
    "itl_slope": "Power of profiled ITL by which that correction varies.",
    "regression_slope_ttft": "TTFT that a prompt token in progress adds, ms.",
    "regression_limit_ttft": "Prompt tokens in progress at which a worker reaches the TTFT target.",
    "regression_slope_itl": "Time between tokens that an active block adds, ms.",
    "regression_limit_itl": "Active blocks at which a worker reaches the ITL target.",
    "regression_points_ttft": "Observations in the TTFT regression.",
    "regression_points_itl": "Observations in the ITL regression.",
    "capacity_one_rps": "What one replica alone carries within the SLA, requests/s.",
    "capacity_ready_rps": "What the ready replicas carry within the SLA, requests/s.",
    "cold_start_s": "Measured time from order to ready, s.",
}
# suffix -> field of Observation, what it is
_OBSERVED: Mapping[str, tuple[str, str]] = {
    "ttft_ms": ("ttft_ms", "Observed time to first token, ms."),
    "itl_ms": ("itl_ms", "Observed time between tokens, ms."),
    "request_duration_seconds": ("duration_s", "Observed request duration, s."),
    "input_sequence_tokens": ("isl_tokens", "Observed prompt length."),
    "output_sequence_tokens": ("osl_tokens", "Observed answer length."),
}


def render(setup: PlannerSetup, state: PlannerState, reports: Sequence[Report], *, now: float) -> str:
    """The exposition after a plan at `now`. What is unknown has no sample: an absent series is no zero."""
    text = MetricsText()
    by_pool = {report.pool: report for report in reports}
    rows = [(pool, state.pools[pool.name], by_pool.get(pool.name)) for pool in setup.pools]
    for pool, of_pool, report in rows:
        labels = {"pool": pool.name, "role": pool.role}
        numbers = {} if isinstance(report, Hold) else of_pool.numbers
        gauges_of(text, labels, numbers=numbers, seen=of_pool.observation, now=now)
        if isinstance(report, Proposal):
            text.gauge(_OWN + "wanted", "Replicas wanted.", labels, float(report.wanted))
            for name, replicas in (("throughput_floor", report.predicted_replicas), ("load_wanted", report.load_replicas)):
                about = f"Replicas that {name.split('_')[0]}-based scaling asks for."
                text.gauge(_OWN + name, about, labels, None if replicas is None else float(replicas))
        if report is not None:
            said = {**of_pool.verdicts, "outcome": "hold"} if isinstance(report, Hold) else of_pool.verdicts
            for part, word in said.items():
                for each in VERDICTS[part]:
                    about = f"What {part} came to in the last plan."
                    text.gauge(f"{_OWN}verdict_{part}", about, {**labels, "verdict": each}, float(each == word))
    _dynamo(text, rows)
    return text.done()


def gauges_of(
    text: MetricsText, labels: Mapping[str, str], *, numbers: Mapping[str, float], seen: Observation | None, now: float
) -> None:
    """What a planner knows of one pool: its `numbers`, and what it has `seen` last. The arbiter shows the same of every planner
    that reports to it, so one scrape has it all."""
    for name, about in _NUMBERS.items():
        text.gauge(_OWN + name, about, labels, numbers.get(name))
    for name, (field, about) in _OBSERVED.items():
        text.gauge(f"{_OWN}observed_{name}", about, labels, _field(seen, field))
    text.gauge(_OWN + "observed_rps", "Observed arrivals, requests/s.", labels, _arrivals(seen))
    if seen is not None:
        text.gauge(_OWN + "observation_age_s", "Age of the last observation, s.", labels, now - seen.at_s)


def _dynamo(text: MetricsText, rows: Sequence[tuple[PoolSetup, PoolState, Report | None]]) -> None:
    """Aggregated workers count as decode, as they do there."""
    for role in ("prefill", "decode"):
        mine = [(state, report) for pool, state, report in rows if (pool.role == "prefill") == (role == "prefill")]
        wanted = [float(r.wanted) for _, r in mine if isinstance(r, Proposal)]
        ready = [s.numbers["ready"] for s, _ in mine if "ready" in s.numbers]
        text.gauge(f"{_DYNAMO}num_{role}_replicas", f"Ready {role} replicas.", {}, sum(ready) if ready else None)
        about = f"Decided number of {role} replicas."
        text.gauge(f"{_DYNAMO}predicted_num_{role}_replicas", about, {}, sum(wanted) if wanted else None)
        ones = [s.numbers["capacity_one_rps"] for s, _ in mine if "capacity_one_rps" in s.numbers]
        about = f"What one {role} replica carries within the SLA, requests/s."
        text.gauge(f"{_DYNAMO}engine_{role}_capacity_requests_per_second", about, {}, min(ones, default=None))
    kinds: tuple[tuple[Literal["ttft", "itl"], str], ...] = (("ttft", "decode"), ("itl", "prefill"))
    for kind, without in kinds:
        targets = [pool.ttft_ms if kind == "ttft" else pool.itl_ms for pool, _, _ in rows if pool.role != without]
        text.gauge(f"{_DYNAMO}sla_target_{kind}_ms", f"Target of {kind.upper()}, ms.", {}, min(targets, default=None))
        told = [each for _, state, _ in rows if (each := _estimated(state, kind)) is not None]
        about = f"{kind.upper()} of the fullest worker by the regression, ms."
        text.gauge(f"{_DYNAMO}estimated_{kind}_ms", about, {}, max(told, default=None))
    states = [state for _, state, _ in rows]
    for name, (field, about) in _OBSERVED.items():
        values = [value for state in states if (value := _field(state.observation, field)) is not None]
        text.gauge(f"{_DYNAMO}observed_{name}", about, {}, max(values, default=None))
    rates = [rate for state in states if (rate := _arrivals(state.observation)) is not None]
    text.gauge(_DYNAMO + "observed_requests_per_second", "Observed requests/s.", {}, max(rates, default=None))
    forecasts = [state.forecast for state in states if state.forecast is not None]
    for name, field in (
        ("requests_per_second", "requests_per_s"),
        ("input_sequence_tokens", "isl_tokens"),
        ("output_sequence_tokens", "osl_tokens"),
    ):
        values = [getattr(forecast, field) for forecast in forecasts]
        text.gauge(f"{_DYNAMO}predicted_{name}", "Forecast for the next interval.", {}, max(values, default=None))


def _estimated(state: PoolState, kind: Literal["ttft", "itl"]) -> float | None:
    """What the regression says of the fullest worker; None where it has seen nothing, or no worker tells its load."""
    line = (state.ttft if kind == "ttft" else state.itl).line()
    workers = (state.observation.workers if state.observation is not None else None) or ()
    loads = [prefill_load(worker) if kind == "ttft" else worker.active_decode_blocks for worker in workers]
    known = [load for load in loads if load is not None]
    return line.intercept + line.slope * max(known) if line is not None and known else None


def _field(seen: Observation | None, field: str) -> float | None:
    value: float | None = None if seen is None else getattr(seen, field)
    return value


def _arrivals(seen: Observation | None) -> float | None:
    return None if seen is None or seen.requests is None or seen.interval_s <= 0 else seen.requests / seen.interval_s
