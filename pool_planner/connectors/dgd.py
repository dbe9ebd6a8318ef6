"""A DynamoGraphDeployment as the API server holds it, read in both served versions. Pure.

`v1alpha1` has a map of services, `v1beta1` a list of components; GPUs come from limits, times the nodes of a multinode engine,
or from status where claims hand them out. What cannot be read stays None with a sentence that says what it was: a shape that
nobody understood is unknown, never zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pool_planner.types import Role

GROUP = "nvidia.com"
DGD_PLURAL = "dynamographdeployments"
ADAPTER_PLURAL = "dynamographdeploymentscalingadapters"
READABLE_VERSIONS = ("v1beta1", "v1alpha1")
"""The versions that are understood here, the one to prefer first."""

# Names of workers by backend, for deployments that give no sub-component type.
_ROLE_BY_NAME: Mapping[str, Role] = {
    "vllmprefillworker": "prefill",
    "vllmdecodeworker": "decode",
    "vllmworker": "agg",
    "prefill": "prefill",
    "decode": "decode",
    "agg": "agg",
}
_WORKER_TYPES = ("worker", "main")
_ROLE_TYPES: Mapping[str, Role] = {"prefill": "prefill", "decode": "decode"}
# A PodClique, alone or in a scaling group, keeps its gang's minimum of at least one.
_LEAST_REPLICAS: Mapping[str, int] = {"PodClique": 1, "PodCliqueScalingGroup": 1}


class Unreadable(ValueError):
    """An object that cannot be read at all; the text says what of it was not understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentStatus:
    """What the operator says of a component's replicas; None: it does not say. `available` is `availableReplicas`, or
    `readyReplicas` where that is absent."""

    workload: str | None = None
    replicas: int | None = None
    updated: int | None = None
    available: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One component of a DGD. `index` is its place in the list of `v1beta1` (None in `v1alpha1`).

    `role` comes from its type (`typed`), else from its name; None: not a worker of ours (a frontend, a planner). `problem` says
    what of its replicas or GPUs could not be read.
    """

    name: str
    index: int | None = None
    role: Role | None = None
    typed: bool = False
    replicas: int | None = None
    gpus_per_replica: int | None = None
    nodes: int = 1
    status: ComponentStatus = ComponentStatus()
    problem: str | None = None

    @property
    def least_replicas(self) -> int:
        """The smallest number that its kind of workload can be scaled to."""
        return _LEAST_REPLICAS.get(self.status.workload or "", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dgd:
    """`current`: the status is of the present spec. `update_phase`: what the operator says of a rolling update under way (None:
    there is none)."""

    namespace: str
    name: str
    api_version: str
    version: str
    current: bool
    components: tuple[Component, ...]
    update_phase: str | None = None
    uid: str = ""

    def component(self, name: str) -> Component | None:
        return next((item for item in self.components if item.name == name), None)


def read_dgd(raw: Mapping[str, Any]) -> Dgd:
    """The DGD in an object of the API. Raises Unreadable when it is none, or of a version that is not understood."""
    metadata, spec, status = _mapping(raw, "metadata"), _mapping(raw, "spec"), _mapping(raw, "status")
    name, version = metadata.get("name"), metadata.get("resourceVersion")
    if not isinstance(name, str) or not isinstance(version, str):
        raise Unreadable("an object without a name or resourceVersion")
    api_version = str(raw.get("apiVersion", "")).removeprefix(f"{GROUP}/")
    if api_version not in READABLE_VERSIONS:
        raise Unreadable(f"apiVersion {api_version!r} is not understood (known: {', '.join(READABLE_VERSIONS)})")
    # By shape: where no conversion is installed, the API server serves either shape under either version.
    beta = "components" in spec or (api_version == "v1beta1" and "services" not in spec)
    statuses = _statuses(status.get("components" if beta else "services"))
    written = _beta_components(spec) if beta else _alpha_components(spec)
    observed, generation = status.get("observedGeneration"), metadata.get("generation")
    phase = _mapping(status, "rollingUpdate").get("phase")
    return Dgd(
        namespace=str(metadata.get("namespace", "")),
        name=name,
        api_version=api_version,
        version=version,
        current=observed is None or observed == generation,
        components=tuple(_understood(item, statuses) for item in written),
        update_phase=phase if phase in ("Pending", "InProgress") else None,
        uid=str(metadata.get("uid", "")),
    )


def find_component(dgd: Dgd, role: Role, name: str) -> Component:
    """The component that a pool of `role` means: by type first, by name second. `name` is the configured one, or the role's.

    Raises Unreadable with what the DGD has instead. An aggregated pool may be a lone decode worker: Dynamo's own examples
    write it so."""
    exact = dgd.component(name)
    typed = [item for item in dgd.components if item.typed and item.role == role]
    if exact is not None and (exact.role in (role, None) or _lone_decode(dgd, exact, role)):
        return exact
    if exact is not None and name != role:
        raise Unreadable(f"component {name!r} is of type {exact.role}, and the pool is {role}")
    if len(typed) == 1:
        return typed[0]
    if typed:
        names = ", ".join(item.name for item in typed)
        raise Unreadable(f"it has {len(typed)} {role} components ({names}): say in the pool's `component` which one is meant")
    named = [item for item in dgd.components if item.role == role]
    if not named and role == "agg":
        named = [item for item in dgd.components if _lone_decode(dgd, item, role)]
    if len(named) == 1:
        return named[0]
    has = ", ".join(f"{item.name} ({item.role or 'no worker'})" for item in dgd.components) or "no components"
    raise Unreadable(f"it has no {role} component that could be {name!r} (has: {has})")


def _lone_decode(dgd: Dgd, item: Component, role: Role) -> bool:
    return role == "agg" and item.role == "decode" and not any(other.role == "prefill" for other in dgd.components)


# ---- the two shapes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What both shapes say of a component, before it is understood. `limits`: of each container; `claims`: devices come from
    resource claims."""

    name: str
    path: str
    index: int | None
    types: tuple[Any, Any]
    replicas: Any
    multinode: Any
    limits: tuple[Mapping[str, Any], ...]
    claims: bool


