"""The parts of a measurement that need no engine: statistics, the plan, what streams tell, and the record."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from pool_planner.profiler.endpoint import Answer
from pool_planner.profiler.measure import steady
from pool_planner.profiler.measure_plan import Limits, PrefillPoint, key, queue_points, requests_at_most
from pool_planner.profiler.record import Record, RecordError
from pool_planner.profiler.statistics import summarise
from pool_planner.profiler.sweep import DecodePoint, decode_columns, decode_points, longest_context, prefill_lengths


def test_the_interval_of_the_median_holds_it_about_as_often_as_it_says() -> None:
    drawn = random.Random(7)
    inside = 0
    for _ in range(2000):
        summary = summarise([drawn.gauss(100.0, 5.0) for _ in range(8)])
        inside += abs(summary.median - 100.0) <= summary.half_width
    assert 0.88 < inside / 2000 < 0.99


def test_outliers_are_reported_and_move_nothing() -> None:
    summary = summarise([100.0, 101.0, 99.0, 100.0, 900.0])
    assert (summary.median, summary.outliers, summary.count) == (100.0, (900.0,), 5)
    assert summary.is_tight(0.05)
    assert summarise([100.0, 104.0, 96.0, 101.0]).outliers == ()
    assert math.isinf(summarise([5.0, 5.0]).half_width), "two values say nothing about their scatter"


def test_the_requests_of_a_plan_are_bounded() -> None:
    limits = Limits(least=2, most=5, concurrency=4)
    points = [PrefillPoint(isl=100), DecodePoint(context=100, batch=4), *queue_points(100, limits)]
    assert [key(point) for point in points] == [
        "prefill isl=100 depth=1", "decode context=100 batch=4", "prefill isl=100 depth=2", "prefill isl=100 depth=4",
    ]  # fmt: skip
    assert requests_at_most(points, limits) == 6 + 4 * 9 + 2 * 6 + 4 * 6
    for wrong in ({"least": 3, "most": 2}, {"least": 0}, {"concurrency": 0}, {"tight": 1.0}, {"window": 1}):
        with pytest.raises(ValueError, match=r"repetitions|limits"):
            Limits(**wrong)  # type: ignore[arg-type]


def test_the_points_of_a_sweep() -> None:
    assert prefill_lengths(longest_context(3000, 150, 900_000), 16)[-1] == 12_600
    assert longest_context(3000, 150, 10_000) == 3333, "a third of the KV cache"
    assert longest_context(3000, 150, 900_000, model_limit=4096) == 4096
    points = decode_points(8192, 100_000, 6)
    assert len({point.context for point in points}) == 6
    for context in {point.context for point in points}:
        batches = [point.batch for point in points if point.context == context]
        assert batches[0] == 1 and len(batches) >= 2 and batches[-1] * context <= 100_000 and batches[-1] <= 256
    columns = decode_columns([(200.0, 0.5, 2.0, 10.0), (100.0, 0.1, 1.0, 5.0)], 2, 1000)
    assert columns["y_context_length"] == [100.0, 200.0] and columns["z_thpt_per_gpu"] == [100.0, 100.0]


def stream(first_s: float, step_s: float, chunks: int, per_chunk: int = 1) -> Answer:
    """A token at first_s, then `per_chunk` of them every step."""
    times = [first_s + step_s * number for number in range(chunks)]
    return Answer(sent_s=0.0, at_s=times, prompt_tokens=100, completion_tokens=1 + per_chunk * (chunks - 1))


def test_decoding_is_read_only_while_all_sequences_run() -> None:
    slow_start = Answer(sent_s=0.0, at_s=[0.0, 1.0, 2.0, *(2.0 + 0.1 * i for i in range(1, 21))], completion_tokens=23)
    found = steady([slow_start, stream(2.0, 0.1, 21)])
    assert found is not None and found.itl_ms == pytest.approx(100.0), "the slow steps were before the second one began"
    chunky = steady([stream(0.0, 0.4, 6, per_chunk=4), stream(0.0, 0.4, 6, per_chunk=4)])
    assert chunky is not None and chunky.itl_ms == pytest.approx(100.0) and chunky.tokens == 20
    assert chunky.context == pytest.approx(100 + 1 + 10)
    assert steady([stream(0.0, 0.1, 5), stream(2.0, 0.1, 5)]) is None, "one had ended before the other began"


def test_a_record_goes_on_where_it_stopped_and_is_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    Record(path, {"model": "a"}).add("decode context=1 batch=1", {"median": 3.0})
    with path.open("a") as file:
        file.write('{"point": "torn", "med')
    again = Record(path, {"model": "a"})
    assert again.points == {"decode context=1 batch=1": {"median": 3.0}}
    again.add("second", {"median": 4.0})
    assert set(Record(path, {"model": "a"}).points) == {"decode context=1 batch=1", "second"}
    with pytest.raises(RecordError, match="was measured of something else \\(model: 'a', now 'b'\\)"):
        Record(path, {"model": "b"})
    path.write_text("hello\n")
    with pytest.raises(RecordError, match="is no record of measurements"):
        Record(path, {"model": "a"})
