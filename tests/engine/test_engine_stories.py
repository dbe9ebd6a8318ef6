"""The engine model in numbers that fit in the head: 100 ms + 1 ms a prompt token, 10 ms a decode step."""

from __future__ import annotations

import math

import pytest

from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineRequest, EngineSpec, EngineSpecError, raw_spec, spec_from_raw
from tests.engine.engines import drive, profile, spec, times


def ask(request_id: str, isl: int, osl: int, **more: object) -> EngineRequest:
    return EngineRequest(id=request_id, isl=isl, osl=osl, **more)  # type: ignore[arg-type]


def test_a_request_alone_takes_its_measured_ttft_and_itl() -> None:
    events = drive(Replica(spec()), [(1.0, ask("a", 400, 11))])
    assert times(events, "first_token") == {"a": 1.5}
    assert times(events, "finished") == {"a": 1.6}


def test_a_long_prompt_is_computed_in_chunks_and_still_takes_its_measured_ttft() -> None:
    replica = Replica(spec())
    replica.submit(0.0, ask("a", 2500, 2))
    boundaries = []
    while (due := replica.next_event_at()) < math.inf:
        boundaries.append(round(due, 9))
        replica.advance(due)
    assert boundaries == [0.0, 1.1, 2.1, 2.6, 2.61]


def test_prompts_in_one_step_share_the_start_and_end_together() -> None:
    events = drive(Replica(spec()), [(0.0, ask("a", 300, 1)), (0.0, ask("b", 200, 1))])
    assert times(events, "first_token") == {"a": 0.6, "b": 0.6}


def test_a_prompt_that_comes_during_a_step_waits_for_its_end() -> None:
    events = drive(Replica(spec(role="prefill")), [(0.0, ask("a", 300, 1)), (0.1, ask("b", 200, 1))])
    assert times(events, "first_token") == {"a": 0.4, "b": 0.7}


def test_cached_tokens_are_not_computed() -> None:
    events = drive(Replica(spec()), [(0.0, ask("a", 400, 1, cached_tokens=150)), (9.0, ask("b", 400, 1, cached_tokens=400))])
    assert times(events, "first_token") == {"a": 0.35, "b": 9.101}


def test_decode_goes_on_while_a_prompt_is_computed_but_slower() -> None:
    """At 0.505 a prompt of 1,500 comes. Its first chunk is 999 tokens, because one of the budget goes to the sequence that
    decodes: a step of 10 + 999 ms, then one of 10 + 501 ms. Nobody pays the start of 100 ms beside a step that runs anyway."""
    events = drive(Replica(spec(), stream=True), [(0.0, ask("a", 400, 9)), (0.505, ask("b", 1500, 2))])
    tokens = [(e.id, e.tokens, round(e.at_s, 6)) for e in events if e.kind != "finished"]
    assert tokens == [("a", 1, 0.5), ("b", 1, 2.03), ("a", 5, 2.04)]
    assert times(events, "finished") == {"a": 2.08, "b": 2.04}


def test_itl_rises_with_the_sequences_that_run() -> None:
    replica = Replica(spec(profile=profile(sequence_ms=5.0), kv_transfer_ms=0.0))
    events = drive(replica, [(0.0, ask(i, 100, 10, kv_transferred=True)) for i in "abcd"])
    assert times(events, "finished") == dict.fromkeys("abcd", pytest.approx(10 * 0.03, rel=0.01))


def test_a_transferred_request_fetches_blocks_and_joins_at_a_step_boundary() -> None:
    replica = Replica(spec(role="decode"))
    events = drive(replica, [(0.0, ask("a", 400, 20, kv_transferred=True)), (0.1, ask("b", 400, 3, kv_transferred=True))])
    assert times(events, "first_token") == {"a": 0.06, "b": 0.16}
    assert times(events, "finished") == {"a": 0.25, "b": 0.18}
    events = drive(replica, [(1.0, ask("c", 400, 20, kv_transferred=True)), (1.103, ask("d", 400, 1, kv_transferred=True))])
    assert times(events, "finished") == {"c": 1.25, "d": 1.17}, "fetched at 1.153, joined at 1.16"


def test_streamed_chunks_come_at_the_time_of_their_last_token() -> None:
    events = drive(Replica(spec(tokens_per_chunk=4), stream=True), [(0.0, ask("a", 400, 11))])
    assert [(e.kind, e.tokens, round(e.at_s, 9)) for e in events] == [
        ("first_token", 1, 0.5), ("tokens", 5, 0.54), ("tokens", 9, 0.58), ("finished", 11, 0.6),
    ]  # fmt: skip


def test_tokens_done_between_events() -> None:
    replica = Replica(spec())
    replica.submit(0.0, ask("a", 400, 11))
    replica.advance(0.5)
    assert [replica.tokens_done(t, "a") for t in (0.5, 0.509, 0.51, 0.555, 0.7)] == [1, 1, 2, 6, 11]
    replica.advance(1.0)
    with pytest.raises(KeyError):
        replica.tokens_done(1.0, "a")


