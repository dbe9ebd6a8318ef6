"""The requests that set replicas, each bound to the version that was decided on. Pure.

Through an adapter's scale subresource where the adapter exists; else by one patch of the DGD for all its components that
change. A request whose object has moved on is refused by the API server and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pool_planner.connectors.dgd import ADAPTER_PLURAL, DGD_PLURAL, GROUP, Component

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
TOUCHED = "global-planner.io/order-settled-at"
"""An annotation that is changed where a version must move on without any other change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One write. `verb` and `resource` as RBAC names them."""

    method: str
    path: str
    content_type: str
    body: Any
    verb: str
    resource: str
    namespace: str


def resource_path(api_version: str, namespace: str, plural: str, name: str = "", subresource: str = "") -> str:
    parts = [f"/apis/{GROUP}/{api_version}/namespaces/{namespace}/{plural}", name, subresource]
    return "/".join(part for part in parts if part)


def adapter_name(dgd: str, component: str) -> str:
    return f"{dgd}-{component.lower()}"


def scale_adapter(api_version: str, namespace: str, name: str, replicas: int, version: str) -> Request:
    """Set the replicas of an adapter if it is still at `version`."""
    return Request(
        method="PATCH",
        path=resource_path(api_version, namespace, ADAPTER_PLURAL, name, "scale"),
        content_type=MERGE_PATCH,
        body={"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}},
        verb="patch",
        resource=f"{ADAPTER_PLURAL}/scale",
        namespace=namespace,
    )


def touch_adapter(api_version: str, namespace: str, name: str, version: str) -> Request:
    """Move an adapter's version on without another change, if it is still at `version`."""
    return _touch(api_version, namespace, ADAPTER_PLURAL, name, version)


def patch_dgd(api_version: str, namespace: str, name: str, replicas: Sequence[tuple[Component, int]], version: str) -> Request:
    """Set the replicas of components of one DGD if it is still at `version`.

    A list of components would be replaced whole by a merge patch: there each one is changed at its place, after a test that the
    place still holds it."""
    if all(component.index is None for component, _ in replicas):
        body: Any = {
            "metadata": {"resourceVersion": version},
            "spec": {"services": {component.name: {"replicas": count} for component, count in replicas}},
        }
        content_type = MERGE_PATCH
    else:
        body = [{"op": "replace", "path": "/metadata/resourceVersion", "value": version}]
        for component, count in replicas:
            place = f"/spec/components/{component.index}"
            body.append({"op": "test", "path": f"{place}/name", "value": component.name})
            body.append({"op": "add", "path": f"{place}/replicas", "value": count})
        content_type = JSON_PATCH
    return Request(
        method="PATCH",
        path=resource_path(api_version, namespace, DGD_PLURAL, name),
        content_type=content_type,
        body=body,
        verb="patch",
        resource=DGD_PLURAL,
        namespace=namespace,
    )


def touch_dgd(api_version: str, namespace: str, name: str, version: str) -> Request:
    """Move a DGD's version on without another change, if it is still at `version`."""
    return _touch(api_version, namespace, DGD_PLURAL, name, version)


def _touch(api_version: str, namespace: str, plural: str, name: str, version: str) -> Request:
    return Request(
        method="PATCH",
        path=resource_path(api_version, namespace, plural, name),
        content_type=MERGE_PATCH,
        body={"metadata": {"resourceVersion": version, "annotations": {TOUCHED: version}}},
        verb="patch",
        resource=plural,
        namespace=namespace,
    )


def deletion_cost(namespace: str, pod: str, cost: int | None) -> Request:
    """Name a pod as the first to go (a low cost), or take that back (None)."""
    return Request(
        method="PATCH",
        path=f"/api/v1/namespaces/{namespace}/pods/{pod}",
        content_type=MERGE_PATCH,
        body={"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": None if cost is None else str(cost)}}},
        verb="patch",
        resource="pods",
        namespace=namespace,
    )


def scaled_version(answer: Mapping[str, Any]) -> str | None:
    """The version of the object after a write, as the answer says."""
    version = (answer.get("metadata") or {}).get("resourceVersion")
    return version if isinstance(version, str) else None
