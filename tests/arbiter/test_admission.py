"""The admitted rate follows what is ready, and a class of requests that starves does not starve the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from global_planner.arbiter import ArbiterPolicy, ArbiterState, arbitrate
from global_planner.arbiter.admission import rates_by_priority
from global_planner.arbiter.effective import pool_rules
from global_planner.arbiter.view import GroupView, PoolView
from global_planner.ports import GroupAdmission
from global_planner.round import admission
from global_planner.types import PoolSpec, RoundInputs
from pool_planner.types import Proposal
from tests.arbiter.builders import decide, group, holding, inputs, pool, proposal

SHORT, LONG, DECODE = pool("chat-short", "prefill"), pool("chat-long", "prefill"), pool("chat-decode", "decode")
LOADS = {"chat-short": 6.0, "chat-long": 2.0, "chat-decode": 8.0}


def ready(counts: dict[str, int], *, blind: str | None = None) -> RoundInputs:
    specs: list[PoolSpec] = [SHORT, LONG, DECODE]
    reports = [proposal(spec.name, LOADS[spec.name], 1.0) for spec in specs if spec.name != blind]
    told = inputs(specs, reports, budget={"h100": 40})
    return replace(told, holdings=tuple(holding(spec, 20, ready=counts[spec.name]) for spec in specs))


@pytest.mark.parametrize(
    ("short", "long", "decode", "admitted"),
    [
        (6, 2, 8, 8.0),  # exactly the load
        (9, 3, 20, 12.0),  # room to spare in all: as much as the mix allows
        (9, 2, 20, 8.0),  # long is full at the load
        (9, 1, 20, 7.0),  # long starves, short does not
        (6, 2, 5, 5.0),  # decode is what is short
        (0, 0, 9, 0.0),  # nothing is ready yet
    ],
)
def test_what_may_be_admitted(short: int, long: int, decode: int, admitted: float) -> None:
    told = ready({"chat-short": short, "chat-long": long, "chat-decode": decode})
    assert decide(told).groups[0].admitted_rps == pytest.approx(admitted)


def test_as_many_may_be_under_way_as_the_ready_replicas_hold() -> None:
    """Prefill holds 3 requests a replica at its own rate, decode 20 whatever the rate."""
    told = ready({"chat-short": 9, "chat-long": 3, "chat-decode": 5})
    each = {"chat-short": 3.0, "chat-long": 3.0, "chat-decode": 20.0}
    reports = []
    for report in told.reports:
        assert isinstance(report, Proposal) and report.curve is not None
        inside = tuple(each[report.pool] * n for n in range(len(report.curve.attainment)))
        reports.append(replace(report, curve=replace(report.curve, in_flight=inside)))
    # Decode lets in 5 of the 12 req/s that prefill would carry, so prefill has 5/12 of the 36 that it could hold.
    grant = decide(replace(told, reports=tuple(reports))).groups[0]
    assert (grant.admitted_rps, grant.in_flight) == pytest.approx((5.0, 5 * 20.0 + 36.0 * 5 / 12))
    # With a pool as many as it holds itself, whatever its partner lets in.
    assert grant.in_flight_by_pool == {"chat-short": 27.0, "chat-long": 9.0, "chat-decode": 100.0}
    # Where the router's door itself turns away who cannot be in time, that is all it is told; else the rate as well.
    whole = replace(told, reports=tuple(reports))
    for by_sla, rate in ((True, None), (False, grant.admitted_rps)):
        [tells] = admission(told.groups, told.pools, decide(whole), by_sla=by_sla)
        assert (tells.admitted_rps, tells.in_flight) == (rate, grant.in_flight)
        # And of prefill it knows more exactly what can be in time.
        assert tells.in_flight_by_pool == ({"chat-decode": 100.0} if by_sla else grant.in_flight_by_pool)
    # Nobody tells what an aggregated pool begins in time: there the rate holds.
    agg = (*told.pools, pool("chat-agg"))
    assert admission(told.groups, agg, decide(whole), by_sla=True)[0].admitted_rps == grant.admitted_rps
    # Of what they may have under way at once, chance may bring all at once.
    bursts = {by_sla: admission(told.groups, agg, decide(whole), 20.0, by_sla=by_sla)[0].burst for by_sla in (True, False)}
    assert bursts == pytest.approx({True: grant.in_flight, False: 20.0 * 5.0})
    # One pool does not say: nobody knows of the sum, but of the others each speaks for itself.
    partly = decide(replace(told, reports=(*reports[:2], told.reports[2]))).groups[0]
    assert (partly.in_flight, partly.in_flight_by_pool) == (None, {"chat-short": 27.0, "chat-long": 9.0})


def holding_many(told: RoundInputs, **changed: object) -> RoundInputs:
    """Prefill has 3 requests a replica at its own rate of 1 req/s, decode holds 20."""
    reports = []
    for report in told.reports:
        assert isinstance(report, Proposal) and report.curve is not None
        each = 20.0 if report.pool.endswith("decode") else 3.0
        inside = tuple(each * n for n in range(len(report.curve.attainment)))
        reports.append(replace(report, curve=replace(report.curve, in_flight=inside)))
    return replace(told, reports=tuple(reports), **changed)  # type: ignore[arg-type]


def test_the_bound_of_a_pool_follows_what_is_ready() -> None:
    for short, long, decode in ((9, 3, 5), (2, 3, 5), (0, 1, 0)):
        told = holding_many(ready({"chat-short": short, "chat-long": long, "chat-decode": decode}))
        bounds = decide(told).groups[0].in_flight_by_pool
        assert bounds == {"chat-short": 3.0 * short, "chat-long": 3.0 * long, "chat-decode": 20.0 * decode}
    # Who has 8 s for its first token may wait behind 8 others at 1 req/s.
    patient = holding_many(told, groups=(replace(told.groups[0], ttft_ms=8000.0),))
    assert decide(patient).groups[0].in_flight_by_pool == {"chat-short": 0.0, "chat-long": 8.0, "chat-decode": 0.0}
    # Nobody tells what a pool holds: it is not bounded, and least of all at 0.
    unknown = tuple(replace(one, unknown="away") if one.pool == "chat-decode" else one for one in told.holdings)
    assert "chat-decode" not in decide(replace(told, holdings=unknown)).groups[0].in_flight_by_pool


def test_aggregated_pools_are_bounded_by_their_sum_and_free_their_partners_of_bounds() -> None:
    """The router sends requests to aggregated pools when the stages beside them cannot take them: they must not wait."""
    agg = pool("chat-agg", "agg")
    for specs in ([agg], [agg, SHORT, DECODE]):
        told = inputs(specs, [proposal(spec.name, 4.0, 1.0) for spec in specs], budget={"h100": 40})
        told = holding_many(replace(told, holdings=tuple(holding(spec, 9, ready=9) for spec in specs)))
        grant = decide(told).groups[0]
        assert grant.in_flight is not None and grant.in_flight_by_pool == {}


def test_what_nobody_can_tell_is_not_limited() -> None:
    counts = {"chat-short": 6, "chat-long": 2, "chat-decode": 3}
    # Of the prefill stage nothing is known: decode alone limits.
    assert decide(ready(counts, blind="chat-short")).groups[0].admitted_rps == pytest.approx(3.0)
    told = ready(counts)
    bare = replace(told, reports=tuple(replace(r, curve=None) for r in told.reports))  # type: ignore[type-var]
    assert decide(bare).groups[0].admitted_rps is None


def by_priority(told: RoundInputs, **parts: dict[str, float]) -> list[tuple[int, float, float]]:
    """(priority, load, admitted) of a round in which these pools tell how their load divides."""
    reports = tuple(
        replace(report, load_by_priority=parts.get(report.pool.replace("-", "_"))) if isinstance(report, Proposal) else report
        for report in told.reports
    )
    rates = decide(replace(told, reports=reports)).groups[0].by_priority
    return [(rate.priority, round(rate.load_rps, 6), round(rate.admitted_rps, 6)) for rate in rates]


def test_each_priority_finds_what_the_more_important_leave() -> None:
    # Four of eight prefill replicas are ready: short prompts carry 2 of 6 req/s, long ones all of their 2.
    told = ready({"chat-short": 2, "chat-long": 2, "chat-decode": 8})
    short, long = {"5": 1.0, "0": 4.0, "-2": 1.0}, {"5": 2.0}
    assert by_priority(told, chat_short=short, chat_long=long) == [(5, 3.0, 4.0), (0, 4.0, 1.0), (-2, 1.0, 0.0)]
    # Of one pool of the stage nothing is known: the other stands for it, 8 req/s as 1 : 4 : 1.
    assert by_priority(told, chat_short=short) == [(5, 1.333333, 4.0), (0, 5.333333, 2.666667), (-2, 1.333333, 0.0)]
    # More than enough is ready: whoever comes may use what is to spare, the more important ones first.
    plenty = ready({"chat-short": 9, "chat-long": 3, "chat-decode": 20})
    assert by_priority(plenty, chat_short=short, chat_long=long) == [(5, 3.0, 12.0), (0, 4.0, 9.0), (-2, 1.0, 5.0)]
    # Nobody tells, or the group is not limited: no limits by priority either.
    assert by_priority(told) == []
    # Priorities that are not told apart cannot be held back, so they count first.
    assert by_priority(told, chat_short={"other": 3.0, "0": 3.0}, chat_long={"0": 2.0}) == [(0, 5.0, 1.0)]


def test_the_router_is_told_of_the_priorities_that_find_less_than_all() -> None:
    told = ready({"chat-short": 2, "chat-long": 2, "chat-decode": 8})
    split = {"5": 3.0, "0": 4.0, "-2": 1.0}
    told = replace(told, reports=tuple(replace(r, load_by_priority=split) for r in told.reports))  # type: ignore[type-var]
    [admitted] = admission(told.groups, told.pools, decide(told), burst_s=20.0)
    assert admitted == GroupAdmission(model="demo/chat", admitted_rps=4.0, burst=80.0, by_priority={"0": 1.0, "-2": 0.0})


def test_the_split_is_remembered_while_metrics_are_away() -> None:
    told = ready({"chat-short": 2, "chat-long": 2, "chat-decode": 8})
    split = {"5": 4.0, "0": 2.0}
    reports = tuple(replace(report, load_by_priority=split) for report in told.reports if isinstance(report, Proposal))
    state, _ = arbitrate(ArbiterState(), replace(told, reports=reports), ArbiterPolicy())
    _, allocation = arbitrate(state, replace(told, at_s=10.0, reports=()), ArbiterPolicy())
    assert [(rate.priority, round(rate.admitted_rps, 6)) for rate in allocation.groups[0].by_priority] == [(5, 4.0), (0, 0.0)]


@given(
    st.floats(0.0, 100.0),
    st.dictionaries(st.integers(-5, 5).map(str), st.integers(1, 240).map(lambda eighths: eighths / 8.0), max_size=5),
)
def test_priorities_share_what_is_admitted(admitted: float, loads: dict[str, float]) -> None:
    """Whoever offers no more than was measured: the more important a request, the less it is held back, all of the rate is
    used while anybody wants it, and no more than the rate comes in."""
    agg = pool("chat-agg")
    seen = PoolView(
        spec=agg, rules=pool_rules(agg, group("chat"), ArbiterPolicy(), (), 0.0), holding=None, gpus=1, current=0, before=0
    )
    seen.by_priority = loads
    view = GroupView(
        spec=group("chat"), priority_class=0, weight=1.0, paths=(((0,),),), load=sum(loads.values()), pools=[seen],
        path_loads=(sum(loads.values()),), shares=(1.0,), ceilings=(1.0,),
    )  # fmt: skip
    rates = rates_by_priority(view, admitted)
    assert [rate.priority for rate in rates] == sorted((int(name) for name in loads), reverse=True)[: len(rates)]
    comes_in = sum(min(rate.load_rps, rate.admitted_rps) for rate in rates)
    if rates:
        assert comes_in == pytest.approx(min(admitted, sum(loads.values())))
    held_back = [max(0.0, rate.load_rps - rate.admitted_rps) > 1e-9 for rate in rates]
    assert held_back == sorted(held_back)


def test_paths_add_up() -> None:
    whole = pool("chat-agg")
    told = inputs(
        [SHORT, DECODE, whole],
        [proposal("chat-short", 4.0, 1.0), proposal("chat-decode", 4.0, 1.0), proposal("chat-agg", 3.0, 1.0)],
        budget={"h100": 40},
        have={"chat-short": 4, "chat-decode": 3, "chat-agg": 2},
    )
    assert decide(told).groups[0].admitted_rps == pytest.approx(5.0)
