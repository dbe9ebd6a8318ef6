"""How the parts reach each other: Services, and NetworkPolicies that keep everybody else out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from global_planner.compose.engines import HTTP_PORT
from global_planner.compose.manifests import Manifest
from global_planner.compose.options import ADMIN_PORT, API_PORT, ARBITER, METRICS_PORT, PLANNER, ROUTER, ComposeOptions
from global_planner.config import Topology

NAME_LABEL, PART_LABEL = "app.kubernetes.io/name", "app.kubernetes.io/part-of"
MAY_SCRAPE = "global-planner.io/may-scrape"
"""A label of namespaces whose pods may read metrics: Prometheus's."""


def services(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    """Of the arbiter, and of our router: its public side and its admin side apart."""
    namespace = topology.cluster.namespace
    yield _service(ARBITER, namespace, ARBITER, API_PORT)
    if options.front == "router":
        yield _service(ROUTER, namespace, ROUTER, HTTP_PORT)
        yield _service(f"{ROUTER}-admin", namespace, ROUTER, ADMIN_PORT)


def policies(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    """Who may connect to our pods. The arbiter starts a Ray of its own, whose ports run code for whoever reaches them: nothing
    of it is open. Engines are left to the operator that makes them: prefill and decode pass KV blocks to each other over ports
    that they choose."""
    control = topology.cluster.namespace
    ours = _part_of("global-planner")
    scrapers = {"namespaceSelector": {"matchLabels": {MAY_SCRAPE: "true"}}}
    yield _policy(ARBITER, control, ARBITER, [(API_PORT, [ours, scrapers])])
    if options.front == "router":
        # Clients come from anywhere (who may ask is what a gateway, or the router's keys, check); orders come from the arbiter
        # and its planners, who each hold the admin token.
        yield _policy(ROUTER, control, ROUTER, [(HTTP_PORT, None), (ADMIN_PORT, [ours, scrapers])])
    for namespace in sorted({topology.namespace_of(group) for group in topology.groups}):
        yield _policy(PLANNER, namespace, PLANNER, [(METRICS_PORT, [scrapers])])


def _service(name: str, namespace: str, app: str, port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {PART_LABEL: "global-planner"}},
        "spec": {"selector": {NAME_LABEL: app}, "ports": [{"name": "http", "port": port, "targetPort": port}]},
    }


def _part_of(whole: str) -> Manifest:
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {PART_LABEL: whole}}}


Open = tuple[int, Sequence[Mapping[str, object]] | None]
"""A port, and who may connect to it; None: everybody."""


def _policy(name: str, namespace: str, app: str, open_to: Sequence[Open]) -> Manifest:
    ingress: list[Manifest] = []
    for port, whom in open_to:
        rule: Manifest = {} if whom is None else {"from": [dict(each) for each in whom]}
        ingress.append({**rule, "ports": [{"protocol": "TCP", "port": port}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": {PART_LABEL: "global-planner"}},
        "spec": {"podSelector": {"matchLabels": {NAME_LABEL: app}}, "policyTypes": ["Ingress"], "ingress": ingress},
    }
