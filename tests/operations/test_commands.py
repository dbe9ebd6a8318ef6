"""People at the command line: what they see, what they order, and that it holds through restarts of the arbiter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from global_planner import memory as memory_module
from global_planner.__main__ import main
from global_planner.commands import COMMANDS
from tests.operations.operated import Operated
from tests.operations.scene import Change, topology
from tests.topology.refusals import both, put

QUIET = {"chat": 2.0, "code": 1.0}
BUSY = {"chat": 4.0, "code": 1.0}
Make = Callable[..., Operated]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A system that has settled at two replicas of chat and one of code."""

    def system(*changes: Change) -> Operated:
        made = Operated(tmp_path / "system", topology(*changes))
        made.run(QUIET, 6)
        return made

    return system


# ---- freeze ----------------------------------------------------------------------------------------------------------


def test_a_freeze_holds_through_a_restart_and_is_taken_back(make: Make) -> None:
    system = make()
    assert system.command("freeze", "--by", "anna", "--reason", "rewiring").startswith(
        "Frozen: scene orders and drains nothing"
    )
    done = system.run(BUSY)
    assert done.steps and not done.outcomes
    system.crash()
    done = system.run(BUSY)
    assert not done.outcomes and system.ordered("chat") == 2
    told = system.command("status")
    assert "EVERYTHING IS FROZEN by anna since" in told and "rewiring" in told

    assert "acts again from the next round on" in system.command("unfreeze")
    assert "was not frozen" in system.command("unfreeze")
    system.run(BUSY)
    assert system.ordered("chat") == 4


def test_a_freeze_that_is_set_while_the_arbiter_is_down_waits_for_it(make: Make) -> None:
    system = make()
    system.journal.close()
    system.command("freeze")
    system._open()
    assert not system.run(BUSY, 2).outcomes
    assert system.ordered("chat") == 2


def test_unfreeze_tells_what_still_keeps_everything_frozen(make: Make) -> None:
    system = make()
    system.command("freeze")
    (system.folder / "control" / "override-chat-pin.json").write_text("{")
    assert "override-chat-pin.json" in system.command("unfreeze", status=1)
    assert not system.run(BUSY).outcomes
    assert "EVERYTHING IS FROZEN, because what operators set cannot be read" in system.command("status")
    system.command("override", "clear", "chat")
    assert system.run(BUSY).outcomes


# ---- approve, refuse -------------------------------------------------------------------------------------------------

CHAT_ASKS = put("groups.0.pools.0.mode", "approve")


def test_steps_are_shown_and_wait_for_a_word_that_covers_them(make: Make) -> None:
    system = make(CHAT_ASKS)
    assert system.ordered("chat") == 1, "also its first growth waits"
    waits = system.command("approve")
    assert "chat: 1 -> 2 replicas" in waits and "grow chat from 1 to 2: raised 1 -> 2" in waits

    told = system.command("approve", "chat", "--for", "5m", "--by", "anna")
    assert told.startswith("Approved: chat at 2 replicas, until") and "grow chat from 1 to 2" in told
    system.run(QUIET)
    assert system.ordered("chat") == 2
    assert system.command("approve") == "Nothing waits for approval.\n"

    system.run(BUSY)
    assert system.ordered("chat") == 2, "four were never approved"
    assert "chat: 2 -> 4 replicas" in system.command("status")


def test_an_approval_ends(make: Make) -> None:
    system = make(CHAT_ASKS)
    system.command("approve", "chat", "--replicas", "4", "--for", "15")
    system.run(QUIET, 2)
    system.run(BUSY)
    assert system.ordered("chat") == 1


def test_a_refusal_takes_an_approval_back_and_is_told(make: Make) -> None:
    system = make(CHAT_ASKS)
    system.command("approve", "chat")
    told = system.command("refuse", "chat", "--by", "bert", "--reason", "not before the launch")
    assert told.startswith("Refused: chat at 2 replicas, until")
    done = system.run(QUIET)
    assert system.ordered("chat") == 1
    assert "chat: 2 replicas were refused by bert: not before the launch" in done.conditions
    assert "chat: 1 -> 2 replicas, refused by bert" in system.command("status")


def test_the_whole_may_ask_too(make: Make) -> None:
    system = make(put("arbiter.mode", "approve"))
    assert system.ordered("chat") == 1
    system.command("approve", "chat")
    system.run(QUIET)
    assert system.ordered("chat") == 2


# ---- override --------------------------------------------------------------------------------------------------------


