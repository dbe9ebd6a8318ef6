"""From counts to the allocation: each line with its reason, the limit that bound, and what one more is worth. Pure.

Where a sentence is told of every pool, numbers are written by `format`: compiled code makes a call of Python of `{x:.3g}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from global_planner.arbiter.admission import admitted_in_flight, admitted_rps, in_flight_by_pool, rates_by_priority
from global_planner.arbiter.choose import NO_LIMIT
from global_planner.arbiter.expected import needed_for_sure
from global_planner.arbiter.flat import floats_of
from global_planner.arbiter.knapsack import first_true, segment_max
from global_planner.arbiter.menu import menu_of
from global_planner.arbiter.plan import EPS, Plan
from global_planner.arbiter.state import ArbiterPolicy
from global_planner.arbiter.view import PoolView
from global_planner.types import Allocation, GroupGrant, PoolGrant, RoundInputs, RunnerUp
from pool_planner.records import by_place

_POOL_GRANT: Callable[..., PoolGrant] = by_place(PoolGrant)
_GROUP_GRANT: Callable[..., GroupGrant] = by_place(GroupGrant)
ROUNDING = 1e-9
"""Distance to the bound, relative to all that there is to serve, below which a value is the optimum."""


class _Next:
    """The most valuable step up of a group: replicas it adds by pool (and 0 beyond its pools), what they take of each limit,
    and weighted requests/s gained per GPU."""

    def __init__(self, adds: list[int], needs: list[float], value_per_gpu: float) -> None:
        self.adds = adds
        self.needs = needs
        self.value_per_gpu = value_per_gpu


def allocation_of(plan: Plan, inputs: RoundInputs, policy: ArbiterPolicy) -> Allocation:
    """The allocation, pools and groups in the order of `inputs`."""
    room = plan.room().tolist()
    nexts = _next_steps(plan)
    ups = _best_by_type(plan, nexts)
    pool_grants: dict[str, PoolGrant] = {}
    group_grants: dict[str, GroupGrant] = {}
    value = whole = 0.0
    for g, group in enumerate(plan.groups):
        name, scale, step = group.spec.name, group.scale, nexts[g]
        attained = group.attainment(plan.counts[g])
        worth = scale * attained
        value += worth
        whole += scale
        admitted = admitted_rps(group)
        level = attained if attained < 1.0 else 1.0
        inside, rates = admitted_in_flight(group, admitted), rates_by_priority(group, admitted)
        by_pool = in_flight_by_pool(group, admitted)
        group_grants[name] = _GROUP_GRANT(name, group.load, level, admitted, inside, worth, group.rules, rates, by_pool)
        sure = _sure_value(plan, g, step)
        for p, pool in enumerate(group.pools):
            pool_grants[pool.spec.name] = _grant(plan, g, p, step, sure, ups, room, policy)
    slack = sum(plan.slacks.values())
    for spec in inputs.groups:
        if spec.name not in group_grants:  # it has no pools
            group_grants[spec.name] = GroupGrant(group=spec.name, load_rps=0.0, attainment=0.0)
    return Allocation(
        pools=tuple([pool_grants[spec.name] for spec in inputs.pools if spec.name in pool_grants]),
        groups=tuple([group_grants[spec.name] for spec in inputs.groups]),
        objective=policy.objective,
        value=value,
        gap=slack / (value + slack) if slack > ROUNDING * whole else 0.0,
        solver=_solver(plan.solvers),
        infeasible=plan.infeasible,
    )


def _solver(used: Sequence[str]) -> str:
    """The strongest that was needed; whatever it rests on was exact or is told beside it."""
    if len(used) > 1:
        used = [name for name in dict.fromkeys(used) if name != NO_LIMIT] or [NO_LIMIT]
    return ", ".join(used) or "nothing to choose"


def _next_steps(plan: Plan) -> list[_Next | None]:
    """What each group would take next, were there room: the bundle above its counts of the most value per GPU."""
    groups = plan.groups
    steps: list[_Next | None] = [None] * len(groups)
    members, found = [], []
    for g, scale in enumerate(plan.scales.tolist()):
        if scale > 0.0:
            bundles = plan.growth(g)
            if len(bundles.counts) > 1:
                members.append(g)
                found.append(bundles)
    if not members:
        return steps
    menu = menu_of(members, [bundles.counts for bundles in found])
    owner, starts = menu.owner, menu.starts
    levels = floats_of([bundles.attainment for bundles in found])
    width = len(menu.counts)
    gpus = np.array([[pool.gpus for pool in groups[g].pools] + [0] * (width - len(groups[g].pools)) for g in members]).T
    added = menu.counts - menu.counts.take(starts, axis=1).take(owner, axis=1)
    taken = (added * gpus.take(owner, axis=1)).sum(axis=0)
    gained = levels - levels.take(starts).take(owner)
    per_gpu = plan.scales.take(members).take(owner) * gained / np.maximum(taken, 1)
    per_gpu[starts] = 0.0
    best = first_true(per_gpu >= (segment_max(per_gpu, starts) * (1.0 - EPS)).take(owner), starts)
    adds = added.take(best, axis=1)
    needs = np.zeros((plan.draws_by_place.shape[1], len(members)))
    for more, draws in zip(adds, plan.draws_by_place.take(members, axis=2), strict=False):  # other groups may be wider
        needs += more * draws
    values = per_gpu.take(best).tolist()
    for g, own, takes, value in zip(members, adds.T.tolist(), np.maximum(needs, 0.0).T.tolist(), values, strict=True):
        if value > 0.0:
            steps[g] = _Next(own, takes, value)
    return steps


def _sure_value(plan: Plan, g: int, step: _Next | None) -> float | None:
    """What a GPU of the group's next step would serve of the load that is expected; None: all that it would serve."""
    if plan.expected is None or step is None or plan.expected.groups[g] is plan.groups[g]:
        return None
    group, now = plan.expected.groups[g], plan.counts[g]
    more, gpus = list(now), 0
    for p, pool in enumerate(group.pools):
        more[p] += step.adds[p]
        gpus += step.adds[p] * pool.gpus
    return group.scale * (group.attainment(more) - group.attainment(now)) / max(gpus, 1)


