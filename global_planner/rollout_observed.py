"""Memory and observation put together: what the rollout decides on, and what it remembers of what it saw. Pure.

`with_memory` before a decision merges into the observed holdings what the router and our memory know; `seen` takes the merged
holding into the memory. What is gone is forgotten, what is unknown changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from global_planner.charge import charge, live_replicas, ordered_replicas
from global_planner.ports import Endpoint, EndpointLoad, Reservation, RouterState
from global_planner.rollout_state import (
    STARTS_KEPT,
    Lingering,
    PoolMemory,
    RolloutPolicy,
    RolloutState,
    Write,
    in_force,
    unnamed_surplus,
    unresolved,
)
from global_planner.types import Holding, PoolSpec, Replica


def with_memory(
    state: RolloutState,
    pools: Sequence[PoolSpec],
    holdings: Sequence[Holding],
    router: RouterState | None,
    at_s: float,
    missing: str = "the cluster does not show this pool",
    reserved: Sequence[Reservation] = (),
) -> tuple[Holding, ...]:
    """The holdings of `pools`, in their order, with what the router and our memory know merged in. `router` None: it did not
    answer, so work in flight and drains are unknown. A pool that was not observed is unknown, for the reason `missing`.
    `reserved`: what the ledger holds, of other leaders too."""
    observed = {holding.pool: holding for holding in holdings}
    by_pool: dict[str, list[Reservation]] = {}
    for reservation in reserved:
        by_pool.setdefault(reservation.pool, []).append(reservation)
    merged = []
    for spec in pools:
        memory = state.of(spec.name)
        holding = observed.get(spec.name, Holding(pool=spec.name, at_s=at_s, spec=None, unknown=missing))
        write = unresolved(memory.write, holding)
        merged.append(
            replace(
                holding,
                replicas=tuple(_with_router(replica, memory, router) for replica in holding.replicas),
                last_write=_last_write(write, holding, by_pool.get(spec.name, ())),
                lingering=sum(item.replicas for item in _lingering(memory, holding, at_s, 0.0)),
                last_known_gpus=memory.known_gpus,
            )
        )
    return tuple(merged)


def _last_write(write: Write | None, holding: Holding, reserved: Sequence[Reservation]) -> int | None:
    ours = [] if write is None else [write.highest]
    return max(ours + [item.replicas for item in reserved if in_force(item, holding)], default=None)


def _with_router(replica: Replica, memory: PoolMemory, router: RouterState | None) -> Replica:
    endpoint: EndpointLoad | None = None if router is None else router.endpoints.get(replica.id)
    told_to_go = replica.id in memory.draining or replica.id in memory.leaving
    if endpoint is None:
        state = "draining" if told_to_go and replica.state == "ready" else replica.state
        return replace(replica, state=state, in_flight=None, pending_kv=None, drain_acked=False)
    acknowledged = endpoint.state == "draining"
    if endpoint.state == "starting":  # no router process was told to send to it
        state = "draining" if told_to_go and replica.state == "ready" else replica.state
        return replace(replica, state=state, in_flight=None, pending_kv=None, drain_acked=False)
    return replace(
        replica,
        state="draining" if replica.state == "ready" and (told_to_go or acknowledged) else replica.state,
        in_flight=endpoint.in_flight,
        pending_kv=endpoint.pending_kv,
        drain_acked=acknowledged,
    )


# ---- into memory ------------------------------------------------------------------------------------------------------


def seen(
    memory: PoolMemory, holding: Holding, spec: PoolSpec, policy: RolloutPolicy, at_s: float, *, by_hand: bool = False
) -> PoolMemory:
    """The memory of a pool after an observation (merged by `with_memory`). What is gone is forgotten; an unknown holding
    changes nothing. `by_hand`: a person has set its replicas under an override."""
    ordered = ordered_replicas(holding)
    if ordered is None:
        return memory
    write = unresolved(memory.write, holding)
    present = {replica.id: replica for replica in holding.replicas if replica.state != "terminating"}
    serving = {id_ for id_, replica in present.items() if replica.state in ("ready", "draining")}
    started = serving - set(memory.announced) - set(memory.waiting)
    waiting = {id_ for id_, replica in present.items() if id_ not in memory.announced and replica.in_flight is None}
    if memory.ordered is None or not (_unnamed_orders(write) or unnamed_surplus(memory, write, holding, ordered)):
        waiting = set()
    surplus = live_replicas(holding) - ordered
    gpus = charge(holding, spec)
    # With no order on its way and no surplus left, nothing will remove a victim any more: it is an ordinary replica again.
    doomed = set(memory.leaving) if surplus > 0 else set(write.victims if write is not None else ())
    return PoolMemory(
        write=write,
        draining={id_: order for id_, order in memory.draining.items() if id_ in present},
        leaving=tuple(sorted(doomed & set(present))),
        announced=tuple(sorted((serving - waiting) | (set(memory.announced) & set(present)))),
        waiting=tuple(sorted(waiting)),
        starting_since={
            id_: memory.starting_since.get(id_, at_s if replica.since_s is None else min(at_s, replica.since_s))
            for id_, replica in present.items()
            if replica.state == "starting"
        },
        unplaced=tuple(
            sorted(
                id_
                for id_, replica in present.items()
                if replica.state == "starting" and (replica.unschedulable is not None or id_ in memory.unplaced)
            )
        ),
        starts_s=(*memory.starts_s, *_starts_s(memory, present, at_s))[-STARTS_KEPT:],
        short_since_s=None if surplus >= 0 else (at_s if memory.short_since_s is None else memory.short_since_s),
        failed_starts=0 if started else memory.failed_starts,
        backoff_until_s=None if started else memory.backoff_until_s,
        known_gpus=memory.known_gpus if gpus is None else gpus,
        ordered=ordered,
        lingering=_lingering(memory, holding, at_s, policy.termination_grace_s),
        endpoints=tuple(_endpoint(replica, replica.url) for replica in holding.replicas if replica.url is not None),
        by_hand=ordered if by_hand else None,
    )


def _lingering(memory: PoolMemory, holding: Holding, at_s: float, grace_s: float) -> tuple[Lingering, ...]:
    """What may still be ending unseen, a fall of the ordered count since the last round included."""
    if not holding.terminating_hidden:
        return ()
    still = tuple(item for item in memory.lingering if item.until_s > at_s)
    ordered = ordered_replicas(holding)
    if ordered is None or memory.ordered is None or ordered >= memory.ordered:
        return still
    return (*still, Lingering(replicas=memory.ordered - ordered, until_s=at_s + grace_s))


def _starts_s(memory: PoolMemory, present: Mapping[str, Replica], at_s: float) -> list[float]:
    """How long the starts took that ended since the last round, in order of the replicas' names. A replica that had served
    before and only came back is no start."""
    return [
        (at_s if replica.since_s is None else min(at_s, max(replica.since_s, memory.starting_since[id_])))
        - memory.starting_since[id_]
        for id_, replica in sorted(present.items())
        if replica.state == "ready" and id_ in memory.starting_since and id_ not in (*memory.announced, *memory.unplaced)
    ]


def _unnamed_orders(write: Write | None) -> int:
    """Replicas that an order which may still take effect removes without naming them (they did not exist then)."""
    return 0 if write is None else max(0, write.before - write.lowest - len(write.victims))


def _endpoint(replica: Replica, url: str) -> Endpoint:
    """A terminating replica finishes its work and gets none: to the router it drains, until it is gone."""
    state = "draining" if replica.state == "terminating" else replica.state
    return Endpoint(id=replica.id, url=url, state=state)
