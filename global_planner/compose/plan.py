"""What is composed out of a topology, file by file. Pure.

    topology ─┬─► control DGD: frontend (our router, or Dynamo's with its GlobalRouter), arbiter
              ├─► one DGD a pool (or a prefill/decode pair): engines, their local router, the planner
              ├─► ConfigMaps: the topology as it will run, planner configurations, profiles, router configuration
              └─► adapters, Services, the journal's volume, the arbiter's account, tokens

The arbiter runs in a process of its own there, and the planners report to it over HTTP: every value that was written down
once in the topology is written out where it is needed, and nowhere by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from global_planner.compile import dynamo_namespace, router_config_of, rules_in_force
from global_planner.compose.engines import DYNAMO_IMAGE, HTTP_PORT, IMAGES, Front, NoEngine, engine_command
from global_planner.compose.manifests import ApiVersion, ComponentPlan, Manifest, Volume, dgd, kind_of, scaling_adapter
from global_planner.config import GroupConfig, KubernetesConfig, PoolConfig, Topology
from global_planner.planner_settings import dgds_of, planner_config_of
from global_planner.topology_checks import check
from global_planner.topology_draft import draft_of
from pool_planner.compatibility import read_config
from pool_planner.config import COMPONENTS, Backend, PlannerConfig
from pool_planner.performance.profile import DECODE_JSON, PREFILL_JSON, Profile, raw_profile
from router.adaptive import Predictor
from router.config import RouterConfig
from router.foreign import translate
from router.grid import RESOLUTION, as_global_router, grids

__all__ = ["ComposeError", "ComposeOptions", "Front", "compose"]

ARBITER = "global-planner"
ROUTER = "global-router"
API_PORT, ADMIN_PORT, METRICS_PORT = 8080, 8001, 9085
TOKENS = "global-planner-tokens"
JOURNAL = "global-planner-journal"
CONFIG_MAP_LIMIT = 1024 * 1024
_CONFIG, _PROFILES, _TOKENS, _STATE = "/etc/global-planner", "/etc/profiles", "/etc/tokens", "/var/lib/global-planner"


class ComposeError(ValueError):
    """A topology that cannot be composed with these options; one problem a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeOptions:
    """`front`: our router before engines that answer HTTP, or Dynamo's GlobalRouter configured by us. `backend`: of the engines
    (None: what the topology's planners say, else vllm). `engine_image`, `dynamo_image` None: those of the backend.
    `gpu_label`: the node label whose value is the GPU type ("" : nodes are not selected). `prometheus`: where
    planners read Dynamo's own routers' metrics; ours they read themselves. `token`: makes a secret for a name."""

    front: Front = "router"
    api_version: ApiVersion = "v1beta1"
    namespace: str | None = None
    backend: Backend | None = None
    image: str = "global-planner:latest"
    engine_image: str | None = None
    engine_args: tuple[str, ...] = ()
    dynamo_image: str | None = None
    gpu_label: str = ""
    storage: str = "1Gi"
    prometheus: str | None = None
    token: Callable[[str], str]


