"""People stay in charge: freeze stops the next write, approvals cover exactly what was shown, and unreadable means stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from global_planner import memory as memory_module
from global_planner.control_folder import ControlFolder
from global_planner.ports import Controls
from global_planner.round import RoundConfig
from global_planner.types import Approval, Budget, Freeze, Override, Shrink
from pool_planner.types import ClusterUnavailable
from tests.rollout.play import POLICIES, Play, grant_in_order, groups
from tests.rollout.test_stories import again, kinds
from tests.rollout.world import World, specs, with_mode


@pytest.fixture(autouse=True)
def dumb_arbiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)


@pytest.fixture
def folder(tmp_path: Path) -> ControlFolder:
    return ControlFolder(tmp_path / "control")


@pytest.fixture
def play(folder: ControlFolder) -> Play:
    play = Play(World(specs=specs(), budget=Budget(max_gpus={"h100": 14})))
    play.operators = folder
    play.want(chat_prefill=2, chat_decode=1, code_prefill=1, code_decode=0, docs_agg=0)
    play.until_quiet()
    return play


def in_mode(play: Play, pool: str, mode: str) -> None:
    pools = with_mode(play.config.pools, pool, mode)
    play.config = RoundConfig(budget=play.world.budget, groups=groups(pools), pools=pools, policies=POLICIES)


def test_a_freeze_stops_everything_until_it_is_taken_back(play: Play, folder: ControlFolder) -> None:
    folder.freeze(Freeze(at_s=play.world.now_s, by="anna", reason="the network is being rewired"))
    done = again(play, chat_prefill=1, docs_agg=1)
    assert kinds(done) == [("Drain", "chat-prefill"), ("Grow", "docs-agg")], "what would be done is still shown"
    assert done.outcomes == ()
    assert any(
        text.startswith("everything is frozen by anna since") and "2 steps are not applied" in text for text in done.conditions
    )
    assert play.world.pools["docs-agg"].ordered == 0
    assert "draining" not in play.world.routers[0].states.values()
    assert play.memory.rollout.of("docs-agg").write is None

    assert folder.unfreeze() and not folder.unfreeze()
    again(play)
    play.until_quiet()
    assert play.world.settled_at("docs-agg", 1) and play.world.settled_at("chat-prefill", 1)


def test_a_freeze_in_the_middle_of_a_round_stops_before_the_next_order(play: Play, folder: ControlFolder) -> None:
    def freeze_now() -> None:
        folder.freeze(Freeze(at_s=play.world.now_s))

    play.world.at_operation[6] = freeze_now  # observe, state, reports, the orders twice, then the first order
    done = again(play, code_prefill=2, docs_agg=1)
    assert len(done.steps) == 2 and len(done.outcomes) == 1 and done.outcomes[0].applied
    assert play.memory.rollout.of("docs-agg").write is None, "what was not tried is not remembered"
    assert play.memory.rollout.of("code-prefill").write is not None


def test_what_operators_set_but_nobody_can_read_is_a_freeze(play: Play, folder: ControlFolder, tmp_path: Path) -> None:
    (tmp_path / "control").mkdir(exist_ok=True)
    (tmp_path / "control" / "approval-docs-agg.json").write_text('{"pool": "docs-agg", "replicas": "two"}')
    with pytest.raises(ClusterUnavailable, match=r"approval-docs-agg\.json: replicas: Input should be a valid integer"):
        folder.read()
    done = again(play, docs_agg=1)
    assert done.outcomes == ()
    assert any("what operators set cannot be read" in text for text in done.conditions)


def test_steps_wait_for_approval_and_an_approval_covers_what_was_shown(play: Play, folder: ControlFolder) -> None:
    in_mode(play, "docs-agg", "approve")
    done = again(play, docs_agg=2)
    assert "docs-agg: its steps towards 2 replicas wait for approval" in done.conditions
    assert play.world.pools["docs-agg"].ordered == 0

    soon = play.world.now_s + 300.0
    folder.decide(Approval(pool="docs-agg", replicas=2, verdict="approve", expires_at_s=soon, by="anna"))
    again(play)
    assert play.world.pools["docs-agg"].ordered == 2

    done = again(play, docs_agg=1)
    assert "docs-agg: its steps towards 1 replicas wait for approval" in done.conditions
    assert play.world.pools["docs-agg"].ordered == 2


def test_a_refusal_is_told_and_expires(play: Play, folder: ControlFolder) -> None:
    in_mode(play, "docs-agg", "approve")
    soon = play.world.now_s + 15.0
    verdict = Approval(pool="docs-agg", replicas=1, verdict="refuse", expires_at_s=soon, by="bo", reason="too dear today")
    folder.decide(verdict)
    done = again(play, docs_agg=1)
    assert "docs-agg: 1 replicas were refused by bo: too dear today" in done.conditions
    again(play)
    assert "docs-agg: its steps towards 1 replicas wait for approval" in again(play).conditions


def test_an_approved_release_drains_and_shrinks_over_several_rounds(play: Play, folder: ControlFolder) -> None:
    in_mode(play, "chat-prefill", "approve")
    later = play.world.now_s + 3000.0
    folder.decide(Approval(pool="chat-prefill", replicas=1, verdict="approve", expires_at_s=later))
    again(play, chat_prefill=1)
    play.until_quiet()
    assert play.world.settled_at("chat-prefill", 1)


def test_a_person_may_go_below_the_configured_minimum(
    play: Play, folder: ControlFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pinned(state, inputs, policy):  # type: ignore[no-untyped-def]
        state, allocation = grant_in_order(state, inputs, policy)
        pins = {item.pool: item.replicas for item in inputs.overrides if item.kind == "pin"}
        pools = tuple(replace(grant, granted=pins.get(grant.pool, grant.granted)) for grant in allocation.pools)
        return state, replace(allocation, pools=pools)

    monkeypatch.setattr(memory_module, "arbitrate", pinned)
    folder.override(Override(pool="code-prefill", kind="pin", replicas=0, expires_at_s=play.world.now_s + 2000.0, by="anna"))
    play.world.specs = tuple(replace(spec, min_replicas=0) for spec in play.world.specs)
    play.world.pools["code-prefill"].spec_ = replace(play.world.pools["code-prefill"].spec_, min_replicas=0)
    steps = [step for _ in range(10) for step in again(play).steps]
    assert [(step.before, step.after) for step in steps if isinstance(step, Shrink)] == [(1, 0)]


def test_the_folder_keeps_what_was_set_and_forgets_what_is_over(folder: ControlFolder) -> None:
    assert folder.read() == Controls()
    approval = Approval(pool="chat-decode", replicas=3, verdict="approve", expires_at_s=100.0, by="anna")
    cap = Override(pool="chat-decode", kind="cap", replicas=4, expires_at_s=200.0, reason="maintenance")
    hold = Override(pool="chat-decode", kind="hold")
    folder.decide(replace(approval, verdict="refuse"))
    folder.decide(approval)
    folder.override(cap)
    folder.override(hold)
    assert folder.read() == Controls(approvals=(approval,), overrides=(cap, hold))
    folder.drop_expired(150.0)
    assert folder.read() == Controls(overrides=(cap, hold))
    assert folder.withdraw("chat-decode", "hold") and not folder.withdraw("chat-decode", "hold")
    folder.drop_expired(200.0)
    assert folder.read() == Controls()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("a file where the folder should be")
    with pytest.raises(ClusterUnavailable, match="control"):
        ControlFolder(tmp_path / "control").freeze(Freeze(at_s=0.0))
