"""The replicas of a component as its pods show them: who starts, who serves, who ends, and whom the cluster would remove. Pure.

A replica is one pod, or the pods of all nodes of a multinode engine. Pods are matched by the name of their DGD and component,
never by Dynamo namespace: during a rolling update that one carries a suffix for each generation of workers, and an exact
match would read zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

DGD_LABEL = "nvidia.com/dynamo-graph-deployment-name"
COMPONENT_LABEL = "nvidia.com/dynamo-component"
GENERATION_LABEL = "nvidia.com/dynamo-worker-hash"
NAMESPACE_LABEL = "nvidia.com/dynamo-namespace"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_GROUP_LABELS = ("grove.io/podcliquescalinggroup-replica-index", "leaderworkerset.sigs.k8s.io/group-index")

Victims = Literal["named", "last", "unknown"]
"""Who decides which replica goes when the count falls: `named`: we do, by deletion cost; `last`: the one with the highest
index; `unknown`: the controller, by rules that work in flight does not enter."""

_VICTIMS_BY_WORKLOAD: Mapping[str, Victims] = {
    "Deployment": "named",
    "LeaderWorkerSet": "last",
    "StatefulSet": "last",
    "PodCliqueScalingGroup": "last",
    "PodClique": "unknown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReplica:
    """One replica. `pods`: the names of its pods. `since_unix_s`: when it was placed on its nodes (else created), or lost its
    readiness since; `ready_unix_s`: when it became ready (Unix times, None: not known). `generation`: of the workers, None: no
    label says it. `rank`: the place in which the cluster removes it, 0 first (None: not known). `nodes`: those that its pods
    were placed on."""

    id: str
    state: Literal["starting", "ready", "terminating"]
    pods: tuple[str, ...]
    since_unix_s: float | None = None
    ready_unix_s: float | None = None
    url: str | None = None
    unschedulable: str | None = None
    generation: str | None = None
    restarted: bool = False
    rank: int | None = None
    nodes: tuple[str, ...] = ()


def victims_of(workload: str | None) -> Victims:
    """Who chooses the victim for a kind of workload. No kind said: a Deployment, as the operator makes by default."""
    return "named" if workload is None else _VICTIMS_BY_WORKLOAD.get(workload, "unknown")


def component_key(pod: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """(namespace, DGD, component) of a pod; None: it is of none."""
    metadata = pod.get("metadata", {})
    labels = metadata.get("labels") or {}
    dgd, component = labels.get(DGD_LABEL), labels.get(COMPONENT_LABEL)
    return None if dgd is None or component is None else (str(metadata.get("namespace")), dgd, component)


def read_replicas(pods: Iterable[Mapping[str, Any]], *, nodes: int, workload: str | None, port: int | None) -> list[PodReplica]:
    """The replicas in the pods of one component; pods that ended for good hold nothing. `nodes`: pods of a whole replica.
    `port`: where replicas answer HTTP (None: at the container port named `http`, if there is one)."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        groups.setdefault(_replica_name(pod), []).append(pod)
    found = [_replica(name, members, nodes, port) for name, members in sorted(groups.items())]
    return _ranked(found, groups) if victims_of(workload) == "last" else found


def generations(replicas: Sequence[PodReplica]) -> frozenset[str]:
    return frozenset(item.generation for item in replicas if item.generation is not None)


def _replica_name(pod: Mapping[str, Any]) -> str:
    labels = pod["metadata"].get("labels") or {}
    for label in _GROUP_LABELS:
        if label in labels:
            generation = labels.get(GENERATION_LABEL)
            return "-".join(
                part for part in (labels.get(DGD_LABEL), labels.get(COMPONENT_LABEL), generation, labels[label]) if part
            )
    return str(pod["metadata"]["name"])


def _replica(name: str, pods: Sequence[Mapping[str, Any]], nodes: int, port: int | None) -> PodReplica:
    ending = any(pod["metadata"].get("deletionTimestamp") for pod in pods)
    conditions = [_conditions(pod) for pod in pods]
    ready = not ending and len(pods) >= nodes and all(item.get("Ready", {}).get("status") == "True" for item in conditions)
    since = [_since(pod, item, ready) for pod, item in zip(pods, conditions, strict=True)]
    became = [unix(item.get("Ready", {}).get("lastTransitionTime")) for item in conditions]
    labels = pods[0]["metadata"].get("labels") or {}
    return PodReplica(
        id=name,
        state="terminating" if ending else "ready" if ready else "starting",
        pods=tuple(sorted(str(pod["metadata"]["name"]) for pod in pods)),
        since_unix_s=max((item for item in since if item is not None), default=None),
        ready_unix_s=max((item for item in became if item is not None), default=None) if ready else None,
        url=_url(pods, port),
        unschedulable=next((text for text in map(_unschedulable, conditions) if text is not None), None),
        generation=labels.get(GENERATION_LABEL),
        nodes=tuple(sorted({str(node) for pod in pods if (node := pod.get("spec", {}).get("nodeName"))})),
        restarted=any(status.get("restartCount") for pod in pods for status in pod["status"].get("containerStatuses") or ()),
    )


def _since(pod: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]], ready: bool) -> float | None:
    placed = unix(conditions.get("PodScheduled", {}).get("lastTransitionTime"))
    began = placed if placed is not None else unix(pod["metadata"].get("creationTimestamp"))
    lost = None if ready else unix(conditions.get("Ready", {}).get("lastTransitionTime"))
    return max((item for item in (began, lost) if item is not None), default=None)


def _ranked(replicas: list[PodReplica], groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[PodReplica]:
    """With the place in which a set with indices removes them: the highest first."""
    indices = {item.id: _index(groups[item.id][0]) for item in replicas}
    if any(index is None for index in indices.values()):
        return replicas
    order = sorted((item for item in replicas if item.state != "terminating"), key=lambda item: -(indices[item.id] or 0))
    places = {item.id: place for place, item in enumerate(order)}
    return [replace(item, rank=places.get(item.id)) for item in replicas]


def _index(pod: Mapping[str, Any]) -> int | None:
    labels = pod["metadata"].get("labels") or {}
    for label in _GROUP_LABELS:
        if str(labels.get(label, "")).isdigit():
            return int(labels[label])
    last = str(pod["metadata"]["name"]).rsplit("-", 1)[-1]
    return int(last) if last.isdigit() else None


def _conditions(pod: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {item.get("type", ""): item for item in pod.get("status", {}).get("conditions") or ()}


def _unschedulable(conditions: Mapping[str, Mapping[str, Any]]) -> str | None:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    return str(scheduled.get("message") or "the scheduler gives no reason")


def _url(pods: Sequence[Mapping[str, Any]], port: int | None) -> str | None:
    """Where the first pod (of a multinode engine: the leader) answers HTTP; None: it has no address or no such port."""
    first = min(pods, key=lambda pod: str(pod["metadata"]["name"]))
    address = first.get("status", {}).get("podIP")
    if port is None:
        named = [
            item.get("containerPort")
            for container in first.get("spec", {}).get("containers") or ()
            for item in container.get("ports") or ()
            if item.get("name") == "http"
        ]
        port = next((item for item in named if isinstance(item, int)), None)
    if not address or port is None:
        return None
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def unix(stamp: Any) -> float | None:
    """Unix seconds of `2026-07-01T08:50:00Z` (a fraction allowed), None of anything else.

    >>> unix("1970-01-01T00:01:00Z")
    60.0
    """
    if not isinstance(stamp, str):
        return None
    try:
        return datetime.fromisoformat(stamp).timestamp() if stamp.endswith("Z") else None
    except ValueError:
        return None
