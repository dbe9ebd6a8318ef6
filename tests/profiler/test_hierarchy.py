"""All pools of a topology at once: what is the same is profiled once, and the manifests come out complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from global_planner.config import Topology
from global_planner.profile_pools import jobs_of, profile_hierarchy, with_profiles
from global_planner.topology_file import load_topology
from pool_planner.config_source import load_config
from pool_planner.profiler.measure_plan import Limits
from pool_planner.profiler.request import RequestError
from pool_planner.profiler.run import Settings
from pool_planner.profiler.thorough import Deployed, Options
from tests.engine.processes import engine
from tests.profiler.test_thorough import SPEC

TOPOLOGY = Path(__file__).resolve().parents[2] / "examples" / "two-models" / "topology.yaml"


def raw() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(TOPOLOGY.read_text())
    return read


def test_pools_that_need_the_same_profile_share_it() -> None:
    jobs = jobs_of(Topology.model_validate(raw()))
    assert [job.pools for job in jobs] == [
        ("chat-prefill-short", "chat-prefill-long"), ("chat-decode",),
        ("code-prefill-short", "code-prefill-long"), ("code-decode",),
    ]  # fmt: skip
    short = jobs[0].request
    assert (short.model, short.gpu, short.isl, short.osl, short.phases) == ("demo/chat", "h100", 800, 60, ("prefill",))
    assert jobs[1].request.phases == ("prefill", "decode"), "a decode engine computes prompts too, when it lost their blocks"
    assert (short.ttft_ms, short.itl_ms, short.given_gpus) == (6000, 500, {"prefill": 1})


def test_pools_that_differ_do_not_and_problems_name_the_pool() -> None:
    changed = raw()
    changed["groups"][0]["pools"][2]["gpus_per_replica"] = 2
    jobs = jobs_of(Topology.model_validate(changed))
    assert [job.pools for job in jobs][:3] == [("chat-prefill-short",), ("chat-decode",), ("chat-prefill-long",)]
    changed["groups"][1]["planner"] = {"pre_deployment_sweeping_mode": "quick"}
    with pytest.raises(RequestError, match=r"groups.code.pools.code-decode: features.planner.pre_deployment_sweeping_mode"):
        jobs_of(Topology.model_validate(changed))
    assert with_profiles(raw(), {"code-decode": "x"})["groups"][1]["pools"][1]["profile"] == "x"


def test_a_topology_is_measured_and_its_manifests_are_complete(tmp_path: Path) -> None:
    asked = raw()
    asked["groups"] = asked["groups"][:1]
    asked["groups"][0]["planner"] = {"pre_deployment_sweeping_mode": "thorough"}
    topology = tmp_path / "topology.yaml"
    topology.write_text(yaml.safe_dump(asked))
    with engine(tmp_path, SPEC, speed=50.0) as running:
        settings = Settings(
            engines=tuple(Deployed(phase=phase, gpus=1, url=running.url) for phase in ("prefill", "decode")),
            options=Options(limits=Limits(least=1, most=1, concurrency=2, window=8), max_context=400),
            cache=None,
            clock=running.clock,
            prefill_granularity=2,
            decode_granularity=2,
        )
        assert profile_hierarchy(topology, tmp_path / "out", settings) == 0
    written = load_topology(tmp_path / "out" / "topology.yaml")
    assert {Path(pool.profile).name for group in written.groups for pool in group.pools} == {
        "chat-prefill-short",
        "chat-decode",
    }
    for name, mode in (("chat-prefill-short", "prefill"), ("chat-decode", "decode")):
        reading = load_config(str(tmp_path / "out" / "profiles" / name / "planner_config.json"), environ={})
        assert (reading.config.mode, reading.config.environment, reading.config.itl) == (mode, "global-planner", 500)
        assert not (tmp_path / "out" / "profiles" / name / "final_config.yaml").exists(), "the manifests are the whole's"
    names = {path.name for path in (tmp_path / "out" / "manifests").iterdir()}
    assert {"control.yaml", "config.yaml", "pool-chat-main.yaml", "pool-chat-long.yaml", "kustomization.yaml"} <= names


def test_a_topology_that_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = raw()
    broken["groups"][0]["pools"][0]["role"] = "prefil"
    path = tmp_path / "topology.yaml"
    path.write_text(yaml.safe_dump(broken))
    assert profile_hierarchy(path, tmp_path / "out", Settings(cache=None)) == 2
    assert "groups.0.pools.0.role" in capsys.readouterr().err
    assert profile_hierarchy(tmp_path / "none.yaml", tmp_path / "out", Settings(cache=None)) == 2
