"""What counts against the budget, case by case, and against a dumb twin that lists every GPU that may come to be in use."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from global_planner.charge import account, charge, charge_or_last_known
from global_planner.types import Budget, Holding, PoolSpec, Replica

POOL = PoolSpec(
    name="chat-decode",
    group="chat",
    role="decode",
    gpu_type="h100",
    gpus_per_replica=2,
    dgd="chat-main",
    component="decode",
    namespace="test",
)


def holding(spec: int | None = 2, live: int = 2, ending: int = 0, **more: object) -> Holding:
    replicas = [Replica(id=f"l{number}", state="ready") for number in range(live)]
    replicas += [Replica(id=f"e{number}", state="terminating") for number in range(ending)]
    base = Holding(pool="chat-decode", at_s=0.0, spec=spec, gpus_per_replica=2, version="1", replicas=tuple(replicas))
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "held", "gpus"),
    [
        ("at rest", holding(), 4),
        ("ordered, not made yet", holding(spec=3, live=2), 6),
        ("ordered away, still alive", holding(spec=1, live=2), 4),
        ("ending ones count beside those that live", holding(spec=2, live=2, ending=1), 6),
        ("the adapter asks for more than the DGD", holding(adapter_spec=4), 8),
        ("the adapter asks for less than the DGD still says", holding(adapter_spec=1), 4),
        ("our last write is not observed yet", holding(last_write=5), 10),
        ("a last write that lowers frees nothing before it is observed", holding(last_write=1), 4),
        ("a rolling update may add its surge", holding(surge=1), 6),
        ("a surge that is visible already is not counted twice", holding(live=3, surge=1), 6),
        ("released unseen, for the grace", holding(spec=1, live=1, lingering=1), 4),
        ("growing while the surplus has yet to end", holding(spec=1, live=3, last_write=2), 8),
        ("nothing", holding(spec=0, live=0), 0),
    ],
)
def test_table(what: str, held: Holding, gpus: int) -> None:
    assert charge(held, POOL) == gpus, what


@pytest.mark.parametrize("held", [holding(spec=None), holding(gpus_per_replica=None), holding(unknown="no such component")])
def test_unknown_is_not_zero(held: Holding) -> None:
    assert charge(held, POOL) is None
    assert charge_or_last_known(held, POOL) is None
    assert charge_or_last_known(replace(held, last_known_gpus=6), POOL) == 6


def test_the_gpus_of_a_replica_are_the_observed_ones_not_those_of_the_topology() -> None:
    assert charge(holding(gpus_per_replica=8), POOL) == 16


def test_a_holding_is_charged_to_its_own_pool_only() -> None:
    with pytest.raises(ValueError, match="charged as pool"):
        charge(replace(holding(), pool="code-decode"), POOL)


@given(
    spec=st.integers(0, 6),
    live=st.integers(0, 6),
    ending=st.integers(0, 3),
    last=st.one_of(st.none(), st.integers(0, 6)),
    ordering=st.one_of(st.none(), st.integers(0, 6)),
)
def test_against_the_worst_that_a_cluster_can_do(
    spec: int, live: int, ending: int, last: int | None, ordering: int | None
) -> None:
    """The twin plays every order that may still land, and lets the cluster make before it ends."""
    worst = max(spec, live) + ending
    for target in (last, ordering):
        if target is not None and target > spec:
            on_their_way_out = ending + max(0, live - spec)
            worst = max(worst, max(spec, target) + on_their_way_out)
    assert charge(holding(spec, live, ending, last_write=last), POOL, ordering=ordering) == 2 * worst


def test_the_account_of_a_type_with_a_pool_that_was_never_known_has_nothing_free() -> None:
    other = replace(POOL, name="code-decode")
    budget = Budget(max_gpus={"h100": 16})
    entry = account(budget, (POOL, other), (holding(),))["h100"]
    assert entry.unknown_pools == ("code-decode",)
    assert (entry.charged_gpus, entry.free_gpus) == (4, 0)

    unreadable = Holding(pool="code-decode", at_s=0.0, spec=None, last_known_gpus=6)
    entry = account(budget, (POOL, other), (holding(), unreadable))["h100"]
    assert entry.stale_pools == ("code-decode",)
    assert (entry.charged_gpus, entry.free_gpus) == (10, 6)


def test_a_type_without_a_limit_is_unlimited_and_one_over_budget_is_negative() -> None:
    assert account(Budget(max_gpus={}), (POOL,), (holding(),))["h100"].free_gpus is None
    assert account(Budget(max_gpus={"h100": 3}), (POOL,), (holding(),))["h100"].free_gpus == -1
