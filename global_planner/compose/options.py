"""What a deployment is composed with, and the names that its files agree on. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from global_planner.compose.engines import Front
from global_planner.compose.manifests import ApiVersion
from global_planner.config import GroupConfig, PoolConfig
from pool_planner.config import Backend

ARBITER = "global-planner"
ROUTER = "global-router"
PLANNER = "pool-planner"
API_PORT, ADMIN_PORT, METRICS_PORT = 8080, 8001, 9085
TOKENS_SECRET = "global-planner-tokens"
JOURNAL = "global-planner-journal"
CONFIG, PROFILES, TOKENS, STATE = "/etc/global-planner", "/etc/profiles", "/etc/tokens", "/var/lib/global-planner"
"""Where a pod finds its configuration, profiles, tokens and what it keeps."""

Curves = Mapping[str, str]
"""The files of a profile: name -> text."""


class ComposeError(ValueError):
    """A topology that cannot be composed with these options; one problem a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposeOptions:
    """`front`: our router before engines that answer HTTP, or Dynamo's GlobalRouter configured by us. `backend`: of the engines
    (None: what the topology's planners say, else vllm). `engine_image`, `dynamo_image` None: those of the backend.
    `gpu_label`: the node label whose value is the GPU type ("" : nodes are not selected). `prometheus`: where
    planners read Dynamo's own routers' metrics; ours they read themselves. `see_nodes`: the arbiter may list nodes and all
    pods, so that it grows nothing that no node has room for. `token`: makes a secret for a name."""

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
    see_nodes: bool = False
    token: Callable[[str], str]


def digest(files: Curves) -> str:
    """Eight characters of a profile's content: two pools with the same curves share one ConfigMap."""
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()[:8]


def by_dgd(group: GroupConfig) -> Mapping[str, list[PoolConfig]]:
    """The pools of a group by the DGD that they are parts of."""
    found: dict[str, list[PoolConfig]] = {}
    for pool in group.pools:
        found.setdefault(pool.dgd_name, []).append(pool)
    return found
