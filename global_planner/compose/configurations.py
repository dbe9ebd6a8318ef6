"""The ConfigMaps: topology, planner settings, profiles, router configuration, each read back by whoever will read it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from global_planner.compile import dynamo_namespace, router_config_of
from global_planner.compose.manifests import Manifest
from global_planner.compose.options import (
    ADMIN_PORT,
    API_PORT,
    ARBITER,
    METRICS_PORT,
    PROFILES,
    ROUTER,
    TOKENS,
    ComposeError,
    ComposeOptions,
    Curves,
    digest,
)
from global_planner.config import GroupConfig, Topology
from global_planner.planner_settings import dgds_of, planner_config_of
from global_planner.topology_draft import draft_of
from pool_planner.compatibility import read_config
from pool_planner.config import PlannerConfig
from pool_planner.performance.profile import DECODE_JSON, PREFILL_JSON, Profile, raw_profile
from router.adaptive import Predictor
from router.config import RouterConfig
from router.foreign import translate
from router.grid import RESOLUTION, as_global_router, grids

CONFIG_MAP_LIMIT = 1024 * 1024


def config_maps(
    topology: Topology, profiles: Mapping[str, Profile], options: ComposeOptions, data: Mapping[str, Curves]
) -> Iterator[Manifest]:
    namespace = topology.cluster.namespace
    yield _config_map("global-planner-topology", namespace, {"topology.yaml": as_yaml(topology.model_dump(mode="json"))})
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
            content = digest(data[pool.name])
            if (where, content) not in seen:
                seen.add((where, content))
                yield _config_map(f"planner-profile-data-{content}", where, data[pool.name])
    if options.front == "router":
        config_of = router_config_of(
            topology,
            profiles=profiles,
            admin_token_file=f"{TOKENS}/router-admin",
            planner_url=f"http://{ARBITER}.{namespace}.svc:{API_PORT}",
            planner_token_file=f"{TOKENS}/router-wake",
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
        "profile_results_dir": PROFILES,
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


def profile_data(profile: Profile) -> Curves:
    """The files of a profile, as a pod mounts them."""
    raw = raw_profile(profile)
    files = {PREFILL_JSON: raw["prefill"], DECODE_JSON: raw["decode"]}
    return {name: json.dumps(columns) + "\n" for name, columns in files.items() if columns is not None}


def _config_map(name: str, namespace: str, data: Mapping[str, str]) -> Manifest:
    size = sum(len(text.encode()) for text in data.values())
    if size > CONFIG_MAP_LIMIT:
        raise ComposeError(f"ConfigMap {name} would hold {size} bytes; {CONFIG_MAP_LIMIT} is what the API server takes")
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": dict(data)}


def as_yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)
