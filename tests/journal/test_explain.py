"""A recorded round tells why: in a page, pool by pool, and over time; and what priorities cost, and what observing showed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from global_planner import memory as memory_module
from global_planner import priority_price
from global_planner.arbiter import ArbiterState, arbitrate
from global_planner.arbiter.state import Selector
from global_planner.compare import compare, comparison_table
from global_planner.explain import (
    explain_history,
    explain_pool,
    explain_round,
    group_table,
    known_groups,
    pick_round,
    pool_table,
)
from global_planner.journal import read
from global_planner.memory import decided
from global_planner.own_metrics import render
from global_planner.priority_price import price_of_priority, price_table
from global_planner.round import RoundConfig
from global_planner.status_page import pool_status
from global_planner.types import Allocation, Budget, GroupGrant, PoolGrant, Round, RunnerUp
from pool_planner.types import DemandCurve, Hold, Proposal
from tests.journal.records import AtWork
from tests.rollout.play import POLICIES, grant_in_order, groups
from tests.rollout.world import with_mode


@pytest.fixture
def rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)
    work = AtWork(tmp_path)
    work.rounds((2, 1, 1, 0, 0), (2, 1, 1, 0, 0), (2, 1, 1, 0, 0), (2, 1, 1, 0, 0), (1, 2, 1, 0, 9))
    work.journal.close()
    return [record for record in read(tmp_path) if isinstance(record, Round)]


def test_a_round_as_a_page(rounds: list[Round]) -> None:
    page = explain_round(rounds[-1])
    for line in (
        "Round 5 at 40 s, objective goodput: value 0.00, proven best (in order), decided in 0.0 ms.",
        "h100: 5 GPUs charged, budget 14, 9 free.",
        "chat-prefill  prefill  2        2 ready   1       1        2",
        "  chat-prefill: as wanted",
        "  grow chat-decode from 1 to 2: as wanted [applied]",
        "  grow docs-agg from 0 to 1: 1 of 2 granted, the rest when GPUs are free: as wanted [applied]",
    ):
        assert line in page
    assert "drain chat-prefill-" in page


def test_one_pool_in_sentences(rounds: list[Round]) -> None:
    done = rounds[-1]
    grant = PoolGrant(
        pool="docs-agg",
        wanted=9,
        granted=1,
        before=0,
        reason="1 of 9 for 1.00 req/s",
        binding="budget h100 14",
        marginal_value=0.25,
        runner_up=RunnerUp(pool="chat-decode", value_per_gpu=0.125),
    )
    pools = tuple(grant if item.pool == "docs-agg" else item for item in done.allocation.pools)
    done = replace(done, allocation=replace(done.allocation, pools=pools), conditions=("docs-agg: something to know",))
    assert explain_pool(done, "docs-agg").splitlines() == [
        "Round 5 at 40 s.",
        "docs-agg is the agg pool of docs, 4 GPU(s) of h100 a replica, at least 0 and at most the budget.",
        "It has 0 replicas ordered (none); it is charged 0 GPUs.",
        "Its planner reported 0 s before: 1.00 req/s, wanting 9.",
        "It was granted 1: 1 of 9 for 1.00 req/s.",
        "What bound it: budget h100 14.",
        "The next GPU would be worth 0.250 weighted req/s here.",
        "The runner-up for it is chat-decode, with 0.125.",
        "Step: grow docs-agg from 0 to 1: 1 of 2 granted, the rest when GPUs are free: as wanted [applied].",
        "To know: docs-agg: something to know.",
    ]


def test_what_is_wanted_for_a_doubt_alone_is_told_apart(rounds: list[Round]) -> None:
    """The real arbiter on the recorded round: documents wants three replicas, and expects what one carries."""
    done = rounds[-1]
    docs = Proposal(
        pool="docs-agg",
        at_s=40.0,
        expires_at_s=70.0,
        load_rps=3.0,
        expected_rps=1.0,
        wanted=3,
        curve=DemandCurve(attainment=(0.0, 1 / 3, 2 / 3, 1.0), capacity_rps=(0.0, 1.0, 2.0, 3.0)),
    )
    told = replace(
        done.inputs,
        budget=Budget(max_gpus={"h100": 17}),
        reports=tuple(docs if item.pool == "docs-agg" else item for item in done.inputs.reports),
    )
    done = replace(done, inputs=told, allocation=arbitrate(ArbiterState(), told, POLICIES.arbiter)[1])
    why = "3 req/s needs 3; the 1 req/s expected need 1, beyond that 1 lent and 1 withheld for a doubt: doubts come after needs"
    assert why in explain_round(done)
    lines = pool_table(done).text().splitlines()
    assert lines[1].split("  ")[-1].strip() == "runner-up" and "wanted  for sure  granted" in lines[1]
    assert next(line for line in lines if "docs-agg" in line).split()[4:7] == ["3", "1", "2"]
    sentences = explain_pool(done, "docs-agg")
    assert "3.00 req/s, of which 1.00 are expected in the mean and the rest is doubt, wanting 3." in sentences
    assert why in sentences and why in pool_status(done).text()
    assert "for sure" not in pool_table(rounds[-1]).text(), "nobody doubted there"


def test_a_pool_that_is_not_known_and_a_planner_that_holds(rounds: list[Round]) -> None:
    done = rounds[-1]
    holdings = tuple(
        replace(holding, unknown="its manifest cannot be read", last_known_gpus=4) if holding.pool == "docs-agg" else holding
        for holding in done.inputs.holdings
    )
    hold = Hold(pool="docs-agg", at_s=40.0, reason="no metrics", expires_at_s=70.0)
    reports = tuple(hold if report.pool == "docs-agg" else report for report in done.inputs.reports)
    done = replace(done, inputs=replace(done.inputs, holdings=holdings, reports=reports))
    told = explain_pool(done, "docs-agg")
    assert "What it has is not known (its manifest cannot be read); it is charged 4 GPUs." in told
    assert "Its planner asks to hold: no metrics." in told
    with pytest.raises(KeyError, match="round 5 has no pool 'docs' "):
        explain_pool(done, "docs")


def test_the_history_of_a_pool_is_where_something_changed(rounds: list[Round]) -> None:
    table = explain_history(rounds, "chat-prefill")
    assert [(row[0], row[2], row[4], row[5]) for row in table.rows] == [
        ("1", "1 ready", "2", "grow"),
        ("2", "1 ready, 1 starting", "2", ""),
        ("4", "2 ready", "2", ""),
        ("5", "2 ready", "1", "drain"),
    ]


def test_the_round_that_was_asked_for(rounds: list[Round]) -> None:
    assert pick_round(rounds, None) is rounds[-1]
    assert pick_round(rounds, 2) is rounds[1]
    with pytest.raises(KeyError, match="the journal holds rounds 1 to 5, not 9"):
        pick_round(rounds, 9)
    with pytest.raises(KeyError, match="no round"):
        pick_round([], None)


def test_the_price_of_a_priority_is_what_the_others_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: list[Round]
) -> None:
    def first_class_takes_all(state, inputs, policy):  # type: ignore[no-untyped-def]
        assert not policy.stability
        classes = {group.name: group.priority_class for group in inputs.groups}
        top = max(classes.values())
        best = [name for name, level in classes.items() if level == top]
        grants = tuple(
            GroupGrant(group=name, load_rps=4.0, attainment=1.0 / len(best) if name in best else 0.0) for name in classes
        )
        pools = tuple(PoolGrant(pool=spec.name, wanted=1, granted=1, before=1) for spec in inputs.pools)
        return state, Allocation(pools=pools, groups=grants, objective="goodput", value=0.0, gap=0.0, solver="toy")

    monkeypatch.setattr(priority_price, "arbitrate", first_class_takes_all)
    found = list(decided(read(tmp_path)))[-1]
    ranked = tuple(replace(group, priority_class=5 if group.name == "chat" else 0) for group in found.done.inputs.groups)
    done = replace(found.done, inputs=replace(found.done.inputs, groups=ranked))
    prices = price_of_priority(done, found.memory, found.policies)
    assert [(price.group, round(price.would_gain_rps or 0.0, 3)) for price in prices] == [
        ("code", 1.333),
        ("docs", 1.333),
        ("chat", -2.667),
    ]
    assert price_table(prices).text().splitlines()[-1].split() == ["all", "+0.00"]


def test_a_priority_that_a_selector_sets_has_its_price_too(rounds: list[Round], tmp_path: Path) -> None:
    found = list(decided(read(tmp_path)))[-1]
    told = replace(
        found.done.inputs,
        budget=Budget(max_gpus={"h100": 9}),
        reports=tuple(
            Proposal(pool=spec.name, at_s=found.done.inputs.at_s, expires_at_s=1e9, load_rps=4.0, wanted=4)
            for spec in found.done.inputs.pools
        ),
    )
    policies = replace(
        found.policies,
        arbiter=replace(found.policies.arbiter, selectors=(Selector(name="gold", group="code", priority_class=3),)),
    )
    prices = {price.group: price for price in price_of_priority(replace(found.done, inputs=told), found.memory, policies)}
    assert prices["code"].priority_class == 3 and prices["chat"].priority_class == 0
    gains = {name: price.would_gain_rps or 0.0 for name, price in prices.items()}
    assert gains["code"] < 0.0
    assert gains["chat"] > 0.0 or gains["docs"] > 0.0, "who pays for it"


def test_the_price_is_not_zero_where_the_demand_is_unknown(rounds: list[Round], tmp_path: Path) -> None:
    """A group whose planners never said anything attains nobody knows what: not 0.0 %."""
    found = list(decided(read(tmp_path)))[-1]
    at_s = found.done.inputs.at_s
    reports = tuple(
        Hold(pool=spec.name, at_s=at_s, reason="no metrics", expires_at_s=1e9)
        if spec.group == "docs"
        else Proposal(pool=spec.name, at_s=at_s, expires_at_s=1e9, load_rps=4.0, wanted=1)
        for spec in found.done.inputs.pools
    )
    done = replace(found.done, inputs=replace(found.done.inputs, reports=reports))
    silent = replace(found.memory, arbiter=replace(found.memory.arbiter, pools={}))
    prices = price_of_priority(done, silent, found.policies)
    docs = next(price for price in prices if price.group == "docs")
    assert docs.attainment is None and docs.would_gain_rps is None
    lines = {line.split()[0]: line.split() for line in price_table(prices).text().splitlines() if line.strip()}
    assert lines["docs"][-3:] == ["unknown", "unknown", "unknown"]
    assert lines["all"][-1] == "+0.00"


def test_a_group_of_which_nobody_knows_anything_has_no_attainment(rounds: list[Round]) -> None:
    """Its record says 0, because nothing of it counts; the page must not say that it attains 0.0 %."""
    done = rounds[-1]
    allocation = replace(
        done.allocation,
        pools=tuple(
            replace(grant, wanted=None, held=True) if grant.pool == "docs-agg" else grant for grant in done.allocation.pools
        ),
        groups=tuple(
            replace(grant, load_rps=0.0, attainment=0.0) if grant.group == "docs" else grant for grant in done.allocation.groups
        ),
    )
    assert known_groups(done.inputs.pools, allocation) == {"chat", "code"}
    lines = group_table(replace(done, allocation=allocation)).text().splitlines()
    docs = next(line.split() for line in lines if line.split()[:1] == ["docs"])
    assert docs[3:5] == ["?", "?"] and docs[-1] == "?"
    for name in ("global_planner_group_attainment", "global_planner_group_load_rps"):
        series = f'{name}{{group="docs"}}'
        assert series in metrics_of(done) and series not in metrics_of(replace(done, allocation=allocation))


def metrics_of(done: Round) -> str:
    return render(done, now_s=done.inputs.at_s, leading=True, code="plain")


def test_compare_tells_what_observing_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)
    work = AtWork(tmp_path / "observed")
    pools = tuple(replace(spec, mode="observe") for spec in work.config.pools)
    work.config = RoundConfig(budget=work.world.budget, groups=groups(pools), pools=pools, policies=POLICIES)
    work.rounds(*[(2, 1, 1, 0, 0)] * 37)  # an hour would be 360 rounds of ten seconds
    work.journal.close()
    rounds = [record for record in read(tmp_path / "observed") if isinstance(record, Round)]
    assert not [outcome for done in rounds for outcome in done.outcomes]

    compared = {item.pool: item for item in compare(rounds)}
    prefill = compared["chat-prefill"]
    assert prefill.watched_s == 360.0 and prefill.unknown_s == 0.0
    assert (round(prefill.did_gpu_hours, 3), round(prefill.would_gpu_hours, 3)) == (0.1, 0.2)
    assert (prefill.did_attainment, prefill.would_attainment) == (0.5, 1.0)
    assert prefill.differed == 1.0 and compared["chat-decode"].differed == 0.0
    last = comparison_table(compared.values()).text().splitlines()[-1].split()
    assert last == ["all", "0.40", "0.50"]


def test_compare_leaves_out_what_was_not_watched(rounds: list[Round]) -> None:
    later = replace(rounds[-1], inputs=replace(rounds[-1].inputs, at_s=100_000.0))
    assert compare([rounds[-1], later]) == ()
    unknown = replace(
        rounds[0],
        inputs=replace(
            rounds[0].inputs, holdings=tuple(replace(h, unknown="gone", last_known_gpus=1) for h in rounds[0].inputs.holdings)
        ),
    )
    compared = compare([unknown, rounds[1]])
    assert {(item.watched_s, item.unknown_s, item.did_attainment) for item in compared} == {(0.0, 10.0, None)}


def test_attainment_comes_from_the_reported_curve(rounds: list[Round]) -> None:
    def with_curve(done: Round) -> Round:
        reports = tuple(
            replace(report, curve=DemandCurve(attainment=(0.0, 0.8, 0.9))) if isinstance(report, Proposal) else report
            for report in done.inputs.reports
        )
        return replace(done, inputs=replace(done.inputs, reports=reports))

    first = compare([with_curve(rounds[0]), rounds[1]])
    prefill = next(item for item in first if item.pool == "chat-prefill")
    assert (prefill.did_attainment, prefill.would_attainment) == (0.8, 0.9)


def test_observed_pools_beside_acting_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)
    work = AtWork(tmp_path / "mixed")
    pools = with_mode(work.config.pools, "docs-agg", "approve")
    work.config = RoundConfig(budget=work.world.budget, groups=groups(pools), pools=pools, policies=POLICIES)
    work.rounds((2, 1, 1, 0, 1))
    work.journal.close()
    done = next(record for record in read(tmp_path / "mixed") if isinstance(record, Round))
    page = explain_round(done)
    assert "grow docs-agg from 0 to 1: as wanted [not sent]" in page
    assert "docs-agg: its steps towards 1 replicas wait for approval" in page
