"""`arbitrate`: one decision for everybody at once. Pure; the order of pools, holdings and reports does not matter.

1. what each pool can use (demand.py); held pools are charged and left alone
2. floors of all classes are reserved; when they do not fit, the result names them and nothing grows
3. class by class, the best bundles that only raise: paid from GPUs that no group still uses
4. the best bundles without that restriction; taken only when the gain over the horizon exceeds what the moves cost
5. what is left over: first to pools whose planners ask for more than their curve needs, then to pools that have more than
   they need and whose hold has not passed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from global_planner.arbiter.demand import PoolDemand, demands
from global_planner.arbiter.frontier import Bundle, group_bundles
from global_planner.arbiter.knapsack import Claim, Limits, choose, fits, floors, minus
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState
from global_planner.arbiter.told import told
from global_planner.types import Allocation, GroupGrant, GroupSpec, RoundInputs

Counts = Mapping[str, int]


def arbitrate(state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy) -> tuple[ArbiterState, Allocation]:
    """The allocation for this round, and the state for the next."""
    state, pools = demands(state, inputs, policy)
    groups = sorted(inputs.groups, key=lambda group: group.name)
    types = sorted({pool.spec.gpu_type for pool in pools.values()})
    free = _free(inputs, pools, types)
    state = replace(state, turns=_turns(state.turns, groups, pools))

    least = [_claim(group, pools, types) for group in groups]
    infeasible = _infeasible(least, free, types, pools)
    if infeasible:
        stay = {name: pool.before if pool.before is not None else 0 for name, pool in pools.items()}
        return state, _allocation(inputs, policy, groups, pools, stay, types, free, infeasible)

    raised = _by_class(groups, _with_floor(pools), types, free, policy, state.turns)
    counts = raised
    moved = _by_class(groups, pools, types, free, policy, state.turns)
    if raised is None or (moved is not None and _worth_moving(groups, pools, raised, moved, policy)):
        counts = moved
    assert counts is not None  # the floors fit, so the unrestricted problem has a solution
    counts = _left_over(pools, counts, types, free)
    return state, _allocation(inputs, policy, groups, pools, counts, types, free, ())


def _free(inputs: RoundInputs, pools: Mapping[str, PoolDemand], types: Sequence[str]) -> Limits:
    """GPUs by type that the open pools may share: the budget less what held pools are charged."""
    held = {name: sum(p.gpus for p in pools.values() if p.held is not None and p.spec.gpu_type == name) for name in types}
    limits = [inputs.budget.max_gpus.get(name) for name in types]
    return tuple(None if limit is None else limit - held[name] for limit, name in zip(limits, types, strict=True))


def _turns(turns: tuple[str, ...], groups: Sequence[GroupSpec], pools: Mapping[str, PoolDemand]) -> tuple[str, ...]:
    """Groups in the order in which they first wanted more than their floors."""
    known = {group.name for group in groups}
    asking = [group.name for group in groups if any(p.need > p.least for p in pools.values() if p.spec.group == group.name)]
    kept = tuple(name for name in turns if name in known)
    return kept + tuple(name for name in asking if name not in kept)


def _claim(group: GroupSpec, pools: Mapping[str, PoolDemand], types: Sequence[str]) -> Claim:
    mine = sorted((pool for pool in pools.values() if pool.spec.group == group.name), key=lambda pool: pool.spec.name)
    bundles = group_bundles(mine, types)
    return Claim(group=group.name, weight=group.weight, load_rps=group_load(mine), bundles=bundles)


def group_load(pools: Sequence[PoolDemand]) -> float:
    """Requests/s of a group: the larger of its prefill and decode loads (a request is in both), and its aggregated load."""
    loads = {role: sum(pool.load_rps for pool in pools if pool.spec.role == role) for role in ("prefill", "decode", "agg")}
    return max(loads["prefill"], loads["decode"]) + loads["agg"]


def _infeasible(
    claims: Sequence[Claim], free: Limits, types: Sequence[str], pools: Mapping[str, PoolDemand]
) -> tuple[str, ...]:
    """The pools whose minima do not fit together."""
    total = floors(claims, len(types))
    short = {name for name, gpus, limit in zip(types, total, free, strict=True) if limit is not None and gpus > limit}
    return tuple(sorted(name for name, pool in pools.items() if pool.spec.gpu_type in short and (pool.least or pool.gpus)))


def _with_floor(pools: Mapping[str, PoolDemand]) -> Mapping[str, PoolDemand]:
    """The same demands, none below what it has and uses."""
    return {
        name: pool if pool.held is not None else replace(pool, least=max(pool.least, min(pool.before or 0, pool.need)))
        for name, pool in pools.items()
    }


def _by_class(
    groups: Sequence[GroupSpec],
    pools: Mapping[str, PoolDemand],
    types: Sequence[str],
    free: Limits,
    policy: ArbiterPolicy,
    turns: Sequence[str],
) -> Counts | None:
    """Replicas by open pool, the highest class first; None when the floors of `pools` do not fit."""
    claims = {group.name: _claim(group, pools, types) for group in groups}
    if not fits(floors(list(claims.values()), len(types)), free):
        return None
    counts: dict[str, int] = {}
    left = free
    for level in sorted({group.priority_class for group in groups}, reverse=True):
        mine = [claims[group.name] for group in groups if group.priority_class == level]
        lower = [claims[group.name] for group in groups if group.priority_class < level]
        picked: Mapping[str, Bundle] = choose(mine, minus(left, floors(lower, len(types))), policy.objective, turns)
        for bundle in picked.values():
            counts.update(bundle.replicas)
            left = minus(left, bundle.gpus)
    return counts


def _worth_moving(
    groups: Sequence[GroupSpec],
    pools: Mapping[str, PoolDemand],
    raised: Counts,
    moved: Counts,
    policy: ArbiterPolicy,
) -> bool:
    """Whether taking GPUs that are in use gains more over the horizon than it costs: while a replica drains here and starts
    there, neither side has what it served. A higher class is worth any move."""
    for level in sorted({group.priority_class for group in groups}, reverse=True):
        mine = [group for group in groups if group.priority_class == level]
        gain = sum(group.weight * (served(group, pools, moved) - served(group, pools, raised)) for group in mine)
        if abs(gain) > 1e-9:
            break
    else:
        return False
    if gain < 0.0:
        return False
    cost = 0.0
    for group in groups:
        lost = served(group, pools, raised) - served(group, pools, moved)
        if lost > 0.0:
            starts = [pool.cold_start_s for pool in pools.values() if pool.cold_start_s is not None]
            cost += group.weight * lost * (max(starts) if starts else policy.move_cost_s)
    return level > min(group.priority_class for group in groups) or gain * policy.move_horizon_s > cost


def served(group: GroupSpec, pools: Mapping[str, PoolDemand], counts: Counts) -> float:
    """Admitted requests/s of a group with these replicas: the path's smaller stage, and aggregated pools beside it."""
    rates: dict[str, float] = {}
    loads: dict[str, float] = {}
    for name, pool in pools.items():
        if pool.spec.group == group.name and pool.held is None:
            role = pool.spec.role
            loads[role] = loads.get(role, 0.0) + pool.load_rps
            rates[role] = rates.get(role, 0.0) + pool.load_rps * pool.attainment[min(counts[name], pool.most)]
    both = max(loads.get("prefill", 0.0), loads.get("decode", 0.0))
    shares = [rates[role] / loads[role] for role in ("prefill", "decode") if loads.get(role, 0.0) > 0.0]
    return both * min(shares, default=1.0) + rates.get("agg", 0.0)


