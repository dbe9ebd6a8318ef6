"""A DynamoGraphDeployment in either served version, from one description of its components. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pool_planner.types import Role

ApiVersion = Literal["v1beta1", "v1alpha1"]
Kind = Literal["frontend", "planner", "prefill", "decode", "worker", "default"]
Manifest = dict[str, Any]

GROUP = "nvidia.com"
POOLS_ANNOTATION = "global-planner.io/pools"
"""On a DGD: what the topology says of its pools beyond the manifest, by component, so that `init` can read it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A ConfigMap, a Secret or a PersistentVolumeClaim, mounted read-only unless `writable`."""

    name: str
    source: Mapping[str, Any]
    path: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentPlan:
    """One component. `gpus` 0: none. `kind`: prefill, decode, or worker (aggregated) for engines; default: what the operator
    has no type for. `port` is named `http`, where it answers HTTP. `probes`: its paths for readiness and liveness."""

    name: str
    kind: Kind
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...] = ()
    replicas: int = 1
    gpus: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()
    port: int | None = None
    probes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    service_account: str | None = None


def kind_of(role: Role) -> Kind:
    return "worker" if role == "agg" else role


def dgd(
    version: ApiVersion,
    name: str,
    namespace: str,
    components: Sequence[ComponentPlan],
    *,
    pools: str | None = None,
    backend: str | None = None,
) -> Manifest:
    """`pools`: the text of the annotation, see POOLS_ANNOTATION. `backend`: the framework of its engines."""
    metadata: Manifest = {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "global-planner"}}
    if pools is not None:
        metadata["annotations"] = {POOLS_ANNOTATION: pools}
    spec: Manifest = {}
    if backend is not None and backend != "mocker":
        spec["backendFramework"] = backend
    if version == "v1beta1":
        spec["components"] = [_beta(component) for component in components]
    else:
        spec["services"] = {component.name: _alpha(component) for component in components}
    return {"apiVersion": f"{GROUP}/{version}", "kind": "DynamoGraphDeployment", "metadata": metadata, "spec": spec}


def scaling_adapter(version: ApiVersion, dgd_name: str, namespace: str, component: str, replicas: int) -> Manifest:
    """The object through whose `scale` replicas are set."""
    return {
        "apiVersion": f"{GROUP}/{version}",
        "kind": "DynamoGraphDeploymentScalingAdapter",
        "metadata": {"name": f"{dgd_name}-{component.lower()}", "namespace": namespace},
        "spec": {"replicas": replicas, "dgdRef": {"name": dgd_name, "serviceName": component}},
    }


def _beta(component: ComponentPlan) -> Manifest:
    made: Manifest = {"name": component.name, "replicas": component.replicas}
    if component.kind != "default":
        made["type"] = component.kind
    container = {"name": "main", **_container(component)}
    limits = {"nvidia.com/gpu": str(component.gpus)} if component.gpus else {}
    resources = {
        **({"limits": limits} if limits else {}),
        **({"requests": dict(component.requests)} if component.requests else {}),
    }
    if resources:
        container["resources"] = resources
    made["podTemplate"] = {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "global-planner", **component.labels}},
        "spec": {**_pod(component), "containers": [container]},
    }
    return made


def _alpha(component: ComponentPlan) -> Manifest:
    types: Mapping[Kind, Manifest] = {
        "prefill": {"componentType": "worker", "subComponentType": "prefill"},
        "decode": {"componentType": "worker", "subComponentType": "decode"},
    }
    made: Manifest = {**types.get(component.kind, {"componentType": component.kind}), "replicas": component.replicas}
    resources: Manifest = {}
    if component.gpus:
        resources["limits"] = {"gpu": str(component.gpus)}
    if component.requests:
        resources["requests"] = dict(component.requests)
    if resources:
        made["resources"] = resources
    made["extraPodMetadata"] = {"labels": {"app.kubernetes.io/part-of": "global-planner", **component.labels}}
    made["extraPodSpec"] = {**_pod(component), "mainContainer": _container(component)}
    return made


def _container(component: ComponentPlan) -> Manifest:
    container: Manifest = {"image": component.image, "command": list(component.command)}
    if component.args:
        container["args"] = list(component.args)
    if component.env:
        container["env"] = [{"name": name, "value": value} for name, value in component.env.items()]
    if component.port is not None:
        container["ports"] = [{"name": "http", "containerPort": component.port}]
    for probe, path in component.probes.items():
        container[probe] = {"httpGet": {"path": path, "port": "http"}, "periodSeconds": 10, "failureThreshold": 6}
    mounts = [
        {"name": volume.name, "mountPath": volume.path, **({} if volume.writable else {"readOnly": True})}
        for volume in component.volumes
    ]
    if component.ours:
        mounts.append({"name": "tmp", "mountPath": "/tmp"})
        container["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    if mounts:
        container["volumeMounts"] = mounts
    return container


def _pod(component: ComponentPlan) -> Manifest:
    pod: Manifest = {}
    volumes = [{"name": volume.name, **volume.source} for volume in component.volumes]
    if component.ours:
        volumes.append({"name": "tmp", "emptyDir": {}})
        pod["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    if component.service_account is not None:
        pod["serviceAccountName"] = component.service_account
    if component.node_selector:
        pod["nodeSelector"] = dict(component.node_selector)
    if volumes:
        pod["volumes"] = volumes
    return pod
