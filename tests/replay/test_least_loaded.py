"""The index behind the router's least-tokens policy chooses what the plain list chooses, to the last tie."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from global_planner.replay.least_loaded import LeastLoaded
from router.policy import Ask, LeastTokens


@dataclass(slots=True, eq=False)
class One:
    id: str
    in_flight: int = 0
    outstanding_tokens: float = 0.0


# What happens: a request of so many tokens, the end of the oldest at an endpoint, or another set of endpoints.
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([1.0, 1.0, 3.5, 100.0])),
        st.tuples(st.just("end"), st.integers(0, 40)),
        st.tuples(st.just("change"), st.integers(1, 12)),
    ),
    max_size=120,
)


@given(count=st.integers(1, 12), happenings=happenings)
def test_every_choice_is_that_of_the_plain_list(count: int, happenings: list[tuple[str, float]]) -> None:
    ask, plain, index = Ask(isl_tokens=1.0), LeastTokens(), LeastLoaded[One](LeastTokens())
    ones = [One(f"e{number}") for number in range(count)]
    sent: list[tuple[One, float]] = []
    fresh = itertools.count()  # an id is never given twice
    index.rebuild(ones)
    for what, value in happenings:
        if what == "send":
            chosen = index.pick()
            assert chosen is (ones[0] if len(ones) == 1 else plain.pick(ones, ask))
            chosen.in_flight += 1
            chosen.outstanding_tokens += value
            index.moved(chosen.id, chosen.outstanding_tokens, chosen.in_flight)
            sent.append((chosen, value))
        elif what == "end" and sent:
            one, tokens = sent.pop(int(value) % len(sent))
            one.in_flight -= 1
            one.outstanding_tokens -= tokens
            index.moved(one.id, one.outstanding_tokens, one.in_flight)
        elif what == "change":
            ones = [*ones[1:], *(One(f"n{next(fresh)}") for _ in range(int(value)))][: max(1, int(value))]
            index.rebuild(ones)


def test_loads_of_the_past_do_not_pile_up() -> None:
    index = LeastLoaded[One](LeastTokens())
    ones = [One(f"e{number}") for number in range(8)]
    index.rebuild(ones)
    for number in range(10_000):
        one = index.pick()
        one.outstanding_tokens += 1.0 + number % 7
        index.moved(one.id, one.outstanding_tokens, one.in_flight)
    assert len(index._heap) <= 4 * 8 + 65