def test_admission_waits_for_a_slot_in_order_of_arrival() -> None:
    events = drive(
        Replica(spec(max_num_seqs=1)), [(0.0, ask("a", 100, 11)), (0.01, ask("b", 100, 1)), (0.02, ask("c", 100, 1))]
    )
    assert times(events, "finished") == {"a": 0.3, "b": 0.5, "c": 0.7}


def test_admission_waits_for_kv_blocks_and_nobody_overtakes() -> None:
    """10 blocks. `a` takes 7 (112 tokens), `b` needs 5 and waits; `c` needs 1, and waits behind `b`."""
    replica = Replica(spec(max_kv_tokens=160))
    events = drive(replica, [(0.0, ask("a", 100, 12)), (0.05, ask("b", 80, 1)), (0.06, ask("c", 16, 1))])
    assert times(events, "finished")["a"] == pytest.approx(0.31)
    assert times(events, "finished")["b"] == times(events, "finished")["c"] == pytest.approx(0.31 + 0.1 + 0.096)
    assert replica.preemptions == 0


def test_when_kv_runs_out_the_youngest_is_computed_again() -> None:
    """10 blocks, two prompts of 64 tokens (4 blocks each) that want 80 output tokens: 9 blocks each in the end."""
    replica = Replica(spec(max_kv_tokens=160), stream=True)
    events = drive(replica, [(0.0, ask("a", 64, 80)), (0.0, ask("b", 64, 80))])
    assert replica.preemptions == 1
    finished = times(events, "finished")
    assert finished["a"] == pytest.approx(0.1 + 0.128 + 0.79)
    # b lost its blocks with 17 tokens out, was computed again (81 tokens) when a had gone, and made the other 62.
    assert finished["b"] == pytest.approx(finished["a"] + 0.1 + 0.081 + 0.62)
    counts = [e.tokens for e in events if e.id == "b"]
    assert counts == sorted(set(counts)), "no token is reported twice"
    assert replica.load().kv_usage == 0


def test_a_prefill_engine_holds_blocks_until_they_are_pulled() -> None:
    replica = Replica(spec(role="prefill"))
    drive(replica, [(0.0, ask("a", 160, 1, hold_kv=True))], until=1.0)
    assert (replica.load().pending_kv, replica.load().kv_usage, replica.idle) == (1, 0.01, False)
    assert replica.pull(2.0, "a")
    assert (replica.load().pending_kv, replica.load().kv_usage, replica.idle) == (0, 0.0, True)
    assert not replica.pull(2.0, "a")


def test_held_blocks_time_out_and_let_the_next_prompt_in() -> None:
    replica = Replica(spec(role="prefill", max_kv_tokens=160))
    events = drive(replica, [(0.0, ask("a", 160, 1, hold_kv=True)), (0.5, ask("b", 160, 1))])
    assert times(events, "kv_expired") == {"a": 5.26}
    assert times(events, "finished") == {"a": 0.26, "b": 5.52}


def test_lost_blocks_are_computed_by_the_decode_engine_itself() -> None:
    replica = Replica(spec(role="decode"))
    assert replica.submit(0.0, ask("a", 400, 3, kv_transferred=True)) is None
    replica.advance(0.02)
    assert replica.kv_lost(0.02, "a") and not replica.kv_lost(0.02, "other")
    events = drive(replica, [])
    assert times(events, "first_token") == {"a": 0.52}
    assert times(events, "finished") == {"a": 0.54}
    assert replica.submit(1.0, ask("b", 400, 30, kv_transferred=True)) is None
    events = drive(replica, [], until=1.1)
    assert replica.kv_lost(1.105, "b"), "after 5 tokens came out: the 6th is under way, 406 are computed again for the 7th"
    events += drive(replica, [])
    assert times(events, "first_token") == {"b": 1.06}
    assert times(events, "finished") == {"b": pytest.approx(1.11 + 0.506 + 0.23)}


def test_cancel_frees_what_it_holds_at_the_next_boundary_and_says_nothing_more() -> None:
    replica = Replica(spec(max_num_seqs=1))
    for request_id in "abc":
        replica.submit(0.0, ask(request_id, 100, 50))
    events = replica.advance(0.255)
    assert replica.cancel(0.255, "a") and replica.cancel(0.255, "c") and not replica.cancel(0.255, "a")
    events += drive(replica, [])
    assert times(events, "first_token") == {"a": 0.2, "b": 0.46}
    assert list(times(events, "finished")) == ["b"]
    assert replica.idle and replica.load().active_prefill_tokens == 0


