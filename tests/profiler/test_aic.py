"""Rapid profiling with the real aiconfigurator: run where its extra is installed."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from pool_planner.__main__ import main
from pool_planner.performance.profile import load_profile
from tests.profiler.requests import changed

with_library = pytest.mark.skipif(find_spec("aiconfigurator") is None, reason="aiconfigurator is not installed (extra 'aic')")


def profiled(tmp_path: Path, **paths: Any) -> Result:
    request = tmp_path / "dgdr.yaml"
    request.write_text(yaml.safe_dump(changed(**paths)))
    arguments = ["profile", "--dgdr", str(request), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    return CliRunner().invoke(main, arguments)


@with_library
def test_a_supported_model_takes_under_90_s_and_the_second_time_next_to_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    result = profiled(tmp_path)
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began < 90.0
    profile = load_profile(tmp_path / "out")
    assert profile.prefill is not None and profile.decode is not None
    assert len(profile.prefill.isl_tokens) == 16 and profile.decode.max_kv_tokens > 100_000
    assert 50 < profile.prefill.ttft_ms(3000) < 500
    ranking = json.loads((tmp_path / "out" / "candidates.json").read_text())
    assert len(ranking["prefill"]["ranking"]) == len(ranking["decode"]["ranking"]) == 4
    first = (tmp_path / "out" / "decode_raw_data.json").read_text()
    began = time.monotonic()
    assert profiled(tmp_path).exit_code == 0
    assert time.monotonic() - began < 10.0, "from the cache, without loading the library"
    assert (tmp_path / "out" / "decode_raw_data.json").read_text() == first


@with_library
def test_backends_are_compared_and_an_end_to_end_sla_is_split(tmp_path: Path) -> None:
    result = profiled(tmp_path, backend="auto", sla={"e2eLatency": 9000})
    assert result.exit_code == 0, result.output
    ranking = json.loads((tmp_path / "out" / "candidates.json").read_text())
    assert ranking["target"]["ttft_ms"] + 149 * ranking["target"]["itl_ms"] == pytest.approx(9000)
    assert {entry["shape"].split()[0] for entry in ranking["decode"]["ranking"]} == {"vllm", "sglang", "trtllm"}


@with_library
def test_what_is_not_known_is_refused_with_the_nearest_or_falls_back(tmp_path: Path) -> None:
    for paths, said in (
        ({"model": "Qwen/Qwen3-33B"}, "model: 'Qwen/Qwen3-33B' is not known; nearest: Qwen/Qwen3-32B"),
        ({"hardware__gpuSku": "h20"}, "hardware.gpuSku: 'h20' is not known; nearest:"),
    ):
        result = profiled(tmp_path, **paths)
        assert (result.exit_code, said in result.output) == (1, True), result.output
        assert "Throughput-based scaling needs curves" in result.output
    load_only = {"enable_throughput_scaling": False, "enable_load_scaling": True}
    result = profiled(tmp_path, model="Qwen/Qwen3-33B", features={"planner": load_only})
    assert result.exit_code == 0, result.output
    assert "No curves are made (as with pre_deployment_sweeping_mode: none)" in result.output
    config = json.loads((tmp_path / "out" / "planner_config.json").read_text())
    assert config["pre_deployment_sweeping_mode"] == "none" and "profile_results_dir" not in config


@with_library
def test_an_sla_out_of_reach_is_a_warning_with_the_best_achievable(tmp_path: Path) -> None:
    result = profiled(tmp_path, sla={"ttft": 5, "itl": 50})
    assert result.exit_code == 0, result.output
    assert "warning: no shape meets a TTFT of 5 ms; the best achievable is" in result.output
    assert "best achievable" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.skipif(find_spec("aiconfigurator") is not None, reason="aiconfigurator is installed")
def test_without_the_library_the_extra_is_named(tmp_path: Path) -> None:
    result = profiled(tmp_path)
    assert (result.exit_code, "pip install 'global-planner[aic]'" in result.output) == (1, True), result.output
