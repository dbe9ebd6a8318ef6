"""From what a round is told to what the arbiter decides on. Pure.

Everything doubtful is settled here, once: which rules are in force, who is held and why, what a held pool carries, between
which numbers each pool may be set.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from operator import attrgetter

from global_planner.arbiter.demand import fault_of, share_carried, slower, take_demand
from global_planner.arbiter.effective import GroupRules, PoolRules, group_rules, pool_rules
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState, DemandHistory
from global_planner.arbiter.view import HEADROOM, GroupView, PoolView, View
from global_planner.charge import charge_or_last_known, ordered_replicas
from global_planner.types import GroupSpec, Holding, Override, PoolSpec, RoundInputs
from pool_planner.types import Hold, Proposal, Report, Role

_NO_HISTORY = DemandHistory()
_BY_NAME = attrgetter("name")
_WHOLE: tuple[float, ...] = (1.0, 1.0)
_OPEN: tuple[float, ...] = (1.0,)


def view_of(state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy) -> View:
    """The round as the arbiter sees it; the order of what is in `inputs` does not matter."""
    if inputs.schedules:
        policy = replace(policy, schedules=(*policy.schedules, *inputs.schedules))
    reports: dict[str, Report] = {}
    for report in inputs.reports:
        known = reports.get(report.pool)
        if known is None or (report.at_s, repr(report)) > (known.at_s, repr(known)):
            reports[report.pool] = report
    holdings = {holding.pool: holding for holding in inputs.holdings}
    overrides: dict[str, list[Override]] = {}
    for override in inputs.overrides:
        overrides.setdefault(override.pool, []).append(override)
    by_group: dict[str, list[PoolSpec]] = {}
    for spec in sorted(inputs.pools, key=_BY_NAME):
        by_group.setdefault(spec.group, []).append(spec)

    # Most pools have no line but their own, and few kinds of it: these are settled once.
    plain = not (policy.selectors or policy.schedules)
    shared: dict[tuple[int, int | None, int], PoolRules] = {}
    ranks: dict[tuple[int, float], GroupRules] = {}
    remembered, under_way, at_s = state.pools, state.under_way, inputs.at_s
    groups = []
    pools: dict[str, PoolView] = {}
    for group in sorted(inputs.groups, key=_BY_NAME):
        specs = by_group.get(group.name, [])
        if not specs:
            continue
        views = []
        for spec in specs:
            name = spec.name
            if plain and spec.growth_cap is None and name not in overrides:
                line = (spec.min_replicas, spec.max_replicas, spec.guarantee_replicas)
                rules = shared.get(line)
                if rules is None:
                    rules = shared[line] = pool_rules(spec, group, policy, (), at_s)
            else:
                rules = pool_rules(spec, group, policy, overrides.get(name, ()), at_s)
            history = remembered.get(name, _NO_HISTORY)
            seen = _pool_view(spec, rules, holdings.get(name), reports.get(name), history, at_s, policy, under_way.get(name))
            pools[name] = seen
            views.append(seen)
        if policy.stability and len(views) == 2:
            _lower_together(*views)
        rank = (group.priority_class, group.weight)
        ranked = None if policy.selectors else ranks.get(rank)
        if ranked is None:
            ranked = ranks[rank] = group_rules(group, specs, policy.selectors)
        groups.append(_group_view(group, ranked, views))
    return View(groups=tuple(groups), pools=pools, at_s=at_s)


# ---- one pool --------------------------------------------------------------------------------------------------------


def _pool_view(
    spec: PoolSpec,
    rules: PoolRules,
    holding: Holding | None,
    report: Report | None,
    history: DemandHistory,
    at_s: float,
    policy: ArbiterPolicy,
    under_way: tuple[int, int] | None,
) -> PoolView:
    before = None if holding is None else ordered_replicas(holding)
    current = before
    gpus = spec.gpus_per_replica
    if holding is not None and before is not None:
        current = before if holding.last_write is None else holding.last_write
        gpus = holding.gpus_per_replica or gpus
    pool = PoolView(spec=spec, rules=rules, holding=holding, gpus=gpus, current=current, before=before, history=history)
    pool.hold_s = _hold_s(holding, policy)
    if under_way is not None and current is not None and policy.stability:
        pool.promised = _promised(current, *under_way)
    proposal = report if isinstance(report, Proposal) and at_s < report.expires_at_s else None
    fault = None if proposal is None else fault_of(proposal)
    if proposal is not None and fault is None:
        take_demand(pool, proposal)
    elif history.said_at_s is not None and at_s - history.said_at_s <= policy.trust_s:
        pool.load, pool.now, pool.capacity = history.load_rps, history.attainment, history.capacity_rps
        pool.by_priority = history.by_priority
        pool.hi = slower(pool.now, HEADROOM)
        pool.remembered = True
    _settle_bounds(pool, _why_held(pool, report, fault, at_s), at_s, policy)
    return pool


def _promised(current: int, was: int, granted: int) -> int | None:
    """What an earlier move grants a pool that has got no further than `current` on the way there; None where it is there, or
    where somebody set it to something else."""
    return granted if current != granted and min(was, granted) <= current <= max(was, granted) else None


def _hold_s(holding: Holding | None, policy: ArbiterPolicy) -> float:
    """How long a pool keeps what it may not need any more. Who lets a replica go and wants it again waits for a cold start, and
    pays for it without using it: keeping one idle for as long costs the same, so a hold of one cold start never costs much
    more than knowing what comes (as whoever rents skis buys them once the rents have cost as much). Short starts are measured
    to a round or so, so they count twice, up to `hold_least_s`; a start that takes nothing is worth no hold."""
    if policy.hold_least_s is None:
        return policy.hold_s
    measured = None if holding is None else holding.cold_start_s
    start_s = policy.cold_start_s if measured is None else measured
    return min(policy.hold_s, max(min(policy.hold_least_s, 2.0 * start_s), start_s))


def _why_held(pool: PoolView, report: Report | None, fault: str | None, at_s: float) -> str | None:
    """Why the pool is left alone, or None. A pool whose demand is unknown is not held where its number is set anyway (a pin),
    or where it has less than its minimum: a minimum needs no reason."""
    holding, rules = pool.holding, pool.rules
    if holding is None:
        return "the cluster does not show it"
    if pool.current is None:
        return holding.unknown or "its replicas are unknown"
    if holding.gpus_per_replica is None:
        return "the GPUs of its replicas are unknown"
    if holding.updating:
        return "a rolling update is under way"
    if rules.held is not None:
        return rules.held
    if pool.need is not None or rules.minimum == rules.maximum or pool.current < rules.minimum:
        return None
    if report is None:
        return "no report from its planner"
    if at_s >= report.expires_at_s:
        return f"its planner's last report expired {at_s - report.expires_at_s:.0f} s ago"
    if isinstance(report, Hold):
        return report.reason
    return f"its report cannot be: {fault}"


def _settle_bounds(pool: PoolView, held: str | None, at_s: float, policy: ArbiterPolicy) -> None:
    rules, current = pool.rules, pool.current
    if held is not None:
        pool.held = held
        if current is not None and pool.holding is not None and pool.holding.gpus_per_replica is not None:
            # What ends or surges beyond the order is passing: rollout charges it, but nobody is to give way to it.
            pool.fixed_gpus = current * pool.gpus
        else:
            charged = None if pool.holding is None else charge_or_last_known(pool.holding, pool.spec)
            pool.fixed_gpus, pool.unknown_charge = charged or 0, charged is None
        stays = current if current is not None else pool.fixed_gpus // pool.gpus
        pool.floor = pool.reserved = pool.low = pool.cap = stays
        return
    assert current is not None
    minimum, maximum, wanted = rules.minimum, rules.maximum, pool.wanted
    if maximum is not None and maximum < minimum:
        maximum = minimum
    if wanted is None:  # nothing is known but what people set
        stays = current if current > minimum else minimum
        stays = stays if maximum is None or stays < maximum else maximum
        pool.floor = pool.reserved = pool.low = pool.cap = stays
        return
    most = wanted if maximum is None or wanted < maximum else maximum
    pool.floor = pool.low = minimum
    pool.cap = most if most > minimum else minimum
    pool.reserved = minimum if rules.guarantee <= minimum else max(minimum, min(rules.guarantee, most))
    if policy.stability:
        # A move that is under way counts as done. Were it decided anew from what is still there, noise or a tie would choose
        # another giver in every round, and nobody would ever have drained when the next was asked.
        kept = _kept(pool, current if pool.promised is None else pool.promised, at_s)
        low = kept if kept > minimum else minimum
        pool.low = low if maximum is None or low < maximum else maximum
        if pool.low > pool.cap:
            pool.cap = pool.low


def _kept(pool: PoolView, current: int, at_s: float) -> int:
    """Replicas that the pool keeps of its own accord: all, until fewer would have done for the whole hold."""
    since, most, hold_s = pool.history.since_s, pool.need, pool.hold_s
    if most is None or most >= current or since is None or at_s - since < hold_s:
        return current
    begin = at_s - hold_s
    for said_s, needed in pool.history.needs:
        if needed > most and said_s >= begin:
            most = needed
    return most if most < current else current


def _lower_together(first: PoolView, second: PoolView) -> None:
    """A hold is a group's: while one of two stages keeps replicas only because they were of use not long ago, its partner keeps
    what passes their work on. So no stage holds what its partner could not use. Where both saw the same load, both keep enough
    anyway; where one did not (it was silent for a while, its requests changed), it would be left with half of a capacity."""
    if first.spec.role == second.spec.role or "agg" in (first.spec.role, second.spec.role):
        return
    for pool, partner in ((first, second), (second, first)):
        if pool.need is None or partner.need is None or pool.capacity is None or partner.capacity is None:
            return
        kept, current = min(pool.low, pool.current or 0), partner.current or 0
        if kept <= max(pool.need, pool.floor) or partner.low >= current or partner.held is not None:
            continue
        passed, last = pool.capacity[min(kept, len(pool.capacity)) - 1], len(partner.capacity) - 1
        low = partner.low
        while low < current and partner.capacity[min(low, last)] <= passed:
            low += 1
        partner.low = low if partner.rules.maximum is None else min(low, max(partner.rules.maximum, partner.floor))
        partner.cap, partner.kept_for = max(partner.cap, partner.low), pool.spec.name


# ---- groups ----------------------------------------------------------------------------------------------------------


def _group_view(spec: GroupSpec, rules: GroupRules, pools: list[PoolView]) -> GroupView:
    paths = _paths(tuple([pool.spec.role for pool in pools]))
    known = True
    for pool in pools:
        known = known and bool(pool.now)
    if known and len(pools) == 2 and len(paths[0]) == 2 and not (pools[0].remembered or pools[1].remembered):
        # One prefill and one decode pool that both speak for themselves, as in nearly all groups.
        load = pools[0].load if pools[0].load > pools[1].load else pools[1].load
        loads: tuple[float, ...] = (load,)
        shares = _WHOLE
    else:
        load, loads, shares = _divided(pools, paths)
    group = GroupView(
        spec=spec,
        priority_class=rules.priority_class,
        weight=rules.weight,
        rules=rules.sentences(),
        pools=pools,
        paths=paths,
        load=load,
        path_loads=loads,
        shares=shares,
        ceilings=_OPEN if len(paths) == 1 else (1.0,) * len(paths),
    )
    if not known:
        group.ceilings = tuple([_ceiling(group, path) for path in paths])
    return group


def _divided(
    pools: list[PoolView], paths: tuple[tuple[tuple[int, ...], ...], ...]
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """The load of a group, of each of its paths, and by pool the share of its stage's load. What a silent stage last said is
    brought up to what its partner sees now."""
    shares = [0.0] * len(pools)
    loads = []
    for path in paths:
        sums = [sum([pools[place].load for place in stage]) for stage in path]
        for number, stage in enumerate(path):
            if 0.0 < sums[number] < max(sums) and all(pools[place].remembered for place in stage):
                for place in stage:
                    _keep_up(pools[place], max(sums) / sums[number])
                sums[number] = max(sums)
        for stage, total in zip(path, sums, strict=True):
            if len(stage) == 1:
                shares[stage[0]] = 1.0
                continue
            for place in stage:
                shares[place] = pools[place].load / total if total > 0 else 1.0 / len(stage)
        loads.append(max(sums))
    return sum(loads), tuple(loads), tuple(shares)


@lru_cache(maxsize=1024)
def _paths(roles: tuple[Role, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Paths of stages of places, for pools of these roles: prefill and decode together, aggregated pools beside them."""
    stages: dict[str, list[int]] = {}
    for place, role in enumerate(roles):
        stages.setdefault(role, []).append(place)
    split = tuple(tuple(stages[role]) for role in ("prefill", "decode") if role in stages)
    return tuple(path for path in (split, (tuple(stages["agg"]),) if "agg" in stages else ()) if path)


def _keep_up(pool: PoolView, factor: float) -> None:
    """What a pool last said was about less load than its partner sees now: it faces as much more."""
    pool.load *= factor
    pool.now = share_carried(pool.capacity, pool.load, pool.full) or slower(pool.now, factor)
    pool.hi = slower(pool.now, HEADROOM)


def _ceiling(group: GroupView, path: tuple[tuple[int, ...], ...]) -> float:
    """What the stages of which nothing is known let through: as much as their partners carry with what they have now."""
    counts = [pool.floor if pool.current is None else pool.current for pool in group.pools]
    reached = [group.stage_attainment(stage, counts) for stage in path]
    known = [level for level in reached if level is not None]
    if len(known) == len(reached):
        return 1.0
    return min(known, default=0.0)