def _alpha_components(spec: Mapping[str, Any]) -> Iterator[_Written | Component]:
    services = spec.get("services")
    if not isinstance(services, Mapping):
        raise Unreadable("spec.services is not a map of services")
    for name, raw in services.items():
        path = f"spec.services.{name}"
        if not isinstance(raw, Mapping):
            yield Component(name=str(name), problem=f"{path} is not a mapping")
            continue
        extra = _mapping(raw, "extraPodSpec")
        containers = [_mapping(extra, "mainContainer"), *_maps(extra.get("containers"))]
        resources = [_mapping(raw, "resources"), *(_mapping(item, "resources") for item in containers)]
        yield _Written(
            name=str(name),
            path=path,
            index=None,
            types=(raw.get("subComponentType"), raw.get("componentType")),
            replicas=raw.get("replicas"),
            multinode=raw.get("multinode"),
            limits=tuple(_mapping(item, "limits") for item in resources),
            claims=bool(extra.get("resourceClaims")) or any(item.get("claims") for item in resources),
        )


def _beta_components(spec: Mapping[str, Any]) -> Iterator[_Written | Component]:
    components = spec.get("components")
    if not isinstance(components, list):
        raise Unreadable("spec.components is not a list of components")
    for index, raw in enumerate(components):
        path = f"spec.components[{index}]"
        if not isinstance(raw, Mapping) or not isinstance(raw.get("name"), str):
            yield Component(name=path, index=index, problem=f"{path} is not a component with a name")
            continue
        pod = _mapping(_mapping(raw, "podTemplate"), "spec")
        resources = [_mapping(item, "resources") for item in _maps(pod.get("containers"))]
        yield _Written(
            name=raw["name"],
            path=path,
            index=index,
            types=(raw.get("type"), raw.get("type")),
            replicas=raw.get("replicas"),
            multinode=raw.get("multinode"),
            limits=tuple(_mapping(item, "limits") for item in resources),
            claims=bool(pod.get("resourceClaims")) or any(item.get("claims") for item in resources),
        )


