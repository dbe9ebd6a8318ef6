"""Throughput-based scaling: the fewest replicas whose capacity covers the load that is planned for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pool_planner.performance.demand import HEADROOM, Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`replicas` carry the load that is planned for, `with_headroom` carry HEADROOM times it: only at the latter is a lower
    number safe. Both lie within the pool's limits; `short` when even the most replicas do not carry the load."""

    replicas: int
    with_headroom: int
    short: bool
    reason: str


def throughput_need(capacity: Capacity, load_rps: float, *, least: int, most: int) -> Need:
    needed, safe = capacity.needed(load_rps), capacity.needed(HEADROOM * load_rps)
    replicas = most if needed is None else min(most, max(least, needed))
    headroom = most if safe is None else min(most, max(least, safe))
    carried = capacity.rps[min(replicas, len(capacity.rps) - 1)]
    if needed is None or needed > most:
        reason = f"{load_rps:.2f} requests/s need more than the {most} replicas allowed, which carry {carried:.2f}"
    elif needed <= least:
        reason = f"the minimum of {least} carries {carried:.2f} requests/s, {load_rps:.2f} are planned for"
    else:
        fewer = capacity.rps[replicas - 1]
        reason = f"{replicas} replicas carry {carried:.2f} requests/s, one fewer {fewer:.2f}; {load_rps:.2f} are planned for"
    return Need(replicas=replicas, with_headroom=headroom, short=needed is None or needed > most, reason=reason)
