"""How a pool gives replicas back: who goes, who must drain first, and what may be ordered away now. Pure.

Nobody leaves with work in flight. A replica that never was announced to the router has none and may go at once; any other
one drains, and goes when every router process has acknowledged that and reports no request and no KV block that is still to
be pulled. Without acknowledgement nothing is ordered; at the deadline the release is postponed, never forced.
"""

from __future__ import annotations

from dataclasses import dataclass

from global_planner.charge import live_replicas, ordered_replicas
from global_planner.rollout_state import DrainOrder, PoolMemory, RolloutPolicy, slowest_start_s, unnamed_surplus
from global_planner.types import Cancel, Drain, Holding, PoolGrant, PoolSpec, Replica, Shrink, Undrain

START_MARGIN = 2.0
"""A start may take this many times the slowest of the pool's measured ones (their 99th percentile, or what the cluster says)
before it counts as failed, whatever the limit says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a pool does to come down to its grant, in this round. `drained` are the new drain orders, by replica id."""

    drains: tuple[Drain, ...] = ()
    undrain: Undrain | None = None
    order: Shrink | Cancel | None = None
    drained: tuple[tuple[str, DrainOrder], ...] = ()


def may_leave(replica: Replica, memory: PoolMemory) -> bool:
    """No work can be lost with this replica: it never was announced, or every router process has drained it."""
    if replica.id in memory.leaving:
        return True  # it was when it was named, and got nothing since
    if _unannounced(replica, memory):
        return True
    told = replica.id in memory.draining or replica.state == "draining"
    return told and replica.drain_acked and replica.in_flight == 0 and replica.pending_kv == 0


def overdue(replica: Replica, memory: PoolMemory, holding: Holding, spec: PoolSpec, at_s: float) -> bool:
    """The replica has not started (or not come back) within its limit, counted from its last visible progress."""
    if replica.state != "starting":
        return False
    since = memory.starting_since.get(replica.id, at_s)
    if replica.since_s is not None:
        since = min(since, replica.since_s)
    if replica.progress_at_s is not None:
        since = max(since, replica.progress_at_s)
    return at_s - since > start_limit_s(memory, holding, spec)


def start_limit_s(memory: PoolMemory, holding: Holding, spec: PoolSpec) -> float:
    """Seconds without visible progress after which a start has failed."""
    return max(spec.start_limit_s, START_MARGIN * max(slowest_start_s(memory) or 0.0, holding.cold_start_s or 0.0))


def release(
    memory: PoolMemory, holding: Holding, spec: PoolSpec, grant: PoolGrant, policy: RolloutPolicy, at_s: float
) -> Release:
    """Drains, undrains and at most one order for one pool that may be moved. `holding` is known; `memory` has `seen` it."""
    ordered = ordered_replicas(holding)
    if ordered is None:
        raise ValueError(f"{spec.name}: nothing can be released from an unknown holding")
    floor = min(spec.min_replicas, ordered)
    # An order downwards that may still take effect is carried through: its victims can neither be used nor be kept.
    target = ordered if memory.write is None else min(ordered, memory.write.lowest)
    excess = ordered - max(floor, min(target, grant.granted))
    queue = _victims_first(memory, holding)
    uncreated = max(0, ordered - live_replicas(holding))

    bound = [replica for replica in queue if replica.id in memory.leaving]
    limit_s = start_limit_s(memory, holding, spec)
    never_created = uncreated if memory.short_since_s is not None and at_s - memory.short_since_s > limit_s else 0
    late = [replica for replica in queue if replica not in bound and overdue(replica, memory, holding, spec, at_s)]
    if _ranked(queue):  # the cluster removes in its own order: who does not come first there cannot be cancelled
        late = late[: max(0, _leading(queue, [*bound, *late]) - len(bound))]
    late = late[: max(0, ordered - floor - len(bound) - never_created)]
    failed = [replica for replica in late if may_leave(replica, memory)]
    cancelled = min(len(failed) + never_created, ordered - floor - len(bound))

    absent = min(uncreated, max(0, excess - len(bound)))
    victims = queue[: max(0, excess - absent)]
    going = victims + [replica for replica in late if replica not in victims]
    drains, drained = _drains(going, memory, spec, grant, policy, at_s, ordered)
    undrain = _undrain(queue, going, memory, spec, grant)

    order: Shrink | Cancel | None = None
    if unnamed_surplus(memory, memory.write, holding, ordered):
        pass  # a victim named now may be one that the cluster is about to choose: it would take another, perhaps with work
    elif cancelled > 0:
        named = bound + failed[: max(0, cancelled - never_created)]
        order = _cancel(memory, holding, spec, policy, at_s, ordered - len(bound) - cancelled, cancelled, named)
    elif absent or any(may_leave(replica, memory) for replica in victims):
        gone = tuple(replica.id for replica in victims if may_leave(replica, memory))
        order = Shrink(
            pool=spec.name,
            before=ordered,
            after=ordered - absent - len(gone),
            victims=gone,
            version=holding.version,
            reason=f"granted {grant.granted} of {ordered}: {grant.reason}",
        )
    return Release(drains=drains, undrain=undrain, order=order, drained=drained)


