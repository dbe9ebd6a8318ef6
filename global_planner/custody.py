"""Who sets the replicas of a pool: we, another controller, or a person right now. Pure.

A pool that another controller writes too is only watched, until somebody adopts it; one that was released is handed back and
watched. What a person sets by hand while an override is in force stays until the override ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from global_planner.charge import ordered_replicas
from global_planner.rollout_state import BY_HAND, PoolMemory, RolloutState
from global_planner.types import Custody, Holding, Override, PoolSpec


def in_custody(pools: Sequence[PoolSpec], holdings: Sequence[Holding], custody: Sequence[Custody]) -> tuple[PoolSpec, ...]:
    """The pools as they may be moved now: what is not ours to write is observed, and no minimum is below what its workload
    can have."""
    by_pool = {holding.pool: holding for holding in holdings}
    words = {word.pool: word for word in custody}
    return tuple(_pool(spec, by_pool.get(spec.name), words.get(spec.name)) for spec in pools)


def _pool(spec: PoolSpec, holding: Holding | None, word: Custody | None) -> PoolSpec:
    least = 0 if holding is None else holding.least_replicas
    if spec.min_replicas < least:
        spec = replace(
            spec, min_replicas=least, max_replicas=None if spec.max_replicas is None else max(least, spec.max_replicas)
        )
    return replace(spec, mode="observe") if why_observed(holding, word) is not None else spec


def why_observed(holding: Holding | None, word: Custody | None) -> str | None:
    """Why a pool is not ours to write; None: it is."""
    if word is not None and word.whose == "theirs":
        by = f" by {word.by}" if word.by else ""
        return f"it was released{by}{f': {word.reason}' if word.reason else ''}"
    if holding is None or holding.foreign is None:
        return None
    # Adopted: what the other did until then is known. What it does afterwards is a fight.
    adopted = word is not None and word.whose == "ours" and (holding.foreign_at_s is None or holding.foreign_at_s <= word.at_s)
    return None if adopted else f"{holding.foreign} sets its replicas too"


def custody_conditions(pools: Sequence[PoolSpec], holdings: Sequence[Holding], custody: Sequence[Custody]) -> tuple[str, ...]:
    """What people should know of pools that are not ours, or that are but cannot keep every promise."""
    by_pool = {holding.pool: holding for holding in holdings}
    words = {word.pool: word for word in custody}
    return tuple(text for spec in pools for text in _conditions(spec, by_pool.get(spec.name), words.get(spec.name)))


def _conditions(spec: PoolSpec, holding: Holding | None, word: Custody | None) -> Iterator[str]:
    why = why_observed(holding, word)
    if why is not None:
        yield f"{spec.name} is only observed: {why}; to take it: global-planner adopt {spec.name}"
    elif holding is not None and holding.victims == "unknown" and holding.unknown is None:
        chooses = "its workload chooses itself which replica ends"
        yield f"{spec.name}: {chooses}, so a scale-down cannot promise that the drained one goes"


def by_hand(
    state: RolloutState, holdings: Sequence[Holding], overrides: Sequence[Override], at_s: float
) -> tuple[Override, ...]:
    """The overrides, those of pools whose replicas a person has set meanwhile turned into a hold of what was set."""
    by_pool = {holding.pool: holding for holding in holdings}
    kept: list[Override] = []
    held: set[str] = set()
    for override in overrides:
        in_force = override.expires_at_s is None or at_s < override.expires_at_s
        holding = by_pool.get(override.pool)
        if not in_force or override.kind == "hold" or holding is None or not _set_by_hand(state.of(override.pool), holding):
            kept.append(override)
        elif override.pool not in held:
            held.add(override.pool)
            reason = f"{ordered_replicas(holding)} replicas were set by hand while an override was in force"
            kept.append(replace(override, kind="hold", replicas=None, by=BY_HAND, reason=reason))
    return tuple(kept)


def _set_by_hand(memory: PoolMemory, holding: Holding) -> bool:
    ordered = ordered_replicas(holding)
    if ordered is None or memory.ordered is None:
        return False
    if ordered == memory.ordered:
        return memory.by_hand == ordered
    write = memory.write
    return write is None or not min(write.before, write.lowest) <= ordered <= max(write.before, write.highest)
