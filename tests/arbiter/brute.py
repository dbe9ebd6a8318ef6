"""The arbiter's dumb twin: tries every combination of replica counts. Shares no code with the real one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from global_planner.arbiter.state import ArbiterPolicy, Limit
from global_planner.types import PoolSpec, RoundInputs
from pool_planner.types import Proposal
from tests.arbiter.builders import AT_ONCE


@dataclass(frozen=True)
class Best:
    """Value of each priority class, from the highest, of the lexicographically best allocation."""

    by_class: tuple[float, ...]


def attained(pools: list[PoolSpec], proposals: Mapping[str, Proposal], counts: Mapping[str, int]) -> tuple[float, float]:
    """(load, served load) of one group."""
    load = served = 0.0
    for roles in (("prefill", "decode"), ("agg",)):
        stages = [[p for p in pools if p.role == role] for role in roles]
        stages = [stage for stage in stages if stage]
        if not stages:
            continue
        sums = [sum(proposals[p.name].load_rps for p in stage) for stage in stages]
        level = 1.0
        for stage, total in zip(stages, sums, strict=True):
            mean = 0.0
            for p in stage:
                curve = proposals[p.name].curve
                assert curve is not None
                share = proposals[p.name].load_rps / total if total > 0 else 1.0 / len(stage)
                mean += share * curve.attainment[min(counts[p.name], len(curve.attainment) - 1)]
            level = min(level, mean)
        load += max(sums)
        served += max(sums) * level
    return load, served


def served_by_class(inputs: RoundInputs, counts: Mapping[str, int]) -> tuple[float, ...]:
    proposals = {report.pool: report for report in inputs.reports if isinstance(report, Proposal)}
    ranks = sorted({group.priority_class for group in inputs.groups}, reverse=True)
    total = dict.fromkeys(ranks, 0.0)
    for group in inputs.groups:
        members = [pool for pool in inputs.pools if pool.group == group.name]
        total[group.priority_class] += group.weight * attained(members, proposals, counts)[1]
    return tuple(total[rank] for rank in ranks)


def lowest_attainment(inputs: RoundInputs, counts: Mapping[str, int]) -> float:
    proposals = {report.pool: report for report in inputs.reports if isinstance(report, Proposal)}
    lowest = 1.0
    for group in inputs.groups:
        members = [pool for pool in inputs.pools if pool.group == group.name]
        load, served = attained(members, proposals, counts)
        if load > 0:
            lowest = min(lowest, served / load)
    return lowest


def every_allocation(inputs: RoundInputs, policy: ArbiterPolicy) -> itertools.chain[dict[str, int]]:
    """All counts between minimum and what is wanted that fit the budget and the limits of the policy."""
    proposals = {report.pool: report for report in inputs.reports if isinstance(report, Proposal)}
    ranges = []
    for spec in inputs.pools:
        most = max(spec.min_replicas, proposals[spec.name].wanted)
        if spec.max_replicas is not None:
            most = max(spec.min_replicas, min(most, spec.max_replicas))
        ranges.append(range(spec.min_replicas, most + 1))

    def fitting() -> itertools.chain[dict[str, int]]:
        for combination in itertools.product(*ranges):
            used: dict[str, int] = {}
            for spec, count in zip(inputs.pools, combination, strict=True):
                used[spec.gpu_type] = used.get(spec.gpu_type, 0) + count * spec.gpus_per_replica
            if any(gpus > inputs.budget.max_gpus.get(name, 10**9) for name, gpus in used.items()):
                continue
            if all(_within(limit, inputs, combination, policy) for limit in policy.limits):
                yield {spec.name: count for spec, count in zip(inputs.pools, combination, strict=True)}  # type: ignore[misc]

    return itertools.chain(fitting())


def _within(limit: Limit, inputs: RoundInputs, combination: tuple[int, ...], policy: ArbiterPolicy) -> bool:
    gpus = cost = 0.0
    for spec, count in zip(inputs.pools, combination, strict=True):
        if limit.namespace in (None, spec.namespace) and limit.gpu_type in (None, spec.gpu_type):
            gpus += count * spec.gpus_per_replica
            cost += count * spec.gpus_per_replica * policy.prices.get(spec.gpu_type, 0.0)
    most_gpus = math.inf if limit.max_gpus is None else limit.max_gpus
    most_cost = math.inf if limit.max_cost_per_hour is None else limit.max_cost_per_hour
    return gpus <= most_gpus and cost <= most_cost + 1e-9


def best_goodput(inputs: RoundInputs, policy: ArbiterPolicy = AT_ONCE) -> tuple[float, ...] | None:
    """Value by class of the lexicographically best allocation; None: not even the minima fit."""
    best: tuple[float, ...] | None = None
    for counts in every_allocation(inputs, policy):
        values = served_by_class(inputs, counts)
        if best is None or _exceeds(values, best):
            best = values
    return best


def best_lowest(inputs: RoundInputs) -> float | None:
    return max((lowest_attainment(inputs, counts) for counts in every_allocation(inputs, AT_ONCE)), default=None)


def _exceeds(values: tuple[float, ...], best: tuple[float, ...]) -> bool:
    for value, other in zip(values, best, strict=True):
        if abs(value - other) > 1e-9:
            return value > other
    return False