def test_a_pin_holds_until_it_ends_also_through_a_restart(make: Make) -> None:
    system = make()
    told = system.command("override", "pin", "chat", "5", "--for", "60s", "--by", "anna", "--reason", "launch")
    assert re.match(r"Set: pin chat 5, until \d\d:\d\d:\d\d\.", told)
    done = system.run(QUIET)
    assert system.ordered("chat") == 5
    grant = next(grant for grant in done.allocation.pools if grant.pool == "chat")
    assert "pin by anna" in f"{grant.reason} {grant.binding}"
    assert re.search(r"chat +pin +5 .*anna +launch", system.command("override", "list"))
    system.crash()
    system.run(QUIET, 3)
    assert system.ordered("chat") == 5
    system.run(QUIET, 30)
    assert system.ordered("chat") < 5
    assert system.command("override", "list") == "No override is in force.\n"


def test_a_cap_and_a_hold_and_their_end(make: Make) -> None:
    system = make()
    system.command("override", "cap", "chat", "3")
    system.run(BUSY, 3)
    assert system.ordered("chat") == 3
    system.command("override", "hold", "code", "--reason", "being measured")
    done = system.run({"chat": 4.0, "code": 3.0}, 3)
    assert system.ordered("code") == 1
    assert any("code" in text and "being measured" in text for text in done.conditions)
    assert system.command("override", "clear", "chat") == "Cleared: cap of chat.\n"
    assert system.command("override", "clear", "chat", "pin") == "chat has no pin that was set at run time.\n"
    assert system.command("override", "clear", "code", "hold") == "Cleared: hold of code.\n"
    system.run({"chat": 4.0, "code": 3.0}, 3)
    assert (system.ordered("chat"), system.ordered("code")) == (4, 3)


