"""Which rules are in force: selectors, schedules and limits, as tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from global_planner.arbiter import ArbiterPolicy
from global_planner.arbiter.effective import check_schedule, group_rules, in_force, pool_rules
from global_planner.arbiter.state import Limit, Schedule, Selector
from tests.arbiter.builders import AT_ONCE, decide, granted, group, inputs, line, pool, proposal

CHAT = group("chat")
PREFILL = pool("chat-prefill", "prefill", least=1, most=10)


def floor_by(name: str, replicas: int, **matchers: str) -> Selector:
    return Selector(name=name, min_replicas=replicas, **matchers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lines", "expected", "decided_by"),
    [
        ((), 1, ""),
        ((floor_by("all", 2),), 2, "selector all"),
        ((floor_by("decode", 2, role="decode"),), 1, ""),
        ((floor_by("one", 3, pool="chat-prefill"), floor_by("all", 2)), 3, "selector one"),
        ((floor_by("some", 3, pool="chat-*"), floor_by("group", 2, group="chat")), 3, "selector some"),
        ((floor_by("exact", 3, group="chat"), floor_by("role", 2, role="prefill")), 3, "selector exact"),
        ((floor_by("first", 3, role="prefill"), floor_by("later", 2, role="prefill")), 2, "selector later"),
        ((floor_by("two", 3, role="prefill", namespace="demo"), floor_by("one", 2, namespace="demo")), 3, "selector two"),
    ],
)
def test_the_most_specific_selector_wins(lines: tuple[Selector, ...], expected: int, decided_by: str) -> None:
    rules = pool_rules(PREFILL, CHAT, ArbiterPolicy(selectors=lines), (), 0.0)
    assert (rules.minimum, rules.min_from) == (expected, decided_by)


def test_selectors_of_groups() -> None:
    lines = (
        Selector(name="gold", model="demo/chat*", priority_class=5),
        Selector(name="team", namespace="demo", weight=3.0, priority_class=1),
    )
    rules = group_rules(CHAT, [PREFILL], lines)
    assert (rules.priority_class, rules.weight) == (5, 3.0)
    with pytest.raises(ValueError, match="by group, model and namespace"):
        Selector(name="wrong", role="decode", weight=2.0)


def utc(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("event", "inside", "outside"),
    [
        (
            Schedule(name="daily", start="09:00", duration_s=7200, timezone="Europe/Berlin", load_factor=2.0),
            ("2026-01-05T08:00+00:00", "2026-01-05T09:59:59+00:00", "2026-07-05T07:00+00:00"),
            ("2026-01-05T07:59:59+00:00", "2026-01-05T10:00+00:00", "2026-07-05T09:00:01+00:00"),
        ),
        (
            Schedule(name="led", start="09:00", duration_s=3600, lead_s=600, days=(0,), min_replicas=4),
            ("2026-01-05T08:50+00:00", "2026-01-05T09:59+00:00"),
            ("2026-01-05T08:49+00:00", "2026-01-06T09:10+00:00"),
        ),
        (
            Schedule(name="over midnight", start="23:30", duration_s=7200, days=(4,), load_factor=1.5),
            ("2026-01-09T23:30+00:00", "2026-01-10T01:29+00:00"),
            ("2026-01-10T01:30+00:00", "2026-01-10T23:40+00:00"),
        ),
        (
            Schedule(name="led since eve", start="00:05", duration_s=60, lead_s=900, date="2026-11-27", load_factor=1.5),
            ("2026-11-26T23:50+00:00", "2026-11-27T00:05:30+00:00"),
            ("2026-11-26T23:49+00:00", "2026-11-28T00:05:30+00:00"),
        ),
        (
            Schedule(name="half an hour from UTC", start="09:00", duration_s=60, timezone="Asia/Kolkata", load_factor=1.5),
            ("2026-11-26T03:30:30+00:00",),
            ("2026-11-26T03:00:30+00:00",),
        ),
    ],
)  # fmt: skip
def test_schedules(event: Schedule, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    check_schedule(event)
    assert [in_force(event, utc(text)) for text in inside] == [True] * len(inside)
    assert [in_force(event, utc(text)) for text in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "9:00"}, "not a time of day"),
        ({"duration_s": 0.0}, "duration_s must be above 0"),
        ({"timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"days": (7,)}, "0 \\(Monday\\) .. 6 \\(Sunday\\)"),
        ({"date": "2026-02-30"}, "day is out of range"),
        ({"load_factor": None}, "either min_replicas or load_factor"),
        ({"load_factor": -1.0}, "not above 0"),
    ],
)
def test_schedules_that_cannot_be(change: dict[str, object], message: str) -> None:
    good = Schedule(name="fair", start="09:00", duration_s=3600, load_factor=2.0)
    with pytest.raises(ValueError, match=message):
        check_schedule(replace(good, **change))  # type: ignore[arg-type]


def test_a_schedule_raises_floor_or_load_in_time() -> None:
    fair = Schedule(name="fair", start="00:10", duration_s=600, lead_s=120, group="chat", load_factor=2.0)
    night = Schedule(name="night", start="00:10", duration_s=600, lead_s=120, pool="code-*", min_replicas=3)
    policy = replace(AT_ONCE, schedules=(fair, night))
    pools = [pool("chat-agg"), pool("code-agg")]

    def at(at_s: float) -> dict[str, int]:
        reports = [proposal("chat-agg", 2.0, 1.0, at_s=at_s), proposal("code-agg", 1.0, 1.0, at_s=at_s)]
        return granted(decide(inputs(pools, reports, budget={"h100": 20}, at_s=at_s), policy))

    assert at(479.0) == {"chat-agg": 2, "code-agg": 1}
    assert at(481.0) == {"chat-agg": 4, "code-agg": 3}
    assert at(1201.0) == {"chat-agg": 2, "code-agg": 1}


def test_the_tightest_limit_is_named() -> None:
    pools = [
        pool("chat-agg", namespace="red"),
        pool("code-agg", gpu_type="h200", namespace="red"),
        pool("mail-agg", namespace="blue"),
    ]
    reports = [proposal(spec.name, 9.0, 1.0) for spec in pools]
    told = inputs(pools, reports, budget={"h100": 12, "h200": 8})
    quota = Limit(name="red", namespace="red", max_gpus=6)
    cost = Limit(name="month", max_cost_per_hour=30.0)
    allocation = decide(told, replace(AT_ONCE, limits=(quota,)))
    assert granted(allocation)["mail-agg"] == 9
    assert granted(allocation)["chat-agg"] + granted(allocation)["code-agg"] == 6
    assert line(allocation, "code-agg").binding == "limit red"
    # An h200 costs twice as much: under the cost limit, h100 first.
    priced = replace(AT_ONCE, limits=(cost,), prices={"h100": 2.0, "h200": 4.0})
    allocation = decide(told, priced)
    assert granted(allocation)["code-agg"] == 1 and sum(granted(allocation).values()) == 13
    assert line(allocation, "code-agg").binding == "limit month"
    # A type without a price must not grow under a cost limit: unknown is not free.
    allocation = decide(told, replace(priced, prices={"h100": 2.0}))
    assert granted(allocation)["code-agg"] == 0
    assert line(allocation, "code-agg").binding == "limit month counts cost, and h200 has no price"


def test_a_limit_is_of_one_kind() -> None:
    with pytest.raises(ValueError, match="either max_gpus or max_cost_per_hour"):
        Limit(name="both", max_gpus=3, max_cost_per_hour=1.0)
