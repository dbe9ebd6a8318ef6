"""Requests: what is missing, wrong or contradictory is told all at once, by path; both versions mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from pool_planner.profiler.request import RequestError, read_request
from tests.profiler.requests import GOOD, REMOVED, changed


def test_a_good_request() -> None:
    request = read_request(GOOD)
    assert (request.name, request.namespace, request.model, request.backend) == ("chat", "serving", "Qwen/Qwen3-32B", "vllm")
    assert (request.isl, request.osl, request.ttft_ms, request.itl_ms, request.e2e_ms) == (3000, 150, 500, 50, None)
    assert (request.sweeping, request.prefill_granularity, request.decode_granularity) == ("rapid", 16, 6)
    assert (request.planner.ttft, request.planner.itl, request.planner.backend) == (500, 50, "vllm")
    assert read_request(GOOD["spec"]).isl == 3000, "the spec alone is a request too"


@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        ({"model": REMOVED}, "spec.model: is missing"),
        ({"image": ""}, "spec.image: '' is not a text"),
        ({"workload": REMOVED}, "spec.workload: is missing (has: isl, osl, requestRate, concurrency)"),
        ({"workload__isl": REMOVED}, "spec.workload.isl: is missing"),
        ({"workload__osl": 0}, "spec.workload.osl: 0 is not a whole number >= 1"),
        ({"sla__itl": REMOVED}, "spec.sla.itl: is missing (ms; ttft and itl together, or e2eLatency alone)"),
        ({"sla__e2eLatency": 9000}, "spec.sla: e2eLatency cannot stand beside ttft or itl"),
        ({"sla__ttft": -1}, "spec.sla.ttft: -1 is not a number > 0"),
        ({"hardware__gpuSku": REMOVED}, "spec.hardware.gpuSku: is missing"),
        ({"hardware__numGpusPerNode": "8"}, "spec.hardware.numGpusPerNode: '8' is not a whole number"),
        ({"backend": "triton"}, "spec.backend: 'triton' is not one of auto, vllm, sglang, trtllm"),
        ({"searchStrategy": "quick"}, "spec.searchStrategy: 'quick' is not one of rapid, thorough"),
        ({"searchStrategy": "thorough", "backend": "auto"}, "spec.backend: 'auto' cannot be measured"),
        (
            {"features__planner": {"pre_deployment_sweeping_mode": "none"}},
            "pre_deployment_sweeping_mode: 'none' leaves no profile data, which enable_throughput_scaling needs",
        ),
        (
            {
                "features__planner": {
                    "pre_deployment_sweeping_mode": "none", "enable_throughput_scaling": False, "enable_load_scaling": True,
                },
                "features__mocker": {"enabled": True},
            },
            "spec.features.mocker: a mocker plays the profile, and pre_deployment_sweeping_mode 'none' leaves none",
        ),
        ({"features__planner": {"ttft": 400}}, "spec.features.planner.ttft: 400 contradicts sla.ttft, which is 500"),
        ({"features__planner": {"backend": "sglang"}}, "spec.features.planner.backend: sglang contradicts backend"),
        ({"features__planner": {"mod": "disagg"}}, "spec.features.planner.mod"),
        ({"workload__islx": 3}, "spec.workload.islx: unknown key (did you mean isl?)"),
    ],
)  # fmt: skip
def test_refusals(paths: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_request(changed(**paths))
    assert complaint in str(refused.value)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(RequestError) as refused:
        read_request(changed(model=REMOVED, image=REMOVED, workload__isl=REMOVED, sla__ttft=REMOVED))
    assert len(refused.value.problems) == 4


@pytest.mark.parametrize("raw", [None, [], "text", {"kind": "Deployment", "spec": {}}, {"spec": 3}])
def test_what_is_no_request(raw: object) -> None:
    with pytest.raises(RequestError):
        read_request(raw)


def test_the_older_version_means_the_same() -> None:
    raw = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeploymentRequest",
        "metadata": {"name": "chat", "namespace": "serving"},
        "spec": {
            "model": "Qwen/Qwen3-32B",
            "backend": "vllm",
            "profilingConfig": {
                "profilerImage": "example.com/runtime:1",
                "config": {
                    "sla": {"isl": 3000, "osl": 150, "ttft": 500, "itl": 50},
                    "sweep": {"useAiConfigurator": True, "aicSystem": "h200_sxm", "prefillInterpolationGranularity": 8},
                    "hardware": {"numGpusPerNode": 8, "maxNumGpusPerEngine": 4},
                    "planner": {"planner_min_endpoint": 2},
                },
            },
        },
    }
    request = read_request(raw)
    assert (request.image, request.gpu, request.total_gpus, request.sweeping) == (
        "example.com/runtime:1",
        "h200_sxm",
        4,
        "rapid",
    )
    assert (request.isl, request.ttft_ms, request.prefill_granularity, request.decode_granularity) == (3000, 500, 8, 6)
    assert request.planner.min_endpoint == 2


def test_an_end_to_end_sla_and_what_is_ignored() -> None:
    request = read_request(changed(sla={"e2eLatency": 9000}, modelCache={"pvc": "x"}, autoApply=True))
    assert (request.e2e_ms, request.ttft_ms, request.itl_ms) == (9000, None, None)
    assert request.warnings == (
        "spec.modelCache: ignored; write it into final_config.yaml",
        "spec.autoApply: nothing is applied here; use kubectl apply -f final_config.yaml",
    )