def compose(topology: Topology, profiles: Mapping[str, Profile], options: ComposeOptions) -> Mapping[str, str]:
    """File name -> text; `tokens.yaml` holds secrets. `profiles` by pool name. Every configuration in them was read back by
    whoever will read it. Raises ComposeError, and ValueError of those readers."""
    settled = _settled(topology, options)
    problems = list(_problems(settled, options))
    if problems:
        raise ComposeError("\n".join(problems))
    data = {pool.name: _profile_data(profiles[pool.name]) for _, pool in settled.placed_pools()}
    placed = settled.model_copy(
        update={
            "groups": tuple(
                group.model_copy(
                    update={
                        "pools": tuple(_with_profile(pool, f"{_PROFILES}/{_digest(data[pool.name])}") for pool in group.pools)
                    }
                )
                for group in settled.groups
            )
        }
    )
    # The composed topology is one: whoever reads it in the cluster must find nothing wrong with it.
    wrong = check(draft_of(placed), {})
    if wrong:
        raise ComposeError("\n".join(f"the topology as composed: {problem}" for problem in wrong))
    files: dict[str, Sequence[Manifest]] = {
        "config.yaml": [*_config_maps(placed, profiles, options, data), *_account_and_volume(placed, options)],
        "control.yaml": [_control(placed, options, data)],
        "services.yaml": list(_services(placed, options)),
        "adapters.yaml": list(_adapters(placed, options)),
        "tokens.yaml": list(_tokens(placed, options)),
    }
    for name, manifest in _pool_dgds(placed, options, data):
        files[f"pool-{name}.yaml"] = [manifest]
    out = {name: "---\n".join(_yaml(manifest) for manifest in manifests) for name, manifests in files.items()}
    out["kustomization.yaml"] = _yaml(
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(files)}
    )
    return out


# ---- the topology as it will run --------------------------------------------------------------------------------------


def _settled(topology: Topology, options: ComposeOptions) -> Topology:
    """The same deployment in Kubernetes, with planners that report over HTTP, and every name written out."""
    backend = _backend(topology, options)
    namespace = options.namespace or topology.cluster.namespace
    drained_by = "router" if options.front == "router" else "pods"
    kubernetes = topology.cluster.kubernetes if topology.cluster.kind == "kubernetes" else KubernetesConfig()
    kubernetes = kubernetes.model_copy(
        update={"drained_by": drained_by, "access": "in-cluster", "kubeconfig": None, "context": None}
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
            "token_file": f"{_TOKENS}/{name}",
            "pools": [pool.name for _, pool in topology.placed_pools() if pool.dgd_name == name],
        }
        for name in dgds
    ]
    router: dict[str, Any] = {"admin_token_file": f"{_TOKENS}/router-admin"}
    if options.front == "router":
        credentials.append({"name": "router-wake", "token_file": f"{_TOKENS}/router-wake", "wake": True})
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


def _backend(topology: Topology, options: ComposeOptions) -> Backend:
    said = topology.planner.get("backend")
    for group in topology.groups:
        said = group.planner.get("backend", said)
        for pool in group.pools:
            said = pool.planner.get("backend", said)
    known = next((name for name in COMPONENTS if name == (options.backend or said)), None)
    return known or "vllm"


def _problems(topology: Topology, options: ComposeOptions) -> Iterator[str]:
    backend = _backend(topology, options)
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
            shared = [name for name, pools in _by_dgd(group).items() if len(pools) > 1]
            if shared:
                yield (
                    f"group {group.name}: DGD {shared[0]} has two pools, and the GlobalRouter tells pools by their Dynamo "
                    "namespace: give each pool a dgd of its own"
                )


def _by_dgd(group: GroupConfig) -> Mapping[str, list[PoolConfig]]:
    found: dict[str, list[PoolConfig]] = {}
    for pool in group.pools:
        found.setdefault(pool.dgd_name, []).append(pool)
    return found


def _with_profile(pool: PoolConfig, path: str) -> PoolConfig:
    return pool.model_copy(update={"profile": path})


# ---- ConfigMaps ---------------------------------------------------------------------------------------------------------


