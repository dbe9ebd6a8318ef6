"""The calibration that the engine benchmark judges with finds the engine that a sweep was made on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.engine import DATA, SWEEP, closed_loop, judge_variant, means, poisson, read_sweep
from tests.bench.engine_calibration import Calibration, Stage, calibrate

TRUTH = Calibration(front_ms=15.0, start_ms=14.0, token_ms=0.02, step_ms=7.0, sequence_ms=0.04)
SLOTS, ISL, OSL = 64, 200, 40


def swept(rate_rps: float) -> Stage:
    """What a sweep of the true engine shows at one rate."""
    asked = Stage(rate_rps=rate_rps, requests=max(60, int(10 * rate_rps)), isl=ISL, osl=OSL, ttft_ms=0.0, step_ms=0.0)
    ttft, step = means(TRUTH.spec(isl=ISL, osl=OSL, slots=SLOTS), poisson(asked, seed=7))
    return replace(asked, ttft_ms=ttft, step_ms=step)


def test_a_sweep_of_a_known_engine_predicts_the_rate_that_was_left_out() -> None:
    stages = [swept(rate) for rate in (1.0, 25.0, 50.0, 75.0)]
    for index, left_out in enumerate(stages[:3]):
        found = calibrate([*stages[:index], *stages[index + 1 :]], SLOTS)
        ttft, step = means(found.spec(isl=ISL, osl=OSL, slots=SLOTS), poisson(left_out, seed=8))
        assert ttft == pytest.approx(left_out.ttft_ms, rel=0.12), f"{left_out.rate_rps} requests/s"
        assert step == pytest.approx(left_out.step_ms, rel=0.08), f"{left_out.rate_rps} requests/s"
    truth, found = (
        closed_loop(each.spec(isl=ISL, osl=OSL, slots=SLOTS), 150, isl=ISL, osl=OSL, seconds=12.0)
        for each in (TRUTH, calibrate(stages, SLOTS))
    )
    assert found[0] == pytest.approx(truth[0], rel=0.1), "throughput with more in flight than slots"


@pytest.mark.skipif(not (DATA / "profiles" / SWEEP).is_file(), reason=f"no {DATA}: the measured sweep is not in the repository")
def test_the_engine_model_is_true_to_a_measured_sweep() -> None:
    below, beyond = read_sweep(DATA / "profiles" / SWEEP)["vllm"]
    assert [round(stage.rate_rps) for stage in below] == [1, 31, 61, 91], "what is below the knee"
    judged = judge_variant(below, beyond)
    assert judged["slots"] == 128
    assert judged["ttft_mape_below_knee"] <= 0.15 and judged["tpot_mape_below_knee"] <= 0.15
    assert abs(judged["plateau_error"]) <= 0.10
