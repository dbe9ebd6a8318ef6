"""The command of an engine, by backend, role and who is in front of it. Pure.

In front is either our router, which speaks HTTP to plain engines, or Dynamo's own routers, which reach Dynamo's workers over
its runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pool_planner.config import Backend
from pool_planner.dynamo_workers import NIXL, worker_arguments, worker_command
from pool_planner.types import Role

Front = Literal["router", "global-router"]
Command = tuple[tuple[str, ...], tuple[str, ...]]

HTTP_PORT = 8000
IMAGES: Mapping[Front, Mapping[Backend, str]] = {
    "router": {
        "vllm": "vllm/vllm-openai:latest",
        "sglang": "lmsysorg/sglang:latest",
        "trtllm": "nvcr.io/nvidia/tensorrt-llm/release:latest",
    },
    "global-router": {
        "vllm": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:latest",
        "sglang": "nvcr.io/nvidia/ai-dynamo/sglang-runtime:latest",
        "trtllm": "nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:latest",
        "mocker": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:latest",
    },
}
DYNAMO_IMAGE = "nvcr.io/nvidia/ai-dynamo/vllm-runtime:latest"


class NoEngine(ValueError):
    """A backend that cannot stand behind this front; the text says what can."""


def engine_command(front: Front, backend: Backend, role: Role, model: str, gpus: int) -> Command:
    """(command, args) of one replica. Raises NoEngine."""
    if front == "global-router":
        return worker_command(backend), worker_arguments(backend, role, model, gpus)
    if backend == "mocker":
        raise NoEngine("backend mocker: Dynamo's mock engines are not HTTP servers; use --front global-router, or backend vllm")
    return _plain(backend, role, model, gpus)


def _plain(backend: Backend, role: Role, model: str, gpus: int) -> Command:
    address = ("--host", "0.0.0.0", "--port", str(HTTP_PORT))
    if backend == "sglang":
        parted: tuple[str, ...] = () if role == "agg" else ("--disaggregation-mode", role)
        return ("python3", "-m", "sglang.launch_server"), ("--model-path", model, "--tp", str(gpus), *address, *parted)
    if backend == "trtllm":
        return ("trtllm-serve",), (model, "--tp_size", str(gpus), *address)
    split = () if role == "agg" else ("--kv-transfer-config", NIXL)
    return ("vllm", "serve"), (model, "--tensor-parallel-size", str(gpus), *address, *split)
