"""What is needed for sure, and what only for a doubt: the round at the loads that are expected in the mean. Pure.

A planner asks for more than the mean load needs: for the upper quantile of its forecast, for bursts that came lately, for a
while after a peak. That is right as long as nobody needs the GPUs more. Where they are short, a replica of a high class that is
probably idle must not come before one of a lower class that is certainly busy: so goodput decides twice, first what every class
needs at its expected loads, then, with what is left, what each wants beyond it.
"""

from __future__ import annotations

from bisect import bisect_left

from global_planner.arbiter.demand import FULLY, share_carried
from global_planner.arbiter.view import HEADROOM, GroupView, PoolView, View


def expected_view(view: View) -> View | None:
    """The round with every pool's demand at its expected load; None where all that anybody asks for is expected."""
    if not any(_has_doubt(pool) for pool in view.pools.values()):
        return None
    groups = tuple(_expected_group(group) for group in view.groups)
    return View(groups=groups, pools={pool.spec.name: pool for group in groups for pool in group.pools}, at_s=view.at_s)


def kept_for_need(pool: PoolView, kept: int) -> int:
    """Of `kept` replicas, those that a pool of an `expected_view` has a use for while its load is up to HEADROOM times what is
    expected: so noise neither takes a replica nor brings it back."""
    if pool.expected is None or not pool.hi:
        return kept
    return min(kept, max(pool.reserved, bisect_left(pool.hi, FULLY * pool.hi[-1])))


def needed_for_sure(pool: PoolView) -> int | None:
    """Replicas that the expected load of a pool needs; None where nothing of its load is doubted."""
    if not _has_doubt(pool) or not pool.capacity or pool.expected is None:
        return None
    return bisect_left(pool.capacity, FULLY * min(pool.expected, pool.capacity[-1]))


def _has_doubt(pool: PoolView) -> bool:
    return pool.expected is not None and pool.held is None and pool.capacity is not None and pool.expected < pool.load


def _expected_group(group: GroupView) -> GroupView:
    doubted = False
    for pool in group.pools:
        doubted = doubted or _has_doubt(pool)
    if not doubted:
        return group
    pools = [_expected_pool(pool) for pool in group.pools]
    loads = [max([sum([pools[place].load for place in stage]) for stage in path]) for path in group.paths]
    return group.with_pools(pools, tuple(loads))


def _expected_pool(pool: PoolView) -> PoolView:
    load = pool.expected
    if load is None or not _has_doubt(pool):
        return pool
    return pool.at_load(
        load, share_carried(pool.capacity, load, pool.full), share_carried(pool.capacity, HEADROOM * load, pool.full)
    )
