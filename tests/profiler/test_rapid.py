"""Comparing engine shapes on made-up engines: who wins, what is said when nobody can, what is asked once only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pool_planner.performance.profile import decode_curve, prefill_curve
from pool_planner.profiler.aic import Unsupported, known_gpu, known_model
from pool_planner.profiler.cache import CachedEstimator
from pool_planner.profiler.rapid import choose_shapes, sweep
from pool_planner.profiler.request import ProfileRequest, read_request
from pool_planner.profiler.run import rapid_with
from pool_planner.profiler.shapes import EngineShape, EstimateError, Target, choose, decode_candidate, prefill_candidate, sizes
from tests.profiler.requests import changed

TARGET = Target(isl=1000, osl=100, ttft_ms=200.0, itl_ms=20.0)


class Made:
    """TTFT = 0.3 ms a token / GPUs^0.8, ITL = (10 + 0.1 x sequences) / GPUs^0.7; one GPU has no room for the weights."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.calls = 0

    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        self.calls += 1
        return self.factor * 0.3 * isl / shape.gpus**0.8

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        self.calls += 1
        return self.factor * (10 + 0.1 * batch + 1e-5 * context * batch) / shape.gpus**0.7

    def kv_tokens(self, shape: EngineShape) -> int:
        self.calls += 1
        if shape.gpus == 1:
            raise EstimateError(f"{shape}: the weights do not fit")
        return 100_000 * (shape.gpus - 1)

    def version(self, backend: str) -> str:
        return "1.0"


def shapes(*gpus: int) -> list[EngineShape]:
    return [EngineShape(backend="vllm", tensor_parallel=size) for size in gpus]


def test_the_most_throughput_per_gpu_within_the_sla_wins() -> None:
    ranking = choose([prefill_candidate(Made(), shape, TARGET) for shape in shapes(1, 2, 4, 8)], TARGET).ranking
    assert [candidate.shape.gpus for candidate in ranking] == [2, 4, 8, 1]
    assert ranking[0].latency_ms == pytest.approx(172.3, abs=0.1) and ranking[0].meets_sla
    assert ranking[-1].problem == "vllm tp1: the weights do not fit"
    tight = Target(isl=1000, osl=100, ttft_ms=100.0, itl_ms=20.0)
    found = choose([prefill_candidate(Made(), shape, tight) for shape in shapes(1, 2, 4, 8)], tight)
    assert found.candidate.shape.gpus == 4 and found.warning is None, "two GPUs have more throughput, and miss the SLA"


def test_decode_is_judged_at_the_largest_batch_that_fits() -> None:
    made = Made()
    candidate = decode_candidate(made, shapes(2)[0], TARGET)
    itl = [made.decode_ms(shapes(2)[0], TARGET.context, candidate.batch + more) for more in (0, 1)]
    assert candidate.batch == 90, "what the KV cache holds; ITL would allow more"
    strict = decode_candidate(made, shapes(2)[0], Target(isl=1000, osl=100, ttft_ms=200.0, itl_ms=8.0))
    itl = [made.decode_ms(shapes(2)[0], TARGET.context, strict.batch + more) for more in (0, 1)]
    assert itl[0] <= 8.0 < itl[1]


def test_an_sla_out_of_reach_is_said_with_the_best_achievable() -> None:
    impossible = Target(isl=1000, osl=100, ttft_ms=1.0, itl_ms=20.0)
    found = choose([prefill_candidate(Made(), shape, impossible) for shape in shapes(2, 4, 8)], impossible)
    assert found.candidate.shape.gpus == 8
    assert found.warning == "no shape meets a TTFT of 1 ms; the best achievable is 56.8 ms with vllm tp8 (8 GPUs a replica)"


def test_when_no_shape_can_be_used_every_reason_is_told() -> None:
    with pytest.raises(
        EstimateError, match="no engine shape can be used for decode: vllm tp1: vllm tp1: the weights do not fit"
    ):
        choose([decode_candidate(Made(), shapes(1)[0], TARGET)], TARGET)


