"""The golden replay stays what it is, to the byte."""

from __future__ import annotations

import json
from difflib import unified_diff

import pytest

from tests.replay.golden_replay import SUMMARY, summary


def difference(was: bytes, now: bytes) -> str:
    """Line by line, as a reviewer reads it."""
    texts = (one.decode().splitlines() for one in (was, now))
    return "\n".join(unified_diff(*texts, "committed", "now", lineterm="", n=2))


def test_the_golden_replay_is_the_committed_one() -> None:
    was, now = SUMMARY.read_bytes(), summary()
    if now != was:
        meant = "if this is meant: python -m tests.replay.golden_replay, and commit the difference"
        pytest.fail(f"the golden replay has changed; {meant}\n{difference(was, now)}", pytrace=False)


def test_one_changed_digit_is_a_line_of_the_difference() -> None:
    was = SUMMARY.read_bytes()
    now = was.replace(b'"moves": ', b'"moves": 1', 1)
    changed = [line for line in difference(was, now).splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert len(changed) == 2 and all('"moves": ' in line for line in changed)


def test_it_holds_something() -> None:
    policies = json.loads(SUMMARY.read_bytes())["policies"]
    assert set(policies) == {"goodput", "hpa"}
    assert all(one["requests"] > 500 and one["moves"] > 3 for one in policies.values())
