"""What is in force for a pool and a group now: topology, selectors, schedules, overrides, in this order. Pure.

Each layer replaces what the one before it set, and the result names the line that decided. The most specific selector wins: an
exact name before a pattern, `pool` before `group` and `model` before `namespace` before `role` and `gpu_type`, more matchers
before fewer. An override of a person is stronger than anything written down beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from fnmatch import fnmatchcase
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from global_planner.arbiter.state import ArbiterPolicy, Schedule, Selector
from global_planner.types import GroupSpec, Override, PoolSpec


@dataclass(slots=True, kw_only=True)
class PoolRules:
    """What holds for one pool now. `held`: why nobody may change it. `…_from`: the line that decided, or "". `told`: sentences
    on what lines beyond the pool's own decided."""

    minimum: int
    maximum: int | None
    guarantee: int
    load_factor: float = 1.0
    held: str | None = None
    min_from: str = ""
    max_from: str = ""
    guarantee_from: str = ""
    load_from: str = ""
    told: tuple[str, ...] = ()

    def sentences(self) -> tuple[str, ...]:
        """`told`, of what is in force now."""
        if not (self.min_from or self.max_from or self.guarantee_from or self.load_from):
            return ()
        told = (
            (self.min_from, f"minimum {self.minimum}"),
            (self.max_from, f"maximum {self.maximum}"),
            (self.guarantee_from, f"guarantee {self.guarantee}"),
            (self.load_from, f"load x {self.load_factor:g}"),
        )
        return tuple(f"{what} by {line}" for line, what in told if line)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRules:
    """What holds for one group now. `…_from`: the line that decided, or ""."""

    priority_class: int
    weight: float
    priority_from: str = ""
    weight_from: str = ""

    def sentences(self) -> tuple[str, ...]:
        """What lines beyond the group's own decided."""
        if not (self.priority_from or self.weight_from):
            return ()
        told = ((self.priority_from, f"priority {self.priority_class}"), (self.weight_from, f"weight {self.weight:g}"))
        return tuple(f"{what} by {line}" for line, what in told if line)


def group_rules(group: GroupSpec, pools: Sequence[PoolSpec], selectors: Sequence[Selector]) -> GroupRules:
    """Priority class and weight of a group whose pools are `pools`."""
    if not selectors:
        return GroupRules(priority_class=group.priority_class, weight=group.weight)
    namespaces = {pool.namespace for pool in pools}
    names = {"group": group.name, "model": group.model, "namespace": namespaces.pop() if len(namespaces) == 1 else ""}
    lines = [line for line in _by_specificity(selectors) if _matches(line, names)]
    rules = GroupRules(priority_class=group.priority_class, weight=group.weight)
    for line in lines:
        if line.priority_class is not None:
            rules = replace(rules, priority_class=line.priority_class, priority_from=f"selector {line.name}")
        if line.weight is not None:
            rules = replace(rules, weight=line.weight, weight_from=f"selector {line.name}")
    return rules


def pool_rules(
    pool: PoolSpec, group: GroupSpec, policy: ArbiterPolicy, overrides: Sequence[Override], at_s: float
) -> PoolRules:
    """The rules of a pool at model time `at_s`. `overrides` are those of this pool."""
    rules = PoolRules(minimum=pool.min_replicas, maximum=pool.max_replicas, guarantee=pool.guarantee_replicas)
    if policy.selectors:
        _select(rules, pool, group, policy.selectors)
    for event in policy.schedules:
        if _concerns(event, pool) and in_force(event, policy.unix_at_zero_s + at_s):
            if event.min_replicas is not None and event.min_replicas > rules.minimum:
                rules.minimum, rules.min_from = event.min_replicas, f"schedule {event.name}"
            if event.load_factor is not None:
                rules.load_factor *= event.load_factor
                rules.load_from = f"{rules.load_from} and " * bool(rules.load_from) + f"schedule {event.name}"
    if rules.maximum is not None and rules.minimum > rules.maximum:
        rules.minimum, rules.min_from = rules.maximum, rules.max_from or "max_replicas"
    if overrides:
        for override in sorted(overrides, key=lambda item: (item.kind, item.replicas or 0, item.by, item.reason)):
            if override.expires_at_s is None or at_s < override.expires_at_s:
                _override(rules, override)
    if pool.growth_cap is not None and (rules.maximum is None or pool.growth_cap < rules.maximum):
        rules.maximum, rules.max_from = pool.growth_cap, "back-off after failed starts"
        rules.guarantee = min(rules.guarantee, pool.growth_cap)
        rules.minimum = min(rules.minimum, pool.growth_cap)
    rules.told = rules.sentences()
    return rules


