"""[I/O] The Nodes port over a Kubernetes cluster: nodes and all pods are watched, where a role lets us; asking makes no call.

Rights over nodes are cluster-wide and opt-in. Without them nobody can say whether a replica finds a place: nothing is held back
for that, and nothing is said either. With half of them (nodes, but not the pods of all namespaces) it is said what is missing.
"""

from __future__ import annotations

from collections.abc import Collection

from global_planner.kubernetes_room import NodeGpus, PodGpus, UnknownType, read_node, read_pod, room
from global_planner.types import NodeRoom
from pool_planner.connectors.kubernetes_api import KubernetesApi
from pool_planner.connectors.kubernetes_watch import Watched
from pool_planner.types import ClusterUnavailable

RIGHTS_AGAIN_S = 600.0
"""Rights that are missing are asked for again after so long: most deployments never get them."""


class KubernetesNodes:
    """The nodes with GPUs of `gpu_types`; `label` tells a node's type (None: any of the usual ones)."""

    def __init__(self, api: KubernetesApi, gpu_types: Collection[str], *, label: str | None = None) -> None:
        self._gpu_types = tuple(sorted(set(gpu_types)))
        self._nodes: Watched[NodeGpus] = Watched(
            api,
            "/api/v1/nodes",
            resource="nodes",
            read=lambda raw: read_node(raw, label),
            group=lambda node: None,
            again_s=RIGHTS_AGAIN_S,
        )
        self._pods: Watched[PodGpus] = Watched(
            api,
            "/api/v1/pods",
            resource="pods of all namespaces",
            read=read_pod,
            group=lambda pod: None,
            again_s=RIGHTS_AGAIN_S,
        )
        self._known: tuple[int, int, tuple[NodeRoom, ...]] | None = None

    def start(self) -> None:
        """Begin to watch. Does not wait: until something was seen, nothing is known."""
        self._nodes.start()
        self._pods.start()

    def close(self) -> None:
        self._nodes.close()
        self._pods.close()

    def wait_until_seen(self, timeout_s: float) -> bool:
        """Whether both were listed, or are known to be forbidden, in time."""
        return self._nodes.listed(timeout_s) and self._pods.listed(timeout_s)

    async def nodes(self) -> tuple[NodeRoom, ...] | None:
        """None: nodes may not be listed. Raises ClusterUnavailable with what is missing beyond that."""
        if self._nodes.forbidden is not None:
            return None
        if self._pods.forbidden is not None:
            raise ClusterUnavailable(f"{self._pods.forbidden}: what pods take of nodes cannot be counted")
        self._nodes.check()
        self._pods.check()
        changes = (self._nodes.changes, self._pods.changes)
        if self._known is None or self._known[:2] != changes:
            try:
                found = room(self._nodes.items(), self._pods.items(), self._gpu_types)
            except UnknownType as error:
                raise ClusterUnavailable(f"{error}; cluster.kubernetes.gpu_label says which label it is") from error
            self._known = (*changes, found)
        return self._known[2]
