"""What a profile leaves in its folder, and that a planner needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pool_planner.__main__ import main
from pool_planner.compatibility import ConfigError
from pool_planner.config_source import load_config
from pool_planner.connectors.virtual_client import VirtualClient
from pool_planner.performance.correction import Correction
from pool_planner.performance.demand import queueing_capacity
from pool_planner.performance.lengths import LengthMix
from pool_planner.performance.profile import load_profile
from pool_planner.performance.work import Engine, Shape
from pool_planner.profiler.files import write_results, write_status
from pool_planner.profiler.rapid import Profiled
from pool_planner.profiler.request import ProfileRequest, read_request
from pool_planner.profiler.run import rapid_with
from tests.profiler.made import DemoEngines
from tests.profiler.requests import changed
from tests.standalone.front_door import FrontDoor
from tests.standalone.process import SPEED, Planner

SLOW: dict[str, Any] = {"workload": {"isl": 700, "osl": 60}, "sla": {"ttft": 6000, "itl": 500}}
NAMES = {
    "vllm": ("VllmPrefillWorker", "VllmDecodeWorker"),
    "sglang": ("prefill", "decode"),
    "trtllm": ("prefill", "decode"),
    "mocker": ("prefill", "decode"),
}


def written(folder: Path, backend: str = "vllm", **planner: Any) -> tuple[ProfileRequest, Profiled]:
    """A profile of the demo's engines, written into `folder`."""
    features: dict[str, Any] = {"planner": planner}
    if backend == "mocker":
        features["mocker"] = {"enabled": True}
    request = read_request(changed(**SLOW, backend="vllm" if backend == "mocker" else backend, features=features))
    profiled = rapid_with(DemoEngines(), request, [request.backend], lambda what, done, total: None)
    write_status(folder, "running", "")
    write_results(folder, request, profiled, backend=request.backend, planner_image="planner:1", warnings=("a warning <b>",))
    write_status(folder, "success", "done")
    return request, profiled


@pytest.mark.parametrize("backend", list(NAMES))
def test_the_manifests_hold_together(tmp_path: Path, backend: str) -> None:
    written(tmp_path, backend)
    config_map, data_map, deployment = yaml.safe_load_all((tmp_path / "final_config.yaml").read_text())
    suffix = config_map["metadata"]["name"].removeprefix("planner-config-")
    assert len(suffix) == 4 and data_map["metadata"]["name"] == f"planner-profile-data-{suffix}"
    config = json.loads(config_map["data"]["planner_config.json"])
    reading = load_config(json.dumps(config), environ={})
    assert (reading.config.backend, reading.config.ttft, reading.config.itl) == (backend, 6000, 500)
    assert set(data_map["data"]) == {"prefill_raw_data.json", "decode_raw_data.json"}
    services = deployment["spec"]["services"]
    assert set(services) == {"Frontend", "Planner", *NAMES[backend]}
    pod = services["Planner"]["extraPodSpec"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["mainContainer"]["volumeMounts"]}
    volumes = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"]}
    assert volumes == {name: f"{name}-{suffix}" for name in ("planner-config", "planner-profile-data")}
    assert pod["mainContainer"]["args"] == ["--config", f"{mounts['planner-config']}/planner_config.json"]
    assert config["profile_results_dir"] == mounts["planner-profile-data"]
    for role, name in zip(("prefill", "decode"), NAMES[backend], strict=True):
        worker = services[name]
        assert (
            worker["subComponentType"] == role and worker["extraPodSpec"]["mainContainer"]["image"] == "example.com/runtime:1"
        )
        if backend != "mocker":
            assert worker["resources"]["limits"]["gpu"] == str(config[f"{role}_engine_num_gpu"])


def test_every_file_is_there_and_is_read_back(tmp_path: Path) -> None:
    _, profiled = written(tmp_path)
    status = yaml.safe_load((tmp_path / "profiler_status.yaml").read_text())
    assert status["status"] == "success" and all((tmp_path / name).exists() for name in status["outputs"])
    assert profiled.prefill is not None
    from_npz = load_profile(tmp_path)
    for name in ("selected_prefill_interpolation", "selected_decode_interpolation"):
        (tmp_path / name / "raw_data.npz").unlink()
    from_json = load_profile(tmp_path)
    assert from_npz.prefill is not None and from_json.prefill is not None
    assert from_npz.prefill.isl_tokens == from_json.prefill.isl_tokens
    ranking = json.loads((tmp_path / "candidates.json").read_text())
    assert [entry["gpus"] for entry in ranking["prefill"]["ranking"]] == [1, 2, 4, 8]
    page = (tmp_path / "report.html").read_text()
    assert "plot-ttft" in page and "Plotly.newPlot" in page and "a warning &lt;b&gt;" in page
    assert "http://" not in page.split("<script>")[0] and "src=" not in page.split("<script>")[0], "it loads nothing"


