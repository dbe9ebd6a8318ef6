"""The summary against what a made-up run must amount to, counted by hand or by a dumb twin."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from global_planner.compile import pool_specs
from global_planner.demo.attainment import itl_attained, prompts_of, ttft_attained
from global_planner.demo.summary import RunParameters, Summary, summarise
from global_planner.demo.words import table, words
from global_planner.mocker.load_record import LoadRecord
from global_planner.types import Cancel, Drain, Round, Shrink, StepOutcome
from tests.demo_parts import story

RUN = RunParameters(topology=story.topology(), speed=20.0, wall_s=130.0, minutes=40.0)
JOURNAL = story.journal()
RECORDS = story.records()
ROUNDS = [record for record in JOURNAL if isinstance(record, Round)]
WHOLE = summarise(RECORDS, JOURNAL, RUN)

FIELDS = {
    *("requests", "completed", "lost", "retried", "ttft_attainment", "itl_attainment", "gpu_hours", "gpu_hours_static_peak"),
    *("budget_gpus", "max_charged_gpus", "budget_violations", "rounds", "scale_ups", "scale_downs", "decisions_p99_ms"),
    *("wall_s", "speed", "overhead_ms_p50"),
}


def record(**changes: object) -> LoadRecord:
    base = LoadRecord(
        index=0,
        model="demo/chat",
        at_s=10.0,
        isl_tokens=100,
        osl_tokens=11,
        priority=0,
        chat=True,
        streamed=True,
        sent_s=50.0,
        late_ms=0.0,
        outcome="completed",
        duration_ms=9000.0,
        ttft_ms=5000.0,
        itl_ms=400.0,
        engine_model_ms=8900.0,
        http_status=200,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def of(*records: LoadRecord, rounds: list[Round] | None = None) -> Summary:
    return summarise(records, ROUNDS if rounds is None else rounds, RUN)


def test_summary_json_has_every_promised_field_and_is_json() -> None:
    told = json.loads(json.dumps(WHOLE.as_json()))
    assert set(told) >= FIELDS
    assert told["requests"] == len(RECORDS) == told["completed"]
    assert set(told["models"]) == {"demo/chat", "demo/code"}
    assert set(told["pools"]) == {spec.name for spec in pool_specs(story.topology())}
    assert {"requests", "attainment", "gpu_hours", "gpu_hours_static_peak", "scale_ups", "scale_downs"} <= set(
        told["pools"]["chat-decode"]
    )
    assert sum(model["requests"] for model in told["models"].values()) == told["requests"]


# ---- attainment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "ttft", "itl"),
    [
        ({}, True, True),
        ({"ttft_ms": 6000.0}, True, True),
        ({"ttft_ms": 6000.1}, False, True),
        ({"itl_ms": 500.1}, True, False),
        ({"outcome": "lost"}, False, False),
        ({"outcome": "rejected"}, False, False),
        ({"outcome": "abandoned"}, False, False),
        # In one piece: 6000 + 10 x 500 = 11000 ms for both.
        ({"streamed": False, "ttft_ms": None, "itl_ms": None, "duration_ms": 11_000.0}, True, True),
        ({"streamed": False, "ttft_ms": None, "itl_ms": None, "duration_ms": 11_000.1}, False, False),
    ],
)
def test_who_met_the_sla(changes: dict[str, object], ttft: bool, itl: bool) -> None:
    one = record(**changes)
    assert (ttft_attained(one, 6000.0, 500.0), itl_attained(one, 6000.0, 500.0)) == (ttft, itl)


def test_attainment_is_over_all_that_was_offered() -> None:
    summary = of(
        record(), record(ttft_ms=7000.0), record(outcome="lost", reason="cut"), record(outcome="rejected", http_status=429)
    )
    assert (summary.requests, summary.completed, summary.lost, summary.rejected) == (4, 2, 1, 1)
    assert (summary.ttft_attainment, summary.itl_attainment) == (0.25, 0.5)
    assert summary.lost_reasons == {"cut": 1}
    assert not summary.good


def test_itl_is_of_requests_with_two_tokens_and_more() -> None:
    single = record(osl_tokens=1, itl_ms=None)
    assert of(single, record(itl_ms=900.0)).itl_attainment == 0.0
    assert of(single).itl_attainment is None


def test_a_run_without_requests_knows_nothing_of_attainment() -> None:
    summary = of()
    assert (summary.requests, summary.ttft_attainment, summary.overhead_ms_p50) == (0, None, None)
    assert summary.gpu_hours > 0.0
    assert "–" in words(summary) and table(summary)


def test_prompts_belong_to_the_tightest_pool() -> None:
    chat = story.topology().groups[0]
    by_name = {pool.name: prompts_of(chat, pool) for pool in chat.pools}
    assert by_name == {
        "chat-prefill-short": (0.0, 2048.0),
        "chat-decode": (0.0, float("inf")),
        "chat-prefill-long": (2048.0, float("inf")),
    }
    pools = of(record(isl_tokens=2048), record(isl_tokens=2049), record(isl_tokens=1, ttft_ms=9e9)).pools
    assert [pools[name].requests for name in by_name] == [2, 3, 1]
    assert [pools[name].attainment for name in by_name] == [0.5, 1.0, 1.0]


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def test_gpu_hours_are_the_integral_of_what_was_charged() -> None:
    """The dumb twin: one second at a time, what the last round saw."""
    start_s, end_s = story.START_S, story.START_S + WHOLE.span_s
    total, index = 0.0, 0
    seconds = 0
    while start_s + seconds < end_s:
        while index + 1 < len(ROUNDS) and ROUNDS[index + 1].inputs.at_s <= start_s + seconds:
            index += 1
        total += ROUNDS[index].charged_gpus["h100"] / 3600.0
        seconds += 1
    assert WHOLE.gpu_hours == pytest.approx(total, rel=1e-3)
    assert sum(pool.gpu_hours for pool in WHOLE.pools.values()) == pytest.approx(WHOLE.gpu_hours)


def test_static_peak_is_every_pool_at_the_most_it_wanted() -> None:
    inside = [done for done in ROUNDS if done.inputs.at_s >= story.START_S]
    most = {
        spec.name: max(grant.wanted or 0 for done in inside for grant in done.allocation.pools if grant.pool == spec.name)
        for spec in pool_specs(story.topology())
    }
    assert {name: pool.max_wanted for name, pool in WHOLE.pools.items()} == most
    assert WHOLE.gpu_hours_static_peak == pytest.approx(sum(most.values()) * WHOLE.span_s / 3600.0)
    assert WHOLE.gpu_hours < WHOLE.gpu_hours_static_peak


def test_a_round_above_the_budget_is_a_violation() -> None:
    over = replace(ROUNDS[100], charged_gpus={"h100": 15})
    summary = of(record(), rounds=[*ROUNDS[:100], over, *ROUNDS[101:]])
    assert (summary.budget_violations, summary.max_charged_gpus, summary.budget_gpus) == (1, 15, 14)
    assert not summary.good
    assert "exceeded in 1 rounds, by up to 1 h100" in words(summary)
    exactly = replace(ROUNDS[100], charged_gpus={"h100": 14})
    assert of(record(), rounds=[exactly]).budget_violations == 0


def test_a_type_without_a_limit_has_no_budget() -> None:
    summary = of(record(), rounds=[replace(ROUNDS[0], charged_gpus={"h100": 5, "h200": 3})])
    assert (summary.budget_gpus, summary.max_charged_gpus, summary.budget_violations) == (None, 8, 0)
    assert summary.gpu_types["h200"] == {"budget": None, "max_charged": 3}


def test_scale_ups_and_downs_are_orders_that_were_carried_out() -> None:
    ups, downs = 0, 0
    have: dict[str, int] = {}
    for done in ROUNDS:
        for holding in done.inputs.holdings:
            before = have.get(holding.pool, holding.spec)
            ups, downs = ups + (holding.spec > before), downs + (holding.spec < before)  # type: ignore[operator]
            have[holding.pool] = holding.spec  # type: ignore[assignment]
    assert (WHOLE.scale_ups, WHOLE.scale_downs) == (ups, downs)
    quiet = replace(ROUNDS[5], steps=(), outcomes=())
    shrink = Shrink(pool="chat-decode", before=3, after=2, victims=("x",), version="1", reason="r")
    nothing = (
        StepOutcome(step=shrink, applied=False, error="conflict"),
        StepOutcome(step=replace(shrink, after=3, victims=()), applied=True),
        StepOutcome(step=Drain(pool="chat-decode", replicas=("x",), deadline_s=9.0, reason="r"), applied=True),
        StepOutcome(
            step=Cancel(pool="p", before=3, after=2, victims=(), version="1", backoff_until_s=9.0, reason="r"), applied=True
        ),
    )
    assert of(rounds=[replace(quiet, outcomes=nothing)]).scale_downs == 0
    assert of(rounds=[replace(quiet, outcomes=(*nothing, StepOutcome(step=shrink, applied=True)))]).scale_downs == 1


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_overhead_is_told_in_model_and_in_wall_time() -> None:
    summary = of(record(), record(duration_ms=9300.0), record(duration_ms=9200.0), record(engine_model_ms=None))
    assert (summary.overhead_ms_p50, summary.overhead_wall_ms_p50) == (300.0, 15.0)
    assert (summary.overhead_ms_p05, summary.overhead_wall_ms_p05) == (pytest.approx(120.0), pytest.approx(6.0))
    assert "120 ms of model time in the quickest requests (6.0 ms of wall time at this speed)" in words(summary)


def test_decision_times_are_a_high_percentile() -> None:
    slow = [replace(done, decide_ms=100.0 if index == 7 else 1.0) for index, done in enumerate(ROUNDS)]
    assert of(record(), rounds=slow).decisions_p99_ms == pytest.approx(1.0)
    assert of(record(), rounds=slow[:20]).decisions_p99_ms == pytest.approx(81.2, abs=1.0)


def test_words_say_what_the_numbers_say() -> None:
    said = words(WHOLE)
    assert f"Of {WHOLE.requests:,} requests {WHOLE.completed:,} were answered in full and none was lost" in said
    assert f"The budget of 14 GPUs was never exceeded: at most {WHOLE.max_charged_gpus} were charged." in said
    assert "the built-in workload (seed 1)" in said
    lossy = words(of(record(), record(outcome="lost", reason="x")))
    assert "1 WERE LOST" in lossy
    assert "served the trace azure.csv.gz for" in words(summarise(RECORDS, JOURNAL, replace(RUN, trace="/a/b/azure.csv.gz")))


def test_tables_line_up() -> None:
    for block in table(WHOLE).split("\n\n"):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_the_clusters_own_count_is_evidence_against_the_arbiters() -> None:
    """The arbiter may believe that it stayed within the budget; what the cluster held at once decides too."""
    limit = WHOLE.budget_gpus
    assert limit is not None
    held = summarise(RECORDS, ROUNDS, replace(RUN, peak_held_gpus={"h100": limit}))
    assert (held.max_held_gpus, held.budget_violations, held.good) == (limit, 0, True)
    over = summarise(RECORDS, ROUNDS, replace(RUN, peak_held_gpus={"h100": limit + 1}))
    assert (over.max_held_gpus, over.budget_violations, over.good) == (limit + 1, 1, False)
    assert WHOLE.max_held_gpus is None


def test_the_whole_budget_held_all_the_time_is_the_harder_comparison() -> None:
    assert WHOLE.gpu_hours_whole_budget == pytest.approx((WHOLE.budget_gpus or 0) * WHOLE.span_s / 3600.0)
