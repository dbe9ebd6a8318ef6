"""A stand-in for operator, scheduler and kubelet, on a virtual clock: it copies adapters into DGDs, makes and ends pods, and
keeps their status and that of the DGDs, with delays that a test sets.

Everything it knows it reads from the API server; what it remembers beside that is when things are due.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pool_planner.connectors.dgd_pods import COMPONENT_LABEL, DELETION_COST, DGD_LABEL, GENERATION_LABEL, NAMESPACE_LABEL
from pool_planner.connectors.kubernetes_api import KubernetesApi, NotFound
from pool_planner.types import Conflict
from tests.kube.server import call

WORKERS = ("prefill", "decode", "worker")


def stamp(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(slots=True)
class Operator:
    """`cold_start_s`: from placement to ready. `termination_s`: from deletion to gone. `lag_s`: before it looks at a change of
    replicas. `nodes`: GPUs of each (none: there is always room, on one node). `unschedulable`: components whose new pods find
    no node. `workload`: the kind that status names."""

    api: KubernetesApi
    namespace: str
    now: Callable[[], float]
    cold_start_s: float = 20.0
    termination_s: float = 10.0
    lag_s: float = 0.0
    workload: str = "Deployment"
    pod_ip: str = "10.0.0.1"
    nodes: dict[str, int] = field(default_factory=dict)
    unschedulable: set[tuple[str, str]] = field(default_factory=set)
    updating: dict[tuple[str, str], str] = field(default_factory=dict)
    killed: list[tuple[float, str]] = field(default_factory=list)
    _taken: dict[str, tuple[str, int]] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)
    _changed_at: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)
    _made: int = 0

    def reconcile(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]] | None:
        """One look at everything, and what is due now. What there is: DGDs, adapters, pods; None: it has written since."""
        written = self._writes()
        adapters = self._list("/apis/nvidia.com/v1beta1/namespaces/{}/dynamographdeploymentscalingadapters")
        pods = self._list("/api/v1/namespaces/{}/pods")
        self._taken = {
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": (pod["spec"]["nodeName"], _gpus_of(pod))
            for pod in (self.api.get("/api/v1/pods")["items"] if self.nodes else ())
            if pod["spec"].get("nodeName") in self.nodes
        }
        dgds = self._list("/apis/nvidia.com/v1beta1/namespaces/{}/dynamographdeployments")
        for dgd in dgds:
            self._copy_adapters(dgd, [item for item in adapters if item["spec"]["dgdRef"]["name"] == dgd["metadata"]["name"]])
            mine = [pod for pod in pods if pod["metadata"]["labels"].get(DGD_LABEL) == dgd["metadata"]["name"]]
            self._reconcile_dgd(dgd, mine)
        return (dgds, adapters, pods) if self._writes() == written else None

    @contextlib.contextmanager
    def working(self, every_s: float) -> Iterator[Operator]:
        """It looks by itself, on the wall clock, until the context is left."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(every_s):
                self.reconcile()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(10)

    def _writes(self) -> int:
        return sum(number for verb, number in self.api.calls.items() if verb != "get")

    def roll(self, dgd: str, component: str, generation: str) -> None:
        """Begin a rolling update to a new generation of workers, one extra pod at a time."""
        self.updating[dgd, component] = generation

    # ---- one DGD -----------------------------------------------------------------------------------------------------

    def _copy_adapters(self, dgd: dict[str, Any], adapters: list[dict[str, Any]]) -> None:
        spec, changed = dgd["spec"], False
        for adapter in adapters:
            wanted, name = adapter["spec"]["replicas"], adapter["spec"]["dgdRef"]["serviceName"]
            component = spec["services"].get(name) if "services" in spec else _named(spec["components"], name)
            if component is not None and component["replicas"] != wanted and self._waited(dgd, name, wanted):
                component["replicas"], changed = wanted, True
        if changed:
            body = {"metadata": {"resourceVersion": dgd["metadata"]["resourceVersion"]}, "spec": spec}
            path = f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeployments/{dgd['metadata']['name']}"
            dgd["metadata"] = call(self.api, "PATCH", path, body, manager="manager")["metadata"]

    def _waited(self, dgd: dict[str, Any], name: str, wanted: int) -> bool:
        key = (dgd["metadata"]["name"], name)
        value, since = self._changed_at.get(key, (-1, 0.0))
        if value != wanted:
            self._changed_at[key] = (wanted, self.now())
            return self.lag_s == 0.0
        return self.now() - since >= self.lag_s

    def _reconcile_dgd(self, dgd: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        name, spec = dgd["metadata"]["name"], dgd["spec"]
        components = spec.get("components") or [{"name": key, **value} for key, value in spec["services"].items()]
        statuses: dict[str, Any] = {}
        rolling = False
        for component in components:
            kind = component.get("type") or component.get("subComponentType") or component.get("componentType")
            if kind not in WORKERS:
                continue
            mine = [pod for pod in pods if pod["metadata"]["labels"].get(COMPONENT_LABEL) == component["name"]]
            alive = self._move(name, component, mine)
            generation = self.updating.get((name, component["name"]))
            old = [pod for pod in alive if generation and pod["metadata"]["labels"][GENERATION_LABEL] != generation]
            if generation and not old:
                del self.updating[name, component["name"]]
            rolling = rolling or bool(old)
            ready = sum(1 for pod in alive if _ready(pod))
            statuses[component["name"]] = {
                "componentKind": self.workload,
                "replicas": len(alive),
                "updatedReplicas": len(alive) - len(old),
                "readyReplicas": ready,
                "availableReplicas": ready,
            }
            claimed = component.get("podTemplate", {}).get("spec", {}).get("resourceClaims")
            if claimed:
                statuses[component["name"]]["gpusPerReplica"] = component["podTemplate"]["metadata"]["gpus"]
        self._status(dgd, statuses, rolling)

    def _move(self, dgd: str, component: dict[str, Any], pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Pods towards the spec; those that are not ending, afterwards."""
        alive = []
        for pod in pods:
            name = pod["metadata"]["name"]
            if pod["metadata"].get("deletionTimestamp"):
                if self.now() >= self._due.setdefault(name, self.now() + self.termination_s):
                    self._delete(name, 0)
                continue
            if not _ready(pod) and (dgd, component["name"]) not in self.unschedulable:
                if _unplaced(pod):
                    if not pod["spec"].get("nodeName") and not self._bind(name, _gpus_of(pod)):
                        alive.append(pod)
                        continue
                    pod = self._pod_status(pod, ready=False, placed=True)
                    self._due[name] = self.now() + self.cold_start_s
                elif self.now() >= self._due.setdefault(name, self.now() + self.cold_start_s):
                    pod = self._pod_status(pod, ready=True, placed=True)
            alive.append(pod)
        wanted = component["replicas"]
        generation = self.updating.get((dgd, component["name"]))
        current = generation or (alive[0]["metadata"]["labels"][GENERATION_LABEL] if alive else "one")
        old = [pod for pod in alive if pod["metadata"]["labels"][GENERATION_LABEL] != current]
        if old:
            return self._roll(dgd, component, alive, old, wanted, current)
        while len(alive) < wanted:
            alive.append(self._make(dgd, component, current, len(alive)))
        while len(alive) > wanted:
            victim = min(alive, key=self._first_to_go)
            alive.remove(victim)
            self._end(victim)
        return alive

    def _roll(
        self,
        dgd: str,
        component: dict[str, Any],
        alive: list[dict[str, Any]],
        old: list[dict[str, Any]],
        wanted: int,
        generation: str,
    ) -> list[dict[str, Any]]:
        fresh = [pod for pod in alive if pod not in old]
        if len(alive) > wanted and all(_ready(pod) for pod in fresh):
            self._end(old[0])
            alive.remove(old[0])
        elif len(alive) <= wanted:
            alive.append(self._make(dgd, component, generation, len(alive)))
        return alive

    def _first_to_go(self, pod: dict[str, Any]) -> tuple[float, ...]:
        """As a ReplicaSet chooses (not ready, cheap, young), or by index from behind."""
        number = int(pod["metadata"]["name"].rsplit("-", 1)[-1])
        if self.workload in ("LeaderWorkerSet", "PodCliqueScalingGroup"):
            return (-number,)
        cost = int((pod["metadata"].get("annotations") or {}).get(DELETION_COST, 0))
        return (1.0 if _ready(pod) else 0.0, cost, -number)

    # ---- calls -------------------------------------------------------------------------------------------------------

    def _list(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.api.get(path.format(self.namespace))["items"]
        return items

    def _make(self, dgd: str, component: dict[str, Any], generation: str, index: int) -> dict[str, Any]:
        self._made += 1
        number = index if self.workload in ("LeaderWorkerSet", "PodCliqueScalingGroup") else self._made
        name = f"{dgd}-{component['name'].lower()}-{generation}-{number}"
        labels = {
            DGD_LABEL: dgd,
            COMPONENT_LABEL: component["name"],
            GENERATION_LABEL: generation,
            NAMESPACE_LABEL: f"{self.namespace}-{dgd}-{generation}",
        }
        if self.workload == "LeaderWorkerSet":
            labels["leaderworkerset.sigs.k8s.io/group-index"] = str(number)
        port = {"name": "http", "containerPort": 8000}
        gpus = _gpus_of_component(component)
        node = self._room(name, gpus) if self.nodes else "node"
        container = {"name": "main", "image": "engine", "ports": [port]}
        if gpus:
            container["resources"] = {"limits": {"nvidia.com/gpu": str(gpus)}, "requests": {"nvidia.com/gpu": str(gpus)}}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {**({"nodeName": node} if node else {}), "containers": [container]},
        }
        pod = call(self.api, "POST", f"/api/v1/namespaces/{self.namespace}/pods", body, manager="kube-controller-manager")
        placed = node is not None and (dgd, component["name"]) not in self.unschedulable
        self._due[name] = self.now() + self.cold_start_s
        return self._pod_status(pod, ready=False, placed=placed)

    def _pod_status(self, pod: dict[str, Any], *, ready: bool, placed: bool) -> dict[str, Any]:
        conditions = {item["type"]: item for item in pod["status"].get("conditions") or ()}
        wanted = {"PodScheduled": placed, "Ready": ready}
        for kind, status in wanted.items():
            text = "True" if status else "False"
            if conditions.get(kind, {}).get("status") != text:
                conditions[kind] = {"type": kind, "status": text, "lastTransitionTime": stamp(self.now())}
        if not placed:
            conditions["PodScheduled"] |= {"reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient gpu"}
        status = {"phase": "Running" if placed else "Pending", "conditions": list(conditions.values()), "podIP": self.pod_ip}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}/status"
        answer: dict[str, Any] = call(self.api, "PATCH", path, {"status": status}, manager="kubelet")
        return answer

    def _room(self, pod: str, gpus: int) -> str | None:
        """A node with so many GPUs left, which the pod takes."""
        for node, has in sorted(self.nodes.items()):
            if has - sum(number for where, number in self._taken.values() if where == node) >= gpus:
                self._taken[f"{self.namespace}/{pod}"] = (node, gpus)
                return node
        return None

    def _bind(self, pod: str, gpus: int) -> bool:
        node = self._room(pod, gpus)
        if node is not None:
            body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": {"kind": "Node", "name": node}}
            call(self.api, "POST", f"/api/v1/namespaces/{self.namespace}/pods/{pod}/binding", body, manager="scheduler")
        return node is not None

    def _end(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        self.killed.append((self.now(), name))
        self._due[name] = self.now() + self.termination_s
        self._delete(name, 3600)

    def _delete(self, name: str, grace_s: int) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}"
        with contextlib.suppress(NotFound):
            call(self.api, "DELETE", path, {"gracePeriodSeconds": grace_s}, manager="kubelet")

    def _status(self, dgd: dict[str, Any], statuses: dict[str, Any], rolling: bool) -> None:
        before = dgd.get("status") or {}
        stable = all(item["replicas"] == item["availableReplicas"] for item in statuses.values()) and not rolling
        status = {
            ("components" if "components" in dgd["spec"] else "services"): statuses,
            "observedGeneration": dgd["metadata"]["generation"],
            "conditions": [{"type": "Ready", "status": "True" if stable else "False"}],
            "rollingUpdate": {"phase": "InProgress" if rolling else "Completed"},
        }
        if status != before:
            name = dgd["metadata"]["name"]
            path = f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeployments/{name}/status"
            with contextlib.suppress(Conflict, NotFound):  # looked at again next time
                call(self.api, "PATCH", path, {"status": status}, manager="manager")


def _gpus_of_component(component: dict[str, Any]) -> int:
    """GPUs of one pod, in either shape; what is no count has none here."""
    limits = (component.get("resources") or {}).get("limits") or {}
    for container in component.get("podTemplate", {}).get("spec", {}).get("containers") or ():
        limits = limits or (container.get("resources") or {}).get("limits") or {}
    text = str(limits.get("gpu", limits.get("nvidia.com/gpu", 0)))
    return int(text) if text.isdigit() else 0


def _gpus_of(pod: dict[str, Any]) -> int:
    return sum(
        int(((container.get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu", 0))
        for container in pod["spec"]["containers"]
    )


def _named(components: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((item for item in components if item["name"] == name), None)


def _ready(pod: dict[str, Any]) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in pod["status"].get("conditions") or ())


def _unplaced(pod: dict[str, Any]) -> bool:
    return any(item["type"] == "PodScheduled" and item["status"] == "False" for item in pod["status"].get("conditions") or ())
