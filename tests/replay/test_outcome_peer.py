"""What is asked of the peer and how its runs are counted; the peer itself runs in the benchmark only."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pool_planner.performance.profile import load_profile
from tests.bench.outcome import table
from tests.bench.outcome_peer import MODES, NotFinished, _asked, _figures, has_peer, watched
from tests.bench.outcome_peer_worker import Account
from tests.bench.outcome_scenarios import CASES, H200, case, slowed
from tests.bench.outcome_traces import TRACES

needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"no {TRACES}: the public traces are not in the repository")

COUNTS = {"requests": 10, "streams": 8, "ttft_met": 9, "itl_met": 4, "met": 5, "gpu_hours": 1.5, "moves": 3, "cpu_s": 1.0}


class Adapter:
    """Answers with the orders that it was given."""

    def __init__(self, *orders: tuple[int | None, int | None]) -> None:
        self._orders = list(orders)

    def initial_tick_ms(self) -> float:
        return 5000.0

    def on_tick(self, seen: dict[str, Any]) -> dict[str, Any]:
        prefill, decode = self._orders.pop(0)
        return {"target_prefill": prefill, "target_decode": decode, "next_tick_ms": None}


def seen(at_s: float, prefill: tuple[int, int], decode: tuple[int, int]) -> dict[str, Any]:
    """(in all, that stay) of each stage."""
    return {
        "now_ms": 1e3 * at_s,
        "total_prefill_count": prefill[0], "non_draining_prefill_count": prefill[1],
        "total_decode_count": decode[0], "non_draining_decode_count": decode[1],
    }  # fmt: skip


def test_gpus_count_from_the_order_until_the_worker_is_gone_and_only_within_the_window() -> None:
    """2 + 2 for 10 s; then a third prefill worker is ordered and counts while it starts; at 20 s a decode worker drains, and
    counts until it was seen gone at 30 s; the window ends at 40 s."""
    account = Account(Adapter((3, None), (None, 1), (None, 1), (None, None)), window_s=40.0)
    account.begin(4)
    account.on_tick(seen(10.0, (2, 2), (2, 2)))
    account.on_tick(seen(20.0, (3, 3), (2, 2)))
    account.on_tick(seen(30.0, (3, 3), (1, 1)))
    account.on_tick(seen(45.0, (3, 3), (1, 1)))
    account.until(60.0)
    assert account.gpu_s == 10 * 4 + 10 * 5 + 10 * 5 + 10 * 4
    assert account.moves == 2  # an order for what is there already is none


def test_counts_become_the_benchmarks_figures() -> None:
    figures = _figures(COUNTS, 1800.0)
    assert (figures["ttft_attainment"], figures["itl_attainment"], figures["attainment"]) == (0.9, 0.5, 0.5)
    assert figures["violations"] == 5 and figures["reconfigurations_per_hour"] == 6.0


def test_only_deployments_of_one_model_have_a_peer() -> None:
    assert has_peer(case("conv-90s")) and has_peer(case("code-0s")) and not has_peer(case("ten"))


@needs_traces
def test_the_peer_gets_the_same_requests_the_same_curves_and_the_same_start(tmp_path: Path) -> None:
    for each in (replace(case("code-90s"), quick_s=30.0), replace(case("headroom"), quick_s=600.0)):
        place = tmp_path / each.name
        place.mkdir()
        asked = _asked(each, MODES["sla"], place, quick=True)
        lines = [json.loads(line) for line in (place / "trace.jsonl").read_text().splitlines()]
        whole = each.scenario(quick=True).workload
        assert [(line["input_length"], line["output_length"]) for line in lines] == list(
            zip(whole.isl.tolist(), whole.osl.tolist(), strict=True)
        )
        assert [line["timestamp"] for line in lines] == pytest.approx((1e3 * whole.at_s).tolist(), abs=1e-3)
        blocks = [block for line in lines for block in line["hash_ids"]]
        assert len(set(blocks)) == len(blocks), "nothing is shared in these traces"
        written, ours = load_profile(place / "profile"), slowed(load_profile(H200), each.slow)
        assert written.prefill is not None and ours.prefill is not None and written.decode and ours.decode
        assert written.prefill.ttft_ms(1234) == ours.prefill.ttft_ms(1234)
        assert written.decode.itl_ms(0.3, 1500) == ours.decode.itl_ms(0.3, 1500)
        assert asked["engine"]["startup_time"] == 90.0 and asked["start"] == each.models[0].start
    assert sum(map(has_peer, CASES)) >= 6


SLOW = "import json, sys, time; json.load(sys.stdin); [print(json.dumps({'now_s': at}), flush=True) for at in (10, 30)]; "


def test_a_run_that_takes_too_long_is_stopped_and_tells_how_far_it_came(tmp_path: Path) -> None:
    heard: list[float] = []
    with pytest.raises(NotFinished) as stopped:
        watched([sys.executable, "-c", SLOW + "time.sleep(60)"], {"window_s": 120.0}, tmp_path, 1.5, heard.append)
    assert stopped.value.played == 0.25 and stopped.value.after_s < 30.0
    assert heard == [pytest.approx(10 / 120), 0.25]


def test_what_a_run_tells_last_is_its_result_and_a_failure_says_why(tmp_path: Path) -> None:
    ends = SLOW + f"print({json.dumps(COUNTS)!r})"
    assert watched([sys.executable, "-c", ends], {"window_s": 120.0}, tmp_path, 60.0, lambda share: None) == COUNTS
    with pytest.raises(SystemExit, match="no such engine"):
        watched(
            [sys.executable, "-c", SLOW + "sys.exit('no such engine')"], {"window_s": 9.0}, tmp_path, 60.0, lambda share: None
        )


def test_an_unfinished_run_is_a_line_and_no_figures() -> None:
    scenario = {
        "about": "one model",
        "policies": {},
        "targets": [],
        "unfinished": {"dynamo:latency": {"after_s": 600.2, "played": 0.431}},
    }
    told = table({"scenarios": {"conv-90s": scenario}, "failed": []})
    assert "dynamo:latency  not finished after 600 s, 43% of the trace (--peer-limit)" in told