def test_an_end_to_end_sla_is_split_where_it_needs_the_fewest_gpus() -> None:
    target, choices = choose_shapes(Made(), shapes(2, 4), ("prefill", "decode"), TARGET, e2e_ms=2000.0)
    assert target.ttft_ms + 99 * target.itl_ms == pytest.approx(2000.0)
    assert all(choice.candidate.meets_sla for choice in choices.values())


def test_aggregated_engines_do_both_on_one_shape() -> None:
    _, choices = choose_shapes(Made(), shapes(2, 4, 8), ("prefill", "decode"), TARGET, same=True)
    assert choices["prefill"].candidate.shape == choices["decode"].candidate.shape


def test_a_given_size_is_taken_and_a_better_one_is_named() -> None:
    _, choices = choose_shapes(Made(), shapes(2, 4), ("prefill", "decode"), TARGET, given={"prefill": 4})
    assert choices["prefill"].candidate.shape.gpus == 4
    assert "vllm tp2 would give" in str(choices["prefill"].warning)
    with pytest.raises(EstimateError, match=r"prefill engines of 3 GPUs were not compared \(has: 2, 4\)"):
        choose_shapes(Made(), shapes(2, 4), ("prefill",), TARGET, given={"prefill": 3})


def asked(**paths: object) -> ProfileRequest:
    return read_request(changed(workload={"isl": 1000, "osl": 100}, sla={"ttft": 200, "itl": 20}, **paths))


def test_the_swept_curves_are_the_engines_own() -> None:
    profiled = rapid_with(Made(), asked(), ["vllm"], lambda what, done, total: None)
    assert profiled.prefill is not None and profiled.decode is not None
    prefill, decode = prefill_curve(profiled.prefill, source="made"), decode_curve(profiled.decode, source="made")
    shape = profiled.choices["decode"].candidate.shape
    assert len(prefill.isl_tokens) == 16 and len({point[1] for point in decode.raw}) == 6
    assert prefill.ttft_ms(1234) == pytest.approx(
        Made().prefill_ms(profiled.choices["prefill"].candidate.shape, 1234), rel=0.01
    )
    for batch, context in ((5, 1050), (60, 700), (20, 3000)):
        expected = Made().decode_ms(shape, context, batch)
        assert decode.itl_ms(batch * context / decode.max_kv_tokens, context) == pytest.approx(expected, rel=0.02)


def test_a_phase_that_is_not_deployed_is_not_swept() -> None:
    choices = choose_shapes(Made(), shapes(2), ("decode",), TARGET)[1]
    prefill, decode = sweep(Made(), TARGET, choices, prefill_points=4, decode_points_=3)
    assert prefill is None and decode is not None


def test_estimates_are_asked_once_and_kept(tmp_path: Path) -> None:
    source = Made()
    for _ in range(2):
        cached = CachedEstimator(source, identity="made", folder=tmp_path)
        assert cached.version("vllm") == "1.0"
        assert cached.prefill_ms(shapes(2)[0], 100) == source.factor * 0.3 * 100 / 2**0.8
        with pytest.raises(EstimateError, match="the weights do not fit"):
            cached.kv_tokens(shapes(1)[0])
        cached.save()
    assert source.calls == 2
    file = next(tmp_path.glob("*.json"))
    file.write_text(json.dumps({"format": 1, "identity": "other", "values": {}}))
    assert CachedEstimator(source, identity="made", folder=tmp_path).prefill_ms(shapes(2)[0], 100) > 0
    file.write_text("{")
    CachedEstimator(source, identity="made", folder=tmp_path).prefill_ms(shapes(2)[0], 100)
    assert source.calls == 4, "a file of something else, or a torn one, is as good as none"


def test_sizes() -> None:
    assert sizes(1) == (1,) and sizes(6) == (1, 2, 4) and sizes(8, total=2) == (1, 2)


def test_names_that_are_not_known_come_with_the_nearest() -> None:
    with pytest.raises(Unsupported, match=r"hardware.gpuSku: 'h20' is not known; nearest: h200_sxm"):
        known_gpu("h20", ["h200_sxm", "h100_sxm", "l4"])
    with pytest.raises(Unsupported, match=r"model: 'Qwen/Qwen3-33B' is not known; nearest: Qwen/Qwen3-32B"):
        known_model("Qwen/Qwen3-33B", ["Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3.1-8B"])