def test_cold_start_drain_and_what_is_refused() -> None:
    replica = Replica(spec(max_kv_tokens=1600), ready_at_s=10.0)
    assert replica.submit(9.9, ask("a", 100, 1)) == "starting"
    assert replica.submit(10.0, ask("a", 100, 1)) is None
    assert replica.submit(10.0, ask("b", 11_999, 2)) == "too_long"
    assert replica.submit(10.0, ask("b", 1500, 200)) == "kv_too_small"
    with pytest.raises(ValueError, match="already in the engine"):
        replica.submit(10.0, ask("a", 100, 1))
    with pytest.raises(ValueError, match="must be >= 1"):
        replica.submit(10.0, ask("b", 0, 1))
    replica.drain()
    assert replica.submit(10.1, ask("b", 100, 1)) == "draining"
    assert times(drive(replica, []), "finished") == {"a": 10.2}
    assert replica.idle
    only_prefill = Replica(spec(role="prefill", profile=type(profile())(prefill=profile().prefill)))
    assert only_prefill.submit(0.0, ask("a", 100, 2)) == "cannot_decode"


def test_the_gauges() -> None:
    replica = Replica(spec(max_num_seqs=2))
    for request_id, isl in (("a", 160), ("b", 320), ("c", 80)):
        replica.submit(0.0, ask(request_id, isl, 10))
    replica.advance(0.0)
    load = replica.load()
    assert (load.running, load.waiting, load.kv_usage, load.active_prefill_tokens) == (2, 1, 0.03, 560)
    replica.advance(0.58)
    load = replica.load()
    assert (load.active_prefill_tokens, load.active_decode_blocks) == (80, 30)
    replica.advance(0.59)
    replica.cancel(0.59, "a")
    replica.advance(0.60)
    assert replica.load().running == 2 and replica.load().waiting == 0


def test_a_late_caller_gets_the_same_events_at_the_same_times() -> None:
    arrivals = [(0.1 * i, ask(str(i), 50 + 90 * i, 20)) for i in range(10)]
    prompt, late = Replica(spec(), stream=True), Replica(spec(), stream=True)
    events = drive(prompt, arrivals)
    for at, request in arrivals:
        late.submit(at, request)
    assert late.advance(1e6) == events


def test_the_specification_survives_json_and_names_what_is_wrong() -> None:
    raw = raw_spec(spec(role="prefill", model="demo/chat"))
    assert raw_spec(spec_from_raw(raw, source="f")) == raw
    for change, complaint in (
        ({"role": "both"}, "f: role: 'both' is not one of prefill, decode, agg"),
        ({"speed": 3}, "f: unknown key 'speed'"),
        ({"max_num_seqs": 0}, "f: max_num_seqs: 0 must be >= 1"),
        ({"max_num_seqs": 1.5}, "f: max_num_seqs: 1.5 is not a whole number"),
        ({"max_kv_tokens": "x"}, "f: max_kv_tokens: 'x' is not a whole number or null"),
        ({"kv_hold_s": math.inf}, "f: kv_hold_s: inf must be finite"),
        ({"kv_hold_s": "1"}, "f: kv_hold_s: '1' is not a number"),
        ({"model": 1}, "f: model: 1 is not text"),
        ({"profile": "dir"}, "f: profile: expected an object"),
        ({"profile": {"prefill": None}}, "f: profile: has no prefill curve"),
        ({"profile": {"prefill": {}}}, "f: profile: prefill: prefill_isl is missing"),
    ):
        with pytest.raises(EngineSpecError) as refused:
            spec_from_raw({**raw, **change}, source="f")
        assert str(refused.value).startswith(complaint)
    with pytest.raises(EngineSpecError, match="profile is missing"):
        spec_from_raw({"role": "agg"}, source="f")
    with pytest.raises(EngineSpecError, match="no decode curve, which a decode engine needs"):
        EngineSpec(role="decode", profile=type(profile())(prefill=profile().prefill))


def test_the_front_delays_everybody_and_nobody_waits_for_another_there() -> None:
    """30 ms of front, then as without: b comes 1 ms after a, misses its step (100 ms of start, 100 of work) and takes the
    next."""
    front = spec(role="prefill", front_ms=30.0)
    events = drive(Replica(front), [(0.0, ask("a", 100, 1)), (0.001, ask("b", 100, 1))])
    assert times(events, "first_token") == {"a": 0.23, "b": 0.43}


def test_a_request_cancelled_in_the_front_costs_no_step() -> None:
    replica = Replica(spec(front_ms=30.0))
    assert replica.submit(0.0, ask("a", 100, 1)) is None
    assert replica.load().waiting == 1 and replica.load().active_prefill_tokens == 100
    assert replica.cancel(0.01, "a") and replica.idle
    assert replica.advance(1.0) == [] and replica.next_event_at() == math.inf
    assert replica.load().waiting == 0 and replica.load().active_prefill_tokens == 0
