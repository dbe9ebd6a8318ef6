"""With the stability rules off, the allocation is the best there is: against every combination, and against HiGHS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from global_planner.arbiter import ArbiterPolicy
from global_planner.arbiter.choose import Options, choose
from global_planner.arbiter.state import Limit
from global_planner.types import RoundInputs
from tests.arbiter.brute import best_goodput, best_lowest, lowest_attainment, served_by_class
from tests.arbiter.builders import AT_ONCE, EXAMPLES, decide, granted
from tests.arbiter.instances import CHOICES, round_of, rounds
from tests.dice import Dice, thrown


def small(*, types: int = 1, classes: int = 1, minima: bool = True) -> st.SearchStrategy[RoundInputs]:
    """Instances that every combination can be tried of: many pools of few replicas, or few pools of more."""
    return st.one_of(
        rounds(groups=3, most=1, types=types, classes=classes, minima=minima),
        rounds(groups=2, most=2, types=types, classes=classes, minima=minima),
        rounds(groups=1, most=5, types=types, classes=classes, minima=minima),
    )


SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


@given(small())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_nothing_is_better_than_goodput(round_inputs: RoundInputs) -> None:
    best = best_goodput(round_inputs)
    allocation = decide(round_inputs)
    if best is None:
        assert allocation.infeasible
        return
    assert not allocation.infeasible
    assert served_by_class(round_inputs, granted(allocation)) == pytest.approx(best, abs=1e-6)
    assert allocation.value == pytest.approx(sum(best), abs=1e-6)
    assert allocation.gap == 0.0


@given(small(classes=3))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_a_higher_class_comes_first_and_leaves_the_most_to_the_next(round_inputs: RoundInputs) -> None:
    best = best_goodput(round_inputs)
    if best is not None:
        assert served_by_class(round_inputs, granted(decide(round_inputs))) == pytest.approx(best, abs=1e-6)


@given(small(types=3))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_several_gpu_types(round_inputs: RoundInputs) -> None:
    best = best_goodput(round_inputs)
    allocation = decide(round_inputs)
    if best is None:
        assert allocation.infeasible
        return
    value = served_by_class(round_inputs, granted(allocation))
    assert value == pytest.approx(best, abs=1e-6)
    assert allocation.gap <= 1e-6


def limited(dice: Dice) -> tuple[RoundInputs, ArbiterPolicy]:
    """Groups of two namespaces on two GPU types, with quotas and limits of the cost on top of the budget."""
    groups, most = dice.pick(((3, 1), (2, 2), (1, 5)))
    told = round_of(dice, groups=groups, most=most, types=2)
    spaces = {group.name: dice.pick(("red", "blue")) for group in told.groups}
    told = replace(told, pools=tuple(replace(spec, namespace=spaces[spec.group]) for spec in told.pools))
    limits = (
        Limit(name="quota", namespace="red", max_gpus=dice.number(0, 12)),
        Limit(name="spend", max_cost_per_hour=float(dice.number(0, 40))),
        Limit(name="dear", namespace=dice.pick((None, "blue")), gpu_type="h200", max_cost_per_hour=float(dice.number(0, 30))),
    )
    return told, replace(AT_ONCE, limits=limits[: dice.number(1, 3)], prices={"h100": 2.0, "h200": dice.pick((3.0, 3.5))})


@given(thrown(CHOICES + 10, limited))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_quotas_and_limits_of_the_cost_on_top(instance: tuple[RoundInputs, ArbiterPolicy]) -> None:
    round_inputs, policy = instance
    best = best_goodput(round_inputs, policy)
    allocation = decide(round_inputs, policy)
    if best is None:
        assert allocation.infeasible
        return
    value = served_by_class(round_inputs, granted(allocation))
    assert value == pytest.approx(best, abs=1e-6)
    assert allocation.gap <= 1e-6


@given(small(minima=False))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
def test_max_min_lifts_the_worst_off_as_far_as_possible(round_inputs: RoundInputs) -> None:
    counts = granted(decide(round_inputs, replace(AT_ONCE, objective="max_min")))
    assert lowest_attainment(round_inputs, counts) == pytest.approx(best_lowest(round_inputs), abs=1e-6)


@pytest.mark.parametrize(("classes", "limits"), [(30, 1), (60, 1), (30, 2), (40, 3)])
def test_against_highs(classes: int, limits: int) -> None:
    """Medium instances of the bare choice; HiGHS solves the same integer programme."""
    rng = np.random.default_rng(classes + limits)
    for _ in range(4):
        sizes = rng.integers(2, 12, classes)
        values, weights = [], []
        for size in sizes:
            attained = np.minimum(1.0, np.arange(size) / rng.uniform(2, 12))
            values.append(rng.lognormal(1, 1) * attained)
            drawn = np.zeros((size, limits))
            for limit in rng.choice(limits, min(limits, 2), replace=False):
                drawn[:, limit] = np.arange(size) * rng.choice([1, 2, 4, 8])
            weights.append(drawn)
        options = Options(values=np.concatenate(values), weights=np.concatenate(weights).T, sizes=sizes.astype(np.int64))
        capacity = np.floor(rng.uniform(0.3, 0.9) * np.sum([w[-1] for w in weights], axis=0))
        choice = choose(options, capacity)
        value = float(options.values[choice.picks].sum())
        owner = np.repeat(np.arange(classes), sizes)
        one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
        oracle = milp(
            -options.values,
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(options.weights, -np.inf, capacity)],
            integrality=np.ones(len(owner)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-9, "time_limit": 20},
        )
        assert np.all(options.weights[:, choice.picks].sum(axis=1) <= capacity + 1e-9)
        assert choice.bound >= -oracle.fun - 1e-6
        assert value >= -oracle.fun * (1 - (1e-9 if limits == 1 else 0.005))
        if limits == 1:
            assert choice.exact
