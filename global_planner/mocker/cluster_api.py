"""What the virtual cluster and its clients say to each other: JSON over loopback HTTP, the same records on both sides. Pure.

    GET  /health                     200
    GET  /v1/pools                   PoolsAnswer
    PUT  /v1/pools/NAME/scale        ScaleOrder -> PoolView; 404 unknown pool, 409 stale, 422 nonsense
    GET  /v1/events?after=NO         EventsAnswer
    POST /v1/faults                  FaultOrder: troubles for tests
Every refusal is {"error": sentence}. Times are model seconds.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from global_planner.mocker.cluster_records import ClusterEvent, State
from global_planner.mocker.cluster_state import MAX_REPLICAS, ClusterState

Count = Annotated[int, Field(ge=0, strict=True)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplicaView(Message):
    """`url` is known from the first answer of its process on; `pid` while it has one. `progress_at_s`: when its start last
    moved on."""

    id: str
    state: State
    since_s: float
    ordered_at_s: float
    progress_at_s: float | None
    url: str | None
    pid: int | None
    unschedulable: str | None
    nodes: tuple[str, ...] = ()


class PoolView(Message):
    """`cold_starts_s`: the last measured times from order to ready, oldest first."""

    name: str
    gpu_type: str
    gpus_per_replica: int
    replicas: int
    resource_version: str
    cold_starts_s: tuple[float, ...]
    items: tuple[ReplicaView, ...]
    nodes_per_replica: int = 1


class NodeView(Message):
    """A node's GPUs, and how many of them no replica holds."""

    name: str
    gpu_type: str
    gpus: int
    free_gpus: int


class PoolsAnswer(Message):
    """`held_gpus` of all replicas there are, ending ones included; `peak_gpus`: the most that were ever held at once. `nodes`
    None: the cluster has none, and room for everything."""

    at_s: float
    held_gpus: dict[str, int]
    peak_gpus: dict[str, int]
    pools: tuple[PoolView, ...]
    nodes: tuple[NodeView, ...] | None = None


class ScaleOrder(Message):
    """`resource_version`: the version that the order was decided on; absent: whatever is in force."""

    replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS, strict=True)]
    victims: tuple[str, ...] = ()
    resource_version: str | None = None


class EventsAnswer(Message):
    events: tuple[ClusterEvent, ...]


class PoolFault(Message):
    """`hang`: replicas never become ready; `unschedulable`: new ones are not even started, for this reason."""

    hang: bool = False
    unschedulable: str | None = None


class FaultOrder(Message):
    """What is given replaces what is in force. The next so many: `fail_writes` are refused (500), `conflict_writes` are
    refused as stale (409), `lose_answers` are carried out and then answered with an error, `fail_reads` are refused. Every
    answer is delayed by `delay_s`. `pools` by name."""

    fail_writes: Count | None = None
    conflict_writes: Count | None = None
    lose_answers: Count | None = None
    fail_reads: Count | None = None
    delay_s: Seconds | None = None
    pools: dict[str, PoolFault] = Field(default_factory=dict)


def pool_view(state: ClusterState, name: str, pids: dict[str, int]) -> PoolView:
    config = state.config(name)
    return PoolView(
        name=name,
        gpu_type=config.gpu_type,
        gpus_per_replica=config.gpus_per_replica,
        replicas=state.spec(name),
        resource_version=state.version(name),
        cold_starts_s=state.cold_starts_s(name),
        nodes_per_replica=config.nodes_per_replica,
        items=tuple(
            ReplicaView(
                id=replica.id,
                state=replica.state,
                since_s=replica.since_s,
                ordered_at_s=replica.ordered_at_s,
                progress_at_s=replica.progress_at_s,
                url=replica.url,
                pid=pids.get(replica.id),
                unschedulable=replica.unschedulable,
                nodes=replica.nodes,
            )
            for replica in state.replicas(name)
        ),
    )


def node_views(state: ClusterState) -> tuple[NodeView, ...] | None:
    free = state.free_on_nodes()
    views = tuple(
        NodeView(name=node.name, gpu_type=node.gpu_type, gpus=node.gpus, free_gpus=free[node.name]) for node in state.nodes()
    )
    return views or None
