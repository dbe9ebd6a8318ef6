"""What a component of a DGD has, as the holding of a pool. Pure."""

from __future__ import annotations

from collections.abc import Callable

from global_planner.types import Holding, Replica
from pool_planner.connectors.component_state import ComponentState
from pool_planner.connectors.dgd_pods import PodReplica
from pool_planner.connectors.writers import Writer


def holding_of(
    pool: str,
    state: ComponentState,
    foreign: Writer | None,
    *,
    at_s: float,
    model_s: Callable[[float], float],
    routed: bool = True,
) -> Holding:
    """`foreign`: another controller that sets its replicas. `model_s` turns Unix seconds into model seconds. `routed` false: no
    router of ours sends to the replicas, which then have a name instead of an address."""
    return Holding(
        pool=pool,
        at_s=at_s,
        spec=state.spec,
        adapter_spec=state.adapter_spec,
        version=state.version,
        replicas=tuple(_replica(item, model_s, routed) for item in state.replicas),
        gpus_per_replica=state.gpus_per_replica,
        nodes_per_replica=state.nodes_per_replica,
        surge=state.surge,
        updating=state.updating,
        cold_start_s=state.cold_start_s,
        unknown=state.unknown,
        terminating_hidden=state.terminating_hidden,
        least_replicas=state.least_replicas,
        victims=state.victims,
        foreign=None if foreign is None else foreign.manager,
        foreign_at_s=None if foreign is None or foreign.at_unix_s is None else model_s(foreign.at_unix_s),
    )


def _replica(item: PodReplica, model_s: Callable[[float], float], routed: bool) -> Replica:
    since = item.ready_unix_s if item.ready_unix_s is not None else item.since_unix_s
    return Replica(
        id=item.id,
        state=item.state,
        url=item.url if routed else f"pod:{item.id}",
        since_s=None if since is None else model_s(since),
        unschedulable=item.unschedulable,
        rank=item.rank,
        nodes=item.nodes,
    )
