"""The DGDs: one for the control plane, one for each pool or pair of pools, with everything that their containers need. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from global_planner.compile import rules_in_force
from global_planner.compose.engines import DYNAMO_IMAGE, HTTP_PORT, IMAGES, engine_command
from global_planner.compose.manifests import ComponentPlan, Manifest, Volume, dgd, kind_of
from global_planner.compose.options import (
    API_PORT,
    ARBITER,
    CONFIG,
    JOURNAL,
    METRICS_PORT,
    PLANNER,
    PROFILES,
    ROUTER,
    STATE,
    TOKENS,
    TOKENS_SECRET,
    ComposeOptions,
    Curves,
    by_dgd,
    digest,
)
from global_planner.compose.settle import backend_of
from global_planner.config import GroupConfig, PoolConfig, Topology
from pool_planner.config import Backend
from pool_planner.performance.profile import DECODE_JSON, PREFILL_JSON


def control_dgd(topology: Topology, options: ComposeOptions, data: Mapping[str, Curves]) -> Manifest:
    namespace, name = topology.cluster.namespace, f"{topology.name}-control"
    curves = tuple(
        Volume(
            name=f"profile-{digest}",
            source={"configMap": {"name": f"planner-profile-data-{digest}"}},
            path=f"{PROFILES}/{digest}",
        )
        for digest in sorted({digest(files) for files in data.values()})
    )
    arbiter = ComponentPlan(
        name="GlobalPlanner",
        kind="planner",
        image=options.image,
        command=("python", "-m", "global_planner"),
        args=("run", "--topology", f"{CONFIG}/topology.yaml", "--folder", STATE),
        port=API_PORT,
        probes={"readinessProbe": "/readyz", "livenessProbe": "/healthz"},
        labels={"app.kubernetes.io/name": ARBITER},
        requests={"cpu": "1", "memory": "2Gi"},
        volumes=(
            Volume(name="topology", source={"configMap": {"name": "global-planner-topology"}}, path=CONFIG),
            Volume(name="tokens", source={"secret": {"secretName": TOKENS_SECRET}}, path=TOKENS),
            Volume(name="state", source={"persistentVolumeClaim": {"claimName": JOURNAL}}, path=STATE, writable=True),
            *curves,
        ),
        ours=True,
        service_account=ARBITER,
    )
    if options.front == "router":
        front: tuple[ComponentPlan, ...] = (_our_router(options, curves),)
    else:
        front = tuple(_dynamo_front(topology, options, name))
    return dgd(options.api_version, name, namespace, (*front, arbiter))


def _our_router(options: ComposeOptions, curves: tuple[Volume, ...]) -> ComponentPlan:
    return ComponentPlan(
        name="Frontend",
        kind="frontend",
        image=options.image,
        command=("python", "-m", "router"),
        args=("--config", f"{CONFIG}/router.json"),
        port=HTTP_PORT,
        labels={"app.kubernetes.io/name": ROUTER},
        requests={"cpu": "1", "memory": "512Mi"},
        volumes=(
            Volume(name="router", source={"configMap": {"name": "global-router-config"}}, path=CONFIG),
            Volume(name="tokens", source={"secret": {"secretName": TOKENS_SECRET}}, path=TOKENS),
            *curves,
        ),
        ours=True,
    )


def _dynamo_front(topology: Topology, options: ComposeOptions, name: str) -> Iterator[ComponentPlan]:
    """One frontend for all models, and a GlobalRouter for each."""
    image = options.dynamo_image or DYNAMO_IMAGE
    control = f"{topology.cluster.namespace}-{name}"
    yield ComponentPlan(
        name="Frontend",
        kind="frontend",
        image=image,
        command=("python3", "-m", "dynamo.frontend"),
        args=("--router-mode", "round-robin", "--namespace", control),
        port=HTTP_PORT,
    )
    for group in topology.groups:
        sla = group.sla
        yield ComponentPlan(
            name="GlobalRouter" if len(topology.groups) == 1 else f"GlobalRouter-{group.name}",
            kind="default",
            image=image,
            command=("python3", "-m", "dynamo.global_router"),
            args=(
                *("--config", "/config/global_router_config.json", "--model-name", group.model, "--namespace", control),
                *(() if len(topology.groups) == 1 else ("--component-name", f"global_router_{group.name.replace('-', '_')}")),
                *("--default-ttft-target", f"{sla.ttft_ms:g}", "--default-itl-target", f"{sla.itl_ms:g}"),
            ),
            volumes=(
                Volume(name="config", source={"configMap": {"name": f"global-router-config-{group.name}"}}, path="/config"),
            ),
        )


def pool_dgds(topology: Topology, options: ComposeOptions, data: Mapping[str, Curves]) -> Iterator[tuple[str, Manifest]]:
    backend, rules = backend_of(topology, options), rules_in_force(topology)
    for group in topology.groups:
        where = topology.namespace_of(group)
        for name, pools in by_dgd(group).items():
            components = [_worker(group, pool, options, backend, rules[pool.name].minimum) for pool in pools]
            if options.front == "global-router":
                components.insert(0, _local_router(f"{where}-{name}", pools, options))
            components.append(_planner(topology, group, name, pools, options, data))
            said = {
                pool.component_name: {
                    "pool": pool.name,
                    "group": group.name,
                    "model": group.model,
                    "gpu_type": pool.gpu_type,
                    "min_replicas": pool.min_replicas,
                    **({} if pool.max_replicas is None else {"max_replicas": pool.max_replicas}),
                    **({} if pool.isl_max_tokens is None else {"isl_max_tokens": pool.isl_max_tokens}),
                }
                for pool in pools
            }
            note = json.dumps(said, sort_keys=True)
            yield name, dgd(options.api_version, name, where, components, pools=note, backend=backend)


def _worker(group: GroupConfig, pool: PoolConfig, options: ComposeOptions, backend: Backend, replicas: int) -> ComponentPlan:
    command, args = engine_command(options.front, backend, pool.role, group.model, pool.gpus_per_replica)
    return ComponentPlan(
        name=pool.component_name,
        kind=kind_of(pool.role),
        image=options.engine_image or IMAGES[options.front][backend],
        command=command,
        args=(*args, *options.engine_args),
        replicas=replicas,
        gpus=pool.gpus_per_replica,
        port=HTTP_PORT if options.front == "router" else None,
        node_selector={options.gpu_label: pool.gpu_type} if options.gpu_label else {},
    )


def _local_router(namespace: str, pools: Sequence[PoolConfig], options: ComposeOptions) -> ComponentPlan:
    """Dynamo's workers register as `prefill` or `backend` of their namespace; the GlobalRouter asks this one."""
    kind = "prefill" if pools[0].role == "prefill" else "backend"
    return ComponentPlan(
        name="LocalRouter",
        kind="default",
        image=options.dynamo_image or DYNAMO_IMAGE,
        command=("python3", "-m", "dynamo.router"),
        args=("--endpoint", f"{namespace}.{kind}.generate"),
        env={"DYN_SYSTEM_PORT": "9090"},
    )