def _cancel(
    memory: PoolMemory,
    holding: Holding,
    spec: PoolSpec,
    policy: RolloutPolicy,
    at_s: float,
    after: int,
    cancelled: int,
    named: list[Replica],
) -> Cancel:
    """The order that gives up `cancelled` replicas, and how long the pool waits before it tries again."""
    times = memory.failed_starts + 1
    backoff_s = min(policy.backoff_max_s, policy.backoff_base_s * 2.0 ** min(times - 1, 30))
    causes = sorted({replica.unschedulable for replica in named if replica.unschedulable is not None})
    cannot = f" ({'; '.join(causes)})" if causes else ""
    again = "" if times == 1 else f", {times} times in a row"
    limit_s = start_limit_s(memory, holding, spec)
    return Cancel(
        pool=spec.name,
        before=ordered_replicas(holding) or 0,
        after=after,
        victims=tuple(replica.id for replica in named),
        version=holding.version,
        backoff_until_s=at_s + backoff_s,
        reason=f"{cancelled} not started within {limit_s:.0f} s{cannot}{again}; the pool grows no more for {backoff_s:.0f} s",
    )


def take_back(holding: Holding, spec: PoolSpec) -> Shrink | None:
    """An order upwards whose outcome is not known (ours, or one that the ledger has of a leader before us), and that is not
    wanted any more, would stay charged for ever. Ordering what is in force anyway settles it: either of the two finds its
    version gone."""
    ordered = ordered_replicas(holding)
    if ordered is None or holding.last_write is None or holding.last_write <= ordered:
        return None
    reason = f"takes back the order of {holding.last_write}, of which it is not known whether it will take effect"
    return Shrink(pool=spec.name, before=ordered, after=ordered, victims=(), version=holding.version, reason=reason)


def keep_serving(memory: PoolMemory, holding: Holding, spec: PoolSpec, reason: str) -> Undrain | None:
    """A pool that is held keeps what it has: what still drains serves again, unless its release is already ordered."""
    draining = [
        replica.id
        for replica in holding.replicas
        if replica.state in ("starting", "draining") and _told(replica, memory) and replica.id not in memory.leaving
    ]
    return Undrain(pool=spec.name, replicas=tuple(sorted(draining)), reason=reason) if draining else None


def _unannounced(replica: Replica, memory: PoolMemory) -> bool:
    return replica.state in ("starting", "ready") and replica.id not in memory.announced and replica.in_flight is None


def _told(replica: Replica, memory: PoolMemory) -> bool:
    return replica.id in memory.draining or replica.state == "draining"


def _victims_first(memory: PoolMemory, holding: Holding) -> list[Replica]:
    """Live replicas, the one to go first in front: where the cluster has an order of its own, in that; else already named;
    never announced (those that cannot be placed, then the
    youngest); already draining; then least work in flight. What the cluster is about to remove anyway is left out."""
    surplus_goes = memory.write is None
    live = [
        replica
        for replica in holding.replicas
        if replica.state != "terminating" and not (surplus_goes and replica.id in memory.leaving)
    ]

    def key(replica: Replica) -> tuple[int, float, float, float, str]:
        if _ranked(live):
            return (0, float(replica.rank or 0), 0.0, 0.0, replica.id)
        if replica.id in memory.leaving:
            return (0, 0.0, 0.0, 0.0, replica.id)
        if _unannounced(replica, memory):
            since = replica.since_s if replica.since_s is not None else memory.starting_since.get(replica.id, 0.0)
            return (1, 1.0 if replica.unschedulable is None else 0.0, -since, 0.0, replica.id)
        unknown = 1.0 if replica.in_flight is None else 0.0
        return (2 if _told(replica, memory) else 3, unknown, replica.in_flight or 0, replica.pending_kv or 0, replica.id)

    return sorted(live, key=key)


def _ranked(live: list[Replica]) -> bool:
    return bool(live) and all(replica.rank is not None for replica in live)


def _leading(queue: list[Replica], going: list[Replica]) -> int:
    """How many at the front of the queue are all going."""
    ids = {replica.id for replica in going}
    return next((place for place, replica in enumerate(queue) if replica.id not in ids), len(queue))


def _drains(
    victims: list[Replica],
    memory: PoolMemory,
    spec: PoolSpec,
    grant: PoolGrant,
    policy: RolloutPolicy,
    at_s: float,
    ordered: int,
) -> tuple[tuple[Drain, ...], tuple[tuple[str, DrainOrder], ...]]:
    """Drain steps for the victims that still have to, one step a deadline, and the drain orders to remember."""
    why = f"granted {grant.granted} of {ordered}: {grant.reason}"
    drained: list[tuple[str, DrainOrder]] = []
    steps: dict[tuple[float, str], list[str]] = {}
    for replica in victims:
        if may_leave(replica, memory):
            continue
        before = memory.draining.get(replica.id)
        if before is None or at_s >= before.deadline_s:
            since = at_s if before is None else before.since_s
            now = DrainOrder(since_s=since, deadline_s=at_s + policy.drain_deadline_s)
            drained.append((replica.id, now))
            postponed = "" if before is None else f"not empty after {at_s - since:.0f} s, release postponed; "
            steps.setdefault((now.deadline_s, postponed + why), []).append(replica.id)
        elif not replica.drain_acked:
            steps.setdefault((before.deadline_s, f"not acknowledged by every router process yet; {why}"), []).append(replica.id)
    drains = tuple(
        Drain(pool=spec.name, replicas=tuple(sorted(ids)), deadline_s=deadline, reason=reason)
        for (deadline, reason), ids in sorted(steps.items())
    )
    return drains, tuple(drained)


def _undrain(
    queue: list[Replica], victims: list[Replica], memory: PoolMemory, spec: PoolSpec, grant: PoolGrant
) -> Undrain | None:
    going = {replica.id for replica in victims} | set(memory.leaving)
    wanted = sorted(replica.id for replica in queue if _told(replica, memory) and replica.id not in going)
    if not wanted:
        return None
    return Undrain(pool=spec.name, replicas=tuple(wanted), reason=f"granted {grant.granted}, wanted again: {grant.reason}")
