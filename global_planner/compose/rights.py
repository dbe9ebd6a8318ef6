"""Who may do what: the arbiter's account with the fewest verbs, and the tokens by which the parts know each other. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from global_planner.compose.manifests import Manifest
from global_planner.compose.options import ARBITER, TOKENS_SECRET, ComposeOptions
from global_planner.config import Topology

RBAC = "rbac.authorization.k8s.io"
NVIDIA = "nvidia.com"
ADAPTERS = "dynamographdeploymentscalingadapters"
LOOK = ["get", "list", "watch"]
# In every namespace with pools: read DGDs, adapters and pods; set replicas through the adapters' scale and nothing else.
POOL_RULES: Sequence[Manifest] = (
    {"apiGroups": [NVIDIA], "resources": ["dynamographdeployments", ADAPTERS], "verbs": LOOK},
    {"apiGroups": [NVIDIA], "resources": [f"{ADAPTERS}/scale"], "verbs": ["get", "patch", "update"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": LOOK},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
)
# In the control namespace alone: leadership, and what operators have ordered.
CONTROL_RULES: Sequence[Manifest] = (
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": LOOK},
)
# For people who freeze, approve, override, schedule, adopt and release: the arbiter may not write its own orders.
PEOPLE_RULES: Sequence[Manifest] = (
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "create", "patch"]},
)
# Opt-in and cluster-wide: the free GPUs of nodes are what their pods, of any namespace, leave.
NODE_RULES: Sequence[Manifest] = ({"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": LOOK},)


def account(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    """The arbiter's account with the fewest verbs, and a role to bind to those who operate it."""
    control = topology.cluster.namespace
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ARBITER, "namespace": control}}
    for space in sorted({topology.namespace_of(group) for group in topology.groups} | {control}):
        yield _role("Role", ARBITER, space, POOL_RULES)
        yield _binding("RoleBinding", ARBITER, space, "Role", control)
    yield _role("Role", f"{ARBITER}-control", control, CONTROL_RULES)
    yield _binding("RoleBinding", f"{ARBITER}-control", control, "Role", control)
    yield _role("Role", f"{ARBITER}-operator", control, PEOPLE_RULES)
    if options.see_nodes:
        yield _role("ClusterRole", f"{ARBITER}-{control}", None, NODE_RULES)
        yield _binding("ClusterRoleBinding", f"{ARBITER}-{control}", None, "ClusterRole", control)


def _role(kind: str, name: str, namespace: str | None, rules: Sequence[Manifest]) -> Manifest:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": kind,
        "metadata": {"name": name, **({} if namespace is None else {"namespace": namespace})},
        "rules": [{key: list(value) for key, value in rule.items()} for rule in rules],
    }


def _binding(kind: str, name: str, namespace: str | None, role: str, control: str) -> Manifest:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": kind,
        "metadata": {"name": name, **({} if namespace is None else {"namespace": namespace})},
        "roleRef": {"apiGroup": RBAC, "kind": role, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": ARBITER, "namespace": control}],
    }


def tokens(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    """A Secret in each namespace: all tokens for the arbiter, elsewhere those of the planners that run there."""
    control = topology.cluster.namespace
    names: dict[str, set[str]] = {control: {"router-admin"} | ({"router-wake"} if options.front == "router" else set())}
    for group, pool in topology.placed_pools():
        names.setdefault(topology.namespace_of(group), set()).add(pool.dgd_name)
        names[control].add(pool.dgd_name)
    made = {name: options.token(name) for name in sorted(names[control])}
    for namespace, wanted in names.items():
        yield {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": TOKENS_SECRET, "namespace": namespace},
            "type": "Opaque",
            "stringData": {name: made[name] for name in sorted(wanted)},
        }
