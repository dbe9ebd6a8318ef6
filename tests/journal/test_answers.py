"""The answers that the command line gives from a journal, on the golden one."""

from __future__ import annotations

from pathlib import Path

import pytest

from global_planner import answers
from global_planner.answers import check_again, compare_watched
from global_planner.explain import plain
from tests.journal.golden import GOLDEN


def explain(directory: Path, **asked: object) -> str:
    return plain(answers.explain(directory, **asked))  # type: ignore[arg-type]


def test_explain_the_last_round_a_round_a_pool_and_its_history() -> None:
    assert explain(GOLDEN).startswith("Round 20 at ")
    assert explain(GOLDEN, number=5).startswith("Round 5 at ")
    told = explain(GOLDEN, number=5, pool="chat-decode")
    assert told.startswith("Round 5 at ") and "chat-decode is the decode pool of chat" in told
    assert "chat-decode, where something changed" in explain(GOLDEN, pool="chat-decode")


def test_explain_with_the_price_of_priorities() -> None:
    told = explain(GOLDEN, number=7, price_of_priorities=True)
    assert "With equal priorities" in told and told.splitlines()[-1].split()[-1] == "+0.00", "there are none in this run"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="the journal holds rounds 1 to 20, not 99"):
        explain(GOLDEN, number=99)
    with pytest.raises(KeyError, match="does not hold round 99"):
        explain(GOLDEN, number=99, price_of_priorities=True)
    with pytest.raises(KeyError, match="has no pool 'chat'"):
        explain(GOLDEN, pool="chat")
    for ask in (explain, compare_watched, check_again):
        with pytest.raises(FileNotFoundError, match="there is no journal here"):
            ask(tmp_path)


def test_compare_and_check() -> None:
    table, note = compare_watched(GOLDEN)
    assert not isinstance(table, str) and table.rows[-1][0] == "all"
    assert "without the cold start" in str(note)
    reproduced, told = check_again(GOLDEN, other_version=True)
    assert reproduced and told.splitlines()[0] == "20 rounds of 2 segments were decided again."
