"""What follows from a slow endpoint for those who pick, as the live router and the replay ask it: tables on a virtual clock."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest

from router.config import OutlierConfig
from router.ejection import Ejection, Trials, next_trial
from router.outliers import Verdict

CONFIG = OutlierConfig(samples=4, for_s=2.0, eject_s=10.0)


@dataclass
class One:
    id: str
    in_flight: int = 0


POOL = [One(name) for name in "abcd"]


def played(ejection: Ejection, *, slow: str, until_s: float, ttft: bool = False) -> tuple[list[Verdict], float]:
    """Answers of everybody, twice a second; the first verdicts, and when they came."""
    now = 0.0
    while now < until_s:
        for one in POOL:
            own = 0.5 if one.id == slow else 0.05
            found = ejection.answered(one.id, now, ttft=own * 10 if ttft else None, itl=None if ttft else own)
            if found:
                return found, now
        now += 0.5
    return [], now


def names(endpoints: list[One]) -> str:
    return "".join(one.id for one in endpoints)


def test_a_slow_one_is_left_alone_then_tried_and_taken_back() -> None:
    ejection, trials = Ejection(CONFIG, "least_tokens"), Trials()
    assert [names(part) for part in ejection.divide(POOL)] == ["abcd", ""]
    verdicts, now = played(ejection, slow="c", until_s=60.0)
    assert [(one.endpoint, one.action) for one in verdicts] == [("c", "eject")]
    assert trials.note("pool", verdicts) == 1 and trials.due_s == pytest.approx(now + 10.001)
    assert [names(part) for part in ejection.divide(POOL)] == ["abd", ""] and ejection.out == ["c"]
    # Not a moment too early; then it gets single requests, and comes back when those are as fast as the others'.
    assert trials.due(now + 9.9) == [] and not ejection.try_again(now + 9.9)
    assert trials.due(trials.due_s) == ["pool"] and trials.due_s == inf and ejection.try_again(now + 10.001)
    assert [names(part) for part in ejection.divide(POOL)] == ["abd", "c"]
    told = [ejection.answered("c", now + 11.0, ttft=None, itl=0.05) for _ in range(2)]
    assert [one.action for verdicts in told for one in verdicts] == ["restore"]
    assert [names(part) for part in ejection.divide(POOL)] == ["abcd", ""]


@pytest.mark.parametrize(
    ("config", "pick", "ttft", "ejected"),
    [
        pytest.param(CONFIG, "least_tokens", True, True, id="by the first token"),
        pytest.param(CONFIG, "prefix_affinity", True, False, id="where prompts have their caches the first token says nothing"),
        pytest.param(CONFIG, "prefix_affinity", False, True, id="but the others do"),
        pytest.param(CONFIG.model_copy(update={"enabled": False}), "least_tokens", False, False, id="switched off"),
        pytest.param(None, "least_tokens", False, False, id="not configured"),
    ],
)
def test_what_is_compared(config: OutlierConfig | None, pick: str, ttft: bool, ejected: bool) -> None:
    ejection = Ejection(config, pick)  # type: ignore[arg-type]
    ejection.divide(POOL)
    assert bool(played(ejection, slow="b", until_s=30.0, ttft=ttft)[0]) is ejected


@pytest.mark.parametrize(
    ("on_trial", "without", "chosen"),
    [
        pytest.param([], set(), None, id="nobody is on trial"),
        pytest.param([One("a", 1), One("b")], set(), "b", id="one request at a time"),
        pytest.param([One("a"), One("b")], {"a"}, "b", id="not where it failed"),
        pytest.param([One("a", 1)], set(), None, id="the others then"),
    ],
)
def test_who_on_trial_gets_a_request(on_trial: list[One], without: set[str], chosen: str | None) -> None:
    found = next_trial(on_trial, without)
    assert (None if found is None else found.id) == chosen


def test_trials_come_in_order_of_time_whatever_their_pool() -> None:
    trials = Trials()
    for pool, until_s in (("b", 20.0), ("a", 10.0), ("b", 15.0)):
        trials.note(pool, [Verdict(endpoint="x", action="eject", until_s=until_s)])
    assert trials.note("a", [Verdict(endpoint="y", action="restore")]) == 0
    assert trials.due(16.0) == ["a", "b"] and trials.due_s == pytest.approx(20.001) and trials.due(30.0) == ["b"]
