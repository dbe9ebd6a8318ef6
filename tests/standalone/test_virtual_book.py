"""The books of decisions for an outside system, told as stories on a virtual clock, and against a dumb twin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_planner.connectors.virtual_book import Book, Superseded, complete, decide, grants, told


def test_one_decision_at_a_time() -> None:
    book = told(Book(), {"p": 1, "d": 2})
    book, outcome = decide(book, {"p": 1, "d": 2}, 10.0)
    assert (outcome, book.last) == ("unchanged", None)

    book, outcome = decide(book, {"p": 3}, 20.0, reasons={"p": "a forecast"})
    first = book.last
    assert outcome == "published" and first is not None
    assert (first.replicas, first.reasons) == ({"p": 3, "d": 2}, {"p": "a forecast"})
    have = grants(book, 20.0)["p"]
    assert (have.replicas_spec, have.replicas_ready, have.replicas_starting) == (3, 1, 2)

    # What is wanted next waits for the first, and is published once that is done.
    book, outcome = decide(book, {"p": 4}, 30.0)
    assert (outcome, book.last) == ("waiting", first)
    book = complete(book, first.id, None)
    assert grants(book, 31.0)["p"].replicas_ready == 3
    book, outcome = decide(book, {"p": 4}, 40.0)
    assert outcome == "published" and book.last is not None and book.last.id > first.id


def test_half_an_hour_is_waited_for_and_no_second_longer() -> None:
    book, _ = decide(told(Book(), {"p": 1}), {"p": 2}, 0.0)
    first = book.last
    assert first is not None
    book, outcome = decide(book, {"p": 5}, 1799.0)
    assert (outcome, book.last) == ("waiting", first)
    book, outcome = decide(book, {"p": 5}, 1800.0)
    assert (outcome, book.given_up) == ("gave up on the last one", 1)
    with pytest.raises(Superseded, match="the newest is"):
        complete(book, first.id, None)


def test_a_decision_that_nobody_completed_is_told_again() -> None:
    book, _ = decide(told(Book(timeout_s=60.0), {"p": 1}), {"p": 2}, 0.0)
    book, outcome = decide(book, {"p": 2}, 60.0)
    assert outcome == "gave up on the last one" and book.last is not None and book.last.replicas == {"p": 2}


def test_what_could_not_be_done_is_decided_again() -> None:
    book, _ = decide(told(Book(), {"p": 1}), {"p": 4}, 0.0)
    assert book.last is not None
    book = complete(book, book.last.id, {"p": 3})
    assert grants(book, 1.0)["p"].replicas_spec == 3


def test_completing_twice_is_harmless_and_unknown_ids_are_refused() -> None:
    with pytest.raises(Superseded, match="none is open"):
        complete(Book(), 7, None)
    book, _ = decide(told(Book(), {"p": 1}), {"p": 2}, 0.0)
    assert book.last is not None
    once = complete(book, book.last.id, None)
    assert complete(once, book.last.id, None) == once


def test_what_was_never_told_is_unknown_not_zero() -> None:
    assert grants(Book(), 0.0) == {}
    book, outcome = decide(Book(), {"p": 2}, 5.0)
    assert outcome == "published" and grants(book, 5.0) == {}


@given(
    st.lists(
        st.tuples(st.sampled_from(["want", "complete"]), st.integers(0, 5), st.floats(0.0, 900.0, allow_nan=False)),
        max_size=30,
    )
)
def test_ids_rise_and_an_obedient_system_ends_with_what_was_wanted(events: list[tuple[str, int, float]]) -> None:
    """The dumb twin executes every decision at once when it completes it; in the end both agree."""
    book, twin, now, ids = told(Book(), {"p": 1}), 1, 0.0, [0]
    for kind, number, pause in events:
        now += pause
        if kind == "want":
            book, outcome = decide(book, {"p": number}, now)
            if outcome in ("published", "gave up on the last one"):
                assert book.last is not None
                ids.append(book.last.id)
        elif book.open and book.last is not None:
            twin = book.last.replicas["p"]
            book = complete(book, book.last.id, None)
            assert book.ready["p"] == twin
    assert ids == sorted(set(ids))
    if not book.open:
        settled, _ = decide(book, {"p": twin}, now + 1.0)
        assert book.given_up or settled.open == (book.last is not None and book.last.replicas["p"] != twin)