def test_without_curves_only_load_based_scaling_is_configured(tmp_path: Path) -> None:
    planner = {"pre_deployment_sweeping_mode": "none", "enable_throughput_scaling": False, "enable_load_scaling": True}
    request = tmp_path / "dgdr.yaml"
    request.write_text(yaml.safe_dump(changed(features={"planner": planner})))
    result = CliRunner().invoke(main, ["profile", "--dgdr", str(request), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out" / "planner_config.json").read_text())
    assert "profile_results_dir" not in config
    assert len(list(yaml.safe_load_all((tmp_path / "out" / "final_config.yaml").read_text()))) == 2, "no profile data"
    assert "No curves" in (tmp_path / "out" / "report.html").read_text()


def test_the_commands_refuse_with_2_and_fail_with_1(tmp_path: Path) -> None:
    request = tmp_path / "dgdr.yaml"
    request.write_text(yaml.safe_dump(changed(sla={"ttft": 500})))
    out = ["--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, ["profile", "--dgdr", str(request), *out])
    assert (result.exit_code, f"{request}: spec.sla.itl: is missing" in result.output) == (2, True), result.output
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(main, ["profile", *out]).exit_code == 2
    request.write_text(yaml.safe_dump(changed(searchStrategy="thorough")))
    result = CliRunner().invoke(main, ["profile", "--dgdr", str(request), *out])
    assert (result.exit_code, "thorough profiling needs engines" in result.output) == (1, True), result.output
    assert yaml.safe_load((tmp_path / "out" / "profiler_status.yaml").read_text())["status"] == "failed"
    dead = [*out, "--engine-url", "http://127.0.0.1:9"]
    result = CliRunner().invoke(main, ["profile", "--dgdr", str(request), *dead])
    assert (result.exit_code, "http://127.0.0.1:9/v1/models" in result.output) == (1, True), result.output


def test_curves_in_words(tmp_path: Path) -> None:
    written(tmp_path)
    asked = ["curves", str(tmp_path), "--isl", "700", "--osl", "60", "--ttft", "6000", "--itl", "500"]
    result = CliRunner().invoke(main, [*asked, "--rps", "1.5"])
    assert result.exit_code == 0, result.output
    assert "a prompt of 700 tokens alone has its first token after 7" in result.output
    assert "Within an ITL of 500 ms 27 run at once" in result.output
    assert "prefill: 2 replicas (2 GPUs)" in result.output
    far = CliRunner().invoke(main, ["curves", str(tmp_path), "--isl", "50000", "--osl", "60", "--ttft", "6000", "--itl", "100"])
    assert "Extrapolated: the profile has prompts of 100 to" in far.output
    assert "An ITL of 100 ms is out of reach" in far.output
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(main, ["curves", str(tmp_path / "empty"), *asked[2:]]).exit_code == 2


def test_a_planner_from_the_written_folder_alone_scales_pools_of_every_backend(tmp_path: Path) -> None:
    """1.5 requests/s arrive; an outside system does what the planner says. In the end the pools have what the profile asks
    for: enough for this load with its margins, and not more than for twice as much."""
    rps = 1.5
    planners: dict[str, tuple[FrontDoor, Planner]] = {}
    try:
        for backend in NAMES:
            door = FrontDoor(namespace="demo", speed=SPEED, rps=rps, model="qwen/qwen3-32b")
            written(
                tmp_path / backend, backend, environment="virtual", namespace="demo", throughput_metrics_source="router",
                throughput_adjustment_interval=10, load_predictor="constant", load_router_metrics_url=door.url,
                max_gpu_budget=64,
            )  # fmt: skip
            ones = [argument for name in NAMES[backend] for argument in ("--replicas", f"{name}=1")]
            path = tmp_path / backend / "planner_config.json"
            planners[backend] = door, Planner(path, "--listen", "127.0.0.1:0", *ones)
        for backend, (_, planner) in planners.items():
            client = VirtualClient(f"http://127.0.0.1:{planner.until('listening', 90.0, what='decisions')['port']}")
            has = dict.fromkeys(NAMES[backend], 1)
            decision = client.wait(wait_s=30.0)
            while decision is not None:  # until nothing changes for two intervals
                has |= decision.replicas
                client.complete(decision)
                decision = client.wait(wait_s=30.0 / SPEED)
            for role, name in zip(("prefill", "decode"), NAMES[backend], strict=True):
                enough, too_many = (needed(tmp_path / backend, role, load) for load in (rps, 2.0 * rps))
                assert 1 < enough <= has[name] <= too_many, (backend, role, has)
    finally:
        for door, planner in planners.values():
            planner.__exit__()
            door.close()


def needed(folder: Path, role: Any, rps: float) -> int:
    profile = load_profile(folder)
    engine = Engine(role=role, gpus=1, ttft_ms=6000, itl_ms=500, prefill=profile.prefill, decode=profile.decode)
    shape = Shape(isl=LengthMix.of_mean(700.0), osl=LengthMix.of_mean(60.0))
    found = queueing_capacity(engine, shape, Correction(), target=0.97, max_replicas=64).needed(rps)
    assert found is not None
    return found


def test_the_written_configuration_is_one_that_planners_take(tmp_path: Path) -> None:
    written(tmp_path, min_endpoint=2)
    reading = load_config(str(tmp_path / "planner_config.json"), environ={})
    assert (reading.config.min_endpoint, reading.warnings) == (2, ())
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "other.json"), environ={})