def _config_maps(
    topology: Topology, profiles: Mapping[str, Profile], options: ComposeOptions, data: Mapping[str, Mapping[str, str]]
) -> Iterator[Manifest]:
    namespace = topology.cluster.namespace
    yield _config_map("global-planner-topology", namespace, {"topology.yaml": _yaml(topology.model_dump(mode="json"))})
    draft = draft_of(topology)
    for group in draft.groups:
        where = topology.namespace_of(group.config)
        for name, pools in dgds_of(group).items():
            config = planner_config_of(draft, group, pools)
            raw = {**_planner_config(config, topology, group.config, name), **_metrics(config, topology, options)}
            read_config(raw, origin=f"planner-config-{name}")
            yield _config_map(f"planner-config-{name}", where, {"planner_config.json": json.dumps(raw, indent=1) + "\n"})
    seen: set[tuple[str, str]] = set()
    for group_config, pool in topology.placed_pools():
        for where in (namespace, topology.namespace_of(group_config)):
            digest = _digest(data[pool.name])
            if (where, digest) not in seen:
                seen.add((where, digest))
                yield _config_map(f"planner-profile-data-{digest}", where, data[pool.name])
    if options.front == "router":
        config_of = router_config_of(
            topology,
            profiles=profiles,
            admin_token_file=f"{_TOKENS}/router-admin",
            planner_url=f"http://{ARBITER}.{namespace}.svc:{API_PORT}",
            planner_token_file=f"{_TOKENS}/router-wake",
        )
        yield _config_map("global-router-config", namespace, {"router.json": _router_json(config_of)})
    else:
        for group_config in topology.groups:
            text = json.dumps(_global_router(topology, group_config, profiles), indent=1) + "\n"
            yield _config_map(f"global-router-config-{group_config.name}", namespace, {"global_router_config.json": text})


def _global_router(topology: Topology, group: GroupConfig, profiles: Mapping[str, Profile]) -> dict[str, Any]:
    """The configuration of Dynamo's GlobalRouter for one model: each cell of its grid names the cheapest pool that serves
    everything in it in time, by the pools' own curves."""
    model = next(model for model in router_config_of(topology).models if model.group == group.name)
    sla = group.sla
    predictors = {pool.name: Predictor(pool, profiles[pool.name], ttft_ms=sla.ttft_ms) for pool in model.pools}
    longest = float(group.engine.max_model_len)
    limits = [pool.isl_max_tokens for pool in model.pools if pool.isl_max_tokens is not None]
    made = grids(
        model,
        predictors,
        isl_max_tokens=min(longest, float(min(limits) * RESOLUTION)) if limits else longest,
        longest_tokens=longest,
        ttft_ms=sla.ttft_ms,
        itl_ms=sla.itl_ms,
        osl_tokens=float(_extension(topology, group, "osl_until_known", 150.0)),
    )
    form = as_global_router(model, made)
    translate(form, source=f"global-router-config-{group.name}", model=group.model)
    return form


def _extension(topology: Topology, group: GroupConfig, name: str, default: float) -> float:
    found = default
    for layer in (topology.planner, group.planner):
        extensions = layer.get("extensions")
        if isinstance(extensions, Mapping):
            found = float(extensions.get(name, found))
    return found


def _router_json(config: RouterConfig) -> str:
    """As pods need it: clients and planner come from other pods, and who may ask is what a gateway in front checks."""
    listen = config.listen.model_copy(update={"host": "0.0.0.0", "without_keys": not config.keys})
    admin = config.admin.model_copy(update={"host": "0.0.0.0", "port": ADMIN_PORT})
    return config.model_copy(update={"listen": listen, "admin": admin}).model_dump_json(indent=1) + "\n"


def _planner_config(config: PlannerConfig, topology: Topology, group: GroupConfig, name: str) -> dict[str, Any]:
    """What differs from the default, so that people can read it; the rest is the guide's."""
    raw = config.model_dump(mode="json", exclude_defaults=True)
    raw |= {
        "environment": "global-planner",
        "namespace": dynamo_namespace(topology, group, name),
        "profile_results_dir": _PROFILES,
        "metric_reporting_prometheus_port": METRICS_PORT,
        "max_gpu_budget": -1,  # the budget is the arbiter's
    }
    return raw


