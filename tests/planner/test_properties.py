"""What holds of every plan: deterministic, within limits, deaf to noise, and fast."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool_planner import wire
from pool_planner.performance.correction import Correction
from pool_planner.performance.expected import expected
from pool_planner.performance.lengths import LengthMix
from pool_planner.performance.work import Shape
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup, SetupError, setup_from_config
from pool_planner.state import WarmBin, start, statuses
from pool_planner.types import Grant, Hold, Observation, Proposal
from tests.planner.story import PROFILE, Story, config, pool

maybe = st.one_of(st.none(), st.floats(-10.0, 1e6), st.just(float("nan")), st.just(float("inf")))
observations = st.builds(
    Observation,
    pool=st.just("prefill"),
    at_s=st.floats(-100.0, 0.0),
    interval_s=st.sampled_from([30.0, 60.0, 0.0]),
    front_door_up=st.sampled_from([True, True, True, False, None]),
    requests=maybe,
    completed=maybe,
    shed=maybe,
    queued_requests=maybe,
    isl_tokens=maybe,
    osl_tokens=maybe,
    ttft_ms=maybe,
    itl_ms=maybe,
    duration_s=maybe,
)


@settings(max_examples=40, deadline=None)
@given(told=st.lists(st.one_of(st.none(), observations), max_size=8), role=st.sampled_from(["prefill", "decode", "agg"]))
def test_whatever_is_observed_a_report_comes_out(told: list[Observation | None], role: str) -> None:
    """Finite, within the limits, encodable: and the same twice."""
    import dataclasses

    said = []
    for _ in range(2):
        story = Story(have=3, role=role, no_correction=False, pool={"min_replicas": 2, "max_replicas": 9})
        reports = []
        for each in told:
            story.now += story.tick_s
            report = story.tell(None if each is None else dataclasses.replace(each, pool=role, at_s=story.now + each.at_s))
            wire.decode(wire.encode(report))
            for status in statuses(story.state, now=story.now):
                assert status.last_reason
            if isinstance(report, Proposal):
                assert 2 <= report.wanted <= 9
                assert report.expires_at_s > report.at_s
            reports.append(report)
        said.append(reports)
    assert said[0] == said[1]


@pytest.mark.parametrize("follow", [True, False], ids=["latencies follow", "latencies stay"])
@pytest.mark.parametrize("role", ["prefill", "decode", "agg"])
@pytest.mark.parametrize("rate", [0.3, 1.7, 4.0])
def test_noise_of_five_per_cent_moves_nothing_after_settling(role: str, rate: float, follow: bool) -> None:
    """Latencies that follow the number of replicas, as they do in the world, where fewer are slower; and such as never do."""
    story = Story(have=1, role=role, load_predictor="kalman", no_correction=False)
    rng = random.Random(7)
    engine = story.setup.pools[0].engine
    assert engine is not None
    shape = Shape(isl=LengthMix.of_mean(1000.0), osl=LengthMix.of_mean(150.0))

    def step() -> None:
        latencies: tuple[float | None, float | None] = (1100.0, 400.0)
        if follow:
            shown = expected(engine, shape, Correction(), rate_rps=rate, ready=max(1, story.have or 1))
            latencies = (shown.ttft_ms, shown.itl_ms)
        noise = [rng.uniform(0.95, 1.05) for _ in range(3)]
        ttft, itl = ((value or 9000.0) * part for value, part in zip(latencies, noise[1:], strict=True))
        story.step(rate * noise[0], ttft_ms=ttft, itl_ms=itl)

    for _ in range(80):
        step()
    settled = story.wanted
    for _ in range(60):
        step()
        assert story.wanted == settled


def test_prefill_and_decode_of_one_deployment_share_its_gpu_limit() -> None:
    both = (pool("prefill"), pool("decode", gpus_per_replica=2))
    setup = PlannerSetup(config=config(), pools=both, max_gpus=9)
    state = start(setup)
    now = 0.0
    for _ in range(5):
        now += 30.0
        told = {
            each.name: Observation(
                pool=each.name,
                at_s=now,
                interval_s=30.0,
                front_door_up=True,
                requests=150.0,
                isl_tokens=1000.0,
                osl_tokens=150.0,
            )
            for each in both
        }
        grants = {each.name: Grant(pool=each.name, at_s=now, replicas_spec=1, replicas_ready=1) for each in both}
        state, reports = plan(state, told, grants, now, setup)
    wanted = {report.pool: report.wanted for report in reports if isinstance(report, Proposal)}
    assert wanted["prefill"] + 2 * wanted["decode"] <= 9
    assert wanted["prefill"] >= 1 and wanted["decode"] >= 2
    assert any("max_gpu_budget" in reason for report in reports if isinstance(report, Proposal) for reason in report.reasons)


def test_a_gpu_floor_is_filled() -> None:
    from pool_planner.scaling.limits import Want, fit_to_gpus

    wants = [
        Want(pool="p", replicas=1, gpus_per_replica=1, least=1, most=4),
        Want(pool="d", replicas=2, gpus_per_replica=2, least=1, most=4),
    ]
    given_, reason = fit_to_gpus(wants, most=12, least=8)
    assert sum(given_[w.pool] * w.gpus_per_replica for w in wants) >= 8
    assert reason is not None
    assert fit_to_gpus(wants, most=12, least=None) == ({"p": 1, "d": 2}, None)
    tight, _ = fit_to_gpus([Want(pool="p", replicas=9, gpus_per_replica=1, least=5, most=9)], most=3, least=None)
    assert tight == {"p": 5}, "a minimum is kept even where it does not fit"


def test_a_warm_start_knows_the_traffic_before_the_first_interval() -> None:
    """Ten seconds into an interval of thirty, a trace of five requests/s knows more than the first requests do."""
    story = Story(have=1, enable_load_scaling=True, load_adjustment_interval=10)
    trace = [WarmBin(requests=150.0, isl_tokens=1000.0, osl_tokens=150.0)] * 20
    story.state = start(story.setup, now=0.0, warmup={"prefill": trace})
    story.step(0.5)
    assert isinstance(story.report, Proposal)
    assert story.report.load_rps == pytest.approx(5.0)
    assert story.wanted > 4


def test_setups_that_cannot_be_planned_are_refused() -> None:
    with pytest.raises(SetupError, match="profile data"):
        PlannerSetup(config=config(), pools=(pool(profile=None),))
    with pytest.raises(SetupError, match="given 2 times"):
        PlannerSetup(config=config(), pools=(pool(), pool()))
    with pytest.raises(SetupError, match="min_replicas 5"):
        PlannerSetup(config=config(), pools=(pool(min_replicas=5, max_replicas=4),))
    with pytest.raises(SetupError, match="decode_engine_num_gpu"):
        setup_from_config(config(prefill_engine_num_gpu=1), PROFILE, gpus_per_replica={})
    with pytest.raises(SetupError, match="does not hold"):
        setup_from_config(config(prefill_engine_num_gpu=16), PROFILE, gpus_per_replica={"decode": 1})


MODES: list[tuple[dict[str, Any], list[str]]] = [
    ({"mode": "disagg", "backend": "vllm"}, ["VllmPrefillWorker", "VllmDecodeWorker"]),
    ({"mode": "prefill", "backend": "sglang"}, ["prefill"]),
    ({"mode": "decode", "backend": "vllm"}, ["VllmDecodeWorker"]),
    ({"mode": "agg", "backend": "vllm"}, ["VllmWorker"]),
]


@pytest.mark.parametrize(("given_", "expected"), MODES)
def test_a_configuration_alone_makes_a_setup(given_: dict[str, Any], expected: list[str]) -> None:
    setup = setup_from_config(config(**given_, min_endpoint=2), PROFILE, gpus_per_replica={"prefill": 1, "decode": 2, "agg": 2})
    assert [each.name for each in setup.pools] == expected
    assert setup.max_gpus == 8
    assert all(each.min_replicas == 2 for each in setup.pools)


def test_a_tick_is_fast() -> None:
    """Two pools of 32 replicas with length histograms; the bound is ten times what an idle machine takes."""
    from pool_planner.types import Histogram

    edges = tuple(float(2**k) for k in range(4, 18))
    story = Story(have=3, role="agg", pool={"max_replicas": 32}, no_correction=False)
    histogram = Histogram(edges=edges, counts=tuple(float(k) for k in range(15)))
    taken = []
    for _ in range(20):
        begin = time.perf_counter()
        story.step(3.0, isl_histogram=histogram, osl_histogram=histogram, ttft_ms=900.0, itl_ms=400.0)
        taken.append(time.perf_counter() - begin)
    assert sorted(taken)[10] < 0.05
    assert not isinstance(story.report, Hold)
