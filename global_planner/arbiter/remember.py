"""What is remembered after a round: needs of the hold window, who borrowed, what was moved. Pure.

The needs are kept as a falling sequence: an earlier and smaller need can never be the window's largest again. So a window of a
thousand rounds is a handful of entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from global_planner.arbiter.plan import Plan
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState, DemandHistory
from global_planner.arbiter.view import PoolView
from pool_planner.records import by_place

HOUR_S = 3600.0
_HISTORY: Callable[..., DemandHistory] = by_place(DemandHistory)


def remember(state: ArbiterState, plan: Plan, policy: ArbiterPolicy) -> ArbiterState:
    """The state after the plan. Pools and groups that left the topology are forgotten."""
    at_s = plan.view.at_s
    return ArbiterState(
        at_s=at_s,
        pools={name: _history(pool, at_s) for name, pool in plan.view.pools.items()},
        debts=_debts(state, plan, policy),
        moves=_moves(state, plan),
        under_way=_under_way(plan),
    )


def moves_left(state: ArbiterState, policy: ArbiterPolicy, at_s: float) -> int | None:
    """Groups that may still be raised with GPUs of others in this hour; None: any number."""
    if policy.max_moves_per_hour is None:
        return None
    return max(0, policy.max_moves_per_hour - sum(count for when_s, count in state.moves if when_s > at_s - HOUR_S))


def tie_ranks(state: ArbiterState, plan: Plan) -> Mapping[str, int]:
    """The order among equals: who borrowed less lately, then by name."""
    names = sorted((group.spec.name for group in plan.groups), key=lambda name: (state.debts.get(name, 0.0), name))
    return {name: rank for rank, name in enumerate(names)}


def _history(pool: PoolView, at_s: float) -> DemandHistory:
    was = pool.history
    if pool.need is None:  # silence is no evidence: what it needed before must not count as needed throughout
        return DemandHistory(
            said_at_s=was.said_at_s,
            load_rps=was.load_rps,
            attainment=was.attainment,
            capacity_rps=was.capacity_rps,
            by_priority=was.by_priority,
        )
    need = pool.need
    begin = at_s - pool.hold_s
    kept = [entry for entry in was.needs if entry[1] > need and entry[0] >= begin]
    parts = dict(pool.by_priority or {})
    since_s = at_s if was.since_s is None else was.since_s
    return _HISTORY(at_s, pool.load, pool.now, pool.capacity, parts, (*kept, (at_s, need)), since_s)


def _debts(state: ArbiterState, plan: Plan, policy: ArbiterPolicy) -> Mapping[str, float]:
    """GPU-seconds beyond what is reserved, counted while some group went short, halved every `debt_half_life_s`."""
    elapsed_s = 0.0 if state.at_s is None else max(0.0, plan.view.at_s - state.at_s)
    fade = 0.5 ** (elapsed_s / policy.debt_half_life_s) if policy.debt_half_life_s > 0 else 0.0
    counted_s = elapsed_s if _anybody_short(plan) else 0.0
    debts = {}
    for g, group in enumerate(plan.groups):
        counts, reserved, name = plan.counts[g], plan.reserved[g], group.spec.name
        borrowed = 0
        for p, pool in enumerate(group.pools):
            if counts[p] > reserved[p]:
                borrowed += (counts[p] - reserved[p]) * pool.gpus
        debt = state.debts.get(name, 0.0) * fade + borrowed * counted_s
        if debt > 1e-6:
            debts[name] = debt
    return debts


def _anybody_short(plan: Plan) -> bool:
    for g, group in enumerate(plan.groups):
        for p, pool in enumerate(group.pools):
            if pool.wanted is not None and plan.counts[g][p] < pool.wanted:
                return True
    return False


def _moves(state: ArbiterState, plan: Plan) -> tuple[tuple[float, int], ...]:
    at_s = plan.view.at_s
    kept = tuple(entry for entry in state.moves if at_s - HOUR_S < entry[0] <= at_s)
    return (*kept, (at_s, len(plan.moved))) if plan.moved else kept


def _under_way(plan: Plan) -> Mapping[str, tuple[int, int]]:
    """By pool (replicas in force, granted), where GPUs move between groups: of who was raised with GPUs of others, and of who
    was lowered beyond what it would have let go of its own accord. What was promised before stays so until it is there or
    taken back."""
    found = {}
    for g, group in enumerate(plan.groups):
        for p, pool in enumerate(group.pools):
            granted, current, promised = plan.counts[g][p], pool.current, pool.promised
            if current is None or granted == current or pool.held is not None:
                continue
            if g in plan.moved if granted > current else granted < pool.low:
                found[pool.spec.name] = (current, granted)
            elif promised is not None and min(current, granted) <= promised <= max(current, granted):
                found[pool.spec.name] = (current, promised)
    return found