def _metrics(config: PlannerConfig, topology: Topology, options: ComposeOptions) -> dict[str, Any]:
    """Where a planner reads: the admin listener of our router, or the Prometheus that scrapes Dynamo's."""
    if options.front == "router":
        return {"load_router_metrics_url": f"http://{ROUTER}-admin.{topology.cluster.namespace}.svc:{ADMIN_PORT}/metrics"}
    endpoint = options.prometheus or config.metric_pulling_prometheus_endpoint
    if endpoint is None:
        raise ComposeError(
            "--front global-router: planners read the metrics of Dynamo's routers from a Prometheus: --prometheus URL (or "
            "planner.metric_pulling_prometheus_endpoint in the topology)"
        )
    return {"metric_pulling_prometheus_endpoint": endpoint}


def _profile_data(profile: Profile) -> Mapping[str, str]:
    raw = raw_profile(profile)
    files = {PREFILL_JSON: raw["prefill"], DECODE_JSON: raw["decode"]}
    return {name: json.dumps(columns) + "\n" for name, columns in files.items() if columns is not None}


def _digest(files: Mapping[str, str]) -> str:
    """Eight characters of a profile's content: two pools with the same curves share one ConfigMap."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()[:8]


def _config_map(name: str, namespace: str, data: Mapping[str, str]) -> Manifest:
    size = sum(len(text.encode()) for text in data.values())
    if size > CONFIG_MAP_LIMIT:
        raise ComposeError(f"ConfigMap {name} would hold {size} bytes; {CONFIG_MAP_LIMIT} is what the API server takes")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": dict(data)}


# ---- DGDs -----------------------------------------------------------------------------------------------------------------


def _control(topology: Topology, options: ComposeOptions, data: Mapping[str, Mapping[str, str]]) -> Manifest:
    namespace, name = topology.cluster.namespace, f"{topology.name}-control"
    curves = tuple(
        Volume(
            name=f"profile-{digest}",
            source={"configMap": {"name": f"planner-profile-data-{digest}"}},
            path=f"{_PROFILES}/{digest}",
        )
        for digest in sorted({_digest(files) for files in data.values()})
    )
    arbiter = ComponentPlan(
        name="GlobalPlanner",
        kind="planner",
        image=options.image,
        command=("python", "-m", "global_planner"),
        args=("run", "--topology", f"{_CONFIG}/topology.yaml", "--folder", _STATE),
        port=API_PORT,
        probes={"readinessProbe": "/readyz", "livenessProbe": "/healthz"},
        labels={"app.kubernetes.io/name": ARBITER},
        requests={"cpu": "1", "memory": "2Gi"},
        volumes=(
            Volume(name="topology", source={"configMap": {"name": "global-planner-topology"}}, path=_CONFIG),
            Volume(name="tokens", source={"secret": {"secretName": TOKENS}}, path=_TOKENS),
            Volume(name="state", source={"persistentVolumeClaim": {"claimName": JOURNAL}}, path=_STATE, writable=True),
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
        args=("--config", f"{_CONFIG}/router.json"),
        port=HTTP_PORT,
        labels={"app.kubernetes.io/name": ROUTER},
        requests={"cpu": "1", "memory": "512Mi"},
        volumes=(
            Volume(name="router", source={"configMap": {"name": "global-router-config"}}, path=_CONFIG),
            Volume(name="tokens", source={"secret": {"secretName": TOKENS}}, path=_TOKENS),
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


def _pool_dgds(
    topology: Topology, options: ComposeOptions, data: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Manifest]]:
    backend, rules = _backend(topology, options), rules_in_force(topology)
    for group in topology.groups:
        where = topology.namespace_of(group)
        for name, pools in _by_dgd(group).items():
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
    data: Mapping[str, Mapping[str, str]],
) -> ComponentPlan:
    names = [word for pool in pools for word in ("--pool", f"{pool.role}={pool.name}")]
    control = topology.cluster.namespace
    source = {
        "projected": {
            "sources": [
                {"configMap": {"name": f"planner-profile-data-{_digest(data[pool.name])}", "items": _items(pool, pools, data)}}
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
            *("--config", f"{_CONFIG}/planner_config.json", "--dgd", name, *names),
            *("--series", "pool" if options.front == "router" else "namespace"),
            *("--arbiter", f"http://{ARBITER}.{control}.svc:{API_PORT}", "--token-file", f"{_TOKENS}/token"),
            *("--metrics-host", "0.0.0.0"),
        ),
        port=METRICS_PORT,
        probes={"livenessProbe": "/healthz"},
        labels={"app.kubernetes.io/name": "pool-planner"},
        requests={"cpu": "100m", "memory": "256Mi"},
        volumes=(
            Volume(name="config", source={"configMap": {"name": f"planner-config-{name}"}}, path=_CONFIG),
            Volume(name="profile", source=source, path=_PROFILES),
            Volume(
                name="token",
                source={"secret": {"secretName": TOKENS, "items": [{"key": name, "path": "token"}]}},
                path=_TOKENS,
            ),
        ),
        ours=True,
    )


def _items(pool: PoolConfig, pools: Sequence[PoolConfig], data: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    """Of a DGD with two pools, each gives the curves of its own role: their engines may differ."""
    mine = PREFILL_JSON if pool.role == "prefill" else DECODE_JSON
    files = [mine] if len(pools) > 1 else list(data[pool.name])
    return [{"key": file, "path": file} for file in files if file in data[pool.name]]


# ---- the rest ----------------------------------------------------------------------------------------------------------------


def _adapters(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    rules = rules_in_force(topology)
    for group, pool in topology.placed_pools():
        where = topology.namespace_of(group)
        minimum = rules[pool.name].minimum
        yield scaling_adapter(options.api_version, pool.dgd_name, where, pool.component_name, minimum)


def _services(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    namespace = topology.cluster.namespace
    yield _service(ARBITER, namespace, {"app.kubernetes.io/name": ARBITER}, API_PORT)
    if options.front == "router":
        yield _service(ROUTER, namespace, {"app.kubernetes.io/name": ROUTER}, HTTP_PORT)
        yield _service(f"{ROUTER}-admin", namespace, {"app.kubernetes.io/name": ROUTER}, ADMIN_PORT)


def _service(name: str, namespace: str, selector: Mapping[str, str], port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "global-planner"}},
        "spec": {"selector": dict(selector), "ports": [{"name": "http", "port": port, "targetPort": port}]},
    }


def _account_and_volume(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    """The journal's volume and the arbiter's account with the fewest verbs: it reads DGDs and pods, sets replicas through the
    adapters, holds its lease, and writes events."""
    namespace = topology.cluster.namespace
    yield {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": JOURNAL, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": options.storage}}},
    }
    yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ARBITER, "namespace": namespace}}
    spaces = sorted({topology.namespace_of(group) for group in topology.groups} | {namespace})
    for space in spaces:
        yield _role(space, namespace if space == namespace else None)
        yield {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": ARBITER, "namespace": space},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ARBITER},
            "subjects": [{"kind": "ServiceAccount", "name": ARBITER, "namespace": namespace}],
        }


def _role(space: str, control: str | None) -> Manifest:
    rules: list[Manifest] = [
        {
            "apiGroups": ["nvidia.com"],
            "resources": ["dynamographdeployments", "dynamographdeploymentscalingadapters"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["nvidia.com"],
            "resources": ["dynamographdeploymentscalingadapters/scale"],
            "verbs": ["get", "update", "patch"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    ]
    if control is not None:
        rules.append(
            {
                "apiGroups": ["coordination.k8s.io"],
                "resources": ["leases"],
                "verbs": ["get", "list", "watch", "create", "update"],
            }
        )
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": ARBITER, "namespace": space},
        "rules": rules,
    }


def _tokens(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
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
            "metadata": {"name": TOKENS, "namespace": namespace},
            "type": "Opaque",
            "stringData": {name: made[name] for name in sorted(wanted)},
        }


def _yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)
