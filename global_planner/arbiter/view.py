"""One round as the arbiter sees it: pools with their demand as plain lists, grouped into stages and paths. Pure.

Everything doubtful is settled here, once: which rules are in force, who is held and why, what a held pool carries, between
which numbers each pool may be set. What follows only calculates.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from operator import le

from global_planner.arbiter.effective import GroupRules, PoolRules, group_rules, pool_rules
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState, DemandHistory
from global_planner.charge import charge_or_last_known, ordered_replicas
from global_planner.types import GroupSpec, Holding, Override, PoolSpec, RoundInputs
from pool_planner.types import Hold, Proposal, Report, Role

HEADROOM = 1.1
"""A smaller number of replicas is safe only where it carries this many times the load."""
FULLY = 0.999
"""Share of the best attainment within reach that counts as all of it."""


@dataclass(slots=True, kw_only=True)
class PoolView:
    """One pool. `now[n]` and `hi[n]`: attainment with n replicas at the load, and at 1.1 x the load; beyond the end the last
    value holds; empty: unknown. It may be set to `floor`..`cap` replicas, and is not lowered below `low` for its own sake.

    `current`: replicas in force (our last order included), None: unknown. `reserved`: minimum and used guarantee.
    `fixed_gpus`: GPUs that a held pool takes whatever is decided; None: it is not held. `unknown_charge`: nobody knows what it
    holds, so nothing of its GPU type grows. `need`: replicas that 1.1 x the load needs, None: unknown. `remembered`: its
    demand is what it last said. `by_priority`: its load by request priority, in any unit; empty or None: not known.
    `hit_rate`: the share of its prompt tokens that its replicas have in their caches, None: not known.
    """

    spec: PoolSpec
    rules: PoolRules
    holding: Holding | None
    gpus: int
    current: int | None
    before: int | None
    load: float = 0.0
    wanted: int | None = None
    now: Sequence[float] = ()
    hi: Sequence[float] = ()
    capacity: Sequence[float] | None = None
    need: int | None = None
    floor: int = 0
    reserved: int = 0
    low: int = 0
    cap: int = 0
    held: str | None = None
    fixed_gpus: int | None = None
    unknown_charge: bool = False
    remembered: bool = False
    by_priority: Mapping[str, float] | None = None
    hit_rate: float | None = None
    history: DemandHistory = field(default_factory=DemandHistory)


@dataclass(slots=True, kw_only=True)
class GroupView:
    """One group. `paths` name positions in `pools`: a path is a tuple of stages, a stage a tuple of pools. `load`: requests/s
    over all paths; `path_loads` by path; `shares` by pool within its stage. `ceilings` by path: what its unknown stages let
    through (1 where all is known). `rules` name the selectors in force for it."""

    spec: GroupSpec
    priority_class: int
    weight: float
    pools: list[PoolView]
    paths: tuple[tuple[tuple[int, ...], ...], ...]
    load: float = 0.0
    path_loads: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    rules: tuple[str, ...] = ()
    ceilings: tuple[float, ...] = ()

    @property
    def scale(self) -> float:
        """Value of attainment 1."""
        return self.weight * self.load

    def attainment(self, counts: Sequence[int], *, hi: bool = False) -> float:
        """Share of the group's load that meets its SLA with `counts` replicas, at the load or at 1.1 x the load."""
        if len(self.paths) == 1:
            return self._path_attainment(0, counts, hi=hi)
        total = 0.0
        for number, share in enumerate(self.path_shares()):
            total += share * self._path_attainment(number, counts, hi=hi)
        return total

    def _path_attainment(self, number: int, counts: Sequence[int], *, hi: bool) -> float:
        level = self.ceilings[number]
        for stage in self.paths[number]:
            reached = self.stage_attainment(stage, counts, hi=hi)
            if reached is not None and reached < level:
                level = reached
        return level

    def path_shares(self) -> tuple[float, ...]:
        if self.load > 0:
            return tuple(load / self.load for load in self.path_loads)
        return tuple(1.0 / len(self.paths) for _ in self.paths)

    def stage_attainment(self, stage: Sequence[int], counts: Sequence[int], *, hi: bool = False) -> float | None:
        """Load-weighted mean of the pools of which anything is known; None: of none."""
        if len(stage) == 1:
            pool = self.pools[stage[0]]
            curve = pool.hi if hi else pool.now
            if not curve or self.shares[stage[0]] <= 0.0:
                return None
            count = counts[stage[0]]
            return curve[count] if count < len(curve) else curve[-1]
        total = share = 0.0
        for place in stage:
            pool = self.pools[place]
            curve = pool.hi if hi else pool.now
            if curve:
                count = counts[place]
                total += self.shares[place] * (curve[count] if count < len(curve) else curve[-1])
                share += self.shares[place]
        return total / share if share > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`groups` in the order of their names; `pools` by name."""

    groups: tuple[GroupView, ...]
    pools: Mapping[str, PoolView]
    at_s: float


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
    for spec in sorted(inputs.pools, key=lambda spec: spec.name):
        by_group.setdefault(spec.group, []).append(spec)

    groups = []
    pools: dict[str, PoolView] = {}
    for group in sorted(inputs.groups, key=lambda group: group.name):
        specs = by_group.get(group.name, [])
        if not specs:
            continue
        views = []
        for spec in specs:
            rules = pool_rules(spec, group, policy, overrides.get(spec.name, ()), inputs.at_s)
            history = state.pools.get(spec.name, _NO_HISTORY)
            seen = _pool_view(spec, rules, holdings.get(spec.name), reports.get(spec.name), history, inputs.at_s, policy)
            pools[spec.name] = seen
            views.append(seen)
        ranked = group_rules(group, specs, policy.selectors)
        groups.append(_group_view(group, ranked, views))
    return View(groups=tuple(groups), pools=pools, at_s=inputs.at_s)


_NO_HISTORY = DemandHistory()


# ---- one pool --------------------------------------------------------------------------------------------------------


def _pool_view(
    spec: PoolSpec,
    rules: PoolRules,
    holding: Holding | None,
    report: Report | None,
    history: DemandHistory,
    at_s: float,
    policy: ArbiterPolicy,
) -> PoolView:
    before = None if holding is None else ordered_replicas(holding)
    current = before
    gpus = spec.gpus_per_replica
    if holding is not None and before is not None:
        current = before if holding.last_write is None else holding.last_write
        gpus = holding.gpus_per_replica or gpus
    pool = PoolView(spec=spec, rules=rules, holding=holding, gpus=gpus, current=current, before=before, history=history)
    proposal = report if isinstance(report, Proposal) and at_s < report.expires_at_s else None
    fault = None if proposal is None else _fault(proposal)
    if proposal is not None and fault is None:
        _take_demand(pool, proposal)
    elif history.said_at_s is not None and at_s - history.said_at_s <= policy.trust_s:
        pool.load, pool.now, pool.capacity = history.load_rps, history.attainment, history.capacity_rps
        pool.by_priority = history.by_priority
        pool.hi = slower(pool.now, HEADROOM)
        pool.remembered = True
    _settle_bounds(pool, _why_held(pool, report, fault, at_s), at_s, policy)
    return pool


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


def _fault(proposal: Proposal) -> str | None:
    """What makes a proposal senseless, or None."""
    if not 0.0 <= proposal.load_rps < math.inf:
        return f"load_rps is {proposal.load_rps}"
    if proposal.wanted < 0:
        return f"wanted is {proposal.wanted}"
    curve = None if proposal.curve is None else proposal.curve.attainment
    for name, values in (("attainment", curve), ("attainment_headroom", proposal.attainment_headroom)):
        if values is not None and not _is_curve(values):
            return f"{name} is not a non-empty curve that rises within 0..1"
    capacity = None if proposal.curve is None else proposal.curve.capacity_rps
    if capacity and not (math.isfinite(sum(capacity)) and min(capacity) >= 0.0):
        return "capacity_rps is not finite and non-negative"
    if proposal.prefix_hit_rate is not None and not 0.0 <= proposal.prefix_hit_rate <= 1.0:
        return f"prefix_hit_rate is {proposal.prefix_hit_rate}"
    parts = (proposal.load_by_priority or {}).values()
    if parts and not (math.isfinite(sum(parts)) and min(parts) >= 0.0):
        return "load_by_priority is not finite and non-negative"
    return None


def _is_curve(values: Sequence[float]) -> bool:
    if not values or not (values[0] >= 0.0 and values[-1] <= 1.0):
        return False
    return all(map(le, values, islice(values, 1, None)))


def _take_demand(pool: PoolView, proposal: Proposal) -> None:
    """Load, curves and need from a believable proposal, times the load factor of a schedule."""
    factor = pool.rules.load_factor
    wanted = math.ceil(proposal.wanted * factor - 1e-9)
    pool.load, pool.wanted = proposal.load_rps * factor, wanted
    pool.by_priority, pool.hit_rate = proposal.load_by_priority, proposal.prefix_hit_rate
    curve = proposal.curve
    if curve is None:
        pool.now = [min(1.0, n / wanted) for n in range(wanted + 1)] if wanted else (1.0,)
        top = math.ceil(wanted * HEADROOM)
        pool.hi = [min(1.0, n / (wanted * HEADROOM)) for n in range(top + 1)] if wanted else (1.0,)
    else:
        pool.capacity = curve.capacity_rps or None
        pool.now = curve.attainment
        pool.hi = proposal.attainment_headroom or ()
        if factor != 1.0 or not pool.hi:
            pool.hi = _share_carried(pool.capacity, pool.load * HEADROOM) or slower(pool.now, factor * HEADROOM)
        if factor != 1.0:
            pool.now = _share_carried(pool.capacity, pool.load) or slower(pool.now, factor)
    pool.need = max(wanted, bisect_left(pool.hi, FULLY * pool.hi[-1]))


def _share_carried(capacity: Sequence[float] | None, load: float) -> Sequence[float]:
    if capacity is None:
        return ()
    return [min(1.0, rate / load) for rate in capacity] if load > 0 else (1.0,)


def slower(curve: Sequence[float], factor: float) -> Sequence[float]:
    """Attainment at `factor` times the load, where only that at the load is known: n replicas then do what n / factor do now.

    >>> slower([0.0, 0.5, 1.0], 2.0)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    last = len(curve) - 1
    scaled = []
    for n in range(math.ceil(last * factor) + 1):
        place = min(n / factor, float(last))
        left = int(place)
        right = min(left + 1, last)
        scaled.append(curve[left] + (place - left) * (curve[right] - curve[left]))
    return scaled


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
        kept = _kept(pool, current, at_s, policy.hold_s)
        low = kept if kept > minimum else minimum
        pool.low = low if maximum is None or low < maximum else maximum
        if pool.low > pool.cap:
            pool.cap = pool.low


