"""The rate that a group may admit now: what its ready replicas carry within the SLA, not what is ordered. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from global_planner.arbiter.view import Curve, GroupView, PoolView
from global_planner.types import Holding, PriorityRate


def admitted_rps(group: GroupView) -> float | None:
    """Requests/s over the group's paths; None: unlimited, because nobody can tell what a path carries.

    A path carries what its tightest stage does. A stage that is short in some pools carries the load of the others in full: a
    class of requests that starves does not starve the others. One that is short nowhere carries its whole load, and beyond it
    as much as its mix allows before the first pool is full.
    """
    total = 0.0
    for path in group.paths:
        least: float | None = None
        for stage in path:
            rate = _stage_rps(group, stage)
            if rate is not None and (least is None or rate < least):
                least = rate
        if least is None:
            return None
        total += least
    return total


def admitted_in_flight(group: GroupView, admitted: float | None) -> float | None:
    """How many requests may be under way in the ready replicas of the group at once, where `admitted` requests/s come in; None:
    unlimited, because a pool does not say. Prefill has what it has at its own rate, and as much less where fewer come in."""
    if admitted is None:
        return None
    total = 0.0
    for path in group.paths:
        for stage in path:
            pools = [group.pools[place] for place in stage]
            inside = [_ready_in_flight(pool) for pool in pools]
            known = [count for count in inside if count is not None]
            if len(known) < len(pools):
                return None
            passing = _stage_rps(group, stage) if pools[0].spec.role == "prefill" else None
            total += sum(known) * (min(1.0, admitted / passing) if passing else 1.0)
    return total


def in_flight_by_pool(group: GroupView, admitted: float | None) -> Mapping[str, float]:
    """How many requests may be with the ready replicas of each pool at once: of prefill as many as come in the time of its SLA
    at its rate, because whoever comes behind them is late; of decode as many as meet theirs together. A pool that does not say
    is absent.

    Empty where the group is not limited; where it has but one stage, which `admitted_in_flight` bounds; and where aggregated
    pools stand beside its stages: the router sends there whom the stages cannot take, and would make them wait instead.
    """
    if admitted is None or len(group.paths) != 1 or len(group.paths[0]) < 2:
        return {}
    bounds = {}
    for pool in group.pools:
        inside, rate = _ready_in_flight(pool), _of_ready(pool, pool.capacity)
        if inside is not None and pool.spec.role == "prefill":
            inside = None if rate is None else max(inside, rate * group.spec.ttft_ms / 1e3)
        if inside is not None:
            bounds[pool.spec.name] = inside
    return bounds


def rates_by_priority(group: GroupView, admitted: float | None) -> tuple[PriorityRate, ...]:
    """What may be admitted of each request priority, the most important first, within what the group admits: each finds what
    the load of those above it leaves. Empty where the group is not limited or nobody tells how its load divides.

    Priorities that the router does not tell apart cannot be limited, so their load counts before all others.
    """
    if admitted is None:
        return ()
    for pool in group.pools:
        if pool.by_priority:
            break
    else:
        return ()
    loads = _loads_by_priority(group)
    if loads is None:
        return ()
    left = max(0.0, admitted - sum(load for name, load in loads.items() if not _is_number(name)))
    rates = []
    for name in sorted(filter(_is_number, loads), key=int, reverse=True):
        rates.append(PriorityRate(priority=int(name), load_rps=loads[name], admitted_rps=left))
        left = max(0.0, left - loads[name])
    return tuple(rates)


def _loads_by_priority(group: GroupView) -> Mapping[str, float] | None:
    """Requests/s by priority over the paths, divided as the first stage that is known says; None: a path with load has none."""
    total: dict[str, float] = {}
    for path, load in zip(group.paths, group.path_loads, strict=True):
        if load <= 0.0:
            continue
        for stage in path:
            parts: dict[str, float] = {}
            for place in stage:
                for name, part in (group.pools[place].by_priority or {}).items():
                    parts[name] = parts.get(name, 0.0) + part
            known = sum(parts.values())
            if known > 0.0:
                for name, part in parts.items():
                    total[name] = total.get(name, 0.0) + load * part / known
                break
        else:
            return None
    return total


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _stage_rps(group: GroupView, stage: Sequence[int]) -> float | None:
    if len(stage) == 1:
        return _ready_rps(group.pools[stage[0]])
    pools = [group.pools[place] for place in stage]
    carried = [_ready_rps(pool) for pool in pools]
    rates = [rate for rate in carried if rate is not None]
    if len(rates) < len(pools):
        return None
    loads = [pool.load for pool in pools]
    if all(rate >= load for rate, load in zip(rates, loads, strict=True)):
        total = sum(loads)
        if total <= 0:
            return sum(rates)
        return min(rate * total / load for rate, load in zip(rates, loads, strict=True) if load > 0)
    return sum(min(rate, load) for rate, load in zip(rates, loads, strict=True))


def _ready_rps(pool: PoolView) -> float | None:
    """What the ready replicas of a pool carry; None: unknown. Where the planner's own curve says that they carry the whole
    load, it is never less than the load."""
    if pool.capacity is None or pool.holding is None or pool.holding.unknown is not None:
        return None
    ready = _ready(pool.holding)
    capacity, now = pool.capacity, pool.now
    rate = capacity[ready] if ready < len(capacity) else capacity[-1]
    if now and (now[ready] if ready < len(now) else now[-1]) >= 1.0:
        return max(rate, pool.load)
    return rate


def _ready_in_flight(pool: PoolView) -> float | None:
    return _of_ready(pool, pool.in_flight)


def _of_ready(pool: PoolView, curve: Curve | None) -> float | None:
    """A curve at the pool's ready replicas; None: unknown."""
    if curve is None or pool.holding is None or pool.holding.unknown is not None:
        return None
    return curve[min(_ready(pool.holding), len(curve) - 1)]


def _ready(holding: Holding) -> int:
    ready = 0
    for replica in holding.replicas:
        if replica.state == "ready":
            ready += 1
    return ready