def _left_over(pools: Mapping[str, PoolDemand], counts: Counts, types: Sequence[str], free: Limits) -> Counts:
    """Raise to what planners want, then keep what is on hold, one replica at a time, as far as GPUs are free."""
    result = dict(counts)
    left = {
        name: None
        if limit is None
        else limit - sum(result[pool] * pools[pool].gpus_per_replica for pool in result if pools[pool].spec.gpu_type == name)
        for name, limit in zip(types, free, strict=True)
    }
    for target in ("wanted", "keep"):
        again = True
        while again:
            again = False
            for name in sorted(result):
                pool = pools[name]
                goal = (pool.wanted or 0) if target == "wanted" else pool.keep
                room = left[pool.spec.gpu_type]
                if result[name] < goal and (room is None or room >= pool.gpus_per_replica):
                    result[name] += 1
                    left[pool.spec.gpu_type] = None if room is None else room - pool.gpus_per_replica
                    again = True
    return result


def _allocation(
    inputs: RoundInputs,
    policy: ArbiterPolicy,
    groups: Sequence[GroupSpec],
    pools: Mapping[str, PoolDemand],
    counts: Counts,
    types: Sequence[str],
    free: Limits,
    infeasible: tuple[str, ...],
) -> Allocation:
    whole = {name: counts.get(name, pool.before or 0) for name, pool in pools.items()}
    grants = tuple(_group_grant(group, pools, whole) for group in groups)
    return Allocation(
        pools=told(inputs, groups, pools, whole, types, free, infeasible),
        groups=grants,
        objective=policy.objective,
        value=sum(grant.value for grant in grants),
        gap=0.0,
        solver="floors do not fit" if infeasible else f"{policy.objective}: dynamic programming",
        infeasible=infeasible,
    )


def _group_grant(group: GroupSpec, pools: Mapping[str, PoolDemand], counts: Counts) -> GroupGrant:
    mine = [pool for pool in pools.values() if pool.spec.group == group.name]
    load = group_load([pool for pool in mine if pool.held is None])
    rate = served(group, pools, counts)
    return GroupGrant(
        group=group.name,
        load_rps=load,
        attainment=min(1.0, rate / load) if load > 0.0 else 1.0,
        admitted_rps=admitted(mine),
        value=group.weight * rate,
    )


def admitted(pools: Sequence[PoolDemand]) -> float | None:
    """The rate that the replicas that are ready now can take with their SLA met; None where a pool's capacity is not known.

    A stage whose pools all carry their load may go up to where the first of them is full, at the present mix; one that does
    not admits what its pools can. A path admits the smaller of its stages, paths add.
    """
    if any(pool.held is not None or pool.capacity_rps is None for pool in pools):
        return None
    stages: dict[str, float] = {}
    for role in ("prefill", "decode", "agg"):
        stage = [pool for pool in pools if pool.spec.role == role]
        if not stage:
            continue
        load = sum(pool.load_rps for pool in stage)
        caps = [(pool.load_rps, _capacity(pool)) for pool in stage]
        slack = min((cap / own for own, cap in caps if own > 0.0), default=None)
        if slack is None:
            stages[role] = sum(cap for _, cap in caps)
        else:
            stages[role] = load * slack if slack >= 1.0 else sum(min(own, cap) for own, cap in caps)
    path = [stages[role] for role in ("prefill", "decode") if role in stages]
    return (min(path) if path else 0.0) + stages.get("agg", 0.0)


def _capacity(pool: PoolDemand) -> float:
    assert pool.capacity_rps is not None
    return pool.capacity_rps[min(pool.ready, len(pool.capacity_rps) - 1)]
