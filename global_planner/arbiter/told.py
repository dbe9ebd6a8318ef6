"""Every pool's line of an allocation: granted, why, what bound, and what the next GPU would be worth to whom. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from global_planner.arbiter.demand import PoolDemand
from global_planner.arbiter.knapsack import Limits
from global_planner.types import GroupSpec, PoolGrant, RoundInputs, RunnerUp

Counts = Mapping[str, int]


def told(
    inputs: RoundInputs,
    groups: Sequence[GroupSpec],
    pools: Mapping[str, PoolDemand],
    counts: Counts,
    types: Sequence[str],
    free: Limits,
    infeasible: tuple[str, ...],
) -> tuple[PoolGrant, ...]:
    """One line for each pool, in the topology's order."""
    weights = {group.name: group.weight for group in groups}
    left = {
        name: None
        if limit is None
        else limit
        - sum(
            counts[pool.spec.name] * pool.gpus_per_replica
            for pool in pools.values()
            if pool.held is None and pool.spec.gpu_type == name
        )
        for name, limit in zip(types, free, strict=True)
    }
    worth = {name: _next_worth(pool, counts[name], weights[pool.spec.group]) for name, pool in pools.items()}
    lines = []
    for spec in inputs.pools:
        pool = pools[spec.name]
        granted = counts[spec.name]
        binding = _binding(inputs, pool, granted, left[spec.gpu_type], infeasible)
        lines.append(
            PoolGrant(
                pool=spec.name,
                wanted=None if pool.held is not None else _asked(pool),
                granted=granted,
                before=pool.before,
                held=pool.held is not None,
                reason=_reason(pool, granted, binding, worth[spec.name]),
                binding=binding,
                marginal_value=worth[spec.name],
                runner_up=_runner_up(spec.name, pools, worth),
            )
        )
    return tuple(lines)


def _asked(pool: PoolDemand) -> int:
    return max(pool.wanted or 0, pool.need)


def _next_worth(pool: PoolDemand, granted: int, weight: float) -> float | None:
    """weight x requests/s per GPU that the next useful step up would add, were its partner stage to follow; None: no step."""
    if pool.held is not None:
        return None
    for count in range(granted + 1, pool.need + 1):
        gained = pool.attainment[count] - pool.attainment[min(granted, pool.most)]
        if gained > 1e-9:
            return weight * pool.load_rps * gained / ((count - granted) * pool.gpus_per_replica)
    return None


def _runner_up(name: str, pools: Mapping[str, PoolDemand], worth: Mapping[str, float | None]) -> RunnerUp | None:
    """Who of another group would have made the most of the next GPU of this type."""
    pool = pools[name]
    others = [
        (value, other)
        for other, value in worth.items()
        if value is not None and pools[other].spec.group != pool.spec.group and pools[other].spec.gpu_type == pool.spec.gpu_type
    ]
    if not others:
        return None
    value, other = min(others, key=lambda item: (-item[0], item[1]))
    return RunnerUp(pool=other, value_per_gpu=value)


def _binding(inputs: RoundInputs, pool: PoolDemand, granted: int, left: int | None, infeasible: tuple[str, ...]) -> str | None:
    """The limit that keeps the pool from what it asks for."""
    spec = pool.spec
    if spec.name in infeasible:
        return f"minima of {', '.join(infeasible)}"
    if pool.held is not None or granted >= _asked(pool):
        return None
    if granted >= pool.most:
        return f"max_replicas {pool.most}"
    if left is not None and left < pool.gpus_per_replica:
        return f"budget {spec.gpu_type} {inputs.budget.max_gpus[spec.gpu_type]}"
    return "the other stage of its group"


def _reason(pool: PoolDemand, granted: int, binding: str | None, worth: float | None) -> str:
    before = pool.before
    if pool.held is not None:
        return f"held at {before if before is not None else 'what it has'}: {pool.held}"
    asked, load = _asked(pool), f"{pool.load_rps:.2f} req/s"
    if binding is not None:
        value = f"; the next GPU would be worth {worth:.2f} req/s here" if worth is not None else ""
        return f"{granted} of {asked} for {load}: {binding} binds{value}"
    if before is not None and granted > before:
        return f"raised {before} -> {granted}: {load} needs {asked}"
    if before is not None and granted < before:
        return f"lowered {before} -> {granted}: {load} needs {asked}, and fewer would have done for the whole hold"
    if granted > asked:
        return f"kept at {granted}: {load} needs {asked}, but the hold has not passed"
    if granted == pool.spec.min_replicas and pool.need <= granted:
        return f"at its minimum of {granted}: enough for {load}"
    return f"stays at {granted}: {load} needs {asked}"
