"""Requests to profile, as people write them."""

from __future__ import annotations

import copy
from typing import Any

GOOD: dict[str, Any] = {
    "apiVersion": "nvidia.com/v1beta1",
    "kind": "DynamoGraphDeploymentRequest",
    "metadata": {"name": "chat", "namespace": "serving"},
    "spec": {
        "model": "Qwen/Qwen3-32B",
        "backend": "vllm",
        "image": "example.com/runtime:1",
        "workload": {"isl": 3000, "osl": 150},
        "sla": {"ttft": 500, "itl": 50},
        "hardware": {"gpuSku": "h200_sxm", "numGpusPerNode": 8},
        "searchStrategy": "rapid",
        "features": {"planner": {"mode": "disagg"}},
    },
}

REMOVED = object()


def changed(**paths: Any) -> dict[str, Any]:
    """GOOD with values of the spec set by path ("sla__ttft": 3); REMOVED takes one away."""
    raw = copy.deepcopy(GOOD)
    for path, value in paths.items():
        *outer, last = path.split("__")
        section = raw["spec"]
        for name in outer:
            section = section.setdefault(name, {})
        if value is REMOVED:
            section.pop(last, None)
        else:
            section[last] = value
    return raw