def test_people_are_told_what_their_order_overrides(make: Make) -> None:
    system = make(CHAT_ASKS, put("groups.0.pools.0.max_replicas", 4))
    told = system.command("override", "pin", "chat", "6")
    assert "Note: chat is configured with at most 4; the override goes above that." in told
    assert "Note: chat is in mode approve: its steps still wait for approval." in told
    assert "goes below that" in system.command("override", "cap", "code", "0")


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED = {
    "no such pool": (("override", "pin", "chatt", "2"), "no pool 'chatt' (has: chat, code)"),
    "more than the budget": (("override", "pin", "chat", "9"), "9 replicas of chat take 9 GPUs, and the budget of h100 is 8"),
    "both ends": (
        ("override", "hold", "chat", "--for", "1h", "--until", "2100-01-01T10:00"),
        "either --for or --until, not both",
    ),
    "an end that is over": (("override", "hold", "chat", "--until", "2020-01-01T10:00+00:00"), "is over: it is 20"),
    "no duration": (("override", "hold", "chat", "--for", "soon"), "'soon' is not a duration like 90s, 15m, 2h or 1d"),
    "no time": (("override", "hold", "chat", "--until", "noon"), "'noon' is not a time like 18:00"),
    "no approval needed": (("approve", "chat"), "chat is in mode act: its steps are applied without a word"),
    "nobody to approve": (("approve", "docs"), "no pool 'docs' (has: chat, code)"),
    "nothing to clear": (("override", "clear", "docs"), "no pool 'docs'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_order_that_nobody_could_follow_is_refused(make: Make, name: str) -> None:
    system = make()
    arguments, said = REFUSED[name]
    assert said in system.command(*arguments, status=2)
    assert not (system.folder / "control").exists(), "and nothing was written"


def test_a_folder_in_which_nothing_was_started_is_no_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (("freeze",), ("status",), ("override", "list")):
        told = CliRunner().invoke(main, [*arguments, "--folder", "nowhere"])
        assert told.exit_code == 2 and "nowhere: no system was started here" in told.output
        assert not (tmp_path / "nowhere").exists()
        assert "name its folder with --folder" in CliRunner().invoke(main, arguments).output


def test_the_only_system_of_a_directory_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system = Operated(tmp_path / ".global-planner" / "scene", topology())
    system.run(QUIET)
    assert "Frozen: scene" in system.result("freeze").output
    assert system.result("explain").output.startswith("Round 1 at 0 s")
    Operated(tmp_path / ".global-planner" / "other", topology()).run(QUIET)
    assert (
        "which system? Name it with --folder: .global-planner/other, .global-planner/scene" in system.result("unfreeze").output
    )


# ---- status, explain, compare, replay --------------------------------------------------------------------------------


def test_status_shows_the_last_round_and_that_one_is_overdue(make: Make) -> None:
    system = make()
    told = system.command("status")
    assert told.startswith("scene: round 6, 10 s ago") and "h100: 3 GPUs charged, budget 8, 5 free." in told
    assert re.search(r"chat +agg +act +2 +0 +0 +2 +2 +kept at 2", told)
    system.world.pass_time(95.0)
    system._set_clock()
    told = system.command("status", status=1)
    assert "There was no round for 105 s, and one is due every 10 s: the arbiter is down" in told


def test_status_before_the_first_round(tmp_path: Path) -> None:
    system = Operated(tmp_path / "system", topology())
    assert "no round is recorded yet" in system.command("status", status=1)


def journal(system: Operated) -> str:
    return str(system.folder / "journal")


def test_explain_a_round_a_pool_and_a_price(make: Make) -> None:
    system = make(both(put("groups.0.priority", 1), put("budget.gpus.h100.max", 4)))
    system.run({"chat": 4.0, "code": 3.0}, 3)
    told = system.result("explain", "--journal", journal(system)).output
    assert told.startswith("Round 9 at 80 s, objective goodput")
    assert "Why\n  chat: kept at 3 of 4 wanted: 4 req/s needs 4; budget h100 of 4 GPUs is spent" in told
    assert system.result("explain", "--journal", str(system.folder)).output == told, "the folder of the system will do"
    told = system.result("explain", "--journal", journal(system), "--round", "7", "--pool", "code").output
    assert told.startswith("Round 7 at 60 s.\ncode is the agg pool of code, 1 GPU(s) of h100 a replica")
    assert "code, where something changed" in system.result("explain", "--journal", journal(system), "--pool", "code").output
    told = system.result("explain", "--journal", journal(system), "--price-of-priority").output
    rows = [line.split() for line in told[told.index("With equal priorities") :].splitlines()[2:]]
    assert rows[0] == ["code", "0", "1", "3", "33.3%", "100.0%", "+2.00"]
    assert rows[1] == ["chat", "1", "3", "1", "75.0%", "25.0%", "-2.00"]
    for wrong, said in ((["--round", "99"], "holds rounds 1 to 9, not 99"), (["--pool", "docs"], "has no pool 'docs'")):
        result = system.result("explain", "--journal", journal(system), *wrong)
        assert result.exit_code == 2 and said in result.output


def test_compare_tells_what_we_would_have_done(make: Make) -> None:
    system = make(put("arbiter.mode", "observe"))
    system.run(BUSY, 6)
    told = system.result("compare", "--journal", journal(system)).output
    chat = next(line.split() for line in told.splitlines() if line.split()[:1] == ["chat"])
    did, would = float(chat[2]), float(chat[3])
    assert did < would and chat[4] != chat[5] == "100.0%"
    assert system.ordered("chat") == 1


def test_replay_check_reproduces_a_run_with_everything_that_people_did(make: Make) -> None:
    system = make(CHAT_ASKS)
    system.command("approve", "chat")
    system.run(QUIET, 2)
    system.command("override", "pin", "code", "3", "--for", "20s")
    system.run(QUIET, 3)
    system.command("freeze")
    system.run(BUSY, 2)
    system.crash()
    system.command("unfreeze")
    system.run(BUSY, 3)
    result = system.result("replay", "--check", journal(system))
    assert result.exit_code == 0, result.output
    assert result.output.startswith("16 rounds of 2 segments were decided again.\nEvery allocation and every step came out")


def test_replay_refuses_other_code_and_shows_what_would_change(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    system = make()
    monkeypatch.setattr("global_planner.replay.check.code_version", lambda: "0.2.0+another")
    result = system.result("replay", "--check", journal(system))
    assert result.exit_code == 2 and "this is 0.2.0+another" in result.output and "--show-changes" in result.output
    assert system.result("replay", "--check", journal(system), "--show-changes").exit_code == 0

    real = memory_module.arbitrate

    def one_at_most(state, inputs, policy):  # type: ignore[no-untyped-def]
        return real(state, replace(inputs, pools=tuple(replace(pool, max_replicas=1) for pool in inputs.pools)), policy)

    system.run(BUSY, 3)
    monkeypatch.setattr(memory_module, "arbitrate", one_at_most)
    result = system.result("replay", "--check", journal(system), "--show-changes")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert "round 7, chat: was granted 4, would be 1 (lowered 2 -> 1 of 4 wanted: max_replicas is 1)" in lines
    assert "round 7: would not grow chat from 2 to 4: raised 2 -> 4: 4 req/s needs 4; paid from free GPUs" in lines
    assert any(line.startswith("round 7: would drain chat-2 of chat until ") for line in lines)
    assert lines[-1] == "9 of 9 rounds would be decided differently."


def test_a_journal_that_is_not_there_or_damaged(make: Make, tmp_path: Path) -> None:
    for command in (("explain", "--journal"), ("compare", "--journal"), ("replay", "--check")):
        result = CliRunner().invoke(main, [*command, str(tmp_path / "none")])
        assert result.exit_code == 2 and "there is no journal here" in result.output
    system = make()
    (segment,) = (system.folder / "journal").glob("*.gpj")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(bytes(content))
    for command in (("explain", "--journal"), ("compare", "--journal"), ("replay", "--check")):
        result = system.result(*command, journal(system))
        assert result.exit_code == 1 and segment.name in result.output


# ---- help ------------------------------------------------------------------------------------------------------------


def every_command() -> list[tuple[str, ...]]:
    alone = [(command.name or "",) for command in COMMANDS]
    return [
        *alone,
        *(("override", name) for name in ("pin", "cap", "hold", "clear", "list")),
        *(("schedule", name) for name in ("add", "remove", "list")),
    ]


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help_teaches_with_an_example(command: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main, [*command, "--help"])
    assert told.exit_code == 0
    example = told.output[told.output.index("Example") :]
    assert f"global-planner {' '.join(command)}" in example


# ---- from the topology, and at run time ------------------------------------------------------------------------------


def test_an_override_of_the_topology_holds_until_its_moment_and_gives_way_to_a_newer_word(make: Make) -> None:
    pinned = {"pool": "chat", "kind": "pin", "replicas": 4, "until": "1970-01-01T00:01:40+00:00", "reason": "launch"}
    system = make(put("overrides", [pinned]))
    assert system.ordered("chat") == 4
    system.command("override", "pin", "chat", "5")
    system.run(QUIET)
    assert system.ordered("chat") == 5
    system.command("override", "clear", "chat")
    system.run(QUIET, 4)  # 100 s of the calendar are over then
    system.run(QUIET, 20)
    assert system.ordered("chat") < 4


def test_an_event_is_added_and_removed_while_the_system_runs(make: Make) -> None:
    system = make()
    added = ("schedule", "add", "launch", "--start", "00:00", "--lasts", "1d", "--group", "chat", "--min-replicas", "4")
    assert system.command(*added) == "Added: launch, which takes effect 30 s before it starts.\n"
    done = system.run(QUIET)
    assert system.ordered("chat") == 4
    assert next(grant for grant in done.allocation.pools if grant.pool == "chat").rules == ("minimum 4 by schedule launch",)
    assert re.search(
        r"launch +00:00 UTC +every day +24 h +group chat +at least 4 +added +now", system.command("schedule", "list")
    )
    system.crash()
    system.run(QUIET, 3)
    assert system.ordered("chat") == 4
    assert system.command("schedule", "remove", "launch") == "Removed: launch.\n"
    system.run(QUIET, 20)
    assert system.ordered("chat") < 4
    assert system.result("replay", "--check", journal(system)).exit_code == 0


EVENT = ("schedule", "add", "x", "--start", "09:00", "--lasts", "1h")
BAD_EVENTS = {
    "a floor over the budget": ((*EVENT, "--min-replicas", "5"), "the minima together need 10 GPUs"),
    "no such pool": ((*EVENT, "--pool", "docs", "--min-replicas", "2"), "match: matches no pool (pools: chat, code)"),
    "nothing to do": (EVENT, "set: set either min_replicas or load_factor"),
    "no such zone": ((*EVENT, "--timezone", "Mars", "--load-factor", "2"), "timezone: 'Mars': must be a time zone like"),
    "no such day": ((*EVENT, "--days", "mon,today", "--load-factor", "2"), "days[1]: 'today': must be 'mon'"),
    "no such time": (
        ("schedule", "add", "x", "--start", "9", "--lasts", "1h", "--load-factor", "2"),
        "start: '9': must be a time of day",
    ),
    "no such event": (("schedule", "remove", "x"), "no schedule 'x' was added"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_an_event_is_checked_as_if_it_stood_in_the_topology(make: Make, name: str) -> None:
    arguments, said = BAD_EVENTS[name]
    assert said in make().command(*arguments, status=2)


def test_what_the_topology_has_is_not_changed_at_run_time(make: Make) -> None:
    event = {"name": "fair", "start": "09:00", "duration_s": 60, "set": {"load_factor": 2.0}}
    system = make(put("schedules", [event]))
    told = system.command("schedule", "add", "fair", "--start", "09:00", "--lasts", "1h", "--load-factor", "2", status=2)
    assert "the topology has a schedule 'fair' already" in told
    assert "'fair' stands in the topology" in system.command("schedule", "remove", "fair", status=2)
    assert re.search(r"fair +09:00 UTC +every day +60 s +all +load x 2 +topology", system.command("schedule", "list"))
