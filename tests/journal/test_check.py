"""A journal is proof: its decisions can be made again from it, and one that cannot be is shown with round, pool and field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from global_planner import journal as journal_module
from global_planner import memory as memory_module
from global_planner.journal import deciding_sources, segments
from global_planner.journal_format import Frame, frame_bytes, frames, read_header
from global_planner.journal_reader import read
from global_planner.memory import Orders
from global_planner.replay.check import OtherVersion, check
from global_planner.types import Round
from pool_planner import wire
from pool_planner.compiled import ROOT, CompiledSet
from tests.journal.records import AtWork
from tests.rollout.play import grant_in_order

UP_AND_DOWN = ((2, 2, 1, 0, 0), (2, 2, 1, 0, 0), (1, 1, 3, 2, 1), (1, 1, 3, 2, 1), (1, 1, 3, 2, 1), (1, 3, 1, 1, 0))


@pytest.fixture(autouse=True)
def dumb_arbiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)


def change(directory: Path, kind: type, edit: Callable[..., object], which: int = 0) -> None:
    """Rewrite the `which`-th record of a kind in the first segment, checksums and all."""
    path = segments(directory)[0]
    content = path.read_bytes()
    found = read_header(content, "")
    assert found is not None
    out = bytearray(content[: found[1]])
    for frame in frames(content, found[1], ""):
        assert isinstance(frame, Frame)
        record = wire.decode(frame.payload)
        if isinstance(record, kind):
            if which == 0:
                record = edit(record)
            which -= 1
        out += frame_bytes(wire.encode(record))
    path.write_bytes(out)


def test_a_run_with_restarts_and_lost_writes_is_reproduced(tmp_path: Path) -> None:
    work = AtWork(tmp_path)
    work.rounds(*UP_AND_DOWN)
    work.restart()
    work.world.faults = ["late", "lost", "conflict"]
    work.rounds(*reversed(UP_AND_DOWN))
    work.journal.close()
    result = check(tmp_path)
    assert result.reproduced and result.notes == ()
    assert (result.rounds, result.segments) == (12, 2)


def test_a_round_that_was_cut_off_after_its_orders_is_part_of_the_memory(tmp_path: Path) -> None:
    work = AtWork(tmp_path)
    work.rounds(*UP_AND_DOWN[:3])
    work.journal.close()
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-1])
    work.start()
    work.rounds(*UP_AND_DOWN[3:])
    work.journal.close()
    result = check(tmp_path)
    assert result.reproduced
    assert [note for note in result.notes if "torn" in note] and len(result.notes) == 1


def test_the_first_difference_names_round_pool_and_field(tmp_path: Path) -> None:
    work = AtWork(tmp_path)
    work.rounds(*UP_AND_DOWN)
    work.journal.close()

    def one_more(done: Round) -> Round:
        pools = tuple(
            replace(grant, granted=grant.granted + 1) if grant.pool == "code-prefill" else grant
            for grant in done.allocation.pools
        )
        return replace(done, allocation=replace(done.allocation, pools=pools))

    change(tmp_path, Round, one_more, which=2)
    result = check(tmp_path)
    assert not result.reproduced
    (difference,) = result.differences
    assert (difference.round_no, difference.pool, difference.field) == (3, "code-prefill", "allocation.pools[2].granted")
    assert str(difference) == "round 3, code-prefill: allocation.pools[2].granted was 4, and is now 3"


def test_a_step_or_a_memory_that_is_not_what_was_decided_is_found(tmp_path: Path) -> None:
    work = AtWork(tmp_path)
    work.rounds(*UP_AND_DOWN[:2])
    work.journal.close()
    change(tmp_path, Round, lambda done: replace(done, steps=done.steps[1:]))
    (difference,) = check(tmp_path).differences
    assert (difference.round_no, difference.field.split("[")[0]) == (1, "steps")

    again = tmp_path / "again"
    work = AtWork(again)
    work.rounds(*UP_AND_DOWN[:2])
    work.journal.close()
    change(again, Orders, lambda before: replace(before, memory=replace(before.memory, rollout=type(before.memory.rollout)())))
    (difference,) = check(again).differences
    assert difference.round_no == 1 and difference.field.startswith("memory.rollout.pools")


def test_a_journal_of_other_code_is_refused_unless_the_change_is_what_one_wants_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "code_version", lambda: "0.0.9+before")
    work = AtWork(tmp_path)
    work.rounds(*UP_AND_DOWN)
    work.journal.close()
    monkeypatch.undo()
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)
    with pytest.raises(OtherVersion, match=r"decided by code version 0\.0\.9\+before; this is "):
        check(tmp_path)
    assert check(tmp_path, other_version=True).reproduced

    def two_at_most(state, inputs, policy):  # type: ignore[no-untyped-def]
        state, allocation = grant_in_order(state, inputs, policy)
        pools = tuple(replace(grant, granted=min(2, grant.granted)) for grant in allocation.pools)
        return state, replace(allocation, pools=pools)

    monkeypatch.setattr(memory_module, "arbitrate", two_at_most)
    result = check(tmp_path, other_version=True)
    assert [(item.round_no, item.pool) for item in result.differences] == [
        (3, "code-prefill"),
        (4, "code-prefill"),
        (5, "code-prefill"),
        (6, "chat-decode"),
    ]
    # Not the first difference alone: all that would be decided otherwise.
    assert result.changed == 4
    assert result.changes == (
        "round 3, code-prefill: was granted 3, would be 2 (as wanted)",
        "round 3: would not grow code-prefill from 1 to 2: 2 of 3 granted, the rest when GPUs are free: as wanted",
        "round 4, code-prefill: was granted 3, would be 2 (as wanted)",
        "round 5, code-prefill: was granted 3, would be 2 (as wanted)",
        "round 5: would not grow code-prefill from 2 to 3: as wanted",
        "round 6, chat-decode: was granted 3, would be 2 (as wanted)",
    )


def test_the_code_version_covers_everything_that_decides() -> None:
    """All that deciding a round imports, but for protocols and the codec: a forgotten source would pass for the same code."""
    undeciding = {"global_planner.ports", "pool_planner.records", "pool_planner.wire"}
    imported = CompiledSet(name="decide", modules=("global_planner.memory",)).sources() - undeciding
    covered = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in deciding_sources()}
    assert imported <= covered, imported - covered


def test_other_words_for_the_same_decision_are_no_change_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = AtWork(tmp_path)
    work.rounds(*UP_AND_DOWN)
    work.journal.close()

    def in_other_words(state, inputs, policy):  # type: ignore[no-untyped-def]
        state, allocation = grant_in_order(state, inputs, policy)
        pools = tuple(replace(grant, reason="because it was wanted") for grant in allocation.pools)
        return state, replace(allocation, pools=pools)

    monkeypatch.setattr(memory_module, "arbitrate", in_other_words)
    result = check(tmp_path, other_version=True)
    assert not result.reproduced and (result.changed, len(result.changes)) == (0, 6)
    assert result.changes[0] == (
        "round 1, chat-prefill: allocation.pools[0].reason was 'as wanted', and is now 'because it was wanted' "
        "(the same grants, rates and steps)"
    )


def test_a_folder_without_a_journal_is_not_a_success(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no journal here"):
        check(tmp_path)


def test_the_memory_of_a_restart_is_the_memory_before_it(tmp_path: Path) -> None:
    work = AtWork(tmp_path)
    work.world.faults = ["late"]
    work.rounds(*UP_AND_DOWN[:3])
    before = work.memory
    work.restart()
    assert work.memory == before
    assert [record.inputs.round_no for record in read(tmp_path) if isinstance(record, Round)] == [1, 2, 3]
