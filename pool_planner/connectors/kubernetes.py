"""[I/O] DGDs in a Kubernetes cluster: what their components have, and orders for more or fewer replicas. One for both planners.

Reading makes no call: DGDs, adapters and pods are watched. Writing goes through an adapter's scale where there is one, else
patches the DGD, always bound to the version that was decided on; writes to one DGD are joined and kept apart in time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pool_planner.connectors import dgd_write
from pool_planner.connectors.component_state import (
    AdapterObject,
    ComponentState,
    DgdObject,
    PodObject,
    Target,
    component_state,
    read_adapter,
    read_dgd_object,
    slim_pod,
)
from pool_planner.connectors.dgd import ADAPTER_PLURAL, DGD_PLURAL, GROUP, READABLE_VERSIONS
from pool_planner.connectors.dgd_pods import COMPONENT_LABEL, DGD_LABEL, PodReplica
from pool_planner.connectors.kubernetes_api import Forbidden, KubernetesApi, NotFound
from pool_planner.connectors.kubernetes_watch import Watched
from pool_planner.connectors.orders import Order, check_order, deletion_costs
from pool_planner.connectors.writers import OUR_MANAGERS, Edits, Writer, foreign
from pool_planner.types import ClusterUnavailable, Conflict, WorldError

SYNC_TIMEOUT_S = 30.0
SETTLED_S = 75.0
"""A request that was cut off has taken effect within the API server's own limit (60 s) and a margin, or never will."""
WRITERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A state, and what it was read from: as long as that is the same, so is the state."""

    dgds: object
    adapters: object
    pods: object
    hidden: tuple[bool, bool, bool]
    state: ComponentState


class Deployments:
    """The DGDs of some namespaces. Open it with `start`, which finds out what the API server serves."""

    def __init__(
        self,
        api: KubernetesApi,
        namespaces: Sequence[str],
        *,
        manager: str = OUR_MANAGERS[0],
        operators: Sequence[str] = (),
        engine_port: int | None = None,
        write_deadline_s: float = 10.0,
        write_spacing_s: float = 5.0,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._namespaces, self._manager = api, tuple(sorted(set(namespaces))), manager
        self._operators, self._engine_port = tuple(operators), engine_port
        self._write_deadline_s, self._write_spacing_s = write_deadline_s, write_spacing_s
        self._unix_now = unix_now
        self._dgd_version = self._adapter_version = READABLE_VERSIONS[0]
        self._dgds: dict[str, Watched[DgdObject]] = {}
        self._adapters: dict[str, Watched[AdapterObject]] = {}
        self._pods: dict[str, Watched[PodObject]] = {}
        self._lock = threading.Lock()
        self._memo: dict[Target, _Known] = {}
        self._written_at: dict[tuple[str, str], float] = {}
        self._settled: dict[tuple[str, str], tuple[str, float]] = {}
        self._edits: dict[Target, Edits] = {}
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="kubernetes-write")
        self.cannot_name: str | None = None
        """Why pods cannot be named as the first to go, once that was refused."""

    # ---- opening and closing ------------------------------------------------------------------------------------------

    def start(self, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        """Find the served versions and list everything once. Raises ClusterUnavailable with what is missing."""
        self._dgd_version = self._served(DGD_PLURAL) or READABLE_VERSIONS[0]
        self._adapter_version = self._served(ADAPTER_PLURAL) or self._dgd_version
        for namespace in self._namespaces:
            self._dgds[namespace] = Watched(
                self._api,
                dgd_write.resource_path(self._dgd_version, namespace, DGD_PLURAL),
                resource=DGD_PLURAL,
                read=read_dgd_object,
                group=lambda item: item.name,
            )
            self._adapters[namespace] = Watched(
                self._api,
                dgd_write.resource_path(self._adapter_version, namespace, ADAPTER_PLURAL),
                resource=ADAPTER_PLURAL,
                read=read_adapter,
                group=lambda item: item.dgd,
                optional=True,
            )
            self._pods[namespace] = Watched(
                self._api,
                f"/api/v1/namespaces/{namespace}/pods",
                resource="pods",
                read=slim_pod,
                group=lambda item: (item.raw["metadata"].get("labels") or {}).get(DGD_LABEL),
                selector=DGD_LABEL,
            )
        for watched in self._all():
            watched.start()
        ends = time.monotonic() + timeout_s
        for watched in self._all():
            if not watched.listed(max(0.1, ends - time.monotonic())):
                watched.check()
        for namespace in self._namespaces:
            if self._dgds[namespace].forbidden is not None:
                raise ClusterUnavailable(f"{self._dgds[namespace].forbidden} (namespace {namespace})")

    def close(self) -> None:
        for watched in self._all():
            watched.close()
        self._writers.shutdown(wait=False, cancel_futures=True)

    def list_again(self, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        """Read everything consistently, from now. Raises ClusterUnavailable when that does not succeed in time."""
        for watched in self._all():
            if not watched.list_again(timeout_s):
                raise ClusterUnavailable("the cluster could not be listed from anew in time")

    @property
    def dgd_version(self) -> str:
        """The served version that is read."""
        return self._dgd_version

    def wait_until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for something of the state that is watched; False when it did not come about in time."""
        ends = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() >= ends:
                return False
            time.sleep(0.02)
        return True

    def api_calls(self) -> Mapping[str, int]:
        """Requests made so far, by verb."""
        return dict(self._api.calls)

    def _all(self) -> list[Watched[DgdObject] | Watched[AdapterObject] | Watched[PodObject]]:
        return [*self._dgds.values(), *self._adapters.values(), *self._pods.values()]

    def _served(self, plural: str) -> str | None:
        """The first version that is understood here and that serves a resource; None: none does (yet)."""
        for version in READABLE_VERSIONS:
            try:
                found = self._api.get(f"/apis/{GROUP}/{version}", resource=f"{GROUP}/{version}")
            except NotFound:
                continue
            if any(item.get("name") == plural for item in found.get("resources") or ()):
                return version
        return None

    # ---- reading -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises ClusterUnavailable when the cluster was not seen for too long."""
        for dgds in self._dgds.values():
            dgds.check()
        for adapters in self._adapters.values():
            if adapters.forbidden is None:
                adapters.check()
        for pods in self._pods.values():
            if pods.forbidden is None:
                pods.check()

    def dgds(self) -> list[DgdObject]:
        """Every DGD, as it was last seen."""
        return [item for watched in self._dgds.values() for item in watched.items()]

    def dgd(self, namespace: str, name: str) -> DgdObject | None:
        """A DGD as it was last seen."""
        watched = self._dgds.get(namespace)
        return None if watched is None else next(iter(watched.members(name).values()), None)

    def adapters(self) -> list[AdapterObject]:
        """Every scaling adapter, as it was last seen."""
        return [item for watched in self._adapters.values() for item in watched.items()]

    def versions(self, namespace: str) -> dict[tuple[str, str], str]:
        """The version of every object in a namespace as it was last seen, by ("dgd" or "adapter", name)."""
        found = {("dgd", item.name): item.dgd.version for item in self._dgds[namespace].items() if item.dgd is not None}
        return found | {("adapter", item.name): item.version for item in self._adapters[namespace].items()}

    def pods(self, namespace: str) -> dict[str, Mapping[str, Any]]:
        """Every pod of a DGD in a namespace by name, as far as pods may be listed."""
        return {str(item.raw["metadata"]["name"]): item.raw for item in self._pods[namespace].items()}

    def state(self, target: Target) -> ComponentState:
        """What a component has, as it was last seen."""
        if target.namespace not in self._dgds:
            raise ValueError(f"namespace {target.namespace!r} is not watched")
        dgds = self._dgds[target.namespace].members(target.dgd)
        adapters = self._adapters[target.namespace].members(target.dgd)
        pods = self._pods[target.namespace].members(target.dgd)
        hidden = (
            self._adapters[target.namespace].forbidden is not None,
            self._pods[target.namespace].forbidden is not None,
            self.cannot_name is not None,
        )
        known = self._memo.get(target)
        if (
            known is None
            or known.hidden != hidden
            or not (known.dgds is dgds and known.adapters is adapters and known.pods is pods)
        ):
            state = component_state(
                target,
                next(iter(dgds.values()), None),
                None if hidden[0] else list(adapters.values()),
                None if hidden[1] else _by_component(pods.values()),
                engine_port=self._engine_port,
                may_name=not hidden[2],
            )
            known = self._memo[target] = _Known(dgds=dgds, adapters=adapters, pods=pods, hidden=hidden, state=state)
        return self._with_settled(known.state)

    def foreign(self, state: ComponentState) -> Writer | None:
        """Another controller that sets the replicas of this component, by name or by what it does; None: nobody else does."""
        named = foreign(state.writer, self._operators)
        if named is not None or state.target not in self._edits:
            return named
        ordered = state.spec if state.adapter is None else state.adapter_spec
        now_s = self._unix_now()
        with self._lock:
            edits = self._edits[state.target].saw(ordered, state.version, now_s)
            self._edits[state.target] = edits
        return Writer(manager="somebody who undoes our orders", at_unix_s=max(edits.undone_s)) if edits.fights(now_s) else None

    def _with_settled(self, state: ComponentState) -> ComponentState:
        """The version carries a mark once an order that was settled without moving it can no longer take effect."""
        if state.adapter is None or state.version is None:
            return state
        version, at_s = self._settled.get((state.target.namespace, state.adapter), ("", 0.0))
        if version != state.version or time.monotonic() - at_s < SETTLED_S:
            return state
        return replace(state, version=f"{state.version}{_SETTLED_MARK}")

    # ---- writing -----------------------------------------------------------------------------------------------------

    def set_replicas(self, orders: Sequence[Order], *, within_s: float = math.inf) -> list[WorldError | None]:
        """Carry orders out, those of one DGD together; what became of each, None where it is done. Blocks for the write
        deadline at most, and for `within_s`."""
        by_dgd: dict[tuple[str, str], list[int]] = {}
        for index, order in enumerate(orders):
            by_dgd.setdefault((order.target.namespace, order.target.dgd), []).append(index)
        results: list[WorldError | None] = [None] * len(orders)
        ends = time.monotonic() + min(self._write_deadline_s, within_s)
        under_way = {
            self._writers.submit(self._write, key, [orders[index] for index in indices], ends): indices
            for key, indices in by_dgd.items()
        }
        for future, indices in under_way.items():
            for index, result in zip(indices, future.result(), strict=True):
                results[index] = result
        return results

    def _write(self, key: tuple[str, str], orders: Sequence[Order], ends: float) -> list[WorldError | None]:
        """All orders for one DGD."""
        wait_s = self._written_at.get(key, -self._write_spacing_s) + self._write_spacing_s - time.monotonic()
        if wait_s > 0.0:
            early = Conflict(f"DGD {key[1]} was written less than {self._write_spacing_s:g} s ago; observed again first")
            return [early for _ in orders]
        results: list[WorldError | None] = [None] * len(orders)
        direct: list[tuple[int, Order, ComponentState]] = []
        for index, order in enumerate(orders):
            try:
                state = self.state(order.target)
                check_order(order, state)
                self._name_victims(order, state, ends)
                if state.adapter is None:
                    direct.append((index, order, state))
                else:
                    self._written_at[key] = time.monotonic()
                    self._scale_adapter(order, state, state.adapter, ends)
                    self._wrote(order)
            except WorldError as error:
                results[index] = error
        if direct:
            self._written_at[key] = time.monotonic()
            outcome = self._patch_dgd(key, direct, ends)
            for index, order, _ in direct:
                results[index] = outcome
                if outcome is None:
                    self._wrote(order)
        return results

    def _wrote(self, order: Order) -> None:
        with self._lock:
            self._edits[order.target] = self._edits.get(order.target, Edits()).wrote(order.replicas, order.version)

    def _name_victims(self, order: Order, state: ComponentState, ends: float) -> None:
        """Mark the victims' pods as the first to go, and nobody else's. Where we may not, the controller chooses."""
        namespace = order.target.namespace
        pods = self._pods[namespace].members(order.target.dgd)
        raw = {name: pod.raw for (_, name), pod in pods.items()}
        try:
            for pod, cost in deletion_costs(order, state, raw):
                self._send(dgd_write.deletion_cost(namespace, pod, cost), ends)
                self.cannot_name = None
        except Forbidden as error:
            self.cannot_name = str(error)
        except NotFound as error:
            raise Conflict(f"{order.target.dgd}/{state.component}: a victim is not there any more: {error}") from error

    def _scale_adapter(self, order: Order, state: ComponentState, adapter: str, ends: float) -> None:
        namespace, version = order.target.namespace, (state.version or "").removesuffix(_SETTLED_MARK)
        if order.replicas == state.adapter_spec:
            try:
                self._send(dgd_write.touch_adapter(self._adapter_version, namespace, adapter, version), ends)
                return
            except Forbidden:
                # Only the scale may be written, and that does not move a version on when the number stays: time will tell.
                if self._settled.get((namespace, adapter), ("", 0.0))[0] != version:
                    self._settled[namespace, adapter] = (version, time.monotonic())
        self._send(dgd_write.scale_adapter(self._adapter_version, namespace, adapter, order.replicas, version), ends)

    def _patch_dgd(
        self, key: tuple[str, str], orders: Sequence[tuple[int, Order, ComponentState]], ends: float
    ) -> WorldError | None:
        namespace, name = key
        versions = {state.version for _, _, state in orders}
        found = next(iter(self._dgds[namespace].members(name).values()), None)
        if len(versions) != 1 or found is None or found.dgd is None or found.dgd.version not in versions:
            return Conflict(f"DGD {name} has moved on")
        changes = []
        for _, order, state in orders:
            component = found.dgd.component(state.component or "")
            if component is not None and order.replicas != component.replicas:
                changes.append((component, order.replicas))
        if changes:
            request = dgd_write.patch_dgd(self._dgd_version, namespace, name, changes, found.dgd.version)
        else:
            request = dgd_write.touch_dgd(self._dgd_version, namespace, name, found.dgd.version)
        try:
            self._send(request, ends)
        except WorldError as error:
            return error
        return None

    def _send(self, request: dgd_write.Request, ends: float) -> None:
        left_s = ends - time.monotonic()
        if left_s <= 0.0:
            raise Conflict(f"{request.path}: the time for writes was over before it was begun; decided again next round")
        self._api.send(request, manager=self._manager, deadline_s=left_s)


_SETTLED_MARK = "~settled"


def _by_component(pods: Iterable[PodObject]) -> Mapping[str, list[PodObject]]:
    found: dict[str, list[PodObject]] = {}
    for pod in pods:
        labels = pod.raw["metadata"].get("labels") or {}
        found.setdefault(labels.get(COMPONENT_LABEL, ""), []).append(pod)
    return found


__all__ = ["ComponentState", "Deployments", "Order", "PodReplica", "Target"]
