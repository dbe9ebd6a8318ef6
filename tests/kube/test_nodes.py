"""Whether a replica finds a place, as the nodes and pods of a real API server tell it; and in tables, what they mean."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from global_planner.kubernetes_nodes import KubernetesNodes
from global_planner.kubernetes_room import (
    NodeGpus,
    PodGpus,
    UnknownType,
    gpu_type_of,
    read_node,
    read_pod,
    room,
)
from pool_planner.types import ClusterUnavailable
from tests.kube.conftest import Start
from tests.kube.server import ApiServer, call

PRODUCT = "nvidia.com/gpu.product"
H100 = "NVIDIA-H100-80GB-HBM3"


def node(name: str, gpus: int = 8, *, product: str | None = H100, ready: bool = True, **spec: object) -> dict[str, Any]:
    labels = {} if product is None else {PRODUCT: product}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "96", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def gpu_pod(gpus: int, *, node: str | None = None, phase: str = "Running", refused: bool = False) -> dict[str, Any]:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}] if refused else []
    return {
        "metadata": {"name": "pod"},
        "spec": {
            **({} if node is None else {"nodeName": node}),
            "containers": [{"name": "main", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}],
        },
        "status": {"phase": phase, "conditions": conditions},
    }


def free(nodes: Sequence[NodeGpus], pods: Sequence[PodGpus], gpu_types: Sequence[str] = ("h100",)) -> dict[str, int]:
    return {item.node: item.free_gpus for item in room(nodes, pods, gpu_types)}


# ---- tables -----------------------------------------------------------------------------------------------------------

TYPES = {
    "the label itself": ("h100", ["h100"], "h100"),
    "a word of the label": (H100, ["h100", "a100"], "h100"),
    "all words of the name": ("NVIDIA-A100-SXM4-80GB", ["a100-40gb", "a100-80gb"], "a100-80gb"),
    "of two that fit, the one that says more": ("NVIDIA-A100-SXM4-80GB", ["a100", "a100-80gb"], "a100-80gb"),
    "no word is a part of another": ("NVIDIA-H100-80GB", ["h10"], None),
    "two that say as much": ("NVIDIA-A100-SXM4-80GB", ["a100", "80gb"], None),
    "another GPU": ("NVIDIA-L4", ["h100"], None),
}


@pytest.mark.parametrize(("label", "budget", "meant"), TYPES.values(), ids=TYPES)
def test_which_type_of_the_budget_a_label_means(label: str, budget: list[str], meant: str | None) -> None:
    assert gpu_type_of(label, budget) == meant


PODS: dict[str, tuple[list[dict[str, Any]], int]] = {
    "placed": ([gpu_pod(3, node="a")], 5),
    "several, of any namespace": ([gpu_pod(3, node="a"), gpu_pod(4, node="a")], 1),
    "without GPUs": ([gpu_pod(0, node="a")], 8),
    "ended for good": ([gpu_pod(8, node="a", phase="Succeeded")], 8),
    "on a node that is not there any more": ([gpu_pod(3, node="gone")], 8),
    "waiting for the scheduler: a promise": ([gpu_pod(2)], 6),
    "refused by the scheduler: takes nothing": ([gpu_pod(2, refused=True)], 8),
    "waiting, and too large for any node": ([gpu_pod(9)], 8),
    "ending: until it is gone": ([{**gpu_pod(3, node="a"), "metadata": {"name": "pod", "deletionTimestamp": "now"}}], 5),
}


@pytest.mark.parametrize(("pods", "left"), PODS.values(), ids=PODS)
def test_what_pods_leave_of_a_node(pods: list[dict[str, Any]], left: int) -> None:
    assert free([read_node(node("a"), None)], [read_pod(raw) for raw in pods]) == {"a": left}


CLOSED: dict[str, dict[str, Any]] = {
    "cordoned": {"unschedulable": True},
    "not ready": {"ready": False},
    "tainted by its controller": {"taints": [{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]},
}


@pytest.mark.parametrize("how", CLOSED.values(), ids=CLOSED)
def test_nothing_new_goes_to_a_node_that_is_closed(how: dict[str, Any]) -> None:
    (found,) = room([read_node(node("a", **how), None)], [], ["h100"])
    assert (found.gpus, found.free_gpus) == (8, 0)


def test_a_taint_of_gpu_nodes_closes_nothing() -> None:
    tainted = node("a", taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}])
    assert free([read_node(tainted, None)], []) == {"a": 8}


def test_a_type_that_nobody_tells_is_unknown_and_not_absent() -> None:
    plain = read_node(node("a", product=None), None)
    assert free([plain], []) == {"a": 8}, "where one type is planned for, GPUs without a label are of that"
    with pytest.raises(UnknownType, match="node a has 8 GPUs and no label"):
        room([plain], [], ["h100", "a100"])
    with pytest.raises(UnknownType, match=f"no node has GPUs of type b200 .*{H100}"):
        room([read_node(node("a"), None)], [], ["h100", "b200"])
    assert free([read_node(node("a"), None), read_node(node("l", product="NVIDIA-L4"), None)], []) == {"a": 8}


# ---- on a real API server ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(server: ApiServer, namespace: str) -> Iterator[dict[str, int]]:
    names = {f"{namespace}-a": 6, f"{namespace}-b": 6}
    for name, gpus in names.items():
        server.create("/api/v1/nodes", node(name, gpus))
        call(server.admin, "PATCH", f"/api/v1/nodes/{name}/status", {"status": node(name, gpus)["status"]})
        # The API server taints every new node as not ready; the node controller, which is not here, takes that back.
        call(server.admin, "PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}})
    yield names
    for name in names:
        call(server.admin, "DELETE", f"/api/v1/nodes/{name}", None)


def test_gpus_are_granted_only_where_a_node_has_them(server: ApiServer, start: Start, two_nodes: dict[str, int]) -> None:
    """Two nodes with 6 GPUs each, under a budget of 16. The fleet at rest holds 8; somebody else's pod takes 3 of the rest, so
    that one node has 1 free: a replica of 2 GPUs has no place, whatever the budget says."""
    others = server.namespace(f"{next(iter(two_nodes))[:-2]}-others")
    first, second = two_nodes
    play = start(nodes=two_nodes, user="seer")
    at_rest = dict.fromkeys(play.ordered(), 1)
    play.want(**{name.replace("-", "_"): number for name, number in at_rest.items()})
    play.until_quiet()
    used = {name: sum(gpus for where, gpus in play.operator._taken.values() if where == name) for name in two_nodes}
    assert used == {first: 6, second: 2}
    theirs = {**gpu_pod(3, node=second), "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs"}}
    theirs["spec"]["containers"][0]["image"] = "other"
    del theirs["status"]
    server.create(f"/api/v1/namespaces/{others}/pods", theirs)

    def left() -> dict[str, int]:
        assert play.leader.nodes is not None
        return {item.node: item.free_gpus for item in asyncio.run(play.leader.nodes.nodes()) or ()}

    assert play.leader.deployments.wait_until(lambda: left() == {first: 0, second: 1}, 10.0), left()
    play.want(chat_decode=2, docs_prefill=2)  # 2 GPUs, and 1 GPU
    play.rounds(6)
    assert play.ordered()["chat-decode"] == 1 and play.ordered()["docs-prefill"] == 2
    grant = next(item for item in play.leader.rounds[-1].allocation.pools if item.pool == "chat-decode")
    assert "no node has 2 free GPUs of h100" in f"{grant.reason} {grant.binding}", grant
    assert any("are used by others" in text for text in play.leader.rounds[-1].conditions)
    assert {node for item in play.leader.rounds[-1].inputs.holdings for one in item.replicas for node in one.nodes} == set(
        two_nodes
    )

    call(server.admin, "DELETE", f"/api/v1/namespaces/{others}/pods/theirs", {"gracePeriodSeconds": 0})
    assert play.leader.deployments.wait_until(lambda: left()[second] == 3, 10.0)
    play.until_quiet()
    assert play.ordered()["chat-decode"] == 2 and play.alive()["chat-decode"] == 2 and play.violations == []


def test_without_rights_over_nodes_nobody_is_held_back(server: ApiServer, namespace: str) -> None:
    nodes = KubernetesNodes(server.api("planner"), ["h100"])
    nodes.start()
    try:
        assert nodes.wait_until_seen(10.0)
        assert asyncio.run(nodes.nodes()) is None
    finally:
        nodes.close()


def test_half_of_the_rights_is_said(server: ApiServer) -> None:
    group, about = "/apis/rbac.authorization.k8s.io/v1", {"apiVersion": "rbac.authorization.k8s.io/v1"}
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    role = {**about, "kind": "ClusterRole", "metadata": {"name": "half"}, "rules": rules}
    server.create(f"{group}/clusterroles", role)
    binding = {
        **about,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "half"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "half"},
        "subjects": [{"kind": "User", "name": "hpa", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    server.create(f"{group}/clusterrolebindings", binding)
    nodes = KubernetesNodes(server.api("hpa"), ["h100"])
    nodes.start()
    try:
        assert nodes.wait_until_seen(10.0)
        with pytest.raises(ClusterUnavailable, match="verb 'list' on pods of all namespaces"):
            asyncio.run(nodes.nodes())
    finally:
        nodes.close()
