"""What one component of a DGD has now, from its DGD, its adapter and its pods. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pool_planner.connectors.dgd import Component, Dgd, Unreadable, find_component, read_dgd
from pool_planner.connectors.dgd_pods import PodReplica, Victims, generations, read_replicas, victims_of
from pool_planner.connectors.writers import ADAPTER_PATHS, Writer, owner, replica_paths
from pool_planner.types import Role

SURGE_SHARE = 0.25
"""Share of its replicas that a rolling update of a Deployment may add at a time (Kubernetes' default maxSurge)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The component that a pool means: of a DGD, by type first and name second."""

    namespace: str
    dgd: str
    role: Role
    component: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DgdObject:
    """A DGD as it was last sent: read, or the reason why it could not be. `writers`: of each component's replicas, by name."""

    namespace: str
    name: str
    dgd: Dgd | None
    problem: str | None = None
    writers: Mapping[str, Writer] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterObject:
    """A scaling adapter. `replicas` None: its spec has no count."""

    namespace: str
    name: str
    version: str
    dgd: str
    component: str
    replicas: int | None
    writer: Writer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodObject:
    """What is kept of a pod: as it was sent, less what nobody reads."""

    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentState:
    """What a component has. `spec`, `adapter_spec`: ordered replicas in the DGD and in its adapter (None: there is no adapter).
    `version`: of the object that orders go to. `unknown` says why the rest cannot be trusted (None: it can).

    `terminating_hidden`: pods may not be listed, so that replicas come from status and ending ones are not seen. `surge`: extra
    replicas that a rolling update (`updating`) may bring. `nodes_per_replica`: that its GPUs are spread over. `least_replicas`:
    fewer the workload cannot have. `victims`: who chooses which replica goes. `writer`: who set the replicas last, where the
    API server notes it."""

    target: Target
    component: str | None = None
    spec: int | None = None
    adapter_spec: int | None = None
    adapter: str | None = None
    version: str | None = None
    gpus_per_replica: int | None = None
    nodes_per_replica: int = 1
    replicas: tuple[PodReplica, ...] = ()
    terminating_hidden: bool = False
    surge: int = 0
    updating: bool = False
    cold_start_s: float | None = None
    least_replicas: int = 0
    victims: Victims = "named"
    workload: str | None = None
    writer: Writer | None = None
    unknown: str | None = None


def read_dgd_object(raw: Mapping[str, Any]) -> DgdObject:
    found = raw.get("metadata")
    metadata: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    namespace, name = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
    try:
        dgd = read_dgd(raw)
    except Unreadable as error:
        return DgdObject(namespace=namespace, name=name, dgd=None, problem=str(error))
    writers = {}
    for item in dgd.components:
        writer = owner(metadata.get("managedFields"), replica_paths(item.name, in_list=item.index is not None))
        if writer is not None:
            writers[item.name] = writer
    return DgdObject(namespace=namespace, name=name, dgd=dgd, writers=writers)


def read_adapter(raw: Mapping[str, Any]) -> AdapterObject:
    metadata, spec = raw.get("metadata") or {}, raw.get("spec") or {}
    reference = spec.get("dgdRef") or {}
    replicas = spec.get("replicas")
    return AdapterObject(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        version=str(metadata.get("resourceVersion", "")),
        dgd=str(reference.get("name", "")),
        component=str(reference.get("serviceName", "")),
        replicas=replicas if isinstance(replicas, int) and not isinstance(replicas, bool) and replicas >= 0 else None,
        writer=owner(metadata.get("managedFields"), ADAPTER_PATHS),
    )


def slim_pod(raw: Mapping[str, Any]) -> PodObject:
    metadata, spec, status = raw.get("metadata") or {}, raw.get("spec") or {}, raw.get("status") or {}
    kept = ("name", "namespace", "labels", "annotations", "creationTimestamp", "deletionTimestamp")
    ports = [{"ports": item.get("ports")} for item in spec.get("containers") or () if item.get("ports")]
    seen = ("phase", "conditions", "podIP")
    restarts = [{"restartCount": item.get("restartCount", 0)} for item in status.get("containerStatuses") or ()]
    return PodObject(
        raw={
            "metadata": {key: metadata[key] for key in kept if key in metadata},
            "spec": {"containers": ports, **({"nodeName": spec["nodeName"]} if spec.get("nodeName") else {})},
            "status": {**{key: status[key] for key in seen if key in status}, "containerStatuses": restarts},
        }
    )


def component_state(
    target: Target,
    found: DgdObject | None,
    adapters: Sequence[AdapterObject] | None,
    pods: Mapping[str, Sequence[PodObject]] | None,
    *,
    engine_port: int | None = None,
    may_name: bool = True,
) -> ComponentState:
    """`adapters`: those of the DGD (None: they cannot be listed). `pods`: of the DGD, by component (None: they may not be
    listed). `may_name`: pods may be marked as the first to go."""
    where = f"DGD {target.dgd} in {target.namespace}"
    if found is None:
        return ComponentState(target=target, unknown=f"{where} does not exist")
    if found.dgd is None:
        return ComponentState(target=target, unknown=f"{where}: {found.problem}")
    if adapters is None:
        return ComponentState(target=target, unknown=f"{where}: whether it has scaling adapters cannot be seen")
    try:
        component = find_component(found.dgd, target.role, target.component)
    except Unreadable as error:
        return ComponentState(target=target, unknown=f"{where}: {error}")
    adapter = next((item for item in adapters if item.component.lower() == component.name.lower()), None)
    problems = [] if component.problem is None else [component.problem]
    if adapter is not None and adapter.replicas is None:
        problems.append(f"adapter {adapter.name} has no spec.replicas")
    workload = component.status.workload
    if pods is None:
        replicas = _from_status(target, component)
    else:
        seen = [item.raw for item in pods.get(component.name, ())]
        replicas = read_replicas(seen, nodes=component.nodes, workload=workload, port=engine_port)
    updating = _updating(found.dgd, component, replicas)
    ordered = component.replicas if adapter is None else adapter.replicas
    return ComponentState(
        target=target,
        component=component.name,
        spec=component.replicas,
        adapter_spec=None if adapter is None else adapter.replicas,
        adapter=None if adapter is None else adapter.name,
        version=found.dgd.version if adapter is None else adapter.version,
        gpus_per_replica=component.gpus_per_replica,
        nodes_per_replica=component.nodes,
        replicas=tuple(replicas),
        terminating_hidden=pods is None,
        surge=_surge(replicas, ordered or 0, workload) if updating else 0,
        updating=updating,
        cold_start_s=_cold_start_s(replicas),
        least_replicas=component.least_replicas,
        victims=_victims(workload, pods is not None, may_name),
        workload=workload,
        writer=adapter.writer if adapter is not None else (found.writers or {}).get(component.name),
        unknown=f"{where}: {'; '.join(problems)}" if problems else None,
    )


def _victims(workload: str | None, pods_seen: bool, may_name: bool) -> Victims:
    found = victims_of(workload) if pods_seen else "unknown"
    return "unknown" if found == "named" and not may_name else found


def _from_status(target: Target, component: Component) -> list[PodReplica]:
    """Replicas without names: as many as status counts, the available ones ready."""
    total = component.status.replicas or 0
    ready = min(component.status.available or 0, total) if component.status.replicas is not None else 0
    name = f"{target.dgd}/{component.name}"
    return [
        PodReplica(id=f"{name}#{number}", state="ready" if number < ready else "starting", pods=()) for number in range(total)
    ]


def _updating(dgd: Dgd, component: Component, replicas: Sequence[PodReplica]) -> bool:
    status = component.status
    behind = dgd.current and status.updated is not None and status.replicas is not None and status.updated < status.replicas
    alive = [item for item in replicas if item.state != "terminating"]
    return dgd.update_phase is not None or behind or len(generations(alive)) > 1


def _surge(replicas: Sequence[PodReplica], ordered: int, workload: str | None) -> int:
    """Replicas beyond the ordered ones that live now, or that the update may still add. Grove and LeaderWorkerSet replace in
    place, so there it is what is seen."""
    visible = max(0, sum(1 for item in replicas if item.state != "terminating") - ordered)
    return max(visible, math.ceil(SURGE_SHARE * ordered)) if victims_of(workload) == "named" else visible


def _cold_start_s(replicas: Sequence[PodReplica]) -> float | None:
    """The longest time from placement to readiness among those that serve now and never restarted; None: none is known."""
    times = [
        item.ready_unix_s - item.since_unix_s
        for item in replicas
        if item.state == "ready"
        and not item.restarted
        and item.ready_unix_s is not None
        and item.since_unix_s is not None
        and item.ready_unix_s > item.since_unix_s
    ]
    return max(times, default=None)
