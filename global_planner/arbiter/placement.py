"""Whether what is granted finds a place: the free GPUs of single nodes, where the cluster tells them. Pure.

A budget counts GPUs wherever they are; a replica needs its GPUs on one node, or, spread over n nodes, an equal part of them on
each of n nodes at the same time. So before GPUs are taken from anybody, the new replicas are set on nodes on paper: into what
is free, what is ending, and what those who give way would leave, by the replicas that would go first. What finds no place is
not granted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from global_planner.arbiter.plan import Plan
from global_planner.arbiter.view import PoolView
from global_planner.types import NodeRoom, Replica

MOST_TRIES = 6
"""Times that a round is decided again with fewer replicas for pools that found no place."""


def without_place(plan: Plan, nodes: Sequence[NodeRoom] | None) -> Mapping[str, tuple[int, str]]:
    """By pool: how many replicas it can have at most, and why; only pools that the plan raises beyond that. Empty where the
    cluster does not tell its nodes. O(new replicas x nodes)."""
    if nodes is None:
        return {}
    free: dict[str, dict[str, int]] = {}
    for node in nodes:
        free.setdefault(node.gpu_type, {})[node.node] = node.free_gpus
    raised: list[tuple[int, int, str, PoolView, int, int]] = []
    for g, group in enumerate(plan.groups):
        for p, pool in enumerate(group.pools):
            if pool.holding is None or pool.current is None:
                continue
            count = plan.counts[g][p]
            live = [replica for replica in pool.holding.replicas if replica.state != "terminating"]
            leaving = [replica for replica in pool.holding.replicas if replica.state == "terminating"]
            if count < pool.current and pool.holding.victims != "unknown":
                leaving += sorted(live, key=_leaves_first)[: max(0, len(live) - count)]
            for replica in leaving:
                _give_back(free.get(pool.spec.gpu_type, {}), pool, replica)
            if count > max(pool.current, len(live)):
                each = _gpus_on_a_node(pool)
                raised.append((-group.priority_class, -each, pool.spec.name, pool, count, count - len(live)))
    found: dict[str, tuple[int, str]] = {}
    for _, _, name, pool, count, wanted in sorted(raised, key=lambda item: item[:3]):
        room = free.get(pool.spec.gpu_type, {})
        placed = 0
        while placed < wanted and _place(room, pool):
            placed += 1
        if placed < wanted:
            found[name] = (count - (wanted - placed), _why(pool))
    return found


def _gpus_on_a_node(pool: PoolView) -> int:
    spread = 1 if pool.holding is None else max(1, pool.holding.nodes_per_replica)
    return -(-pool.gpus // spread)


def _place(room: dict[str, int], pool: PoolView) -> bool:
    """Set one replica on the fullest nodes that can take it, so that large gaps stay for large replicas."""
    each = _gpus_on_a_node(pool)
    spread = 1 if pool.holding is None else max(1, pool.holding.nodes_per_replica)
    fits = sorted((gpus, node) for node, gpus in room.items() if gpus >= each)[:spread]
    if len(fits) < spread:
        return False
    for _, node in fits:
        room[node] -= each
    return True


def _give_back(room: dict[str, int], pool: PoolView, replica: Replica) -> None:
    for node in replica.nodes:
        if node in room:
            room[node] += _gpus_on_a_node(pool)


def _leaves_first(replica: Replica) -> tuple[int, int, int, str]:
    """The order in which replicas go, as far as it can be known before: the cluster's where it chooses, else those that never
    served, then those with the least work."""
    rank = -1 if replica.rank is None else replica.rank
    return (rank, 0 if replica.state == "starting" else 1, replica.in_flight or 0, replica.id)


def _why(pool: PoolView) -> str:
    each, gpu_type = _gpus_on_a_node(pool), pool.spec.gpu_type
    spread = 1 if pool.holding is None else pool.holding.nodes_per_replica
    if spread > 1:
        return f"no {spread} nodes have {each} free GPUs of {gpu_type} each"
    return f"no node has {each} free GPUs of {gpu_type}"
