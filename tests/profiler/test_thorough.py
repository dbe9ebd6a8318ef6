"""Measuring engines that run: a mock engine's own curves come back, in no more requests than were announced."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from global_planner.mocker.demo_profile import ONE_GPU, TWO_GPUS, DemoEngine, decode_raw, prefill_raw
from global_planner.replay.engine_spec import EngineSpec
from pool_planner.performance.profile import load_profile, profile_from_raw
from pool_planner.profiler.measure_plan import Limits
from pool_planner.profiler.request import ProfileRequest, read_request
from pool_planner.profiler.run import ProfileFailed, Settings, profile
from pool_planner.profiler.thorough import Deployed, Options
from tests.engine.processes import Engine, engine
from tests.profiler.requests import changed

DEMO = profile_from_raw({"prefill": prefill_raw(ONE_GPU), "decode": decode_raw(ONE_GPU)}, source="demo")
SPEC = EngineSpec(role="agg", profile=DEMO, model="demo/chat", max_num_seqs=64, tokens_per_chunk=1)
LIMITS = Limits(least=2, most=4, tight=0.05, concurrency=8, window=12)
SPEED = 10.0


def asked(**paths: Any) -> ProfileRequest:
    base: dict[str, Any] = {
        "model": "demo/chat", "searchStrategy": "thorough", "workload": {"isl": 600, "osl": 60},
        "sla": {"ttft": 3000, "itl": 500}, "sweep": {"prefill": 3, "decode": 2},
    }  # fmt: skip
    return read_request(changed(**{**base, **paths}))


def settings(running: Engine, *more: Deployed, limits: Limits = LIMITS, **options: Any) -> Settings:
    engines = more or tuple(Deployed(phase=phase, gpus=1, url=running.url) for phase in ("prefill", "decode"))
    given = {"limits": limits, "max_context": 1024, **options}
    return Settings(engines=engines, options=Options(**given), cache=None, clock=running.clock)


def test_the_prefill_curve_of_a_mock_engine_comes_back_within_5_per_cent(tmp_path: Path) -> None:
    """In real time, on a slow engine: what client and server need besides is a few ms, and 15 on a busy machine."""
    slow = DemoEngine(ttft_start_ms=500.0, ttft_token_ms=1.0)
    truth = profile_from_raw({"prefill": prefill_raw(slow), "decode": decode_raw(slow)}, source="slow")
    said: list[str] = []
    limits = replace(LIMITS, concurrency=2)
    request = asked(features__planner={"mode": "prefill"}, workload={"isl": 300, "osl": 60})
    with engine(tmp_path, replace(SPEC, profile=truth), speed=1.0) as running:
        how = settings(running, limits=limits, max_context=500)
        outcome = profile(request, tmp_path / "out", how, announce=said.append)
    found = load_profile(tmp_path / "out").prefill
    assert found is not None and found.isl_tokens == (100, 300, 500) and truth.prefill is not None
    errors = [ms / truth.prefill.ttft_ms(isl) - 1 for isl, ms in zip(found.isl_tokens, found.raw_ttft_ms, strict=True)]
    assert max(map(abs, errors)) < 0.05, errors
    assert outcome.profiled is not None and outcome.profiled.decode is None
    assert outcome.profiled.extras["requests_sent"] <= announced(said)[0]  # type: ignore[operator]
    queue: Any = outcome.profiled.extras["queue"]
    assert queue["2"]["mean_ttft_ms"] > 1.25 * found.ttft_ms(300), "two prompts at once wait for each other"


def test_the_decode_curve_of_a_mock_engine_comes_back_within_5_per_cent(tmp_path: Path) -> None:
    said: list[str] = []
    request = asked(features__planner={"mode": "decode"})
    with engine(tmp_path, SPEC, speed=SPEED) as running:
        outcome = profile(request, tmp_path / "out", settings(running), announce=said.append)
    found = load_profile(tmp_path / "out").decode
    assert found is not None and DEMO.decode is not None and len(found.raw) == 4
    errors = [ms / DEMO.decode.itl_ms(usage, context) - 1 for usage, context, ms, _ in found.raw]
    assert max(map(abs, errors)) < 0.05, errors
    assert found.max_kv_tokens == 262_144, "as its /metrics tell"
    assert outcome.profiled is not None
    most, at_once = announced(said)
    assert at_once == 8 and outcome.profiled.extras["requests_sent"] <= most  # type: ignore[operator]
    decode = outcome.profiled.choices["decode"].candidate
    assert decode.meets_sla and decode.latency_ms <= 500
    # Called again it goes on where it stopped; there nothing is left to measure.
    with engine(tmp_path, SPEC, speed=SPEED) as running:
        again = profile(request, tmp_path / "out", settings(running))
    assert again.profiled is not None and again.profiled.extras["requests_sent"] == 0
    assert again.profiled.decode == outcome.profiled.decode


def announced(said: list[str]) -> tuple[int, int]:
    found = re.match(r"at most (\d+) requests in all, at most (\d+) at once", said[0])
    assert found is not None
    return int(found[1]), int(found[2])


def test_of_several_candidates_only_the_best_is_swept(tmp_path: Path) -> None:
    """One GPU never gets below 225 ms, two do: only they meet 200 ms."""
    two = profile_from_raw({"prefill": prefill_raw(TWO_GPUS), "decode": decode_raw(TWO_GPUS)}, source="two")
    request = asked(features__planner={"mode": "decode"}, workload={"isl": 200, "osl": 20}, sla={"ttft": 3000, "itl": 200})
    limits = Limits(least=1, most=1, concurrency=2, window=8)
    with (
        engine(tmp_path, SPEC, name="one", speed=30.0) as one,
        engine(tmp_path, replace(SPEC, profile=two), name="two", speed=30.0) as other,
    ):
        candidates = Deployed(phase="decode", gpus=1, url=one.url), Deployed(phase="decode", gpus=2, url=other.url)
        how = settings(one, *candidates, limits=limits, max_context=400)
        outcome = profile(request, tmp_path / "out", how)
        with pytest.raises(ProfileFailed, match=r"that may take \d+ requests, --max-requests allows 3"):
            profile(request, tmp_path / "other", settings(one, *candidates, limits=limits, max_context=400, max_requests=3))
        one_at_a_time = settings(one, candidates[0], limits=replace(limits, concurrency=1))
        with pytest.raises(ProfileFailed, match="--max-concurrency 1: how ITL rises with load cannot be measured"):
            profile(request, tmp_path / "other", one_at_a_time)
    assert outcome.profiled is not None
    ranking = outcome.profiled.choices["decode"].ranking
    assert [candidate.shape.gpus for candidate in ranking] == [2, 1]
    measured = (tmp_path / "out" / "measurements.jsonl").read_text()
    assert measured.count("decode gpus=2:") > measured.count("decode gpus=1:")
    assert any("decode is judged at" in warning and "extrapolated" in warning for warning in outcome.warnings)


def test_an_engine_that_dies_stops_the_measurement_and_what_was_measured_stays(tmp_path: Path) -> None:
    request = asked(features__planner={"mode": "prefill"}, workload={"isl": 100, "osl": 20})
    limits = Limits(least=1, most=1, concurrency=1)

    def dies(what: str, done: int, total: int) -> None:
        if done == 2:
            running.popen.kill()

    with engine(tmp_path, SPEC, speed=50.0) as running, pytest.raises(ProfileFailed, match=r"no answer after \d attempts"):
        profile(request, tmp_path / "out", settings(running, limits=limits), progress=dies)
    assert len((tmp_path / "out" / "measurements.jsonl").read_text().splitlines()) == 3, "the head and two points"
    with engine(tmp_path, SPEC, speed=50.0) as running:
        outcome = profile(request, tmp_path / "out", settings(running, limits=limits))
    assert outcome.profiled is not None and outcome.profiled.extras["requests_sent"] == 2, "one point: warm-up and measurement"