def _best_by_type(plan: Plan, nexts: Sequence[_Next | None]) -> Mapping[str, list[tuple[RunnerUp, str]]]:
    """By GPU type, the two groups that gain most by a GPU of it: (pool and value per GPU, group), best first."""
    found: dict[str, list[tuple[float, str, str]]] = {}
    for g, group in enumerate(plan.groups):
        step = nexts[g]
        if step is None:
            continue
        seen: list[str] = []
        for p, pool in enumerate(group.pools):
            gpu_type = pool.spec.gpu_type
            if step.adds[p] > 0 and gpu_type not in seen:
                seen.append(gpu_type)
                found.setdefault(gpu_type, []).append((-step.value_per_gpu, pool.spec.name, group.spec.name))
    return {
        gpu_type: [(RunnerUp(pool=name, value_per_gpu=-value), owner) for value, name, owner in sorted(entries)[:2]]
        for gpu_type, entries in found.items()
    }


def _grant(
    plan: Plan,
    g: int,
    p: int,
    step: _Next | None,
    sure: float | None,
    ups: Mapping[str, list[tuple[RunnerUp, str]]],
    room: Sequence[float],
    policy: ArbiterPolicy,
) -> PoolGrant:
    group = plan.groups[g]
    pool, granted = group.pools[p], plan.counts[g][p]
    spec, owner = pool.spec, group.spec.name
    marginal = step.value_per_gpu if step is not None and step.adds[p] > 0 else None
    if marginal is None:
        sure = None
    runner_up = None
    for best, other in ups.get(spec.gpu_type, ()):
        if other != owner:
            runner_up = best
            break
    short = pool.held is None and pool.wanted is not None and granted < pool.wanted
    binding = _binding(plan, g, p, step, room) if short else None
    needed = needed_for_sure(pool) if policy.objective == "goodput" else None
    reason = _reason(plan, pool, granted, binding, marginal, sure, runner_up, needed, g, policy)
    if binding is None:
        runner_up = None
    return _POOL_GRANT(
        spec.name, pool.wanted, granted, pool.before, pool.held is not None, reason, binding, marginal, runner_up,
        pool.rules.told, needed, sure,
    )  # fmt: skip


def _binding(plan: Plan, g: int, p: int, step: _Next | None, room: Sequence[float]) -> str | None:
    """The limit that keeps a pool below what it wants, which it is."""
    group = plan.groups[g]
    pool, granted = group.pools[p], plan.counts[g][p]
    rules = pool.rules
    if rules.maximum is not None and granted >= rules.maximum:
        return rules.max_from or f"max_replicas {rules.maximum}"
    if pool.spec.name in plan.blocked:
        return plan.blocked[pool.spec.name]
    if plan.infeasible:
        return "minima that do not fit"
    needs = plan.draws[g][p].tolist() if step is None else step.needs
    tightest, short = None, 0.0
    for row, need in enumerate(needs):
        if need > room[row] + EPS:
            lacking = (need - room[row]) / max(float(plan.limits.total[row]), 1.0)
            if tightest is None or lacking > short:
                tightest, short = plan.limits.names[row], lacking
    if tightest is not None:
        return tightest
    if step is None or step.adds[p] == 0:
        partners = [other.spec.name for q, other in enumerate(group.pools) if q != p and plan.counts[g][q] >= plan.caps[g][q]]
        return f"partner {partners[0]}" if partners else None
    return "cost of a move"


