"""What must hold of every allocation, whatever is proposed, held, silent or absurd, with memory of rounds before."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from global_planner.arbiter import ArbiterPolicy, ArbiterState, arbitrate
from global_planner.charge import charge_or_last_known
from global_planner.memory import PlannerMemory
from global_planner.types import Allocation, Budget, Holding, Override, RoundInputs
from pool_planner import wire
from pool_planner.types import DemandCurve, Hold, Proposal, Report
from tests.arbiter.brute import attained, served_by_class
from tests.arbiter.builders import AT_ONCE, EXAMPLES, decide, granted
from tests.arbiter.instances import CHOICES, round_of, rounds
from tests.dice import Dice, thrown

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)
POLICIES = thrown(
    4,
    lambda dice: ArbiterPolicy(
        objective=dice.pick(("goodput", "goodput", "max_min", "proportional", "first_come")),
        stability=dice.yes(),
        hold_s=dice.pick((0.0, 20.0)),
        max_moves_per_hour=dice.pick((None, 0, 1)),
    ),
)


def troubled_round(dice: Dice) -> RoundInputs:
    """A round in which reports are missing, expired, absurd or say that they cannot know, and holdings cannot be read."""
    round_inputs = round_of(dice, classes=2, types=2, held=True)
    reports: list[Report] = []
    for report in round_inputs.reports:
        assert isinstance(report, Proposal)
        match dice.pick(("fine",) * 6 + ("missing", "expired", "hold", "nan", "falling", "no curve", "full", "full", "full")):
            case "fine":
                reports.append(report)
            case "full":
                reports.append(kept_full(report, dice))
            case "expired":
                reports.append(replace(report, expires_at_s=-1.0))
            case "hold":
                reports.append(Hold(pool=report.pool, at_s=0.0, reason="no metrics", expires_at_s=30.0))
            case "nan":
                reports.append(replace(report, load_rps=math.nan))
            case "falling":
                reports.append(replace(report, curve=DemandCurve(attainment=(0.9, 0.1))))
            case "no curve":
                reports.append(replace(report, curve=None))
    holdings = []
    for holding in round_inputs.holdings:
        match dice.pick(("fine",) * 8 + ("unknown", "no gpus", "updating", "missing", "written")):
            case "unknown":
                known = dice.number(0, 4) if dice.yes() else None
                holdings.append(Holding(pool=holding.pool, at_s=0.0, spec=None, unknown="unreadable", last_known_gpus=known))
            case "no gpus":
                holdings.append(replace(holding, gpus_per_replica=None, last_known_gpus=2))
            case "updating":
                holdings.append(replace(holding, updating=True, surge=1))
            case "written":
                holdings.append(replace(holding, last_write=dice.number(0, 4)))
            case "fine":
                holdings.append(holding)
    overrides = tuple(
        Override(pool=spec.name, kind=dice.pick(("pin", "cap", "hold")), replicas=dice.number(0, 3), by="ann")
        for spec in round_inputs.pools
        if dice.number(0, 9) == 9
    )
    return replace(round_inputs, reports=tuple(reports), holdings=tuple(holdings), overrides=overrides)


def kept_full(report: Proposal, dice: Dice) -> Proposal:
    """A report that tells what replicas kept full carry, and that less is expected than is planned for; some tell nonsense."""
    assert report.curve is not None
    capacity = tuple(5.0 * share for share in report.curve.attainment)
    more = dice.pick((1.0, 1.25, 2.0, 2.0, 1e200, math.nan))
    full = tuple(more * rate for rate in capacity)
    curve = replace(report.curve, capacity_rps=capacity, in_flight=full, full_rps=full[dice.pick((0, 0, 0, 1)) :])
    return replace(report, curve=curve, expected_rps=report.load_rps * dice.number(0, 4) / 4.0)


TROUBLED = thrown(2 * CHOICES, troubled_round)
SEQUENCES = thrown(6 * CHOICES, lambda dice: [troubled_round(dice) for _ in range(dice.number(1, 3))])


def used_gpus(round_inputs: RoundInputs, allocation: Allocation) -> Mapping[str, int]:
    """GPUs by type once all that is granted is so; held pools at their charge."""
    specs = {spec.name: spec for spec in round_inputs.pools}
    holdings = {holding.pool: holding for holding in round_inputs.holdings}
    used = dict.fromkeys(round_inputs.budget.max_gpus, 0)
    for grant in allocation.pools:
        spec, holding = specs[grant.pool], holdings.get(grant.pool)
        if grant.held and holding is not None and (holding.spec is None or holding.gpus_per_replica is None):
            used[spec.gpu_type] += charge_or_last_known(holding, spec) or 0
        elif grant.held and holding is None:
            continue
        else:
            assert holding is not None and holding.gpus_per_replica is not None
            used[spec.gpu_type] += grant.granted * holding.gpus_per_replica
    return used


def ordered(holding: Holding) -> int:
    assert holding.spec is not None
    return holding.spec if holding.last_write is None else holding.last_write


@given(SEQUENCES, POLICIES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_whatever_happens(sequence: list[RoundInputs], policy: ArbiterPolicy) -> None:
    state = ArbiterState()
    for number, told in enumerate(sequence):
        round_inputs = replace(told, at_s=10.0 * number)
        state, allocation = arbitrate(state, round_inputs, policy)
        holdings = {holding.pool: holding for holding in round_inputs.holdings}
        specs = {spec.name: spec for spec in round_inputs.pools}
        used = used_gpus(round_inputs, allocation)
        assert {grant.pool for grant in allocation.pools} == set(specs)
        for grant in allocation.pools:
            assert grant.granted >= 0 and grant.reason
            holding = holdings.get(grant.pool)
            if grant.held:
                continue
            assert holding is not None
            before, spec = ordered(holding), specs[grant.pool]
            told_to = [override.replicas for override in round_inputs.overrides if override.pool == grant.pool]
            # Never below the minimum (unless a person says so); with minima that do not fit, nothing grows and nothing is cut
            # below its minimum.
            least = min([spec.min_replicas, *[n for n in told_to if n is not None]])
            assert grant.granted >= (min(before, least) if allocation.infeasible else least)
            if allocation.infeasible:
                assert grant.granted <= before
        # Granted GPUs fit the budget, or nothing of the type was raised.
        for gpu_type, limit in round_inputs.budget.max_gpus.items():
            if used[gpu_type] > limit:
                for grant in allocation.pools:
                    if specs[grant.pool].gpu_type == gpu_type and not grant.held:
                        floor = specs[grant.pool].min_replicas
                        pinned = any(o.pool == grant.pool and o.kind == "pin" for o in round_inputs.overrides)
                        assert grant.granted <= max(ordered(holdings[grant.pool]), floor) or pinned
        for line in allocation.groups:
            assert 0.0 <= line.attainment <= 1.0 and line.value >= 0.0
            assert line.admitted_rps is None or line.admitted_rps >= 0.0
        assert allocation.gap >= 0.0
        memory = PlannerMemory(arbiter=state)
        assert wire.decode(wire.encode(memory)) == memory
        assert wire.decode(wire.encode(allocation)) == allocation


@given(TROUBLED, POLICIES, st.integers(0, 2**32))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_order_does_not_matter(round_inputs: RoundInputs, policy: ArbiterPolicy, seed: int) -> None:
    rng = random.Random(seed)

    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(rng.sample(items, len(items)))

    mixed = replace(
        round_inputs,
        **{name: shuffled(getattr(round_inputs, name)) for name in ("groups", "pools", "holdings", "reports", "overrides")},
    )
    state, allocation = arbitrate(ArbiterState(), round_inputs, policy)
    mixed_state, mixed_allocation = arbitrate(ArbiterState(), mixed, policy)
    assert {line.pool: line for line in allocation.pools} == {line.pool: line for line in mixed_allocation.pools}
    assert {line.group: line for line in allocation.groups} == {line.group: line for line in mixed_allocation.groups}
    assert state == mixed_state
    assert arbitrate(ArbiterState(), round_inputs, policy) == (state, allocation)


@given(rounds(minima=False))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_no_half_grants(round_inputs: RoundInputs) -> None:
    """While a group is short, taking away any replica that it has costs requests."""
    counts = granted(decide(round_inputs))
    proposals = {report.pool: report for report in round_inputs.reports if isinstance(report, Proposal)}
    value = sum(served_by_class(round_inputs, counts))
    caps = {
        spec.name: min(proposals[spec.name].wanted, 99 if spec.max_replicas is None else spec.max_replicas)
        for spec in round_inputs.pools
    }
    for spec in round_inputs.pools:
        whole = {**counts, **{other.name: caps[other.name] for other in round_inputs.pools if other.group == spec.group}}
        if sum(served_by_class(round_inputs, whole)) <= value + 1e-9:
            continue  # the group attains all that it can; what planners want beyond that is paid from GPUs that are free
        if counts[spec.name] > 0:
            less = {**counts, spec.name: counts[spec.name] - 1}
            assert sum(served_by_class(round_inputs, less)) < value - 1e-12


@given(rounds(classes=1), st.integers(0, 10))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_more_weight_or_priority_never_lowers_a_group(round_inputs: RoundInputs, which: int) -> None:
    before = decide(round_inputs)
    if before.infeasible:
        return
    chosen = round_inputs.groups[which % len(round_inputs.groups)]
    for raised in (replace(chosen, weight=chosen.weight * 2), replace(chosen, priority_class=1)):
        groups = tuple(raised if group is chosen else group for group in round_inputs.groups)
        after = decide(replace(round_inputs, groups=groups))
        then = next(line.attainment for line in before.groups if line.group == chosen.name)
        now = next(line.attainment for line in after.groups if line.group == chosen.name)
        assert now >= then - 1e-6


def doubtful_round(dice: Dice) -> tuple[RoundInputs, int]:
    """A round in which planners ask for more than they expect and GPUs are short, and the place of a group. Each stage may
    doubt in its own measure, or all stages of a group in one."""
    round_inputs = round_of(dice, fewest=2, classes=dice.pick((1, 1, 2)), minima=False)
    apart = dice.yes()
    parts = {group.name: dice.number(1, 4) / 4.0 for group in round_inputs.groups}
    reports = []
    wanted = 0
    for spec, report in zip(round_inputs.pools, round_inputs.reports, strict=True):
        assert isinstance(report, Proposal) and report.curve is not None
        capacity = tuple(5.0 * share for share in report.curve.attainment)
        expected = report.load_rps * (dice.number(0, 4) / 4.0 if apart else parts[spec.group])
        reports.append(replace(carrying(report, capacity, report.load_rps), expected_rps=expected))
        wanted += reports[-1].wanted * spec.gpus_per_replica
    budget = Budget(max_gpus={"h100": wanted * dice.number(2, 9) // 10})
    return replace(round_inputs, budget=budget, reports=tuple(reports)), dice.number(0, 5)


def carrying(report: Proposal, capacity: tuple[float, ...], load: float) -> Proposal:
    attained = tuple(min(1.0, rate / load) if load > 0 else 1.0 for rate in capacity)
    curve = DemandCurve(attainment=attained, capacity_rps=capacity)
    return replace(report, load_rps=load, wanted=attained.index(attained[-1]), curve=curve)


def served_as_expected(round_inputs: RoundInputs, allocation: Allocation, group: str) -> float:
    expected = {}
    for report in round_inputs.reports:
        assert isinstance(report, Proposal) and report.curve is not None and report.expected_rps is not None
        expected[report.pool] = carrying(report, report.curve.capacity_rps, report.expected_rps)
    return attained([spec for spec in round_inputs.pools if spec.group == group], expected, granted(allocation))[1]


@given(thrown(2 * CHOICES, doubtful_round))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_nor_where_planners_ask_for_more_than_they_expect(instance: tuple[RoundInputs, int]) -> None:
    """What is expected comes first, so what a group attains of that never falls with its own weight or priority. Where that
    stays, neither does what the group attains of all that it asks for, unless its stages doubt in different measure. Where it
    rises, that may fall: another mix of paths serves the need best than the wish. Two aggregated replicas carry .75 of a
    wish of 1.5 req/s and .25 of a need of .375; one, and a prefill replica of two GPUs, carry .5 and all of the need."""
    round_inputs, which = instance
    before = decide(round_inputs)
    if before.infeasible:
        return
    assert before.gap == 0.0
    chosen = round_inputs.groups[which % len(round_inputs.groups)]
    own = {spec.name for spec in round_inputs.pools if spec.group == chosen.name}
    parts = {
        report.expected_rps / report.load_rps
        for report in round_inputs.reports
        if isinstance(report, Proposal) and report.pool in own and report.expected_rps is not None and report.load_rps > 0
    }
    higher = chosen.priority_class + 1
    for raised in (replace(chosen, weight=chosen.weight * 4), replace(chosen, priority_class=higher)):
        groups = tuple(raised if group is chosen else group for group in round_inputs.groups)
        after = decide(replace(round_inputs, groups=groups))
        surely = [served_as_expected(round_inputs, allocation, chosen.name) for allocation in (before, after)]
        assert surely[1] >= surely[0] - 1e-6
        if len(parts) <= 1 and surely[1] <= surely[0] + 1e-6:
            lines = [next(line for line in a.groups if line.group == chosen.name) for a in (before, after)]
            assert lines[1].attainment >= lines[0].attainment - 1e-6


@given(rounds(classes=2))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_never_worse_than_proportional(round_inputs: RoundInputs) -> None:
    ours = decide(round_inputs)
    theirs = decide(round_inputs, replace(AT_ONCE, objective="proportional"))
    if not ours.infeasible:
        for mine, other in zip(
            served_by_class(round_inputs, granted(ours)), served_by_class(round_inputs, granted(theirs)), strict=True
        ):
            if abs(mine - other) > 1e-6:
                assert mine > other
                break
