"""The free GPUs of a cluster's nodes, from its nodes and the pods on them. Pure.

A node has what it declares as allocatable, less what its pods have requested, of any namespace, ending ones included. A pod
that waits for the scheduler was promised GPUs that nobody has set aside yet: on paper it goes where the scheduler could set it.
What the scheduler has refused takes no room. Nodes whose GPU type no label tells cannot be counted, and then none is: half a
truth would say that there is no room."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from global_planner.cluster_topology import GPU_LABELS, type_name
from global_planner.types import NodeRoom

_BLOCKED = "node.kubernetes.io/"
"""Taints that the node controller sets: nothing new is placed there, whatever a pod tolerates as a rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """A node as it declares itself. `open`: pods may be placed there now. `labels`: those that may tell its GPU type."""

    name: str
    gpus: int
    open: bool
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodGpus:
    """What a pod requests. `node` None: it is not placed. `waiting`: the scheduler has not refused it (yet)."""

    node: str | None
    gpus: int
    waiting: bool = False


NOTHING = PodGpus(node=None, gpus=0)
"""Most pods of a cluster: without GPUs."""


class UnknownType(ValueError):
    """The GPU type of nodes cannot be told; the text says of which, and what would tell it."""


def read_node(raw: Mapping[str, Any], label: str | None) -> NodeGpus:
    """`label`: the one that tells the GPU type (None: any of the usual ones)."""
    metadata, spec, status = raw.get("metadata") or {}, raw.get("spec") or {}, raw.get("status") or {}
    labels = metadata.get("labels") or {}
    ready = any(item.get("type") == "Ready" and item.get("status") == "True" for item in status.get("conditions") or ())
    blocked = any(
        str(taint.get("key", "")).startswith(_BLOCKED) and taint.get("effect") in ("NoSchedule", "NoExecute")
        for taint in spec.get("taints") or ()
    )
    names = GPU_LABELS if label is None else (label,)
    return NodeGpus(
        name=str(metadata.get("name", "")),
        gpus=_gpus(status.get("allocatable") or {}),
        open=ready and not blocked and not spec.get("unschedulable", False),
        labels={name: str(labels[name]) for name in names if name in labels},
    )


def read_pod(raw: Mapping[str, Any]) -> PodGpus:
    """A pod that ended for good requests nothing."""
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return NOTHING
    first = max((_requested(item) for item in spec.get("initContainers") or ()), default=0)
    gpus = max(first, sum(_requested(item) for item in spec.get("containers") or ()))
    if gpus == 0:
        return NOTHING
    node = spec.get("nodeName") or None
    refused = any(
        item.get("type") == "PodScheduled" and item.get("status") == "False" for item in status.get("conditions") or ()
    )
    ending = bool((raw.get("metadata") or {}).get("deletionTimestamp"))
    return PodGpus(node=node, gpus=gpus, waiting=node is None and not refused and not ending)


def room(nodes: Sequence[NodeGpus], pods: Iterable[PodGpus], gpu_types: Collection[str]) -> tuple[NodeRoom, ...]:
    """The nodes that have GPUs of `gpu_types`, by name. Raises UnknownType when a node with GPUs does not tell its type, or
    when no node has a type that is planned for, so that the labels are not the ones that were meant."""
    found: list[NodeRoom] = []
    used: dict[str, int] = {}
    waiting: list[int] = []
    for pod in pods:
        if pod.node is not None:
            used[pod.node] = used.get(pod.node, 0) + pod.gpus
        elif pod.waiting:
            waiting.append(pod.gpus)
    for node in sorted(nodes, key=lambda item: item.name):
        if node.gpus == 0:
            continue
        if not node.labels and len(gpu_types) > 1:
            raise UnknownType(f"node {node.name} has {node.gpus} GPUs and no label that tells their type")
        mine = _type_of(node, gpu_types)
        if mine is not None:
            free = max(0, node.gpus - used.get(node.name, 0)) if node.open else 0
            found.append(NodeRoom(node=node.name, gpu_type=mine, gpus=node.gpus, free_gpus=free))
    missing = sorted(set(gpu_types) - {item.gpu_type for item in found})
    if missing:
        said = sorted({value for node in nodes if node.gpus for value in node.labels.values()})
        raise UnknownType(f"no node has GPUs of type {missing[0]} by its label (they say: {', '.join(said) or 'nothing'})")
    return _with_promises(found, waiting) if waiting else tuple(found)


def gpu_type_of(label: str, gpu_types: Collection[str]) -> str | None:
    """The type of a budget that a node's label means: every word of it is one of the label's, and of several the one that says
    most. None: another type, or it cannot be told which.

    >>> gpu_type_of("NVIDIA-A100-SXM4-80GB", ["a100", "a100-80gb", "h100"])
    'a100-80gb'
    """
    if label in gpu_types:
        return label
    words = set(type_name(label).split("-"))
    fits = [(len(mine), each) for each in gpu_types if (mine := set(type_name(each).split("-"))) <= words]
    most = [each for length, each in fits if length == max(fits)[0]]
    return most[0] if len(most) == 1 else None


def _type_of(node: NodeGpus, gpu_types: Collection[str]) -> str | None:
    """The type that is planned for; None: another. Where only one is planned for, a node without a label has that one."""
    if not node.labels:
        return next(iter(gpu_types))
    told = (gpu_type_of(value, gpu_types) for value in node.labels.values())
    return next((each for each in told if each is not None), None)


def _with_promises(nodes: Sequence[NodeRoom], waiting: Sequence[int]) -> tuple[NodeRoom, ...]:
    """Waiting pods set on the fullest node that takes them, the largest first."""
    free = {item.node: item.free_gpus for item in nodes}
    for gpus in sorted(waiting, reverse=True):
        fits = [(left, name) for name, left in free.items() if left >= gpus]
        if fits:
            free[min(fits)[1]] -= gpus
    return tuple(NodeRoom(node=item.node, gpu_type=item.gpu_type, gpus=item.gpus, free_gpus=free[item.node]) for item in nodes)


def _requested(container: Mapping[str, Any]) -> int:
    """Of a resource that cannot be shared, the request is the limit."""
    resources = container.get("resources") or {}
    return max(_gpus(resources.get("limits") or {}), _gpus(resources.get("requests") or {}))


def _gpus(quantities: Mapping[str, Any]) -> int:
    return sum(
        int(text)
        for name, value in quantities.items()
        if (name == "gpu" or str(name).endswith("/gpu")) and (text := str(value)).isdigit()
    )