def _kept(pool: PoolView, current: int, at_s: float, hold_s: float) -> int:
    """Replicas that the pool keeps of its own accord: all, until fewer would have done for the whole hold."""
    since = pool.history.since_s
    if pool.need is None or pool.need >= current or since is None or at_s - since < hold_s:
        return current
    most = max((n for said_s, n in pool.history.needs if said_s >= at_s - hold_s), default=0)
    return min(current, max(most, pool.need))


# ---- groups ----------------------------------------------------------------------------------------------------------


def _plain_group(
    spec: GroupSpec, rules: GroupRules, pools: list[PoolView], paths: tuple[tuple[tuple[int, ...], ...], ...]
) -> GroupView | None:
    """One prefill and one decode pool that both speak for themselves, as nearly all groups have; None: another shape."""
    if len(paths[0]) != 2 or not (pools[0].now and pools[1].now):
        return None
    load = pools[0].load if pools[0].load > pools[1].load else pools[1].load
    return GroupView(
        spec=spec,
        priority_class=rules.priority_class,
        weight=rules.weight,
        rules=rules.sentences(),
        pools=pools,
        paths=paths,
        load=load,
        path_loads=(load,),
        shares=(1.0, 1.0),
        ceilings=(1.0,),
    )


def _group_view(spec: GroupSpec, rules: GroupRules, pools: list[PoolView]) -> GroupView:
    paths = _paths(tuple([pool.spec.role for pool in pools]))
    if len(pools) == 2 and len(paths) == 1 and not (pools[0].remembered or pools[1].remembered):
        plain = _plain_group(spec, rules, pools, paths)
        if plain is not None:
            return plain
    shares = [0.0] * len(pools)
    loads = []
    for path in paths:
        if all(len(stage) == 1 for stage in path):
            sums = [pools[stage[0]].load for stage in path]
        else:
            sums = [sum(pools[place].load for place in stage) for stage in path]
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
    group = GroupView(
        spec=spec,
        priority_class=rules.priority_class,
        weight=rules.weight,
        rules=rules.sentences(),
        pools=pools,
        paths=paths,
        load=sum(loads),
        path_loads=tuple(loads),
        shares=tuple(shares),
    )
    known = all(pool.now for pool in pools)
    group.ceilings = (1.0,) * len(paths) if known else tuple(_ceiling(group, path) for path in paths)
    return group


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
    pool.now = _share_carried(pool.capacity, pool.load) or slower(pool.now, factor)
    pool.hi = slower(pool.now, HEADROOM)


def _ceiling(group: GroupView, path: tuple[tuple[int, ...], ...]) -> float:
    """What the stages of which nothing is known let through: as much as their partners carry with what they have now."""
    counts = [pool.floor if pool.current is None else pool.current for pool in group.pools]
    reached = [group.stage_attainment(stage, counts) for stage in path]
    known = [level for level in reached if level is not None]
    if len(known) == len(reached):
        return 1.0
    return min(known, default=0.0)
