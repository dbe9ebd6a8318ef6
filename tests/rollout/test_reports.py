"""Reports that a round may not believe, each with what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from global_planner.reports import believable, flaw
from pool_planner import wire
from pool_planner.types import DemandCurve, Hold, Proposal
from tests.rollout.play import proposal
from tests.rollout.world import specs

GOOD = replace(
    proposal("chat-decode", 0.0, 2),
    curve=DemandCurve(attainment=(0.0, 0.5, 1.0), capacity_rps=(0.0, 1.0, 2.0)),
    attainment_headroom=(0.0, 0.4, 0.9),
)


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (GOOD, None),
        (replace(GOOD, curve=None), None),
        (Hold(pool="chat-decode", at_s=0.0, reason="no metrics", expires_at_s=9.0), None),
        (replace(GOOD, pool="chat-prefill"), "it is about pool 'chat-prefill'"),
        (replace(GOOD, load_rps=float("nan")), "load_rps is nan"),
        (replace(GOOD, load_rps=-1.0), "load_rps is -1.0"),
        (replace(GOOD, expected_rps=-1.0), "expected_rps is -1.0"),
        (replace(GOOD, wanted=-1), "wanted is -1"),
        (replace(GOOD, wanted=10**30), f"wanted is {10**30}"),
        (replace(GOOD, at_s=float("inf")), "at_s is inf"),
        (replace(GOOD, curve=DemandCurve(attainment=())), "curve.attainment is empty"),
        (replace(GOOD, curve=DemandCurve(attainment=(0.0, 1.5))), "curve.attainment leaves 0..1"),
        (replace(GOOD, curve=DemandCurve(attainment=(0.5, 0.4))), "curve.attainment falls"),
        (replace(GOOD, curve=DemandCurve(attainment=(0.0, float("nan")))), "curve.attainment.1 is nan"),
        (replace(GOOD, curve=DemandCurve(attainment=(0.0, 1.0), capacity_rps=(0.0, -2.0))), "curve.capacity_rps is negative"),
        (replace(GOOD, attainment_headroom=(1.0, 0.0)), "attainment_headroom falls"),
        (Hold(pool="chat-decode", at_s=float("nan"), reason="x", expires_at_s=9.0), "at_s is nan"),
    ],
)
def test_table(report: Proposal | Hold, said: str | None) -> None:
    assert flaw(report, "chat-decode") == said


def test_in_force_until_it_expires() -> None:
    reports = {"chat-decode": GOOD}
    assert believable(reports, specs(), GOOD.expires_at_s - 0.1) == (GOOD,)
    assert believable(reports, specs(), GOOD.expires_at_s) == ()


def test_reports_about_pools_that_are_not_in_the_topology_are_nobodys() -> None:
    assert believable({"old-decode": replace(GOOD, pool="old-decode")}, specs(), 0.0) == ()


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(
    load=numbers,
    at=numbers,
    wanted=st.integers(-5, 10**30),
    curve=st.lists(numbers, max_size=4).map(tuple),
    headroom=st.one_of(st.none(), st.lists(numbers, max_size=4).map(tuple)),
)
def test_whatever_is_believed_can_be_written_down(
    load: float, at: float, wanted: int, curve: tuple[float, ...], headroom: tuple[float, ...] | None
) -> None:
    report = Proposal(
        pool="chat-decode",
        at_s=at,
        expires_at_s=100.0,
        load_rps=load,
        wanted=wanted,
        curve=DemandCurve(attainment=curve),
        attainment_headroom=headroom,
    )
    for taken in believable({"chat-decode": report}, specs(), 50.0):
        assert wire.decode(wire.encode(taken)) == taken
