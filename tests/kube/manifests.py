"""DGDs in both shapes, and adapters, as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tests.kube.server import ApiServer

Shape = Literal["v1alpha1", "v1beta1"]
DGDS = "/apis/nvidia.com/{}/namespaces/{}/dynamographdeployments"
ADAPTERS = "/apis/nvidia.com/v1beta1/namespaces/{}/dynamographdeploymentscalingadapters"
VLLM_NAMES = {"prefill": "VllmPrefillWorker", "decode": "VllmDecodeWorker", "agg": "VllmWorker"}


def dgd(name: str, shape: Shape, workers: Mapping[str, tuple[int, int]], *, nodes: int = 1) -> dict[str, Any]:
    """`workers`: role -> (replicas, GPUs of one node)."""
    head = {"apiVersion": f"nvidia.com/{shape}", "kind": "DynamoGraphDeployment", "metadata": {"name": name}}
    multinode = {"multinode": {"nodeCount": nodes}} if nodes > 1 else {}
    if shape == "v1alpha1":
        services: dict[str, Any] = {"Frontend": {"componentType": "frontend", "replicas": 1}}
        for role, (replicas, gpus) in workers.items():
            services[VLLM_NAMES[role]] = {
                "componentType": "worker",
                **({} if role == "agg" else {"subComponentType": role}),
                "replicas": replicas,
                "resources": {"limits": {"gpu": str(gpus)}},
                **multinode,
            }
        return {**head, "spec": {"services": services}}
    components: list[dict[str, Any]] = [{"name": "frontend", "type": "frontend", "replicas": 1}]
    for role, (replicas, gpus) in workers.items():
        container = {"name": "main", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
        components.append(
            {
                "name": role,
                "type": "worker" if role == "agg" else role,
                "replicas": replicas,
                "podTemplate": {"spec": {"containers": [container]}},
                **multinode,
            }
        )
    return {**head, "spec": {"components": components}}


def component_name(role: str, shape: Shape) -> str:
    return VLLM_NAMES[role] if shape == "v1alpha1" else role


def adapter(dgd_name: str, component: str, replicas: int) -> dict[str, Any]:
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeploymentScalingAdapter",
        "metadata": {"name": f"{dgd_name}-{component.lower()}"},
        "spec": {"replicas": replicas, "dgdRef": {"name": dgd_name, "serviceName": component}},
    }


def create(
    server: ApiServer,
    namespace: str,
    name: str,
    shape: Shape,
    workers: Mapping[str, tuple[int, int]],
    *,
    adapters: bool,
    nodes: int = 1,
) -> None:
    server.create(DGDS.format(shape, namespace), dgd(name, shape, workers, nodes=nodes))
    for role, (replicas, _) in workers.items() if adapters else ():
        server.create(ADAPTERS.format(namespace), adapter(name, component_name(role, shape), replicas), manager="manager")
