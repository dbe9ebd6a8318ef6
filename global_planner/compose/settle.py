"""The topology as it will run in the cluster: every name written out, planners that report over HTTP. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from global_planner.compose.engines import HTTP_PORT, NoEngine, engine_command
from global_planner.compose.options import ADMIN_PORT, API_PORT, ARBITER, ROUTER, TOKENS, ComposeOptions, by_dgd
from global_planner.config import KubernetesConfig, Topology
from pool_planner.config import COMPONENTS, Backend


def settle(topology: Topology, options: ComposeOptions) -> Topology:
    """The same deployment in Kubernetes, with planners that report over HTTP, and every name written out."""
    backend = backend_of(topology, options)
    namespace = options.namespace or topology.cluster.namespace
    drained_by = "router" if options.front == "router" else "pods"
    kubernetes = topology.cluster.kubernetes if topology.cluster.kind == "kubernetes" else KubernetesConfig()
    kubernetes = kubernetes.model_copy(
        update={
            "drained_by": drained_by,
            "access": "in-cluster",
            "kubeconfig": None,
            "context": None,
            "gpu_label": options.gpu_label or kubernetes.gpu_label,
        }
    )
    cluster = {
        "kind": "kubernetes",
        "namespace": namespace,
        "cold_start_s": topology.cluster.cold_start_s,
        "kubernetes": kubernetes,
    }
    dgds = sorted({pool.dgd_name for _, pool in topology.placed_pools()})
    credentials: list[dict[str, Any]] = [
        {
            "name": name,
            "token_file": f"{TOKENS}/{name}",
            "pools": [pool.name for _, pool in topology.placed_pools() if pool.dgd_name == name],
        }
        for name in dgds
    ]
    router: dict[str, Any] = {"admin_token_file": f"{TOKENS}/router-admin"}
    if options.front == "router":
        credentials.append({"name": "router-wake", "token_file": f"{TOKENS}/router-wake", "wake": True})
        router["admin_urls"] = [f"http://{ROUTER}-admin.{namespace}.svc:{ADMIN_PORT}"]
    groups = tuple(
        group.model_copy(
            update={
                "planner": {key: value for key, value in group.planner.items() if key != "backend"},
                "pools": tuple(
                    pool.model_copy(
                        update={
                            "dgd": pool.dgd_name,
                            "component": pool.component or COMPONENTS[backend][pool.role],
                            "planned": "outside",
                            "planner": {key: value for key, value in pool.planner.items() if key != "backend"},
                        }
                    )
                    for pool in group.pools
                ),
            }
        )
        for group in topology.groups
    )
    raw = topology.model_dump(mode="json")
    raw |= {
        "cluster": {**raw["cluster"], **_plain(cluster), "initial_cold_start_s": 0.0, "termination_s": 5.0},
        "planner": {**topology.planner, "backend": backend},
        "api": {**raw["api"], "host": "0.0.0.0", "allow_remote": True, "port": API_PORT, "credentials": credentials},
        "router": {
            **raw["router"],
            "host": "0.0.0.0",
            "allow_remote": True,
            "port": HTTP_PORT,
            "admin_port": ADMIN_PORT,
            **router,
        },
        "groups": [group.model_dump(mode="json") for group in groups],
    }
    return Topology.model_validate(raw)


def _plain(cluster: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.model_dump(mode="json") if hasattr(value, "model_dump") else value for key, value in cluster.items()}


def backend_of(topology: Topology, options: ComposeOptions) -> Backend:
    said = topology.planner.get("backend")
    for group in topology.groups:
        said = group.planner.get("backend", said)
        for pool in group.pools:
            said = pool.planner.get("backend", said)
    known = next((name for name in COMPONENTS if name == (options.backend or said)), None)
    return known or "vllm"


def problems_of(topology: Topology, options: ComposeOptions) -> Iterator[str]:
    backend = backend_of(topology, options)
    names: dict[str, str] = {}
    for group, pool in topology.placed_pools():
        try:
            engine_command(options.front, backend, pool.role, group.model, pool.gpus_per_replica)
        except NoEngine as error:
            yield str(error)
            return
        other = names.setdefault(pool.dgd_name, topology.namespace_of(group))
        if other != topology.namespace_of(group):
            yield f"DGD {pool.dgd_name} is in namespaces {other} and {topology.namespace_of(group)}: it can be in one"
        if pool.dgd_name in (ROUTER, ARBITER, f"{topology.name}-control"):
            yield f"DGD {pool.dgd_name}: that is the name of a part of the control plane"
    if options.front == "global-router":
        for group in topology.groups:
            roles = {pool.role for pool in group.pools}
            if roles not in ({"agg"}, {"prefill", "decode"}):
                has = ", ".join(sorted(roles))
                yield f"group {group.name}: one GlobalRouter serves prefill and decode pools, or agg pools, not {has}"
            shared = [name for name, pools in by_dgd(group).items() if len(pools) > 1]
            if shared:
                yield (
                    f"group {group.name}: DGD {shared[0]} has two pools, and the GlobalRouter tells pools by their Dynamo "
                    "namespace: give each pool a dgd of its own"
                )
