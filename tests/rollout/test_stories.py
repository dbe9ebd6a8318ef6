"""What users of other planners report, played against our rollout: each story is a failure that must not happen here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from global_planner import memory as memory_module
from global_planner.round import RoundConfig
from global_planner.types import Budget, Cancel, Drain, GroupSpec, Grow, Holding, Round, Shrink, Undrain
from pool_planner.types import Hold
from tests.rollout.play import POLICIES, Play, grant_in_order, groups, proposal
from tests.rollout.world import Crash, World, specs, with_mode


@pytest.fixture(autouse=True)
def dumb_arbiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)


def start(budget: int = 14, **wanted: int) -> Play:
    play = Play(World(specs=specs(), budget=Budget(max_gpus={"h100": budget})))
    play.want(chat_prefill=1, chat_decode=1, code_prefill=1, code_decode=0, docs_agg=0)
    play.want(**wanted)
    play.until_quiet()
    return play


def again(play: Play, **wanted: int) -> Round:
    """One round in which everybody reports anew; `wanted` changes."""
    for name in list(play.world.reports_now):
        play.want(**{name.replace("-", "_"): play.world.reports_now[name].wanted})  # type: ignore[union-attr]
    play.want(**wanted)
    done = play.round()
    assert done is not None
    assert play.world.violations == []
    return done


def kinds(done: Round) -> list[tuple[str, str]]:
    return [(type(step).__name__, step.pool) for step in done.steps]


# ---- 2: a pending replica that cannot be scheduled blocks every later decision ---------------------------------------


def test_a_replica_that_cannot_be_placed_blocks_nobody_is_cancelled_and_its_gpus_go_to_others() -> None:
    play = start()
    play.world.broken_starts = True
    again(play, docs_agg=1)
    play.world.broken_starts = False

    done = again(play, chat_prefill=3)
    assert ("Grow", "chat-prefill") in kinds(done), "others grow while it is pending"
    for _ in range(5):
        done = again(play, chat_decode=1)
    down = again(play, chat_prefill=2)
    assert ("Drain", "chat-prefill") in kinds(down), "and shrink"

    rounds = [again(play) for _ in range(6)]
    cancels = [step for done in rounds for step in done.steps if isinstance(step, Cancel)]
    assert len(cancels) == 1
    assert (cancels[0].pool, cancels[0].before, cancels[0].after) == ("docs-agg", 1, 0)
    assert "1 not started within 100 s" in cancels[0].reason
    waiting = rounds[-1]
    assert any("docs-agg does not grow for another" in condition for condition in waiting.conditions)
    capped = next(spec for spec in waiting.inputs.pools if spec.name == "docs-agg")
    assert capped.max_replicas == 0, "so the arbiter gives its GPUs to others in the meantime"


def test_the_back_off_doubles_and_ends_when_a_start_succeeds() -> None:
    play = start()
    play.world.broken_starts = True
    waits = []
    for _ in range(80):
        for step in again(play, docs_agg=1).steps:
            if isinstance(step, Cancel):
                waits.append(round(step.backoff_until_s - play.rounds[-1].inputs.at_s))
    assert waits[:4] == [30, 60, 120, 240]
    play.world.broken_starts = False
    for pod in play.world.pools["docs-agg"].pods:
        pod.stuck = False
    for _ in range(40):
        again(play)
    assert play.world.settled_at("docs-agg", 1)
    assert play.memory.rollout.of("docs-agg").failed_starts == 0


def test_a_start_that_makes_progress_is_not_cancelled() -> None:
    play = start()
    play.world.broken_starts = True  # the cluster shows no readiness, but weights keep arriving

    def with_progress(holding: Holding) -> Holding:
        return replace(
            holding,
            replicas=tuple(
                replace(replica, progress_at_s=play.world.now_s - 5.0) if replica.state == "starting" else replica
                for replica in holding.replicas
            ),
        )

    play.world.seen_as = with_progress
    steps = [step for _ in range(30) for step in again(play, docs_agg=1).steps]
    assert not [step for step in steps if isinstance(step, Cancel)]


# ---- 3: a scale-down kills requests in flight ------------------------------------------------------------------------


def test_a_replica_leaves_only_after_every_router_process_has_drained_it() -> None:
    play = start(chat_prefill=3)
    first = again(play, chat_prefill=2)
    (drain,) = [step for step in first.steps if isinstance(step, Drain)]
    assert len(drain.replicas) == 1 and not [step for step in first.steps if isinstance(step, Shrink)]

    rounds = [first]
    while not [step for step in rounds[-1].steps if isinstance(step, Shrink)]:
        rounds.append(again(play))
    (shrink,) = [step for step in rounds[-1].steps if isinstance(step, Shrink)]
    assert shrink.victims == drain.replicas
    seen = next(h for h in rounds[-1].inputs.holdings if h.pool == "chat-prefill")
    victim = next(replica for replica in seen.replicas if replica.id == shrink.victims[0])
    assert (victim.drain_acked, victim.in_flight, victim.pending_kv) == (True, 0, 0)
    waited_s = rounds[-1].inputs.at_s - first.inputs.at_s
    assert waited_s >= 45, "35 s for the requests and 12 s until their blocks were pulled"


def test_without_the_routers_word_nothing_that_serves_is_released_but_growth_goes_on() -> None:
    play = start(chat_prefill=2)
    play.world.routers[0].up = False
    rounds = [again(play, chat_prefill=1, chat_decode=2) for _ in range(20)]
    assert not [step for done in rounds for step in done.steps if isinstance(step, Shrink)]
    assert ("Grow", "chat-decode") in kinds(rounds[0])
    assert any("no replica that serves can be released" in condition for condition in rounds[0].conditions)
    drains = [step for done in rounds for step in done.steps if isinstance(step, Drain)]
    assert any("release postponed" in step.reason for step in drains), "after the deadline it is announced again"
    assert len({step.deadline_s for step in drains}) > 1

    play.world.routers[0].up = True
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 1) and play.world.settled_at("chat-decode", 2)


def test_one_long_request_postpones_its_replica_and_no_other() -> None:
    play = start(chat_prefill=3)
    busy = play.world.pools["chat-prefill"].pods[0].id
    play.world.traffic = False
    again(play)
    play.world.pass_time(60.0)
    play.world.routers[0].in_flight[busy] = [play.world.now_s + 400.0]
    again(play, chat_prefill=1)
    for _ in range(4):
        again(play)
    left = [pod.id for pod in play.world.pools["chat-prefill"].live()]
    assert left == [busy], "the idle ones went; least work in flight goes first"


def test_a_drained_replica_that_is_wanted_again_serves_again_without_a_cold_start() -> None:
    play = start(chat_prefill=2)
    (drain,) = [step for step in again(play, chat_prefill=1).steps if isinstance(step, Drain)]
    back = again(play, chat_prefill=2)
    assert [step for step in back.steps if isinstance(step, Undrain)] == [
        Undrain(pool="chat-prefill", replicas=drain.replicas, reason="granted 2, wanted again: as wanted")
    ]
    assert not [step for step in back.steps if isinstance(step, Grow)]
    assert all(outcome.applied for outcome in back.outcomes)
    assert play.world.settled_at("chat-prefill", 2)


def test_replicas_that_never_served_go_first_and_at_once() -> None:
    play = start(chat_prefill=1)
    again(play, chat_prefill=3)
    done = again(play, chat_prefill=1)
    (shrink,) = [step for step in done.steps if isinstance(step, Shrink)]
    assert shrink.victims == ("chat-prefill-2", "chat-prefill-3") or shrink.victims == ("chat-prefill-3", "chat-prefill-2")
    assert not [step for step in done.steps if isinstance(step, Drain)]


def test_a_replica_that_is_named_to_go_never_gets_work_even_if_it_becomes_ready_before_the_order_lands() -> None:
    play = start(chat_prefill=1)
    again(play, chat_prefill=2)
    play.world.pass_time(10.0)  # it is about to become ready
    play.world.faults = ["late", "lost", "lost"]
    again(play, chat_prefill=1)
    ready = again(play, chat_prefill=2)  # it is wanted again, but its end may be on the way
    assert [replica.state for replica in ready.inputs.holdings[0].replicas] == ["ready", "draining"]
    assert play.world.routers[0].states["chat-prefill-2"] == "draining"
    for _ in range(4):
        again(play)
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 2)


def test_a_replica_that_comes_back_after_a_restart_of_its_engine_is_drained_like_one_that_serves() -> None:
    play = start(chat_prefill=2)
    play.world.traffic = False
    pod = play.world.pools["chat-prefill"].pods[1]
    pod.state, pod.since_s = "starting", play.world.now_s
    done = again(play, chat_prefill=1)
    (drain,) = [step for step in done.steps if isinstance(step, Drain)]
    assert drain.replicas and not [step for step in done.steps if isinstance(step, Shrink)]


# ---- 4 and 5: unknown GPU counts, unknown inventory ---------------------------------------------------------------------


def test_an_unknown_gpu_count_is_charged_as_last_known_and_stops_nothing_else() -> None:
    play = start(docs_agg=1)
    play.world.seen_as = lambda h: replace(h, gpus_per_replica=None) if h.pool == "docs-agg" else h
    done = again(play, docs_agg=0, chat_prefill=9)
    assert done.charged_gpus == {"h100": 8}, "4 of them are those of docs-agg"
    assert [step for step in done.steps if step.pool == "docs-agg"] == []
    grow = next(step for step in done.steps if isinstance(step, Grow))
    assert (grow.pool, grow.after) == ("chat-prefill", 7), "up to 14 with those 4 counted"
    assert any("docs-agg cannot be read and is charged what was last known" in text for text in done.conditions)


def test_a_pool_that_was_never_seen_stops_growth_of_its_type_loudly() -> None:
    play = Play(World(specs=specs(), budget=Budget(max_gpus={"h100": 14})))
    play.world.seen_as = lambda h: None if h.pool == "docs-agg" else h  # a label does not match
    done = again(play, chat_prefill=3, chat_decode=1, code_prefill=1)
    assert not [step for step in done.steps if isinstance(step, Grow)]
    assert "docs-agg is held: the cluster does not show this pool" in done.conditions
    assert "nothing of h100 grows: what docs-agg holds was never known, and unknown is not zero" in done.conditions


def test_a_cluster_that_does_not_answer_changes_nothing_and_is_said() -> None:
    play = start(chat_prefill=2)
    before = [dict(router.states) for router in play.world.routers]
    play.world.cluster_up = False
    done = again(play, chat_prefill=1, docs_agg=1)
    assert done.steps == () and done.charged_gpus == {"h100": 5}
    assert any("the cluster cannot be observed, so nothing is ordered" in text for text in done.conditions)
    assert [dict(router.states) for router in play.world.routers] == before, "the routers keep their endpoints"
    play.world.cluster_up = True
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 1) and play.world.settled_at("docs-agg", 1)


def test_a_pool_that_cannot_be_read_keeps_its_endpoints_at_the_router() -> None:
    play = start(docs_agg=1)
    why = "its manifest cannot be read"
    play.world.seen_as = lambda h: replace(h, spec=None, replicas=(), unknown=why) if h.pool == "docs-agg" else h
    done = again(play)
    assert "docs-agg is held: its manifest cannot be read" in done.conditions
    assert play.world.routers[0].states["docs-agg-1"] == "ready"


# ---- 8: a rejection is a normal answer -----------------------------------------------------------------------------------


def test_what_the_cluster_refuses_is_an_outcome_and_the_others_go_on() -> None:
    play = start()
    play.world.faults = ["lost"]
    done = again(play, chat_prefill=3, code_prefill=3)
    assert [(outcome.step.pool, outcome.applied) for outcome in done.outcomes] == [
        ("chat-prefill", False),
        ("code-prefill", True),
    ]
    assert "chat-prefill: grow was not applied and is decided again next round: timeout" in done.conditions
    again(play)
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 3)


def test_senseless_reports_hold_their_pool_and_are_named() -> None:
    play = start(chat_prefill=2)
    play.world.reports_now["chat-prefill"] = replace(proposal("chat-prefill", play.world.now_s, 5), load_rps=float("nan"))
    play.world.reports_now["chat-decode"] = Hold(
        pool="chat-decode", at_s=play.world.now_s, reason="no metrics", expires_at_s=play.world.now_s + 30.0
    )
    done = play.round()
    assert done is not None and done.steps == ()
    held = {report.pool: report.reason for report in done.inputs.reports if isinstance(report, Hold)}
    assert held == {"chat-prefill": "its report was refused: load_rps is nan", "chat-decode": "no metrics"}


def test_an_expired_report_is_a_missing_one() -> None:
    play = start(chat_prefill=2)
    play.world.pass_time(60.0)
    done = play.round()
    assert done is not None and done.inputs.reports == () and done.steps == ()


# ---- 9: somebody edits the replicas by hand ---------------------------------------------------------------------------


def test_the_cluster_is_believed_not_the_memory() -> None:
    play = start(chat_prefill=2)
    play.world.people_set("chat-prefill", 4)
    play.world.pass_time(40.0)
    done = again(play)
    holding = next(h for h in done.inputs.holdings if h.pool == "chat-prefill")
    assert holding.spec == 4 and ("Drain", "chat-prefill") in kinds(done)
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 2)


def test_an_edit_between_observation_and_order_wins_and_we_look_again() -> None:
    play = start()
    play.world.at_operation[5] = lambda: play.world.people_set("chat-prefill", 2)
    done = again(play, chat_prefill=4)
    (outcome,) = done.outcomes
    assert outcome.conflict and not outcome.applied
    assert any("is observed again" in text for text in done.conditions)
    assert play.memory.rollout.of("chat-prefill").write is None, "nothing of ours is on its way"
    grow = next(step for step in again(play).steps if isinstance(step, Grow))
    assert (grow.before, grow.after) == (2, 4)


def test_people_over_the_budget_see_us_release_only() -> None:
    play = start(budget=6, chat_prefill=2)
    play.world.people_set("docs-agg", 1)
    done = again(play, chat_decode=2, chat_prefill=1)
    assert not [step for step in done.steps if isinstance(step, Grow)]
    assert ("Drain", "chat-prefill") in kinds(done)
    assert any("h100 is over its budget: 9 GPUs charged of 6" in text for text in done.conditions)


# ---- 10: a patch that fails half-way is reported as success -------------------------------------------------------------


def test_a_crash_between_order_and_record_does_not_lose_the_order() -> None:
    play = start(budget=8)
    play.world.faults = ["late"]

    def crash() -> None:
        raise Crash

    play.world.at_operation[7] = crash
    play.want(docs_agg=1)
    assert play.round() is None and play.crashes == 1
    write = play.memory.rollout.of("docs-agg").write
    assert write is not None and write.highest == 1, "the journal remembers what may be on its way"
    done = again(play, docs_agg=0, chat_prefill=5)
    assert done.charged_gpus == {"h100": 8}
    assert not [step for step in done.steps if isinstance(step, Grow)]
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 5)


def test_an_order_of_unknown_outcome_that_is_not_wanted_any_more_is_taken_back() -> None:
    play = start()
    play.world.faults = ["lost"]
    again(play, docs_agg=2)
    done = again(play, docs_agg=0)
    (shrink,) = [step for step in done.steps if isinstance(step, Shrink)]
    assert (shrink.before, shrink.after, shrink.victims) == (0, 0, ())
    assert done.charged_gpus == {"h100": 12}, "until then it counts"
    assert again(play).charged_gpus == {"h100": 4}


def test_a_success_that_has_no_effect_yet_frees_nothing() -> None:
    """The order is late, taking it back is said to have worked but is late too: whichever lands, the GPUs are there."""
    play = start(budget=10)
    play.world.faults = ["late", "accepted"]
    again(play, chat_prefill=7)
    again(play, chat_prefill=1, docs_agg=1)
    for _ in range(6):
        again(play)
    play.until_quiet()
    assert play.world.settled_at("docs-agg", 1) and play.world.settled_at("chat-prefill", 1)


def test_where_taking_back_moves_no_version_the_order_counts_until_it_cannot_be_under_way_any_more() -> None:
    play = start()
    play.world.no_change_moves_version = False
    play.world.faults = ["lost"]
    again(play, docs_agg=2)
    charged = [again(play, docs_agg=0).charged_gpus["h100"] for _ in range(16)]
    assert charged[:13] == [12] * 13 and charged[-1] == 4, "ten seconds a round, two minutes"


def test_nothing_is_ordered_that_could_not_be_written_down() -> None:
    play = start()

    class FullDisk:
        def append(self, record: object) -> None:
            from pool_planner.types import ClusterUnavailable

            raise ClusterUnavailable("journal /var/journal cannot be written: No space left on device (ENOSPC)")

    play.journal = FullDisk()  # type: ignore[assignment]
    before = play.memory
    done = again(play, chat_prefill=3)
    assert ("Grow", "chat-prefill") in kinds(done) and done.outcomes == ()
    assert any("the journal cannot be written, so nothing is ordered" in text for text in done.conditions)
    assert play.world.pools["chat-prefill"].ordered == 1
    assert play.memory == before, "a restart would know as much"


# ---- 12: replicas that are still loading are invisible ------------------------------------------------------------------


def test_what_is_loading_counts_so_nothing_is_ordered_twice() -> None:
    play = start()
    rounds = [again(play, chat_prefill=3) for _ in range(3)]
    grows = [step for done in rounds for step in done.steps if isinstance(step, Grow)]
    assert [(step.before, step.after) for step in grows] == [(1, 3)]
    assert rounds[-1].charged_gpus == {"h100": 6}


# ---- what holds beside ----------------------------------------------------------------------------------------------------


def test_gpus_move_between_groups_only_once_they_are_free_and_both_stages_arrive_together() -> None:
    play = start(budget=10, chat_prefill=3, chat_decode=3)
    order: list[tuple[float, str, str]] = []
    for _ in range(30):
        done = again(play, chat_prefill=1, chat_decode=1, code_prefill=3, code_decode=2)
        order += [(done.inputs.at_s, type(step).__name__, step.pool) for step in done.steps]
        assert done.charged_gpus["h100"] <= 10
    kinds_in_order = [kind for _, kind, _ in order]
    assert kinds_in_order.index("Drain") < kinds_in_order.index("Shrink") < kinds_in_order.index("Grow")
    assert play.world.settled_at("code-prefill", 3) and play.world.settled_at("code-decode", 2)


def test_a_held_pool_keeps_serving_with_what_was_about_to_go() -> None:
    play = start(chat_prefill=2)
    again(play, chat_prefill=1)
    play.world.reports_now["chat-prefill"] = Hold(
        pool="chat-prefill", at_s=play.world.now_s, reason="metrics are down", expires_at_s=play.world.now_s + 60.0
    )
    done = play.round()
    assert done is not None and kinds(done) == [("Undrain", "chat-prefill")]
    assert play.world.settled_at("chat-prefill", 2)


def test_pools_that_are_observed_are_planned_on_paper_only_and_their_group_is_not_limited() -> None:
    play = start()
    pools = with_mode(play.world.specs, "docs-agg", "observe")
    play.config = RoundConfig(budget=play.world.budget, groups=groups(pools), pools=pools, policies=POLICIES)
    done = again(play, docs_agg=2, chat_prefill=9)
    assert ("Grow", "chat-prefill") in kinds(done)
    assert [outcome.step.pool for outcome in done.outcomes] == ["chat-prefill"]
    assert play.world.pools["docs-agg"].ordered == 0
    assert play.memory.rollout.of("docs-agg").write is None
    admitted = {group.model: group.admitted_rps for group in play.world.admitted}
    assert admitted == {"demo/chat": 5.0, "demo/code": 5.0, "demo/docs": None}


def test_infeasible_minima_let_nothing_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    def infeasible(state, inputs, policy):  # type: ignore[no-untyped-def]
        state, allocation = grant_in_order(state, inputs, policy)
        return state, replace(allocation, infeasible=("chat-decode", "docs-agg"))

    play = start()
    monkeypatch.setattr(memory_module, "arbitrate", infeasible)
    done = again(play, chat_prefill=3)
    assert done.steps == ()
    assert any("the minima of chat-decode and docs-agg do not fit" in text for text in done.conditions)


def test_a_pool_in_a_rolling_update_is_left_alone() -> None:
    play = start(chat_prefill=2)
    play.world.seen_as = lambda h: replace(h, updating=True, surge=1) if h.pool == "chat-prefill" else h
    done = again(play, chat_prefill=1)
    assert done.steps == () and done.charged_gpus == {"h100": 6}
    assert "chat-prefill is left alone while a rolling update is under way" in done.conditions


def test_a_pool_is_never_ordered_below_its_minimum_even_when_it_is_granted_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_for_anybody(state, inputs, policy):  # type: ignore[no-untyped-def]
        state, allocation = grant_in_order(state, inputs, policy)
        return state, replace(allocation, pools=tuple(replace(grant, granted=0) for grant in allocation.pools))

    play = start(chat_prefill=3)
    monkeypatch.setattr(memory_module, "arbitrate", nothing_for_anybody)
    for _ in range(12):
        again(play)
    assert play.world.settled_at("chat-prefill", 1)


def test_groups_are_named_in_the_admission_by_their_model() -> None:
    play = start()
    assert play.config.groups[0] == GroupSpec(name="chat", model="demo/chat", pools=("chat-prefill", "chat-decode"))
    again(play)
    assert {group.model for group in play.world.admitted} == {"demo/chat", "demo/code", "demo/docs"}
