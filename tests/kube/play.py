"""Whole rounds on a real API server and a virtual clock: a planner with its cluster, lease and orders, and the operator.

Budget and minima are watched at every step, by counting what is in the API server and not by asking the planner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from global_planner.kubernetes_orders import KubernetesOrders
from global_planner.types import Round
from pool_planner.connectors.dgd_pods import COMPONENT_LABEL, DGD_LABEL
from pool_planner.connectors.kubernetes_api import KubernetesApi
from tests.kube.leader import BUDGET, FLEET, PATCH_DGDS, PLANNER_RULES, ROUND_S, Clock, Leader, pools_of
from tests.kube.manifests import Shape, component_name, create
from tests.kube.operator import Operator
from tests.kube.server import ApiServer

View = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]
"""DGDs, adapters and pods as the API server has them."""


class Play:
    """A fleet in a namespace, its operator, and the planner."""

    def __init__(
        self,
        server: ApiServer,
        namespace: str,
        *,
        shape: Shape = "v1beta1",
        adapters: bool = True,
        fleet: Mapping[str, Mapping[str, tuple[int, int]]] = FLEET,
        api: KubernetesApi | None = None,
        workload: str = "Deployment",
        budget: int = BUDGET,
        may_patch_dgds: bool | None = None,
        lease_s: float = 30.0,
        without: str | None = None,
        nodes: Mapping[str, int] | None = None,
        user: str = "planner",
    ) -> None:
        self.server, self.namespace, self.shape, self.fleet, self.budget = server, namespace, shape, fleet, budget
        self.without = without
        self.clock = Clock()
        self.operator = Operator(server.api(), namespace, self.clock.now, workload=workload, nodes=dict(nodes or {}))
        for group, roles in fleet.items():
            create(server, namespace, f"{group}-main", shape, roles, adapters=adapters)
        rules = [*PLANNER_RULES, *([PATCH_DGDS] if may_patch_dgds is not False and not adapters else [])]
        if without == "patch pods":
            rules = [{**rule, "verbs": ["get", "list", "watch"]} if "pods" in rule["resources"] else rule for rule in rules]
        server.role(namespace, user, [rule for rule in rules if rule["resources"] != [without]])
        for _ in range(2):
            self.operator.reconcile()
            self.clock.now_s += self.operator.cold_start_s
        self.operator.reconcile()
        self.leader = Leader(
            api or server.api(user),
            namespace,
            self.clock,
            pools=pools_of(namespace, fleet),
            budget=budget,
            lease_s=lease_s,
            see_nodes=nodes is not None,
        )
        self.orders = KubernetesOrders(server.api(), namespace=namespace, name="planner-orders")
        self._view: View | None = None
        self.violations: list[str] = []
        self.over_by_people = 0
        self.settle()

    def want(self, **wanted: int) -> None:
        self.leader.wants.wanted.update({name.replace("_", "-"): number for name, number in wanted.items()})

    def round(self) -> Round:
        """One round, and the ten seconds until the next."""
        done = self.try_round()
        assert done is not None, self.leader.standings[-1]
        self.settle(view=self._view)
        return done

    def try_round(self) -> Round | None:
        """A round and the time until the next; None when it is not ours to decide. The caches may lag behind afterwards."""
        done = asyncio.run(self.leader.step())
        self._pass(ROUND_S)
        return done

    def pass_time(self, duration_s: float = ROUND_S) -> None:
        self._pass(duration_s)
        self.settle(view=self._view)

    def _pass(self, duration_s: float) -> None:
        for _ in range(int(duration_s // 5)):
            self.clock.now_s += 5.0
            self._view = self.operator.reconcile() or self._look()
            self.watch(self._view)

    def rounds(self, number: int) -> list[Round]:
        return [self.round() for _ in range(number)]

    def until_quiet(self, most: int = 30) -> int:
        """Rounds until two in a row do nothing and every replica is as ordered."""
        quiet = 0
        for number in range(1, most + 1):
            done = self.round()
            moving = [replica for holding in done.inputs.holdings for replica in holding.replicas if replica.state != "ready"]
            quiet = quiet + 1 if not done.steps and not moving else 0
            if quiet == 2:
                return number
        raise AssertionError(f"not quiet after {most} rounds: {self.leader.rounds[-1].steps} {done.conditions}")

    def settle(self, timeout_s: float = 10.0, *, view: View | None = None) -> None:
        """Wait until the planner's caches have seen what is in the API server now (`view`: what that is, if it is known)."""
        ends = time.monotonic() + timeout_s
        while True:
            behind = self._behind(view or self._look())
            if not behind:
                return
            if time.monotonic() > ends:
                raise AssertionError(f"the cache does not catch up: {behind}")
            time.sleep(0.02)

    def settle_orders(self) -> None:
        """Wait until the planner has seen what operators have set."""
        assert self.leader.orders.list_again(10.0)

    def gpus_before(self, done: Round) -> int:
        """GPUs of the pods that a round has seen."""
        per_replica = {f"{group}-{role}": gpus for group, roles in self.fleet.items() for role, (_, gpus) in roles.items()}
        return sum(len(holding.replicas) * per_replica[holding.pool] for holding in done.inputs.holdings)

    def _behind(self, view: View) -> list[str]:
        now = {
            (kind, item["metadata"]["name"]): item["metadata"]["resourceVersion"]
            for kind, items in (("dgd", view[0]), ("adapter", view[1]))
            for item in items
        }
        seen = self.leader.deployments.versions(self.namespace)
        if self.without == "pods":
            return [str(item) for item in now.items() ^ seen.items()]
        pods = {(pod["metadata"]["name"], _phase(pod)) for pod in view[2]}
        seen_pods = {(name, _phase(raw)) for name, raw in self.leader.deployments.pods(self.namespace).items()}
        return [str(item) for item in now.items() ^ seen.items()] + [str(item) for item in pods ^ seen_pods]

    # ---- what is in the API server -----------------------------------------------------------------------------------

    def _dgds(self) -> list[dict[str, Any]]:
        return list(
            self.server.admin.get(f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeployments")["items"]
        )

    def _adapters(self) -> list[dict[str, Any]]:
        path = f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeploymentscalingadapters"
        return list(self.server.admin.get(path)["items"])

    def _pods(self) -> list[dict[str, Any]]:
        return list(self.server.admin.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"])

    def _look(self) -> View:
        return self._dgds(), self._adapters(), self._pods()

    def generation(self, dgd: str) -> int:
        return int(next(item for item in self._dgds() if item["metadata"]["name"] == dgd)["metadata"]["generation"])

    def ordered(self, view: View | None = None) -> dict[str, int]:
        """Replicas in force by pool: the adapter's, else the DGD's."""
        found = {}
        dgds, scaling, _ = view or self._look()
        adapters = {item["metadata"]["name"]: item["spec"]["replicas"] for item in scaling}
        for item in dgds:
            group = item["metadata"]["name"].removesuffix("-main")
            spec = item["spec"]
            parts = spec.get("services") or {part["name"]: part for part in spec["components"]}
            for role in self.fleet[group]:
                name = component_name(role, self.shape)
                own = parts.get(name, {"replicas": 0})["replicas"]
                found[f"{group}-{role}"] = adapters.get(f"{group}-main-{name.lower()}", own)
        return found

    def alive(self, view: View | None = None) -> dict[str, int]:
        """Pods by pool, ending ones included."""
        found = dict.fromkeys((f"{group}-{role}" for group, roles in self.fleet.items() for role in roles), 0)
        roles = {component_name(role, self.shape): role for roles in self.fleet.values() for role in roles}
        for pod in view[2] if view is not None else self._pods():
            labels = pod["metadata"]["labels"]
            if labels[COMPONENT_LABEL] in roles:
                found[f"{labels[DGD_LABEL].removesuffix('-main')}-{roles[labels[COMPONENT_LABEL]]}"] += 1
        return found

    def gpus(self) -> int:
        """GPUs that are taken or may come to be: by order or by pod, ending ones included, whichever is more."""
        return self._gpus(self.ordered(), self.alive())

    def _gpus(self, ordered: Mapping[str, int], alive: Mapping[str, int]) -> int:
        return sum(
            max(ordered.get(f"{group}-{role}", 0), alive[f"{group}-{role}"]) * gpus
            for group, roles in self.fleet.items()
            for role, (_, gpus) in roles.items()
        )

    def watch(self, view: View | None = None) -> None:
        view = view or self._look()
        ordered = self.ordered(view)
        used = self._gpus(ordered, self.alive(view))
        if used > self.budget + self.over_by_people:
            self.violations.append(f"t={self.clock.now_s:.0f}: {used} GPUs of {self.budget} (+{self.over_by_people} by people)")
        for name, number in ordered.items():
            group, role = name.split("-")
            if number < self.fleet[group][role][0]:
                self.violations.append(f"t={self.clock.now_s:.0f}: {name} ordered down to {number}")

    def scale(self, pool: str, replicas: int, *, manager: str = "kubectl-scale") -> None:
        """Somebody sets the replicas, through the adapter where there is one."""
        group, role = pool.split("-")
        from tests.kube.server import patched

        name = component_name(role, self.shape)
        adapters = {item["metadata"]["name"] for item in self._adapters()}
        adapter = f"{group}-main-{name.lower()}"
        if adapter in adapters:
            path = f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeploymentscalingadapters/{adapter}"
            patched(self.server.admin, path, {"spec": {"replicas": replicas}}, manager=manager)
        elif self.shape == "v1alpha1":
            path = f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeployments/{group}-main"
            patched(self.server.admin, path, {"spec": {"services": {name: {"replicas": replicas}}}}, manager=manager)
        else:
            path = f"/apis/nvidia.com/v1beta1/namespaces/{self.namespace}/dynamographdeployments/{group}-main"
            found = self.server.admin.get(path)
            for component in found["spec"]["components"]:
                if component["name"] == name:
                    component["replicas"] = replicas
            patched(self.server.admin, path, {"spec": {"components": found["spec"]["components"]}}, manager=manager)
        self.settle()

    def close(self) -> None:
        self.leader.close()


def _phase(pod: Mapping[str, Any]) -> str:
    """What of a pod a planner looks at, in short."""
    conditions = sorted(
        f"{item['type']}={item['status']}@{item.get('lastTransitionTime')}" for item in pod["status"].get("conditions") or ()
    )
    return f"{'ending' if pod['metadata'].get('deletionTimestamp') else ''} {conditions}"
