"""CustomResourceDefinitions of the objects that planners read and write: as little of them as the facts say.

Both versions of a DGD are served; no conversion is installed, so an object is served in the shape in which it was written.
"""

from __future__ import annotations

from typing import Any

ANYTHING: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
COUNT: dict[str, Any] = {"type": "integer", "format": "int32", "minimum": 0}


def _component(required: list[str]) -> dict[str, Any]:
    schema = {**ANYTHING, "properties": {"name": {"type": "string"}, "replicas": COUNT}}
    return {**schema, "required": required} if required else schema


_DGD_SPEC: dict[str, Any] = {
    **ANYTHING,
    "properties": {
        "services": {"type": "object", "additionalProperties": _component([])},
        "components": {
            "type": "array",
            "items": _component(["name"]),
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    },
}


def _version(name: str, spec: dict[str, Any], *, storage: bool, scale: bool) -> dict[str, Any]:
    subresources: dict[str, Any] = {"status": {}}
    if scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "name": name,
        "served": True,
        "storage": storage,
        "subresources": subresources,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": ANYTHING}}},
    }


def _crd(plural: str, kind: str, spec: dict[str, Any], *, scale: bool = False, versions: tuple[str, ...]) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.nvidia.com",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
        },
        "spec": {
            "group": "nvidia.com",
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.lower(), "kind": kind, "listKind": f"{kind}List"},
            "versions": [
                _version(name, spec, storage=index == len(versions) - 1, scale=scale) for index, name in enumerate(versions)
            ],
        },
    }


_ADAPTER_SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["replicas", "dgdRef"],
    "properties": {
        "replicas": COUNT,
        "dgdRef": {
            "type": "object",
            "required": ["name", "serviceName"],
            "properties": {"name": {"type": "string"}, "serviceName": {"type": "string"}},
        },
    },
}

BOTH = ("v1alpha1", "v1beta1")
CRDS: tuple[dict[str, Any], ...] = (
    _crd("dynamographdeployments", "DynamoGraphDeployment", _DGD_SPEC, versions=BOTH),
    _crd(
        "dynamographdeploymentscalingadapters",
        "DynamoGraphDeploymentScalingAdapter",
        _ADAPTER_SPEC,
        scale=True,
        versions=BOTH,
    ),
)
