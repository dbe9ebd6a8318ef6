"""The log of conditions, as a story."""

from __future__ import annotations

from global_planner.condition_log import AGAIN_S, MOST_LINES, ConditionLog

HELD = "chat-decode is held: DGD chat-main: the limit gpu: 'half' is not a count"


def test_what_is_not_understood_is_said_once_and_when_it_has_ended() -> None:
    log = ConditionLog()
    assert log.lines([HELD], 0.0) == [HELD]
    # Ten rounds on it still holds: nothing new. A second pool is.
    other = HELD.replace("chat-decode", "chat-prefill")
    assert [log.lines([HELD], 10.0 * number) for number in range(1, 10)] == [[]] * 9
    assert log.lines([HELD, other], 100.0) == [other]
    # Somebody mends the manifest.
    assert log.lines([other], 110.0) == [f"no longer: {HELD}"]
    assert log.lines([HELD, other], 120.0) == [HELD], "and breaks it again"


def test_what_lasts_is_said_again_after_ten_minutes() -> None:
    log = ConditionLog()
    said_at = [now for now in range(0, 1300, 10) if log.lines([HELD], float(now))]
    assert said_at == [0, AGAIN_S, 2 * AGAIN_S]


def test_a_cluster_that_cannot_be_read_at_all_does_not_fill_the_disk() -> None:
    log = ConditionLog()
    names = [chr(ord("a") + number // 26) + chr(ord("a") + number % 26) for number in range(500)]
    lines = log.lines([f"pool {name} is held" for name in names], 0.0)
    assert len(lines) == MOST_LINES + 1 and lines[-1] == "and 450 more"
    assert log.lines([f"pool {name} is held" for name in names], 10.0) == []
