"""What a profile becomes: the planner's configuration, its ConfigMaps, and the DGD with the planner mounted on them. Pure.

Worker commands are those of Dynamo's backends; whatever an operator adds (secrets, volumes, probes) goes into the written file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from pool_planner.config import COMPONENTS, Backend
from pool_planner.dynamo_workers import worker_arguments, worker_command
from pool_planner.profiler.rapid import Profiled
from pool_planner.profiler.request import ProfileRequest
from pool_planner.types import Role

CONFIG_PATH = "/etc/planner/config"
PROFILE_PATH = "/etc/planner/profile"
CONFIG_KEY, PREFILL_KEY, DECODE_KEY = "planner_config.json", "prefill_raw_data.json", "decode_raw_data.json"
PLANNER_IMAGE = "global-planner:latest"

Object = dict[str, Any]


def planner_config(request: ProfileRequest, profiled: Profiled | None, *, backend: str, profile_dir: str | None) -> Object:
    """planner_config.json: what the request said, with the SLA, the engines and the profile that were found."""
    config = {key: value for key, value in request.planner_fields.items() if key not in ("ttft_ms", "itl_ms")}
    config |= {"mode": request.planner.mode, "backend": "mocker" if request.mocker else backend, "model_name": request.model}
    if profiled is not None:
        config |= {"ttft": round(profiled.target.ttft_ms, 3), "itl": round(profiled.target.itl_ms, 3)}
        for phase in ("prefill", "decode"):
            gpus = profiled.gpus(phase)
            if gpus is not None:
                config[f"{phase}_engine_num_gpu"] = gpus
    config.pop("profile_results_dir", None)
    if profile_dir is not None:
        config["profile_results_dir"] = profile_dir
    return config


def documents(
    request: ProfileRequest, profiled: Profiled | None, *, backend: str, planner_image: str = PLANNER_IMAGE
) -> list[Object]:
    """The documents of final_config.yaml, in the order in which they are applied."""
    has_profile = profiled is not None and (profiled.prefill is not None or profiled.decode is not None)
    config = planner_config(request, profiled, backend=backend, profile_dir=PROFILE_PATH if has_profile else None)
    contents = {CONFIG_KEY: json.dumps(config, indent=2, sort_keys=True)}
    data = profile_data(profiled)
    suffix = sha256(json.dumps([contents, data], sort_keys=True).encode()).hexdigest()[:4]
    maps = [_config_map(request, f"planner-config-{suffix}", contents)]
    if data:
        maps.append(_config_map(request, f"planner-profile-data-{suffix}", data))
    names = [str(each["metadata"]["name"]) for each in maps]
    return [*maps, _deployment(request, profiled, backend, names, planner_image)]


def profile_data(profiled: Profiled | None) -> dict[str, str]:
    """File name -> text of the profile as a ConfigMap holds it."""
    if profiled is None:
        return {}
    columns = ((PREFILL_KEY, profiled.prefill), (DECODE_KEY, profiled.decode))
    return {name: json.dumps(found) for name, found in columns if found is not None}


def _config_map(request: ProfileRequest, name: str, data: Mapping[str, str]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": request.namespace, "labels": {"app.kubernetes.io/part-of": request.name}},
        "data": dict(data),
    }


def _deployment(
    request: ProfileRequest, profiled: Profiled | None, backend: str, maps: Sequence[str], planner_image: str
) -> Object:
    runs = "mocker" if request.mocker else backend
    services: Object = {
        "Frontend": {
            "componentType": "frontend",
            "replicas": 1,
            "extraPodSpec": {
                "mainContainer": {"image": request.image, "command": ["python3"], "args": ["-m", "dynamo.frontend"]}
            },
        },
        "Planner": _planner(planner_image, maps),
    }
    roles: tuple[Role, ...] = ("agg",) if request.planner.mode == "agg" else tuple(request.phases)  # type: ignore[arg-type]
    for role in roles:
        gpus = _gpus(request, profiled, role)
        services[COMPONENTS[runs][role]] = _worker(request, backend, role, gpus, maps)  # type: ignore[index]
    deployment: Object = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": request.name, "namespace": request.namespace},
        "spec": {"services": services},
    }
    if not request.mocker:
        deployment["spec"]["backendFramework"] = backend
    return deployment


def _gpus(request: ProfileRequest, profiled: Profiled | None, role: str) -> int:
    phase = "prefill" if role == "prefill" else "decode"
    found = profiled.gpus(phase) if profiled is not None else None  # type: ignore[arg-type]
    return found or request.given_gpus.get(phase, 1)


def _planner(image: str, maps: Sequence[str]) -> Object:
    mounts = [{"name": "planner-config", "mountPath": CONFIG_PATH, "readOnly": True}]
    volumes: list[Object] = [{"name": "planner-config", "configMap": {"name": maps[0]}}]
    if len(maps) > 1:
        mounts.append({"name": "planner-profile-data", "mountPath": PROFILE_PATH, "readOnly": True})
        volumes.append({"name": "planner-profile-data", "configMap": {"name": maps[1]}})
    return {
        "componentType": "planner",
        "replicas": 1,
        "extraPodSpec": {
            "mainContainer": {
                "image": image,
                "command": ["python3", "-m", "pool_planner"],
                "args": ["--config", f"{CONFIG_PATH}/{CONFIG_KEY}"],
                "volumeMounts": mounts,
            },
            "volumes": volumes,
        },
    }


def _worker(request: ProfileRequest, backend: str, role: Role, gpus: int, maps: Sequence[str]) -> Object:
    runs: Backend = "mocker" if request.mocker else backend  # type: ignore[assignment]
    worker: Object = {"componentType": "worker", "replicas": max(1, request.planner.min_endpoint)}
    if role != "agg":
        worker["subComponentType"] = role
    container: Object = {
        "image": request.image,
        "command": list(worker_command(runs)),
        "args": list(worker_arguments(runs, role, request.model, gpus, profile_path=PROFILE_PATH if len(maps) > 1 else None)),
    }
    pod: Object = {"mainContainer": container}
    if request.mocker:
        if len(maps) > 1:
            container["volumeMounts"] = [{"name": "planner-profile-data", "mountPath": PROFILE_PATH, "readOnly": True}]
            pod["volumes"] = [{"name": "planner-profile-data", "configMap": {"name": maps[1]}}]
    else:
        worker["resources"] = {"limits": {"gpu": str(gpus)}}
    worker["extraPodSpec"] = pod
    return worker
