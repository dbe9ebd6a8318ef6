"""What a proposal says of a pool's demand: whether it can be believed, and as curves of plain numbers. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left

from global_planner.arbiter.view import HEADROOM, Curve, PoolView
from pool_planner.performance.door import share_served
from pool_planner.types import Proposal

FULLY = 0.999
"""Share of the best attainment within reach that counts as all of it."""


def fault_of(proposal: Proposal) -> str | None:
    """What makes a proposal senseless, or None."""
    if not 0.0 <= proposal.load_rps < math.inf:
        return f"load_rps is {proposal.load_rps}"
    if proposal.expected_rps is not None and not 0.0 <= proposal.expected_rps < math.inf:
        return f"expected_rps is {proposal.expected_rps}"
    if proposal.wanted < 0:
        return f"wanted is {proposal.wanted}"
    curve, headroom = proposal.curve, proposal.attainment_headroom
    if curve is not None and not _is_curve(tuple(curve.attainment)):
        return _no_curve("attainment")
    if headroom is not None and not _is_curve(tuple(headroom)):
        return _no_curve("attainment_headroom")
    capacity = None if curve is None else curve.capacity_rps
    if capacity and not _are_amounts(tuple(capacity)):
        return "capacity_rps is not finite and non-negative"
    inside = None if proposal.curve is None else proposal.curve.in_flight
    if inside and not _are_amounts(tuple(inside)):
        return "in_flight is not finite and non-negative"
    full = None if curve is None else curve.full_rps
    if full and (not _are_amounts(tuple(full)) or len(full) != len(tuple(capacity or ()))):
        return "full_rps is not finite, non-negative and as long as capacity_rps"
    if proposal.prefix_hit_rate is not None and not 0.0 <= proposal.prefix_hit_rate <= 1.0:
        return f"prefix_hit_rate is {proposal.prefix_hit_rate}"
    parts = proposal.load_by_priority
    if parts and not _are_amounts(tuple(parts.values())):
        return "load_by_priority is not finite and non-negative"
    return None


def _no_curve(name: str) -> str:
    return f"{name} is not a non-empty curve that rises within 0..1"


def _is_curve(values: Curve) -> bool:
    last = 0.0
    for value in values:
        if not value >= last:  # NaN is not
            return False
        last = value
    return last <= 1.0 and len(values) > 0


def _are_amounts(values: Curve) -> bool:
    """Whether they are all finite, not below 0, and finite together."""
    total = 0.0
    for value in values:
        if not value >= 0.0:
            return False
        total += value
    return total < math.inf


def take_demand(pool: PoolView, proposal: Proposal) -> None:
    """Load, curves and need from a believable proposal, times the load factor of a schedule."""
    factor = pool.rules.load_factor
    wanted = proposal.wanted if factor == 1.0 else math.ceil(proposal.wanted * factor - 1e-9)
    pool.load, pool.wanted = proposal.load_rps * factor, wanted
    if proposal.expected_rps is not None:
        pool.expected = min(proposal.load_rps, proposal.expected_rps) * factor
    pool.by_priority, pool.hit_rate = proposal.load_by_priority, proposal.prefix_hit_rate
    curve = proposal.curve
    if curve is None:
        pool.now = tuple([min(1.0, n / wanted) for n in range(wanted + 1)]) if wanted else (1.0,)
        top = math.ceil(wanted * HEADROOM)
        pool.hi = tuple([min(1.0, n / (wanted * HEADROOM)) for n in range(top + 1)]) if wanted else (1.0,)
    else:
        pool.capacity = tuple(curve.capacity_rps) if curve.capacity_rps else None
        pool.in_flight = tuple(curve.in_flight) if curve.in_flight else None
        pool.full = tuple(curve.full_rps) if curve.full_rps else None
        pool.now = tuple(curve.attainment)
        pool.hi = tuple(proposal.attainment_headroom or ())
        if factor != 1.0 or not pool.hi:
            pool.hi = share_carried(pool.capacity, pool.load * HEADROOM, pool.full) or slower(pool.now, factor * HEADROOM)
        if factor != 1.0:
            pool.now = share_carried(pool.capacity, pool.load, pool.full) or slower(pool.now, factor)
    pool.need = max(wanted, bisect_left(pool.hi, FULLY * pool.hi[-1]))


def share_carried(capacity: Curve | None, load: float, full: Curve | None = None) -> Curve:
    """Attainment at a load, of the planned rates and those of replicas kept full (None: nobody knows); empty: unknown."""
    if capacity is None:
        return ()
    if load <= 0:
        return (1.0,)
    if full is None:
        return tuple([rate / load if rate < load else 1.0 for rate in capacity])
    most, shares = 0.0, []
    for rate, kept in zip(capacity, full, strict=True):
        most = max(most, share_served(load, rate, kept))
        shares.append(most)
    return tuple(shares)


def slower(curve: Curve, factor: float) -> Curve:
    """Attainment at `factor` times the load, where only that at the load is known: n replicas then do what n / factor do now.

    >>> slower((0.0, 0.5, 1.0), 2.0)
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    last = len(curve) - 1
    scaled = []
    for n in range(math.ceil(last * factor) + 1):
        place = min(n / factor, float(last))
        left = int(place)
        right = min(left + 1, last)
        scaled.append(curve[left] + (place - left) * (curve[right] - curve[left]))
    return tuple(scaled)
