"""What is wrong with limits, selectors and schedules: rules that nobody can follow, or that touch nothing. Pure.

A rule that matches no pool is a mistake in a name, and would be silently without effect; so it is refused like any other.
Minima are counted as the selectors leave them, against the budgets, the limits, and while each schedule lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain

from global_planner.arbiter.effective import PoolRules, pool_rules
from global_planner.arbiter.state import ArbiterPolicy
from global_planner.config import LimitConfig
from global_planner.config_rules import ScheduleConfig, SelectorConfig
from global_planner.policies import selector_of
from global_planner.topology_draft import Draft, DraftGroup, DraftPool, DraftRule, Problem, once
from global_planner.types import GroupSpec, PoolSpec

_POOL_MATCHERS = ("pool", "role", "gpu_type")
_COUNTED = ("name", "role", "gpu_type", "gpus_per_replica", "min_replicas", "max_replicas", "guarantee_replicas")


def check_rules(draft: Draft) -> Iterator[Problem]:
    """Every problem of the rules, those between them and the pools included."""
    for rules, what in ((draft.limits, "a limit"), (draft.selectors, "a selector"), (draft.schedules, "a schedule")):
        names: dict[str, str] = {}
        for rule in rules:
            if rule.knows("name"):
                yield from once(names, rule.config.name, f"{rule.path}.name", what)
    yield from chain.from_iterable(_limit(draft, rule) for rule in draft.limits)
    yield from chain.from_iterable(_selector(draft, rule) for rule in draft.selectors)
    yield from chain.from_iterable(_schedule(draft, rule) for rule in draft.schedules)
    yield from _overrides(draft)
    yield from _minima(draft)


# ---- single rules ----------------------------------------------------------------------------------------------------


def _limit(draft: Draft, rule: DraftRule[LimitConfig]) -> Iterator[Problem]:
    limit, path = rule.config, rule.path
    if not rule.knows("max_gpus", "max_cost_per_hour", "namespace", "gpu_type"):
        return
    if (limit.max_gpus is None) == (limit.max_cost_per_hour is None):
        yield Problem(path=path, text="set either max_gpus or max_cost_per_hour")
        return
    if limit.gpu_type is not None and draft.gpus is not None and limit.gpu_type not in draft.gpus:
        known = ", ".join(sorted(draft.gpus))
        yield Problem(path=f"{path}.gpu_type", text=f"{limit.gpu_type!r} is not in budget.gpus (has: {known})")
        return
    if not _can_match(draft):
        return
    covered = [pool for group, pool in draft.pools() if _covers(draft, limit, group, pool)]
    if not covered:
        namespaces = ", ".join(sorted({_namespace(draft, group) for group in draft.groups}))
        text = f"no pool is in namespace {limit.namespace!r} (has: {namespaces})"
        if limit.namespace is None or any(_match(limit.namespace, _namespace(draft, group)) for group in draft.groups):
            text = f"no pool that it would limit is on GPUs of type {limit.gpu_type!r}"
        yield Problem(path=f"{path}.{'namespace' if 'namespace' in text else 'gpu_type'}", text=text)
    if limit.max_cost_per_hour is not None:
        types = {pool.config.gpu_type for pool in covered}
        budgets = [(name, budget) for name, budget in (draft.gpus or {}).items() if name in types]
        for name, budget in budgets:
            if budget is not None and budget.price_per_hour is None:
                text = f"counts cost, so budget.gpus.{name}.price_per_hour must be set"
                yield Problem(path=f"{path}.max_cost_per_hour", text=text)


def _selector(draft: Draft, rule: DraftRule[SelectorConfig]) -> Iterator[Problem]:
    match, values, path = rule.config.match, rule.config.set, rule.path
    if rule.knows("set") and not any(getattr(values, name) is not None for name in type(values).model_fields):
        yield Problem(path=f"{path}.set", text=f"sets nothing (may set: {', '.join(type(values).model_fields)})")
    if not rule.knows("set", "match"):
        return
    of_groups = [name for name in ("priority", "weight") if getattr(values, name) is not None]
    of_pools = [name for name in _POOL_MATCHERS if getattr(match, name) is not None]
    if of_groups and of_pools:
        text = f"belongs to groups, so its rule may match by group, model and namespace, not by {' and '.join(of_pools)}"
        yield Problem(path=f"{path}.set.{of_groups[0]}", text=text)
    for name in ("min_replicas", "guarantee_replicas"):
        value = getattr(values, name)
        if value is not None and values.max_replicas is not None and value > values.max_replicas:
            yield Problem(path=f"{path}.set.{name}", text=f"{value} is more than max_replicas ({values.max_replicas})")
    if match.gpu_type is not None and draft.gpus is not None and match.gpu_type not in draft.gpus:
        known = ", ".join(sorted(draft.gpus))
        yield Problem(path=f"{path}.match.gpu_type", text=f"{match.gpu_type!r} is not in budget.gpus (has: {known})")
        return
    if not _can_match(draft):
        return
    matched = [
        pool
        for group, pool in draft.pools()
        if _match(match.pool, pool.config.name)
        and _match(match.group, group.config.name)
        and _match(match.model, group.config.model)
        and _match(match.namespace, _namespace(draft, group))
        and match.role in (None, pool.config.role)
        and match.gpu_type in (None, pool.config.gpu_type)
    ]
    if not matched:
        yield Problem(path=f"{path}.match", text=f"matches no pool ({_known(draft)})")


def _schedule(draft: Draft, rule: DraftRule[ScheduleConfig]) -> Iterator[Problem]:
    schedule, path = rule.config, rule.path
    values = schedule.set
    if rule.knows("set") and (values.min_replicas is None) == (values.load_factor is None):
        yield Problem(path=f"{path}.set", text="set either min_replicas or load_factor")
    if rule.knows("days", "date") and schedule.days and schedule.date is not None:
        yield Problem(path=f"{path}.date", text="say either days (every week) or a date (once), not both")
    if rule.knows("match") and _can_match(draft) and not _concerned(draft, schedule):
        yield Problem(path=f"{path}.match", text=f"matches no pool ({_known(draft)})")


def _overrides(draft: Draft) -> Iterator[Problem]:
    pools = {pool.config.name: pool for _, pool in draft.pools()}
    named = all(pool.knows("name") for _, pool in draft.pools())
    seen: dict[str, str] = {}
    for rule in draft.overrides:
        override, path = rule.config, rule.path
        if not rule.knows("pool", "kind", "replicas"):
            continue
        if (override.kind == "hold") != (override.replicas is None):
            text = "a hold has none" if override.kind == "hold" else f"is missing: {override.kind} to how many?"
            yield Problem(path=f"{path}.replicas", text=text)
        if named and override.pool not in pools:
            yield Problem(path=f"{path}.pool", text=f"{override.pool!r} is not a pool ({_known(draft)})")
        yield from once(seen, f"{override.kind} of {override.pool}", path, "an override")
        pool = pools.get(override.pool)
        budget = None if pool is None or draft.gpus is None else draft.gpus.get(pool.config.gpu_type)
        if override.kind != "pin" or override.replicas is None or pool is None or budget is None or budget.max is None:
            continue
        gpus = override.replicas * pool.config.gpus_per_replica
        if pool.knows("gpus_per_replica", "gpu_type") and gpus > budget.max:
            text = f"{override.replicas} take {gpus} GPUs, more than budget.gpus.{pool.config.gpu_type}.max ({budget.max})"
            yield Problem(path=f"{path}.replicas", text=text)


# ---- minima, as the rules leave them -----------------------------------------------------------------------------------


def rules_of(draft: Draft, group: DraftGroup, pool: DraftPool) -> PoolRules:
    """What holds for a pool when no schedule and no person says otherwise. The pool knows its numbers."""
    config = pool.config
    selectors = tuple(
        selector_of(rule.config) for rule in draft.selectors if rule.knows("match", "set") and not list(_selector(draft, rule))
    )
    spec = PoolSpec(
        name=config.name,
        group=group.config.name,
        role=config.role,
        gpu_type=config.gpu_type,
        gpus_per_replica=config.gpus_per_replica,
        dgd=config.dgd_name,
        component=config.component_name,
        namespace=_namespace(draft, group),
        min_replicas=config.min_replicas,
        max_replicas=config.max_replicas,
        guarantee_replicas=config.guarantee_replicas,
    )
    return pool_rules(
        spec, GroupSpec(name=group.config.name, model=group.config.model), ArbiterPolicy(selectors=selectors), (), 0.0
    )


def _minima(draft: Draft) -> Iterator[Problem]:
    if draft.gpus is None or not _namespaces_known(draft):
        return
    counted = [(group, pool) for group, pool in draft.pools() if pool.knows(*_COUNTED) and group.knows("name", "model")]
    minimum = {pool.path: rules_of(draft, group, pool).minimum for group, pool in counted}
    guarantee = {pool.path: rules_of(draft, group, pool).guarantee for group, pool in counted}
    usual, reserved = (
        lambda pool: minimum[pool.path],
        lambda pool: max(minimum[pool.path], guarantee[pool.path]),
    )
    for gpu_type, budget in draft.gpus.items():
        if budget is None or budget.max is None:
            continue
        pools = [pool for _, pool in counted if pool.config.gpu_type == gpu_type]
        path, most = f"budget.gpus.{gpu_type}.max", budget.max
        for what, replicas in (("minima", usual), ("minima and guarantees", reserved)):
            needed = _gpus(pools, replicas)
            if needed > most:
                text = f"{most} is less than the {needed} GPUs of the {what} together ({_named(pools, replicas)})"
                yield Problem(path=path, text=text)
                break
        else:
            yield from _during_schedules(draft, gpu_type, most, pools, usual)
    for rule in draft.limits:
        if rule.knows("max_gpus", "max_cost_per_hour", "namespace", "gpu_type"):
            yield from _under_limit(draft, rule, counted, usual)


Replicas = Callable[[DraftPool], int]


def _during_schedules(draft: Draft, gpu_type: str, most: int, pools: Sequence[DraftPool], usual: Replicas) -> Iterator[Problem]:
    for rule in draft.schedules:
        floor = rule.config.set.min_replicas
        if floor is None or not rule.knows("match", "set"):
            continue
        concerned = {pool.path for pool in _concerned(draft, rule.config)}

        def then(pool: DraftPool, floor: int = floor, concerned: set[str] = concerned) -> int:
            raised = max(usual(pool), floor) if pool.path in concerned else usual(pool)
            return raised if pool.config.max_replicas is None else min(raised, max(usual(pool), pool.config.max_replicas))

        needed = _gpus(pools, then)
        if needed > most:
            text = (
                f"{floor}: while it lasts, the minima together need {needed} GPUs ({_named(pools, then)}), more than "
                f"budget.gpus.{gpu_type}.max ({most})"
            )
            yield Problem(path=f"{rule.path}.set.min_replicas", text=text)


def _under_limit(
    draft: Draft, rule: DraftRule[LimitConfig], counted: Sequence[tuple[DraftGroup, DraftPool]], usual: Replicas
) -> Iterator[Problem]:
    limit = rule.config
    if limit.max_gpus is not None and limit.max_cost_per_hour is not None:
        return
    pools = [pool for group, pool in counted if _covers(draft, limit, group, pool)]
    if limit.max_gpus is not None:
        needed = _gpus(pools, usual)
        if needed > limit.max_gpus:
            text = f"{limit.max_gpus} is less than the {needed} GPUs of the minima together ({_named(pools, usual)})"
            yield Problem(path=f"{rule.path}.max_gpus", text=text)
    elif limit.max_cost_per_hour is not None:
        cost = sum(_gpus([pool], usual) * _price(draft, pool) for pool in pools)
        if cost > limit.max_cost_per_hour:
            text = f"{limit.max_cost_per_hour:g} is less than what the minima together cost: {cost:g} ({_named(pools, usual)})"
            yield Problem(path=f"{rule.path}.max_cost_per_hour", text=text)


def _price(draft: Draft, pool: DraftPool) -> float:
    budget = (draft.gpus or {}).get(pool.config.gpu_type)
    return 0.0 if budget is None or budget.price_per_hour is None else budget.price_per_hour


def _gpus(pools: Sequence[DraftPool], replicas: Replicas) -> int:
    return sum(replicas(pool) * pool.config.gpus_per_replica for pool in pools)


def _named(pools: Sequence[DraftPool], replicas: Replicas) -> str:
    counts = ((pool.config, replicas(pool)) for pool in pools)
    return ", ".join(f"{config.name} {count} x {config.gpus_per_replica}" for config, count in counts if count)


# ---- matching --------------------------------------------------------------------------------------------------------


def _match(pattern: str | None, name: str) -> bool:
    return pattern is None or fnmatchcase(name, pattern)


def _covers(draft: Draft, limit: LimitConfig, group: DraftGroup, pool: DraftPool) -> bool:
    return _match(limit.namespace, _namespace(draft, group)) and limit.gpu_type in (None, pool.config.gpu_type)


def _concerned(draft: Draft, schedule: ScheduleConfig) -> list[DraftPool]:
    match = schedule.match
    return [
        pool for group, pool in draft.pools() if _match(match.pool, pool.config.name) and _match(match.group, group.config.name)
    ]


def _namespace(draft: Draft, group: DraftGroup) -> str:
    return group.config.namespace or ("" if draft.cluster is None else draft.cluster.namespace)


def _namespaces_known(draft: Draft) -> bool:
    return draft.cluster is not None and all(group.knows("namespace") for group in draft.groups)


def _can_match(draft: Draft) -> bool:
    """Whether every name that a rule could match is known: else one that matches nothing may be right."""
    return (
        _namespaces_known(draft)
        and bool(draft.pools())
        and all(group.knows("name", "model", "pools") for group in draft.groups)
        and all(pool.knows("name", "role", "gpu_type") for _, pool in draft.pools())
    )


def _known(draft: Draft) -> str:
    return f"pools: {', '.join(pool.config.name for _, pool in draft.pools())}"
