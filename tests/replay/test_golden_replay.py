"""The golden replay stays what it is, to the byte."""

from __future__ import annotations

import json

from tests.replay.golden_replay import SUMMARY, summary


def test_the_golden_replay_is_the_committed_one() -> None:
    now = summary()
    if now != SUMMARY.read_bytes():
        was, told = json.loads(SUMMARY.read_bytes()), json.loads(now)
        assert told == was, "if this is meant: python -m tests.replay.golden_replay, and commit the difference"
    assert now == SUMMARY.read_bytes()


def test_it_holds_something() -> None:
    policies = json.loads(SUMMARY.read_bytes())["policies"]
    assert set(policies) == {"goodput", "hpa"}
    assert all(one["requests"] > 500 and one["moves"] > 3 for one in policies.values())
