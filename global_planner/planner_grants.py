"""What the arbiter tells the pools' planners after a round: what each pool has, and what it may have. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from global_planner.types import Round
from pool_planner.types import Grant


def grants_of(done: Round | None, pools: Iterable[str], now: float) -> tuple[Grant, ...]:
    """The grants of `pools` as of the last round (all unknown before the first), in their order."""
    if done is None:
        return tuple(Grant(pool=pool, at_s=now) for pool in pools)
    holdings = {holding.pool: holding for holding in done.inputs.holdings}
    entries = {entry.pool: entry for entry in done.allocation.pools}
    grants = []
    for pool in pools:
        holding, entry = holdings.get(pool), entries.get(pool)
        grant = Grant(
            pool=pool,
            at_s=done.inputs.at_s,
            round_no=done.inputs.round_no,
            granted=entry.granted if entry else None,
            reason=entry.reason if entry else "",
        )
        if holding is not None and holding.spec is not None:
            states = [replica.state for replica in holding.replicas]
            grant = replace(
                grant,
                replicas_spec=holding.spec,
                replicas_ready=states.count("ready"),
                replicas_starting=states.count("starting"),
                replicas_draining=states.count("draining"),
                cold_start_s=holding.cold_start_s,
            )
        grants.append(grant)
    return tuple(grants)