def _select(rules: PoolRules, pool: PoolSpec, group: GroupSpec, selectors: Sequence[Selector]) -> None:
    names = {
        "pool": pool.name,
        "group": group.name,
        "model": group.model,
        "namespace": pool.namespace,
        "role": pool.role,
        "gpu_type": pool.gpu_type,
    }
    for line in _by_specificity(selectors):
        if not _matches(line, names):
            continue
        if line.min_replicas is not None:
            rules.minimum, rules.min_from = line.min_replicas, f"selector {line.name}"
        if line.max_replicas is not None:
            rules.maximum, rules.max_from = line.max_replicas, f"selector {line.name}"
        if line.guarantee_replicas is not None:
            rules.guarantee, rules.guarantee_from = line.guarantee_replicas, f"selector {line.name}"


def _override(rules: PoolRules, override: Override) -> None:
    told = f"{override.kind} by {override.by}" if override.by else override.kind
    if override.kind == "hold":
        rules.held = f"{told}: {override.reason}" if override.reason else told
    elif override.replicas is not None:
        rules.maximum = override.replicas
        rules.max_from = told
        if override.kind == "pin" or rules.minimum > override.replicas:
            rules.minimum, rules.min_from = override.replicas, told
        rules.guarantee = min(rules.guarantee, override.replicas)


# ---- selectors -------------------------------------------------------------------------------------------------------

_MATCHERS = ("pool", "group", "model", "namespace", "role", "gpu_type")


def _by_specificity(selectors: Sequence[Selector]) -> list[Selector]:
    """From the least to the most specific; equally specific ones in their own order."""
    return sorted(selectors, key=_specificity)


def _specificity(line: Selector) -> tuple[int, ...]:
    said = [getattr(line, name) for name in _MATCHERS]
    exact = tuple(0 if value is None else 1 if "*" in value else 2 for value in said)
    return (*exact, sum(value is not None for value in said))


def _matches(line: Selector, names: dict[str, str]) -> bool:
    for matcher in _MATCHERS:
        pattern = getattr(line, matcher)
        if pattern is not None and not (matcher in names and fnmatchcase(names[matcher], pattern)):
            return False
    return True


# ---- schedules -------------------------------------------------------------------------------------------------------


def check_schedule(event: Schedule) -> None:
    """Raises ValueError that names the schedule, the field and what is allowed."""
    where = f"schedule {event.name!r}"
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", event.start):
        raise ValueError(f'{where}: start {event.start!r} is not a time of day like "09:00"')
    if not event.duration_s > 0 or event.lead_s < 0:
        raise ValueError(f"{where}: duration_s must be above 0 and lead_s not below 0")
    if any(not 0 <= day <= 6 for day in event.days):
        raise ValueError(f"{where}: days {event.days} are not all in 0 (Monday) .. 6 (Sunday)")
    if event.date is not None and event.days:
        raise ValueError(f"{where}: either days or a date, not both")
    if (event.min_replicas is None) == (event.load_factor is None):
        raise ValueError(f"{where}: set either min_replicas or load_factor")
    if event.load_factor is not None and not event.load_factor > 0:
        raise ValueError(f"{where}: load_factor {event.load_factor} is not above 0")
    try:
        ZoneInfo(event.timezone)
        date.fromisoformat(event.date or "2000-01-01")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error


def in_force(event: Schedule, unix_s: float) -> bool:
    """Whether the event lasts (or is led up to) at Unix time `unix_s`. A start that a clock change skips is an hour later, one
    that comes twice is the first.

    >>> nine = Schedule(name="fair", start="09:00", duration_s=3600, timezone="Europe/Berlin", load_factor=2.0)
    >>> [in_force(nine, datetime.fromisoformat(f"2026-07-01T{t}+00:00").timestamp()) for t in ("06:59", "07:00", "08:00")]
    [False, True, False]
    """
    zone = ZoneInfo(event.timezone)
    today = datetime.fromtimestamp(unix_s + event.lead_s, zone).date()
    if event.date is not None:
        starts = [date.fromisoformat(event.date)]
    else:
        days_back = int(event.duration_s + event.lead_s) // 86400 + 1
        starts = [today - timedelta(days=back) for back in range(days_back + 1)]
        starts = [day for day in starts if not event.days or day.weekday() in event.days]
    clock = time.fromisoformat(event.start)
    for day in starts:
        begin = datetime.combine(day, clock, tzinfo=zone).timestamp()
        if begin - event.lead_s <= unix_s < begin + event.duration_s:
            return True
    return False


def _concerns(event: Schedule, pool: PoolSpec) -> bool:
    return (event.pool is None or fnmatchcase(pool.name, event.pool)) and (
        event.group is None or fnmatchcase(pool.group, event.group)
    )
