"""The command of a Dynamo worker, by backend and role: what compose and the profiler write into manifests. Pure.

As the workers of Dynamo 1.x take it: the role by `--disaggregation-mode` for every backend, and for vLLM the transfer of KV
blocks said outright, which a prefill worker refuses to start without.
"""

from __future__ import annotations

import json

from pool_planner.config import Backend
from pool_planner.types import Role

NIXL = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})
"""How vLLM passes KV blocks from prefill to decode."""


def worker_command(backend: Backend) -> tuple[str, ...]:
    return ("python3", "-m", f"dynamo.{backend}")


def worker_arguments(
    backend: Backend, role: Role, model: str, gpus: int, *, profile_path: str | None = None
) -> tuple[str, ...]:
    """`gpus`: of one replica. `profile_path`: where a mock engine finds the profile whose speed it has.

    >>> worker_arguments("sglang", "agg", "m", 2)
    ('--model-path', 'm', '--served-model-name', 'm', '--tp', '2')
    """
    split = () if role == "agg" else ("--disaggregation-mode", role)
    if backend == "mocker":
        profile = () if profile_path is None else ("--planner-profile-data", profile_path)
        return ("--model-path", model, "--model-name", model, *profile, *split)
    if backend == "vllm":
        transfer = ("--kv-transfer-config", NIXL) if split else ()
        return ("--model", model, "--tensor-parallel-size", str(gpus), *split, *transfer)
    named = ("--model-path", model, "--served-model-name", model)
    if backend == "sglang":
        transfer = ("--disaggregation-transfer-backend", "nixl") if split else ()
        return (*named, "--tp", str(gpus), *split, *transfer)
    return (*named, "--tensor-parallel-size", str(gpus), *split)
