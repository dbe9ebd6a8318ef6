"""What a replay amounts to: the numbers of `summary.json`, by policy. Pure. Shares are of all offered requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from global_planner.compile import planner_setups_of
from global_planner.config import GroupConfig
from global_planner.replay.arrivals import Workload
from global_planner.replay.curve_check import curve_check
from global_planner.replay.needs import PoolLoad, capacity_of, pool_loads, setups_by_pool
from global_planner.replay.scenario import Outcome
from global_planner.replay.scores import Score, quantile_s
from pool_planner.performance.profile import Profile
from pool_planner.setup import PoolSetup

Numbers = dict[str, object]
QUANTILES = (0.5, 0.95, 0.99)


def summarise(outcome: Outcome, profiles: Mapping[str, Profile], workload: Workload) -> Numbers:
    """Everything about one policy's run."""
    total, hours = outcome.total(), outcome.window_s / 3600.0
    groups = outcome.topology.groups
    return {
        **score_numbers(total),
        "gpu_hours": sum(outcome.gpu_hours.values()),
        "cost": _cost(outcome),
        "moves": outcome.moves,
        "reconfigurations_per_hour": outcome.moves / hours if hours else 0.0,
        "replicas_added": outcome.grown,
        "replicas_removed": outcome.shrunk,
        "budget_violations": outcome.budget_violations,
        "half_granted_gpu_hours": half_granted_gpu_hours(outcome, profiles, workload),
        "jain_fairness": jain([outcome.of_model(group.model).attainment for group in groups]),
        "rounds": outcome.rounds,
        "gpu_types": {
            name: {
                "gpu_hours": value,
                "most_held": outcome.most_held.get(name, 0),
                "budget": outcome.topology.budget.gpus[name].max,
            }
            for name, value in outcome.gpu_hours.items()
        },
        "models": {group.model: _model(outcome, group) for group in groups},
        "pools": {pool.name: _pool(outcome, pool.name) for _, pool in outcome.topology.placed_pools()},
    }


def score_numbers(score: Score) -> Numbers:
    return {
        "requests": score.requests,
        "completed": score.completed,
        "shed": score.shed,
        "failed": score.failed,
        "retried": score.retried,
        "ttft_attainment": score.ttft_attainment,
        "itl_attainment": score.itl_attainment,
        "attainment": score.attainment,
        "violations": score.violations,
    }


def jain(values: Sequence[float | None]) -> float | None:
    """Jain's index of fairness: (sum x)^2 / (n sum x^2), 1 when all are alike; None without any.

    >>> jain([1.0, 1.0]), jain([1.0, 0.0])
    (1.0, 0.5)
    """
    known = [value for value in values if value is not None]
    squares = sum(value * value for value in known)
    return sum(known) ** 2 / (len(known) * squares) if squares else None


def _cost(outcome: Outcome) -> float | None:
    """GPU-hours at the budget's prices; None where a type that was used has none."""
    prices = {name: budget.price_per_hour for name, budget in outcome.topology.budget.gpus.items()}
    total = 0.0
    for name, hours in outcome.gpu_hours.items():
        price = prices[name]
        if price is None:
            return None
        total += hours * price
    return total


def _model(outcome: Outcome, group: GroupConfig) -> Numbers:
    over_time = outcome.over_time[group.model]
    return {
        **score_numbers(outcome.of_model(group.model)),
        "ttft_sla_ms": group.sla.ttft_ms,
        "itl_sla_ms": group.sla.itl_ms,
        **{f"ttft_ms_p{round(100 * share)}": _ms(over_time.ttft, share) for share in QUANTILES},
        **{f"itl_ms_p{round(100 * share)}": _ms(over_time.itl, share) for share in QUANTILES},
        "priorities": {str(priority): score_numbers(score) for priority, score in outcome.scores[group.model].items()},
        "curves": curve_check(outcome, group, over_time),
    }


def _ms(counts: np.ndarray, share: float) -> float | None:
    value = quantile_s(counts.sum(axis=0), share)
    return None if value is None else 1e3 * value


def _pool(outcome: Outcome, pool: str) -> Numbers:
    columns, at_s = outcome.timeline.pools[pool], np.asarray(outcome.timeline.at_s)
    lasts = np.diff(np.append(at_s, max(outcome.window_s, float(at_s[-1]) if at_s.size else 0.0)))
    gpus, ready = np.asarray(columns["charged_gpus"]), np.asarray(columns["ready"])
    whole = float(lasts.sum())
    return {
        "gpu_hours": float((gpus * lasts).sum()) / 3600.0,
        "mean_ready": float((ready * lasts).sum()) / whole if whole else 0.0,
        "most_ready": int(ready.max(initial=0)),
        "ejections": outcome.ejections[pool],
    }


# ---- capacity of one stage that the other cannot use
# --------------------------------------------------------------------------


def half_granted_gpu_hours(outcome: Outcome, profiles: Mapping[str, Profile], workload: Workload) -> float:
    """GPU-hours of ready replicas of a stage beyond what the group's weakest stage lets it use, while the group attains less
    than its load: half grants. Capacity is the planners' model of the pool's whole workload, load what came in each round;
    minima do not count."""
    setups = setups_by_pool(planner_setups_of(outcome.topology, profiles))
    loads = pool_loads(outcome.topology, workload)
    timeline = outcome.timeline
    at_s = np.append(np.asarray(timeline.at_s), outcome.window_s)
    total = 0.0
    for group in outcome.topology.groups:
        roles = {pool.role for pool in group.pools}
        if len(at_s) < 2 or roles != {"prefill", "decode"}:
            continue
        stages: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]] = {"prefill": [], "decode": []}
        for pool in group.pools:
            rate, capacity = _rates(loads[pool.name], at_s), _capacity(setups[pool.name], loads[pool.name])
            if capacity is not None:
                ready = np.asarray(timeline.pools[pool.name]["ready"]).astype(np.int64)
                stages[pool.role].append((rate, capacity, ready, float(pool.gpus_per_replica)))
        attained = np.minimum.reduce([_stage_attains(parts) for parts in stages.values()])
        for pool, (rate, capacity, ready, gpus) in zip(
            [pool for role in stages for pool in group.pools if pool.role == role and loads[pool.name].at_s.size],
            [part for parts in stages.values() for part in parts],
            strict=True,
        ):
            useful = np.maximum(
                np.searchsorted(capacity, attained * rate * (1.0 - 1e-9), side="left"), setups[pool.name].min_replicas
            )
            idle = np.where(attained < 1.0, np.maximum(0, ready - useful), 0)
            total += float((idle * np.diff(at_s)).sum()) * gpus / 3600.0
    return total


def _rates(load: PoolLoad, at_s: np.ndarray) -> np.ndarray:
    counts = np.diff(np.searchsorted(load.at_s, at_s, side="left"))
    return counts / np.maximum(np.diff(at_s), 1e-9)


def _capacity(setup: PoolSetup, load: PoolLoad) -> np.ndarray | None:
    engine = setup.engine
    return None if engine is None or load.at_s.size == 0 else np.asarray(capacity_of(engine, load.shape(), setup).rps)


def _stage_attains(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """The load-weighted mean of a stage's pools, by round."""
    carried = sum(np.minimum(rate, capacity[np.minimum(ready, capacity.size - 1)]) for rate, capacity, ready, _ in parts)
    offered = sum(rate for rate, *_ in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(np.asarray(offered) > 0.0, np.asarray(carried) / np.asarray(offered), 1.0)
    return np.minimum(1.0, share)


def plain(value: object) -> object:
    """For JSON: numbers rounded to 9 significant digits (what comes after differs between machines), NaN as null."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