def _understood(written: _Written | Component, statuses: Mapping[str, Mapping[str, Any]]) -> Component:
    if isinstance(written, Component):
        return written
    said = statuses.get(written.name, {})
    role, typed = _role(written)
    problems: list[str] = []
    replicas = _count(written.replicas)
    if replicas is None:
        problems.append(f"{written.path}.replicas is {written.replicas!r}, not a count")
    nodes: int | None = 1
    if written.multinode is not None:
        raw_nodes = written.multinode.get("nodeCount") if isinstance(written.multinode, Mapping) else None
        nodes = _count(raw_nodes) or None
        if nodes is None:
            problems.append(f"{written.path}.multinode.nodeCount is {raw_nodes!r}, not a count")
    gpus, problem = _gpus(written, nodes, said)
    if problem is not None and role is not None:
        problems.append(problem)
    available = said.get("availableReplicas") if "availableReplicas" in said else said.get("readyReplicas")
    workload = said.get("componentKind")
    return Component(
        name=written.name,
        index=written.index,
        role=role,
        typed=typed,
        replicas=replicas,
        gpus_per_replica=gpus,
        nodes=nodes or 1,
        status=ComponentStatus(
            workload=workload if isinstance(workload, str) else None,
            replicas=_count(said.get("replicas")),
            updated=_count(said.get("updatedReplicas")),
            available=_count(available),
        ),
        problem="; ".join(problems) or None,
    )


def _role(written: _Written) -> tuple[Role | None, bool]:
    """The role, and whether a type said it. A worker without a role in its type has the one that its name says."""
    sub, kind = (str(item).lower() if item is not None else None for item in written.types)
    if sub is not None and sub in _ROLE_TYPES:
        return _ROLE_TYPES[sub], True
    by_name = _ROLE_BY_NAME.get(written.name.lower())
    if kind in _WORKER_TYPES:
        return (by_name, False) if by_name is not None else ("agg", True)
    return (by_name, False) if kind is None else (None, False)


def _gpus(written: _Written, nodes: int | None, said: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """GPUs of one replica over all its nodes, or None and why. Where claims hand devices out, status alone can tell."""
    if written.claims:
        for key in ("gpusPerReplica", "gpusPerEngine"):
            found = _count(said.get(key))
            if found:
                return found, None
        return None, f"{written.path} takes GPUs by resource claims, and its status says no gpusPerReplica yet"
    per_node = 0
    for limits in written.limits:
        for key, value in limits.items():
            name = str(key).lower()
            if name.startswith("nvidia.com/mig-"):
                return None, f"{written.path} takes {key}: slices of a GPU are not counted"
            if name != "gpu" and not name.endswith("/gpu"):
                continue
            count = _count(value)
            if count is None:
                return None, f"{written.path}: the limit {key}: {value!r} is not a count"
            per_node += count
    if per_node == 0:
        return None, f"{written.path} has no limit of GPUs, which is unknown and not none"
    return (None, None) if nodes is None else (per_node * nodes, None)


def _statuses(raw: Any) -> Mapping[str, Mapping[str, Any]]:
    """By component name; status is a map, or a list of items with names."""
    if isinstance(raw, Mapping):
        return {str(name): item for name, item in raw.items() if isinstance(item, Mapping)}
    return {str(item.get("name")): item for item in _maps(raw)}


def _count(value: Any) -> int | None:
    """A count as JSON has it: a number, or (resource quantities) digits in a string. None: it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and 0 <= value < 2**31 else None


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, Mapping) else {}


def _maps(raw: Any) -> list[Mapping[str, Any]]:
    return [item for item in raw if isinstance(item, Mapping)] if isinstance(raw, list) else []
