"""What the rollout remembers between rounds, and what follows from it. Pure.

The cluster is the truth; memory holds only what cannot be seen in it: orders that may still take effect, endpoints that were
told to drain, replicas that were named to go, when a start was first seen, and the back-offs after failed starts. Everything
here is decided again from the next observation (`rollout_observed` puts the two together), so a crash between any two
operations needs no repair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from global_planner.charge import charge, live_replicas, ordered_replicas
from global_planner.ports import Endpoint, PoolEndpoints, Reservation
from global_planner.types import Cancel, Grow, Holding, PoolSpec, Shrink, Step, StepOutcome

Order = Shrink | Grow | Cancel

BY_HAND = "somebody at the cluster"
"""Who holds a pool whose replicas were set by hand under an override."""

STARTS_KEPT = 100
"""Measured starts of a pool that are remembered."""
SETTLE_S = 120.0
"""Model seconds after which an order is taken for done or lost where no version can tell: the cluster has none, or did not
move it when the order was taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """`drain_deadline_s`: how long a drain is waited for before it is announced again with a new deadline. A pool whose start
    failed grows no more for `backoff_base_s`, doubled with every further failure up to `backoff_max_s`.
    `termination_grace_s`: how long released replicas stay charged where the cluster cannot show terminating ones.
    """

    drain_deadline_s: float = 300.0
    backoff_base_s: float = 60.0
    backoff_max_s: float = 1800.0
    termination_grace_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """Orders to a pool, all decided on one version, that may still take effect. At most one of them can, because each carries
    that version; `highest` and `lowest` bound what it would be, `victims` are all that any of them named. `attempts` counts
    those whose outcome is not known to be nothing. `taken_back_s`: when what is in force was ordered again with success."""

    version: str | None
    before: int
    highest: int
    lowest: int
    at_s: float
    victims: tuple[str, ...] = ()
    attempts: int = 1
    taken_back_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOrder:
    since_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lingering:
    """Released replicas that may still be ending unseen, until `until_s`."""

    replicas: int
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMemory:
    """One pool's part of the memory. Replicas are named by their ids.

    `draining`: told to drain. `leaving`: named as victims of an order that may still take effect, or whose effect is not
    complete; they get no more work, come what may. `announced`: were seen ready, so that the router may send to them.
    `waiting`: not announced yet, and not to be while the cluster is to end replicas that nobody named: it takes such ones.
    `starting_since`: when a start was first seen; `starts_s`: how long the last starts took, from then to ready; `unplaced`:
    starting ones that had to wait for a place, whose starts say nothing; `short_since_s`: since when fewer replicas exist than
    were ordered. `known_gpus`: the last known charge, orders included; `ordered`: the count last seen in force; `endpoints`:
    those last seen, which stay with the router while the pool cannot be observed. `by_hand`: replicas that a person has set
    while an override was in force, until either ends.
    """

    write: Write | None = None
    draining: Mapping[str, DrainOrder] = field(default_factory=dict)
    leaving: tuple[str, ...] = ()
    announced: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    starting_since: Mapping[str, float] = field(default_factory=dict)
    starts_s: tuple[float, ...] = ()
    unplaced: tuple[str, ...] = ()
    short_since_s: float | None = None
    failed_starts: int = 0
    backoff_until_s: float | None = None
    known_gpus: int | None = None
    ordered: int | None = None
    lingering: tuple[Lingering, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    by_hand: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    pools: Mapping[str, PoolMemory] = field(default_factory=dict)

    def of(self, pool: str) -> PoolMemory:
        return self.pools.get(pool, _NOTHING)


_NOTHING = PoolMemory()


# ---- memory -> holdings: before the decision -------------------------------------------------------------------------


def unresolved(write: Write | None, holding: Holding) -> Write | None:
    """The write if it may still take effect. It cannot once the version that it was decided on has moved on: then it either
    is in what was observed, or conflicts for ever."""
    if write is None:
        return None
    ordered = ordered_replicas(holding)
    if ordered is None:
        return write
    if write.taken_back_s is not None and holding.at_s - write.taken_back_s > SETTLE_S:
        return None
    if write.version is not None:
        return write if holding.version == write.version else None
    settled = ordered != write.before or holding.at_s - write.at_s > SETTLE_S
    return None if settled else write


def in_force(reservation: Reservation, holding: Holding) -> bool:
    """The order behind the reservation may still take effect."""
    if ordered_replicas(holding) is None or reservation.version is None:
        return True
    return holding.version == reservation.version


def reservations(state: RolloutState, holdings: Sequence[Holding], reserved: Sequence[Reservation]) -> tuple[Reservation, ...]:
    """The ledger as it is to be: what may still take effect of it, and every order upwards of our own that may."""
    by_pool = {holding.pool: holding for holding in holdings}
    kept = {item for item in reserved if item.pool not in by_pool or in_force(item, by_pool[item.pool])}
    for pool, memory in state.pools.items():
        if memory.write is not None and memory.write.highest > memory.write.before:
            kept.add(Reservation(pool=pool, replicas=memory.write.highest, version=memory.write.version))
    return tuple(sorted(kept, key=lambda item: (item.pool, item.version or "", item.replicas)))


def effective_pools(
    state: RolloutState, pools: Sequence[PoolSpec], holdings: Sequence[Holding], at_s: float
) -> tuple[PoolSpec, ...]:
    """The pools as the arbiter may grow them now: one that backs off after failed starts is capped at what it has, so that its
    GPUs go to others instead of waiting for it."""
    by_pool = {holding.pool: holding for holding in holdings}
    return tuple(_capped(spec, state.of(spec.name), by_pool.get(spec.name), at_s) for spec in pools)


def _capped(spec: PoolSpec, memory: PoolMemory, holding: Holding | None, at_s: float) -> PoolSpec:
    ordered = None if holding is None else ordered_replicas(holding)
    if ordered is None or not backing_off(memory, at_s):
        return spec
    cap = max(spec.min_replicas, ordered)
    if spec.max_replicas is not None:
        cap = min(cap, spec.max_replicas)
    return replace(spec, max_replicas=cap, growth_cap=cap, guarantee_replicas=min(spec.guarantee_replicas, cap))


def backing_off(memory: PoolMemory, at_s: float) -> bool:
    return memory.backoff_until_s is not None and at_s < memory.backoff_until_s


def slowest_start_s(memory: PoolMemory) -> float | None:
    """The 99th percentile of the pool's measured starts (nearest rank: of fewer than a hundred the longest); None: none was
    measured."""
    if not memory.starts_s:
        return None
    return sorted(memory.starts_s)[math.ceil(0.99 * len(memory.starts_s)) - 1]


def unnamed_surplus(memory: PoolMemory, write: Write | None, holding: Holding, ordered: int) -> int:
    """Replicas that live beyond what is ordered and beyond those that we named: which ones end, the cluster will choose."""
    still_written = set() if write is None else set(write.victims)
    ending = [r for r in holding.replicas if r.state != "terminating" and r.id in memory.leaving and r.id not in still_written]
    return max(0, live_replicas(holding) - holding.surge - len(ending) - ordered)


def endpoints(state: RolloutState, pools: Sequence[PoolSpec], undrained: Iterable[str] = ()) -> tuple[PoolEndpoints, ...]:
    """The whole state of every pool's endpoints as the router is to know them after this round's decision. `undrained`: the
    ids that serve again. A replica that is told to drain, or named to go, is never ready, and one that waits is not yet."""
    again = set(undrained)
    told = []
    for spec in pools:
        memory = state.of(spec.name)
        going = {*memory.draining, *memory.leaving}
        states = tuple(_told(endpoint, going, again, {*memory.waiting}) for endpoint in memory.endpoints)
        told.append(PoolEndpoints(name=spec.name, role=spec.role, endpoints=states))
    return tuple(told)


def _told(endpoint: Endpoint, going: set[str], again: set[str], waiting: set[str]) -> Endpoint:
    if endpoint.id in going:
        return replace(endpoint, state="draining")
    if endpoint.id in waiting and endpoint.state == "ready":
        return replace(endpoint, state="starting")
    if endpoint.id in again and endpoint.state == "draining":
        return replace(endpoint, state="ready")
    return endpoint


# ---- steps -> memory: the second half ----------------------------------------------------------------------------------


def ordering(memory: PoolMemory, holding: Holding, spec: PoolSpec, step: Order, at_s: float) -> PoolMemory:
    """The memory once `step` was decided: it counts before it is sent, because a crash may hide its outcome."""
    pending = memory.write
    victims = () if isinstance(step, Grow) else step.victims
    write = Write(
        version=step.version,
        before=step.before,
        highest=max(step.after, pending.highest if pending else step.before),
        lowest=min(step.after, pending.lowest if pending else step.before),
        at_s=at_s,
        victims=tuple(sorted({*(pending.victims if pending else ()), *victims})),
        attempts=1 + (pending.attempts if pending else 0),
        taken_back_s=pending.taken_back_s if pending and step.after == step.before else None,
    )
    gpus = charge(holding, spec, ordering=step.after)
    failed = isinstance(step, Cancel)
    return replace(
        memory,
        write=write,
        leaving=tuple(sorted({*memory.leaving, *victims})),
        known_gpus=memory.known_gpus if gpus is None else gpus,
        failed_starts=memory.failed_starts + failed,
        backoff_until_s=step.backoff_until_s if isinstance(step, Cancel) else memory.backoff_until_s,
    )


def after_apply(state: RolloutState, acted: Sequence[Step], outcomes: Sequence[StepOutcome]) -> RolloutState:
    """The state once the outcomes of the `acted` steps are known. An order that certainly wrote nothing (a conflict, or never
    tried) is forgotten, unless an earlier one on the same version may still take effect."""
    pools = dict(state.pools)
    became = {outcome.step: outcome for outcome in outcomes}
    for step in acted:
        if not isinstance(step, Shrink | Grow | Cancel):
            continue
        outcome = became.get(step)
        memory = pools.get(step.pool)
        if memory is None or memory.write is None:
            continue
        if outcome is not None and not outcome.conflict:
            if outcome.applied and step.after == step.before and memory.write.taken_back_s is None:
                pools[step.pool] = replace(memory, write=replace(memory.write, taken_back_s=memory.write.at_s))
            continue
        if memory.write.attempts > 1:
            pools[step.pool] = replace(memory, write=replace(memory.write, attempts=memory.write.attempts - 1))
        else:
            leaving = tuple(id_ for id_ in memory.leaving if id_ not in memory.write.victims)
            pools[step.pool] = replace(memory, write=None, leaving=leaving)
    return RolloutState(pools=pools)
