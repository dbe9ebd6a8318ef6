"""The committed journal is still read, and still decided as it was. A difference here is a change of behaviour: wanted or not,
somebody has to look at it (golden.py says how to accept it)."""

from __future__ import annotations

from pathlib import Path

from global_planner.explain import explain_round
from global_planner.journal import read
from global_planner.journal_reader import segments
from global_planner.replay.check import check
from global_planner.types import Cancel, Drain, Grow, Round, Shrink
from tests.journal.golden import GOLDEN, record


def rounds(directory: Path) -> list[Round]:
    return [item for item in read(directory) if isinstance(item, Round)]


def test_every_decision_is_still_made() -> None:
    result = check(GOLDEN, other_version=True)
    assert [str(difference) for difference in result.differences] == []
    assert (result.rounds, result.segments, result.notes) == (20, 2, ())


def test_the_run_is_worth_keeping() -> None:
    kept = rounds(GOLDEN)
    kinds = {type(step) for done in kept for step in done.steps}
    assert {Drain, Shrink, Grow} <= kinds and Cancel not in kinds
    assert any(not outcome.applied for done in kept for outcome in done.outcomes)
    assert any(grant.binding is not None for done in kept for grant in done.allocation.pools), "the budget was contended"
    assert any(len(grant.by_priority) == 2 for done in kept for grant in done.allocation.groups), "priorities are told"
    assert max(done.charged_gpus["h100"] for done in kept) == 14
    assert all(explain_round(done) for done in kept)


def test_the_same_run_today_leaves_the_same_rounds(tmp_path: Path) -> None:
    record(tmp_path)
    assert rounds(tmp_path) == rounds(GOLDEN)
    assert len(segments(tmp_path)) == len(segments(GOLDEN))