def _planner(
    topology: Topology,
    group: GroupConfig,
    name: str,
    pools: Sequence[PoolConfig],
    options: ComposeOptions,
    data: Mapping[str, Curves],
) -> ComponentPlan:
    names = [word for pool in pools for word in ("--pool", f"{pool.role}={pool.name}")]
    control = topology.cluster.namespace
    source = {
        "projected": {
            "sources": [
                {"configMap": {"name": f"planner-profile-data-{digest(data[pool.name])}", "items": _items(pool, pools, data)}}
                for pool in pools
            ]
        }
    }
    return ComponentPlan(
        name="Planner",
        kind="planner",
        image=options.image,
        command=("python", "-m", "pool_planner"),
        args=(
            *("--config", f"{CONFIG}/planner_config.json", "--dgd", name, *names),
            *("--series", "pool" if options.front == "router" else "namespace"),
            *("--arbiter", f"http://{ARBITER}.{control}.svc:{API_PORT}", "--token-file", f"{TOKENS}/token"),
            *("--metrics-host", "0.0.0.0"),
        ),
        port=METRICS_PORT,
        probes={"livenessProbe": "/healthz"},
        labels={"app.kubernetes.io/name": PLANNER},
        requests={"cpu": "100m", "memory": "256Mi"},
        volumes=(
            Volume(name="config", source={"configMap": {"name": f"planner-config-{name}"}}, path=CONFIG),
            Volume(name="profile", source=source, path=PROFILES),
            Volume(
                name="token",
                source={"secret": {"secretName": TOKENS_SECRET, "items": [{"key": name, "path": "token"}]}},
                path=TOKENS,
            ),
        ),
        ours=True,
    )


def _items(pool: PoolConfig, pools: Sequence[PoolConfig], data: Mapping[str, Curves]) -> list[dict[str, str]]:
    """Of a DGD with two pools, each gives the curves of its own role: their engines may differ."""
    mine = PREFILL_JSON if pool.role == "prefill" else DECODE_JSON
    files = [mine] if len(pools) > 1 else list(data[pool.name])
    return [{"key": file, "path": file} for file in files if file in data[pool.name]]
