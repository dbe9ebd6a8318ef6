"""The other objectives: who is worst off first, and the two ways of sharing that are kept for comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from global_planner.arbiter import ArbiterPolicy
from tests.arbiter.builders import AT_ONCE, Fleet, decide, granted, group, inputs, pool, proposal, steps
from tests.bench.arbiter import measure

MAX_MIN = replace(AT_ONCE, objective="max_min")
PROPORTIONAL = replace(AT_ONCE, objective="proportional")
FIRST_COME = replace(AT_ONCE, objective="first_come")
BIG_AND_SMALL = [pool("big-agg"), pool("small-agg", gpus=2)]


def test_max_min_serves_the_small_as_well_as_the_big() -> None:
    # A GPU serves 1 req/s of the big model and .5 req/s of the small one.
    told = inputs(BIG_AND_SMALL, [proposal("big-agg", 10.0, 1.0), proposal("small-agg", 4.0, 1.0)], budget={"h100": 9})
    assert granted(decide(told)) == {"big-agg": 9, "small-agg": 0}
    assert granted(decide(told, MAX_MIN)) == {"big-agg": 5, "small-agg": 2}


def test_max_min_lets_nobody_wait_for_one_who_cannot_be_helped() -> None:
    told = inputs(BIG_AND_SMALL, [proposal("big-agg", 4.0, 1.0), steps("small-agg", 4.0, (0.0, 0.2))], budget={"h100": 9})
    assert granted(decide(told, MAX_MIN)) == {"big-agg": 4, "small-agg": 1}


def test_max_min_takes_from_those_above_only_what_those_below_need() -> None:
    names = ("ann", "ben", "eve")
    fleet = Fleet(
        pools=[pool(f"{name}-agg") for name in names],
        groups=[group(name) for name in names],
        budget={"h100": 12},
        policy=ArbiterPolicy(objective="max_min"),
        per_replica={f"{name}-agg": 1.0 for name in names},
    )
    fleet.round({"ann": 6.0, "ben": 6.0, "eve": 0.0})
    assert fleet.have == {"ann-agg": 6, "ben-agg": 6, "eve-agg": 0}
    fleet.round({"ann": 6.0, "ben": 6.0, "eve": 6.0})
    assert fleet.have == {"ann-agg": 4, "ben-agg": 4, "eve-agg": 4}
    for _ in range(20):
        assert not fleet.round({"ann": 6.0, "ben": 6.0, "eve": 6.0})


def test_max_min_is_not_moved_by_noise() -> None:
    rng = np.random.default_rng(2)
    loads = {"ann": 6.0, "ben": 9.0, "eve": 2.0}
    fleet = Fleet(
        pools=[pool(f"{name}-agg", gpus=size, least=1) for name, size in zip(loads, (1, 2, 4), strict=True)],
        groups=[group(name) for name in loads],
        budget={"h100": 20},
        policy=ArbiterPolicy(objective="max_min"),
        per_replica={f"{name}-agg": 1.0 for name in loads},
    )
    changed = [n for n in range(300) if fleet.round({k: v * float(rng.uniform(0.95, 1.05)) for k, v in loads.items()})]
    assert changed[-1] < 100


def test_proportional_gives_everybody_the_same_share() -> None:
    pools = [pool("chat-agg"), pool("code-agg"), pool("mail-agg", least=1)]
    told = inputs(
        pools,
        [proposal("chat-agg", 8.0, 1.0), proposal("code-agg", 4.0, 1.0), proposal("mail-agg", 1.0, 1.0)],
        budget={"h100": 7},
    )
    assert granted(decide(told, PROPORTIONAL)) == {"chat-agg": 4, "code-agg": 2, "mail-agg": 1}


def test_first_come_freezes_who_asked_first() -> None:
    pools = [pool("chat-agg"), pool("code-agg")]
    early = replace(proposal("code-agg", 6.0, 1.0), at_s=-5.0)
    told = inputs(pools, [proposal("chat-agg", 6.0, 10.0, wanted=4), early], budget={"h100": 8})
    assert granted(decide(told, FIRST_COME)) == {"chat-agg": 0, "code-agg": 6}  # four do not fit, so none
    later = inputs(pools, told.reports, budget={"h100": 8}, have={"chat-agg": 4})
    assert granted(decide(later, FIRST_COME)) == {"chat-agg": 4, "code-agg": 0}  # and nobody gives anything back


def test_first_come_serves_the_request_of_a_deployment_wholly_or_not_at_all() -> None:
    """Prefill may be raised alone where decode is content; with both, four GPUs are too few for five replicas, so neither is,
    and a refused exchange leaves the part that it would have given up. A request that fits behind them is served."""
    chat = [replace(pool(f"chat-{role}", role), dgd="chat") for role in ("prefill", "decode")]
    pools = [*chat, pool("mail-agg")]
    have = {"chat-prefill": 2, "chat-decode": 2, "mail-agg": 1}

    def after(prefill: int, decode: int) -> dict[str, int]:
        reports = [
            proposal("chat-prefill", 1.0, 1.0, wanted=prefill), proposal("chat-decode", 1.0, 1.0, wanted=decode),
            replace(proposal("mail-agg", 1.0, 1.0, wanted=3), at_s=5.0),
        ]  # fmt: skip
        return granted(decide(inputs(pools, reports, budget={"h100": 9}, have=have), FIRST_COME))

    assert after(5, 2) == {"chat-prefill": 5, "chat-decode": 2, "mail-agg": 1}  # one GPU is left, mail asks for two
    assert after(5, 4) == {"chat-prefill": 2, "chat-decode": 2, "mail-agg": 3}
    assert after(8, 1) == {"chat-prefill": 2, "chat-decode": 2, "mail-agg": 3}
    assert after(1, 1) == {"chat-prefill": 1, "chat-decode": 1, "mail-agg": 3}


def test_the_benchmark_measures_what_it_says() -> None:
    figures = measure(20, 1, 0.45, 2)
    assert figures["contended_rounds"] == 2 and figures["rounds_over_budget"] == 0
    assert figures["first_come_goodput"] <= figures["optimum_goodput"] + 1e-9
    assert figures["share_of_optimum"] >= 0.95 and figures["half_granted_gpus"] == 0
    assert abs(figures["milp_gap"]) < 1e-6
