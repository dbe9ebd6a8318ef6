"""What a replay amounts to: the numbers of `summary.json`, by policy. Pure. Shares are of all offered requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from global_planner.compile import planner_setups_of
from global_planner.config import GroupConfig
from global_planner.replay.arrivals import Workload
from global_planner.replay.needs import PoolLoad, capacity_of, pool_loads, setups_by_pool
from global_planner.replay.scenario import Outcome
from global_planner.replay.scores import OverTime, Score, quantile_s
from global_planner.replay.timeline import Timeline
from pool_planner.performance.profile import Profile
from pool_planner.setup import PoolSetup

Numbers = dict[str, object]
QUANTILES = (0.5, 0.95, 0.99)
SMOOTH = 100.0  # requests: chance moves a count of so many by a tenth


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


# ---- which of a proposal's two curves is true --------------------------------------------------------------------------------


def curve_check(outcome: Outcome, group: GroupConfig, over_time: OverTime) -> Numbers:
    """What the proposals said of the replicas that were ready, with and without admission, against what requests attained;
    means over requests. A path attains the minimum of its stages. None where nothing was said.

    With admission that is a rate: what is short of the load that was planned for carries so many requests/s of what came, which
    is less, because planners plan for the upper end of what may come and for what waits. Without admission it is the share
    at the planned load: what a cliff is at another load cannot be told from there."""
    timeline = outcome.timeline
    at_s = np.asarray(timeline.at_s)
    if not at_s.size:
        return {"with_admission": None, "without_admission": None, "attained": None}
    bins = np.minimum((at_s / over_time.width_s).astype(np.int64), over_time.requests.size - 1)
    came_rps = _rates_that_came(over_time)[bins]
    said: dict[str, float | None] = {}
    known = np.zeros(at_s.size, dtype=bool)
    roles = {pool.role: [other.name for other in group.pools if other.role == pool.role] for pool in group.pools}
    for name, column in (("with_admission", "closed"), ("without_admission", "open")):
        shares, loads = zip(*(_said_of_stage(timeline, pools, column) for pools in roles.values()), strict=True)
        if column == "closed":
            shares = tuple(_of_what_came(share, load, came_rps) for share, load in zip(shares, loads, strict=True))
        attained = np.minimum.reduce(shares)
        known = np.isfinite(attained)
        weight = over_time.requests[bins][known]
        said[name] = float((attained[known] * weight).sum() / weight.sum()) if weight.sum() else None
    inside = np.unique(bins[known])
    requests = int(over_time.requests[inside].sum())
    return {**said, "attained": float(over_time.met[inside].sum() / requests) if requests else None}


def _rates_that_came(over_time: OverTime) -> np.ndarray:
    """Requests/s around each bin, counted over times in which SMOOTH requests come in the mean. In shorter ones chance makes
    peaks: what is above the capacity then counts as lost and what is below does not make up for it, though a pool whose
    requests stay for a minute feels neither."""
    total = over_time.requests.sum()
    together = max(1, math.ceil(SMOOTH * over_time.requests.size / total)) if total else 1
    around = np.ones(min(together | 1, 2 * over_time.requests.size - 1))
    middle = (around.size - 1) // 2
    counted = np.convolve(over_time.requests, around)[middle : middle + over_time.requests.size]
    bins = np.convolve(np.ones(over_time.requests.size), around)[middle : middle + over_time.requests.size]
    return np.asarray(counted / bins / over_time.width_s)


def _said_of_stage(timeline: Timeline, pools: Sequence[str], column: str) -> tuple[np.ndarray, np.ndarray]:
    """The load-weighted mean of a stage's pools, by round, and their load; NaN where none said anything. An idle pool starves
    nobody."""
    loads = np.array([np.nan_to_num(np.asarray(timeline.pools[pool]["load_rps"])) for pool in pools])
    shares = np.array([np.asarray(timeline.pools[pool][column]) for pool in pools])
    whole = loads.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(whole > 0.0, np.nansum(loads * shares, axis=0) / whole, np.nan)), whole


def _of_what_came(share: np.ndarray, planned_rps: np.ndarray, came_rps: np.ndarray) -> np.ndarray:
    """The share of what came that is carried where `share` of what was planned for would be; who carries all of that is not
    known to be short of anything."""
    with np.errstate(divide="ignore", invalid="ignore"):
        carried = np.where(came_rps > 0.0, share * planned_rps / came_rps, 1.0)
    return np.asarray(np.where(share < 1.0, np.minimum(1.0, carried), share))


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