def _reason(
    plan: Plan,
    pool: PoolView,
    granted: int,
    binding: str | None,
    marginal: float | None,
    sure: float | None,
    runner_up: RunnerUp | None,
    needed: int | None,
    g: int,
    policy: ArbiterPolicy,
) -> str:
    if pool.held is not None:
        return f"held at {granted}, charged {pool.fixed_gpus} GPUs: {pool.held}"
    head = _change(pool, granted)
    name = pool.spec.name
    if name in plan.notes:
        return f"{head}: {plan.notes[name]}"
    if plan.infeasible:
        return f"{head}: the minima of all pools do not fit together, so nothing grows"
    if pool.wanted is None:
        return f"{head}: {pool.rules.min_from or 'its minimum'}; nothing is known of its demand"
    if pool.current is not None and granted < pool.current:
        return f"{head}: {_why_lowered(pool, granted, runner_up, needed, policy)}"
    told = f"{head}: {_why_enough(pool, granted)}"
    if needed is not None and granted <= pool.wanted:
        told += f"; {_of_doubt(pool, granted, needed)}"
    if pool.current is not None and granted > pool.current:
        moves = g in plan.moved or granted == pool.promised
        told += "; paid by a group where the GPUs are worth less" if moves else "; paid from free GPUs"
    if binding is not None:
        told += f"; {_why_no_more(plan, binding, marginal, sure, runner_up)}"
    return told


def _change(pool: PoolView, granted: int) -> str:
    current, wanted = pool.current, pool.wanted
    of = f" of {wanted} wanted" if wanted is not None and granted < wanted else ""
    if current is None or granted == current:
        return f"kept at {granted}{of}"
    return f"{'raised' if granted > current else 'lowered'} {current} -> {granted}{of}"


def _why_enough(pool: PoolView, granted: int) -> str:
    wanted = pool.wanted
    assert wanted is not None
    if granted <= wanted:
        return f"{format(pool.load, '.3g')} req/s needs {wanted}"
    if granted == pool.floor:
        return f"{pool.rules.min_from or 'its minimum'} is {granted}"
    if pool.need is not None and granted > pool.need:
        enough = max(pool.need, pool.floor)
        if pool.kept_for is not None:
            return f"{enough} would do, but {pool.kept_for} is not lowered yet, and they go down together"
        return f"{enough} would do, but not for long enough yet"
    return f"{pool.load:.3g} req/s needs {wanted}, 1.1 x that needs {pool.need}"


def _of_doubt(pool: PoolView, granted: int, needed: int) -> str:
    """What of the grant is for the load that is expected, and what of the doubt beyond it was lent or withheld."""
    wanted = pool.wanted or 0
    told = f"the {format(pool.expected, '.3g')} req/s expected need {needed}"
    if granted < needed:
        return f"{told}, so {needed - granted} of those that lack would be for a need"
    lent, withheld = granted - needed, wanted - granted
    both = [f"{lent} lent"] if lent > 0 else []
    both += [f"{withheld} withheld"] if withheld > 0 else []
    return f"{told}, beyond that {' and '.join(both)} for a doubt: doubts come after needs" if both else told


def _why_lowered(pool: PoolView, granted: int, runner_up: RunnerUp | None, needed: int | None, policy: ArbiterPolicy) -> str:
    rules = pool.rules
    if rules.maximum is not None and granted >= rules.maximum:
        return f"{rules.max_from or f'max_replicas is {rules.maximum}'}"
    if not policy.stability:
        return f"{pool.load:.3g} req/s needs {pool.wanted}"
    if granted >= pool.low and granted != pool.promised:
        return f"{granted} would have carried 1.1 x its load for the last {pool.hold_s:.0f} s"
    doubt = needed is not None and needed <= granted
    kept = f"{granted} carry the {pool.expected:.3g} req/s expected, the others were only for a doubt: " if doubt else ""
    return f"{kept}its GPUs are worth more elsewhere" + (
        f" (the next one {runner_up.value_per_gpu:.2g} req/s at {runner_up.pool})" if runner_up is not None else ""
    )


def _why_no_more(plan: Plan, binding: str, marginal: float | None, sure: float | None, runner_up: RunnerUp | None) -> str:
    if binding in plan.limits.names:
        text = plan.limits.spent[plan.limits.names.index(binding)]
    elif binding == "cost of a move":
        text = "taking GPUs from another group would cost more than it gains"
    else:
        text = binding
    if marginal is None:
        return text
    there = "" if runner_up is None else f", {format(runner_up.value_per_gpu, '.2g')} at {runner_up.pool}"
    part = "" if sure is None else f" ({format(sure, '.2g')} for sure)"
    return f"{text}; the next GPU would be worth {format(marginal, '.2g')} req/s here{part}{there}"
