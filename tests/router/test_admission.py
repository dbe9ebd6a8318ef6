"""Admission as stories on a virtual clock: rates, priorities, the bounded room, deadlines, and the plan that expires."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.admission import Admission, Refusal, Ticket
from router.limits import RateLimit, RetryBudget, TokenBucket


def door(room: int = 10, **models: tuple[int, RateLimit]) -> Admission:
    return Admission(models or {"m": (0, RateLimit())}, room=room, starting_retry_after_s=7.0, now=0.0)


def ticket(model: str = "m", priority: int = 0, deadline_s: float = 100.0) -> Ticket:
    return Ticket(model=model, priority=priority, tokens=1.0, deadline_s=deadline_s)


def of_length(tokens: float, *, priority: int = 0, deadline_s: float = 100.0) -> Ticket:
    return Ticket(model="m", priority=priority, tokens=tokens, length=tokens, deadline_s=deadline_s)


def always(_: Ticket) -> bool:
    return True


def never(_: Ticket) -> bool:
    return False


def test_without_a_limit_everybody_comes_in() -> None:
    admission = door()
    assert [admission.offer(ticket(), 0.0, True) for _ in range(100)] == ["admitted"] * 100


def test_a_rate_lets_in_a_burst_and_then_one_at_a_time() -> None:
    admission = door(m=(0, RateLimit(rate_rps=2.0, burst=3.0)))
    assert [admission.offer(ticket(), 0.0, True) for _ in range(5)] == ["admitted"] * 3 + ["waiting"] * 2
    assert admission.next_event_s(0.0) == pytest.approx(0.5)
    assert admission.pump(0.49, always) == ([], [])
    assert len(admission.pump(0.5, always)[0]) == 1
    assert len(admission.pump(1.0, always)[0]) == 1
    assert admission.next_event_s(1.0) is None


def test_a_door_that_was_closed_opens_with_what_may_come_at_once() -> None:
    """Who waited for a model to wake does not wait another 20 s for the first token of one in 20 s."""
    admission = door(m=(0, RateLimit(rate_rps=0.0)))
    early = [ticket() for _ in range(3)]
    assert [admission.offer(one, 0.0, True) for one in early] == ["waiting"] * 3
    assert admission.pump(30.0, always) == ([], [])
    admission.put_plan(1, {"m": RateLimit(rate_rps=0.05, burst=1.0)}, valid_s=60.0, now=40.0)
    assert admission.pump(40.0, always)[0] == early[:1]
    # A lower rate that is not 0 saves nothing up: the next token comes in its time.
    admission.put_plan(2, {"m": RateLimit(rate_rps=0.1, burst=2.0)}, valid_s=60.0, now=40.0)
    assert admission.pump(49.9, always)[0] == [] and admission.pump(50.0, always)[0] == early[1:2]


def test_no_more_are_under_way_than_the_plan_says_whatever_the_rate_allows() -> None:
    """Decoding is hardly faster with a larger crowd, so a crowd that is too large already would stay so at any rate that the
    replicas carry: it is waited for until it is small enough."""
    crowd = 0
    admission = Admission({"m": (0, RateLimit())}, room=10, starting_retry_after_s=7.0, now=0.0, under_way=lambda model: crowd)
    admission.put_plan(1, {"m": RateLimit(rate_rps=100.0, in_flight=3.5)}, valid_s=60.0, now=0.0)
    for crowd in range(3):  # noqa: B007 - the admission reads it
        assert admission.offer(ticket(), 0.0, True) == "admitted"
    crowd = 3
    late, later = ticket(), ticket()
    assert [admission.offer(one, 0.0, True) for one in (late, later)] == ["waiting", "waiting"]
    assert admission.bounds_in_flight and admission.pump(1.0, always) == ([], [])
    crowd = 2  # one has ended: one comes in, however many tokens there are
    assert admission.pump(2.0, always) == ([late], [])
    crowd = 3
    # Who was let in before and comes back from a failed engine has its place.
    assert admission.offer(late, 2.5, True) == "waiting" and admission.pump(2.5, always)[0] == [late]
    # A plan with no room for anybody still lets one in at a time: otherwise nobody would ever learn better.
    admission.put_plan(2, {"m": RateLimit(rate_rps=100.0, in_flight=0.2)}, valid_s=60.0, now=3.0)
    crowd = 1
    assert admission.pump(3.0, always) == ([], [])
    crowd = 0
    assert admission.pump(4.0, always) == ([later], [])


def test_the_more_important_go_first_and_nobody_overtakes_within_a_priority() -> None:
    admission = door(m=(0, RateLimit(rate_rps=1.0, burst=1.0)))
    admission.offer(ticket(), 0.0, True)
    low, first, second = ticket(priority=-1), ticket(priority=5), ticket(priority=5)
    for one in (low, first, second):
        assert admission.offer(one, 0.0, True) == "waiting"
    assert [admission.pump(float(now), always)[0] for now in (1, 2, 3)] == [[first], [second], [low]]


def test_a_priority_has_its_part_of_the_rate_and_of_the_burst() -> None:
    admission = door(room=1000)
    admission.put_plan(1, {"m": RateLimit(rate_rps=4.0, burst=80.0, by_priority={"0": 1.0})}, valid_s=60.0, now=0.0)
    assert sum(admission.offer(ticket(), 0.0, True) == "admitted" for _ in range(30)) == 20
    # What is more important is bounded by the whole alone.
    for _ in range(75):
        admission.offer(ticket(priority=3), 0.0, True)
    assert [one.priority for one in admission.pump(0.0, always)[0]] == [3] * 60
    # The rate of priority 0 follows the plan; what waits goes as its own tokens come.
    admission.put_plan(2, {"m": RateLimit(rate_rps=40.0, burst=80.0, by_priority={"0": 2.0})}, valid_s=60.0, now=0.0)
    let_in = [one.priority for one in admission.pump(1.0, always)[0]]
    assert let_in.count(0) == 2 and let_in.count(3) == 15


def test_a_request_for_a_pool_at_zero_does_not_hold_up_the_others() -> None:
    admission = door()
    stuck, free = ticket(), ticket()
    assert admission.offer(stuck, 0.0, False) == "waiting"
    assert admission.offer(free, 0.0, True) == "waiting"
    assert admission.pump(0.0, lambda one: one is free)[0] == [free]
    assert admission.waiting("m") == [stuck]


def test_a_full_room_sheds_the_least_important_of_the_longest_line() -> None:
    admission = door(room=3, chat=(0, RateLimit()), code=(1, RateLimit()))
    old, new, urgent = ticket("chat"), ticket("chat"), ticket("chat", priority=9)
    for one in (old, new, urgent):
        assert admission.offer(one, 0.0, False) == "waiting"
    # No better than the worst who waits: turned away at the door.
    assert admission.offer(ticket("chat"), 0.0, False) == Refusal(reason="full", retry_after_s=7.0)
    assert admission.overflow() == []
    # Of a more important class: the newest of the least important leaves.
    assert admission.offer(ticket("code"), 0.0, False) == "waiting"
    assert [one for one, _ in admission.overflow()] == [new]
    assert admission.waiting("chat") == [urgent, old]


def test_between_equals_the_longest_line_gives() -> None:
    admission = door(room=4, a=(0, RateLimit()), b=(0, RateLimit()))
    for _ in range(4):
        assert admission.offer(ticket("a"), 0.0, False) == "waiting"
    for expected in ("waiting", "waiting"):
        assert admission.offer(ticket("b"), 0.0, False) == expected
        assert [one.model for one, _ in admission.overflow()] == ["a"]
    assert isinstance(admission.offer(ticket("b"), 0.0, False), Refusal)
    assert (len(admission.waiting("a")), len(admission.waiting("b"))) == (2, 2)


def test_deadlines_tell_why() -> None:
    """Two wait until 30 s: one for an endpoint (503), one for its turn at 0.01 requests/s (429)."""
    admission = door(m=(0, RateLimit(rate_rps=0.01, burst=1.0)))
    admission.offer(ticket(), 0.0, True)
    starting, slow = ticket(deadline_s=30.0), ticket(deadline_s=30.0)
    admission.offer(starting, 0.0, False)
    admission.offer(slow, 0.0, True)
    assert admission.next_event_s(0.0) == 30.0
    assert admission.pump(29.9, never) == ([], [])
    _, refused = admission.pump(30.0, lambda one: one is slow)
    assert [(one, refusal.reason) for one, refusal in refused] == [(starting, "starting"), (slow, "rate")]
    assert refused[0][1].retry_after_s == 7.0
    assert refused[1][1].retry_after_s == 60.0


def test_the_plan_expires_and_own_limits_return() -> None:
    admission = door(m=(0, RateLimit(rate_rps=1.0, burst=1.0)))
    assert not admission.plan_in_force
    assert admission.put_plan(5, {"m": RateLimit(rate_rps=100.0), "stranger": RateLimit()}, valid_s=30.0, now=0.0)
    assert not admission.put_plan(4, {"m": RateLimit(rate_rps=1.0)}, valid_s=30.0, now=1.0)
    assert (admission.plan_version, admission.limit_of("m").rate_rps) == (5, 100.0)
    assert admission.next_event_s(1.0) == 30.0
    assert not admission.expire(29.0)
    assert admission.expire(30.0)
    assert not admission.plan_in_force
    assert admission.limit_of("m").rate_rps == 1.0
    # The same plan again (a round later) holds again.
    assert admission.put_plan(5, {"m": RateLimit()}, valid_s=30.0, now=31.0)
    assert admission.plan_in_force


def test_priorities_may_be_limited_within_the_rate() -> None:
    admission = door(m=(0, RateLimit(by_priority={"-1": 1.0, "-2": 0.0})))
    assert [admission.offer(ticket(priority=-1), 0.0, True) for _ in range(2)] == ["admitted", "waiting"]
    assert admission.offer(ticket(priority=-2), 0.0, True) == "waiting"
    assert admission.offer(ticket(priority=0), 0.0, True) == "waiting"
    admitted, _ = admission.pump(1.0, always)
    assert sorted(one.priority for one in admitted) == [-1, 0]


def test_a_request_that_paid_does_not_pay_again() -> None:
    admission = door(m=(0, RateLimit(rate_rps=0.001, burst=1.0)))
    one = ticket()
    assert admission.offer(one, 0.0, True) == "admitted"
    assert admission.offer(one, 1.0, True) == "admitted"
    assert admission.offer(one, 2.0, False) == "waiting"
    assert admission.pump(3.0, always)[0] == [one]


def test_who_leaves_is_forgotten() -> None:
    admission = door(room=1)
    gone = ticket()
    admission.offer(gone, 0.0, False)
    admission.leave(gone)
    admission.leave(gone)
    assert admission.offer(ticket(), 0.0, False) == "waiting"


@settings(max_examples=100, deadline=None)
@given(st.floats(0.1, 50), st.floats(1, 20), st.lists(st.floats(0, 2), max_size=100))
def test_a_bucket_never_lets_in_more_than_rate_and_burst(rate: float, burst: float, gaps: list[float]) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    now, taken = 0.0, 0
    for gap in gaps:
        now += gap
        if bucket.wait_s(now) == 0.0:
            bucket.take()
            taken += 1
        else:
            assert bucket.wait_s(now + bucket.wait_s(now)) == 0.0 or bucket.wait_s(now) < 1e-6
            now = max(now, bucket._at)
    assert taken <= max(1.0, burst) + rate * now + 1e-6


def test_retry_budget() -> None:
    budget = RetryBudget(ratio=0.5, burst=2.0)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    budget.request()
    assert not budget.take()
    budget.request()
    assert budget.take()
    for _ in range(100):
        budget.request()
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_where_the_shortest_comes_first_most_are_in_time() -> None:
    """One place a second and four seconds to wait: somebody is left over, and that is who would have taken longest."""
    admission = door(m=(0, RateLimit()))
    long, *short = tickets = [of_length(tokens, deadline_s=4.0) for tokens in (300.0, 100.0, 100.0, 100.0)]
    urgent = of_length(200.0, priority=1)
    assert [admission.offer(one, 0.0, False) for one in (*tickets, urgent)] == ["waiting"] * 5
    told: list[Ticket] = []

    def one_place(_: Ticket) -> bool:
        return not told

    for second in range(5):
        told.clear()
        admitted, refused = admission.pump(
            float(second), always, lambda ticket: one_place(ticket) and (told.append(ticket) or True)
        )
        # Priorities come before lengths, and of equal lengths who came first.
        assert admitted == ([urgent, *short][second : second + 1])
        assert [ticket for ticket, _ in refused] == ([long] if second == 4 else [])
