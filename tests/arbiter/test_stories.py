"""What users of other planners met, and how it goes here: each test is a story on a virtual clock."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from global_planner.arbiter import ArbiterPolicy, ArbiterState, arbitrate
from global_planner.types import Holding, Override, Replica
from pool_planner.types import Hold, Proposal, Report
from tests.arbiter.builders import AT_ONCE, Fleet, decide, granted, group, inputs, line, pool, proposal, steps

SPLIT = [
    pool("chat-prefill", "prefill", least=1),
    pool("chat-decode", "decode", gpus=2, least=1),
    pool("code-prefill", "prefill", least=1),
    pool("code-decode", "decode", gpus=2, least=1),
]
CARRIES = {"chat-prefill": 1.0, "chat-decode": 1.0, "code-prefill": 1.0, "code-decode": 1.0}


def two_models(budget: int, **policy: float) -> Fleet:
    return Fleet(
        pools=SPLIT,
        groups=[group("chat"), group("code")],
        budget={"h100": budget},
        policy=ArbiterPolicy(**policy),  # type: ignore[arg-type]
        per_replica=CARRIES,
    )


def test_a_day_of_two_models() -> None:
    fleet = two_models(18, hold_s=60.0)
    # Morning: chat needs four of each stage. There are GPUs, so both stages are raised at once and together.
    assert fleet.round({"chat": 3.5, "code": 0.9}) == {"chat-prefill": 3, "chat-decode": 3}
    assert line(fleet.last, "chat-decode").reason == "raised 1 -> 4: 3.5 req/s needs 4; paid from free GPUs"
    # Less traffic: nothing is lowered before it was so for a minute ...
    for _ in range(6):
        assert fleet.round({"chat": 1.5, "code": 0.9}) == {}
    assert line(fleet.last, "chat-decode").reason == "kept at 4: 2 would do, but not for long enough yet"
    # ... and then both stages go down together.
    assert fleet.round({"chat": 1.5, "code": 0.9}) == {"chat-prefill": -2, "chat-decode": -2}
    assert line(fleet.last, "chat-decode").reason == "lowered 4 -> 2: 2 would have carried 1.1 x its load for the last 60 s"
    # Code wakes up and takes what is free at once.
    assert fleet.round({"chat": 1.5, "code": 3.9}) == {"code-prefill": 3, "code-decode": 3}


@pytest.mark.parametrize(("cold_start_s", "hold_s"), [(0.0, 0.0), (5.0, 10.0), (15.0, 20.0), (30.0, 30.0), (300.0, 60.0)])
def test_what_is_back_soon_is_not_kept_for_long(cold_start_s: float, hold_s: float) -> None:
    # As long as a start takes (twice that, up to two rounds of 10 s), at most a minute.
    fleet = two_models(18, hold_s=60.0, hold_least_s=20.0)
    fleet.cold_start_s = cold_start_s
    fleet.round({"chat": 3.5, "code": 0.9})
    for _ in range(round(hold_s / 10.0)):
        assert fleet.round({"chat": 1.5, "code": 0.9}) == {}
    assert fleet.round({"chat": 1.5, "code": 0.9}) == {"chat-prefill": -2, "chat-decode": -2}
    sentence = f"lowered 4 -> 2: 2 would have carried 1.1 x its load for the last {hold_s:.0f} s"
    assert line(fleet.last, "chat-decode").reason == sentence


def test_the_budget_goes_where_it_serves_most() -> None:
    # Four GPUs are left. Chat would serve 4 req/s with another pair, code 1 req/s: chat asked second and gets it.
    pools = [pool("code-agg", gpus=4), pool("chat-agg", gpus=4)]
    reports = [steps("code-agg", 10.0, (0.0, 0.1)), steps("chat-agg", 10.0, (0.0, 0.4))]
    assert granted(decide(inputs(pools, reports, budget={"h100": 4}))) == {"code-agg": 0, "chat-agg": 1}


def test_one_order_of_two_floors_is_no_deadlock() -> None:
    # At 4 of 10 GPUs with a floor, a mediator that looks at one request at a time rejects 2 -> 4 for ever.
    fleet = two_models(12)
    assert fleet.round({"chat": 2.0, "code": 2.0}) == dict.fromkeys(CARRIES, 1)


def test_people_who_edit_replicas_are_believed() -> None:
    fleet = two_models(18, hold_s=0.0)
    fleet.round({"chat": 2.0, "code": 2.0})
    fleet.have["chat-decode"] = 5  # by hand; only two are of use
    assert fleet.round({"chat": 2.0, "code": 2.0}) == {"chat-decode": -2}  # 2.2 req/s is to fit too
    assert fleet.have["chat-decode"] == 3
    fleet.have["chat-decode"] = 0
    assert fleet.round({"chat": 2.0, "code": 2.0}) == {"chat-decode": 2}


def test_a_pool_that_does_not_know_keeps_what_it_has_and_pays() -> None:
    fleet = two_models(12)
    fleet.round({"chat": 3.0, "code": 1.0})
    assert fleet.have == {"chat-prefill": 3, "chat-decode": 3, "code-prefill": 1, "code-decode": 1}
    # Chat's metrics are gone, code wants four: chat keeps its nine GPUs, so code stays at one pair.
    assert fleet.round({"code": 4.0}) == {}
    told = line(fleet.last, "chat-decode")
    assert told.held and told.reason == "held at 3, charged 6 GPUs: no metrics"
    assert line(fleet.last, "code-decode").binding == "budget h100"
    # Silence is the same as not knowing.
    assert fleet.round({"chat": 0.0, "code": 4.0}, without=["chat-prefill", "chat-decode"]) == {}
    assert "no report" in line(fleet.last, "chat-prefill").reason


def test_half_a_group_that_is_blind_does_not_stop_the_other_half() -> None:
    fleet = two_models(30, hold_s=0.0)
    fleet.round({"chat": 3.0, "code": 1.0})
    # Decode is blind at three. Prefill's load doubles: beyond three it would feed nobody.
    assert fleet.round({"chat-prefill": 6.0, "code": 1.0}) == {}
    assert line(fleet.last, "chat-prefill").binding == "partner chat-decode"
    # Prefill's load falls: it may still go down.
    assert fleet.round({"chat-prefill": 0.9, "code": 1.0}) == {"chat-prefill": -2}


def test_a_hold_is_a_groups_and_its_stages_go_down_together() -> None:
    fleet = two_models(30, hold_s=60.0)
    fleet.round({"chat": 3.5, "code": 1.0})
    for _ in range(6):
        assert fleet.round({"chat": 1.5, "code": 1.0}) == {}
    # Prefill is silent for a round, so its hold begins anew. Decode's is over, but it would leave prefill half of a capacity.
    assert fleet.round({"chat": 1.5, "code": 1.0}, without=["chat-prefill"]) == {"chat-decode": -2}
    fleet.have["chat-decode"] = 4  # somebody wants it back
    for _ in range(6):
        assert fleet.round({"chat": 1.5, "code": 1.0}) == {}
    told = line(fleet.last, "chat-decode").reason
    assert told == "kept at 4: 2 would do, but chat-prefill is not lowered yet, and they go down together"
    assert fleet.round({"chat": 1.5, "code": 1.0}) == {"chat-prefill": -2, "chat-decode": -2}


def test_an_unknown_number_of_gpus_is_neither_zero_nor_free() -> None:
    pools = [pool("chat-agg"), pool("code-agg")]
    told = inputs(
        pools, [proposal("chat-agg", 5.0, 1.0), proposal("code-agg", 1.0, 1.0)], budget={"h100": 8}, have={"chat-agg": 2}
    )
    blind = replace(told, holdings=(told.holdings[0], Holding(pool="code-agg", at_s=0.0, spec=2, gpus_per_replica=None)))
    allocation = decide(blind)
    assert granted(allocation) == {"chat-agg": 2, "code-agg": 2}
    assert line(allocation, "chat-agg").binding == "nobody knows what a pool on budget h100 holds"
    # Once it was known, what it was known to hold is charged, and the rest is shared.
    known = replace(told, holdings=(told.holdings[0], Holding(pool="code-agg", at_s=0.0, spec=None, last_known_gpus=4)))
    assert granted(decide(known))["chat-agg"] == 4


def test_minima_that_do_not_fit_are_named_and_nothing_is_half_applied() -> None:
    pools = [pool("chat-agg", least=3), pool("code-agg", least=3), pool("mail-agg", gpu_type="l40s", least=1)]
    reports = [proposal(spec.name, 3.0, 1.0) for spec in pools]
    allocation = decide(
        inputs(pools, reports, budget={"h100": 5, "l40s": 4}, have={"chat-agg": 2, "code-agg": 1, "mail-agg": 1})
    )
    assert allocation.infeasible == ("chat-agg", "code-agg")
    assert granted(allocation) == {"chat-agg": 2, "code-agg": 1, "mail-agg": 1}
    assert "minima" in line(allocation, "chat-agg").reason


def test_people_who_push_it_over_the_budget_are_answered_by_releases() -> None:
    fleet = two_models(12, hold_s=600.0)
    fleet.round({"chat": 2.0, "code": 2.0})
    fleet.have.update({"chat-prefill": 4, "chat-decode": 4})
    fleet.round({"chat": 2.0, "code": 2.0})
    # A lowering that the hold would forbid, but only as far as the budget asks, and nothing of use goes.
    assert sum(n * (2 if "decode" in name else 1) for name, n in fleet.have.items()) <= 12
    assert all(n >= 2 for n in fleet.have.values())


def test_moving_gpus_must_pay_within_the_horizon() -> None:
    pools = [pool("chat-agg", least=1), pool("code-agg", least=1)]

    def after(gain: float, horizon_s: float) -> int:
        fleet = Fleet(
            pools=pools,
            groups=[group("chat"), group("code")],
            budget={"h100": 5},
            policy=ArbiterPolicy(move_horizon_s=horizon_s, hold_s=1e9),
            per_replica={"chat-agg": 1.0, "code-agg": gain},
        )
        fleet.round({"chat": 4.0, "code": 0.5 * gain})
        fleet.round({"chat": 4.0, "code": 3.0 * gain})
        return fleet.have["code-agg"]

    # A replica loads for 60 s. It carries 1.5 req/s at code and takes 1 req/s from chat: 1.5 x (1 - 60 / H) > 1 from H = 180 s.
    assert after(1.5, 170.0) == 1
    assert after(1.5, 190.0) == 3
    assert after(1.0, 1e9) == 1  # never for nothing


def test_the_prefix_hits_that_die_with_a_replica_are_part_of_the_price() -> None:
    """Code would gain 0.5 req/s a GPU more than chat loses, less 0.3 for the cold start. A chat whose every second prompt token
    is found in its caches loses 50 % of a replica's load for as long as other replicas need to learn its prefixes."""
    pools = [pool("chat-agg", least=1), pool("code-agg", least=1)]

    def after(hit_rate: float | None, cache_loss_s: float) -> int:
        reports = [replace(proposal("chat-agg", 4.0, 1.0), prefix_hit_rate=hit_rate), proposal("code-agg", 4.5, 1.5)]
        told = inputs(pools, reports, budget={"h100": 5}, have={"chat-agg": 4, "code-agg": 1})
        policy = ArbiterPolicy(move_horizon_s=300.0, hold_s=1e9, cache_loss_s=cache_loss_s)
        return granted(decide(told, policy))["code-agg"]

    assert after(None, 1e6) == after(0.0, 1e6) == 3  # no cache that anybody knows of: nothing is lost with it
    assert after(0.5, 60.0) == 3  # 0.5 x 60 / 300 = 0.1 req/s a replica
    assert after(0.5, 180.0) == 1  # 0.3 req/s: more than what is left of the gain


def test_moves_are_capped_by_the_hour() -> None:
    names = [f"m{n}" for n in range(4)]
    fleet = Fleet(
        pools=[pool(f"{name}-agg", least=1) for name in ("big", *names)],
        groups=[group("big"), *(group(name, weight=5.0 + n) for n, name in enumerate(names))],
        budget={"h100": 20},
        policy=ArbiterPolicy(max_moves_per_hour=2),
        per_replica={f"{name}-agg": 1.0 for name in ("big", *names)},
    )
    fleet.round({"big": 16.0} | dict.fromkeys(names, 1.0))
    assert fleet.have["big-agg"] == 16
    fleet.round({"big": 16.0} | dict.fromkeys(names, 2.0))
    # The two that gain most are served, the others wait for the next hour.
    assert [fleet.have[f"{name}-agg"] for name in names] == [1, 1, 2, 2]
    fleet.round({"big": 16.0} | dict.fromkeys(names, 2.0))
    assert fleet.have["big-agg"] == 14
    assert line(fleet.last, "m0-agg").binding == "budget h100"
    fleet.at_s += 3600.0
    fleet.round({"big": 16.0} | dict.fromkeys(names, 2.0))
    assert fleet.have["big-agg"] == 12


def test_a_higher_class_is_served_first_and_a_guarantee_comes_back() -> None:
    pools = [pool("gold-agg"), pool("silver-agg", guarantee=3)]
    fleet = Fleet(
        pools=pools,
        groups=[group("gold", priority=1), group("silver", weight=100.0)],
        budget={"h100": 8},
        policy=ArbiterPolicy(),
        per_replica={"gold-agg": 1.0, "silver-agg": 1.0},
    )
    fleet.round({"gold": 10.0, "silver": 1.0})
    assert fleet.have == {"gold-agg": 7, "silver-agg": 1}  # the guarantee is lent while silver does not want it
    fleet.round({"gold": 10.0, "silver": 6.0})
    assert fleet.have == {"gold-agg": 5, "silver-agg": 3}  # and taken back at once when it does, but not more


def test_among_equals_who_borrowed_least_is_next_and_nobody_wins_by_name() -> None:
    pools = [pool("ann-agg"), pool("ben-agg")]
    fleet = Fleet(
        pools=pools,
        groups=[group("ann"), group("ben")],
        budget={"h100": 1},
        policy=ArbiterPolicy(hold_s=0.0),
        per_replica={"ann-agg": 1.0, "ben-agg": 1.0},
    )
    fleet.round({"ann": 1.0, "ben": 1.0})
    assert fleet.have == {"ann-agg": 1, "ben-agg": 0}  # nobody owes anything: by name
    for _ in range(20):
        fleet.round({"ann": 1.0, "ben": 1.0})
    assert fleet.have == {"ann-agg": 1, "ben-agg": 0}  # the debt alone moves nothing
    fleet.round({"ann": 0.0, "ben": 0.0})
    fleet.round({"ann": 1.0, "ben": 1.0})
    assert fleet.have == {"ann-agg": 0, "ben-agg": 1}


def test_gpus_are_not_taken_for_replicas_that_cannot_be_placed() -> None:
    pools = [pool("chat-agg", least=1), pool("big-agg", gpus=8)]
    reports: list[Report] = [proposal("chat-agg", 20.0, 1.0), steps("big-agg", 100.0, (0.0, 0.5, 1.0))]
    told = inputs(pools, reports, budget={"h100": 20}, have={"chat-agg": 12, "big-agg": 1})
    stuck = replace(
        told.holdings[1], replicas=(Replica(id="big-0", state="starting", unschedulable="no node has 8 free GPUs"),)
    )
    assert granted(decide(told)) == {"chat-agg": 4, "big-agg": 2}
    blocked = decide(replace(told, holdings=(told.holdings[0], stuck)))
    assert granted(blocked) == {"chat-agg": 12, "big-agg": 1}
    assert line(blocked, "big-agg").binding == "a replica cannot be placed: no node has 8 free GPUs"


def test_the_fleet_is_not_shrunk_below_its_floor() -> None:
    pools = [pool("chat-agg", least=1), pool("code-agg", least=1)]
    reports = [proposal("chat-agg", 0.0, 1.0), proposal("code-agg", 1.0, 1.0)]
    told = inputs(pools, reports, budget={"h100": 20}, have={"chat-agg": 6, "code-agg": 2}, floor={"h100": 6})
    allocation = decide(told)
    assert granted(allocation) == {"chat-agg": 5, "code-agg": 1}
    assert "never goes below" in line(allocation, "chat-agg").reason
    named = decide(
        replace(told, budget=replace(told.budget, min_total_gpus={"h100": 10})), replace(AT_ONCE, surplus_pools=("code-agg",))
    )
    assert granted(named) == {"chat-agg": 6, "code-agg": 4}


def test_a_person_pins_caps_and_holds_until_it_expires() -> None:
    fleet = two_models(40, hold_s=0.0)
    loads = {"chat": 4.0, "code": 4.0}
    fleet.overrides = (
        Override(pool="chat-decode", kind="pin", replicas=2, by="ann", reason="load test", expires_at_s=25.0),
        Override(pool="code-prefill", kind="hold", by="ben", reason="debugging", expires_at_s=25.0),
    )
    fleet.round(loads)
    assert fleet.have["chat-decode"] == 2 and fleet.have["code-prefill"] == 1
    assert line(fleet.last, "chat-decode").binding == "pin by ann"
    assert line(fleet.last, "code-prefill").reason == "held at 1, charged 1 GPUs: hold by ben: debugging"
    assert fleet.have["chat-prefill"] == 2  # no half grants around a pin
    fleet.round(loads)
    fleet.round(loads)
    fleet.round(loads)
    assert set(fleet.have.values()) == {4}


def test_an_idle_pool_goes_to_its_minimum_and_a_lost_state_costs_a_hold() -> None:
    fleet = two_models(18, hold_s=30.0)
    fleet.round({"chat": 3.0, "code": 1.0})
    for _ in range(3):
        fleet.round({"chat": 0.0, "code": 0.0})
    fleet.state = ArbiterState()
    assert [bool(fleet.round({"chat": 0.0, "code": 0.0})) for _ in range(4)] == [False, False, False, True]
    assert set(fleet.have.values()) == {1}


def test_demand_without_a_curve_counts_in_proportion() -> None:
    pools = [pool("chat-agg"), pool("code-agg")]
    plain = Proposal(pool="chat-agg", at_s=0.0, expires_at_s=30.0, load_rps=8.0, wanted=4)
    told = inputs(pools, [plain, proposal("code-agg", 6.0, 1.0)], budget={"h100": 6})
    allocation = decide(told)
    assert granted(allocation) == {"chat-agg": 4, "code-agg": 2}
    assert allocation.value == 10.0


def test_a_report_that_cannot_be_is_a_reason_to_hold() -> None:
    pools = [pool("chat-agg", least=1)]
    absurd = replace(proposal("chat-agg", 1.0, 1.0), load_rps=math.inf)
    allocation = decide(inputs(pools, [absurd], budget={"h100": 6}, have={"chat-agg": 3}))
    assert line(allocation, "chat-agg").held and "load_rps is inf" in line(allocation, "chat-agg").reason
    below = decide(
        inputs(
            pools,
            [Hold(pool="chat-agg", at_s=0.0, reason="starting", expires_at_s=9.0)],
            budget={"h100": 6},
            have={"chat-agg": 0},
        )
    )
    assert granted(below) == {"chat-agg": 1}  # a minimum needs no reason


def test_the_next_gpu_has_a_price_and_a_runner_up() -> None:
    pools = [pool("chat-agg"), pool("code-agg"), pool("mail-agg")]
    reports = [
        steps("chat-agg", 4.0, (0.0, 0.5, 0.6)),
        steps("code-agg", 4.0, (0.0, 0.4, 0.7)),
        steps("mail-agg", 4.0, (0.0, 0.1)),
    ]
    allocation = decide(inputs(pools, reports, budget={"h100": 3}))
    chat = line(allocation, "chat-agg")
    assert granted(allocation) == {"chat-agg": 1, "code-agg": 2, "mail-agg": 0}
    assert chat.marginal_value is not None and round(chat.marginal_value, 6) == 0.4
    assert chat.runner_up is not None and (chat.runner_up.pool, round(chat.runner_up.value_per_gpu, 6)) == ("mail-agg", 0.4)
    assert chat.reason == (
        "raised 0 -> 1 of 2 wanted: 4 req/s needs 2; paid from free GPUs; "
        "budget h100 of 3 GPUs is spent; the next GPU would be worth 0.4 req/s here, 0.4 at mail-agg"
    )


def test_rounds_agree_whatever_was_remembered_in_between() -> None:
    """Deciding twice on the same inputs and state gives the same, to the bit."""
    fleet = two_models(14)
    for load in (1.0, 4.0, 3.0):
        fleet.round({"chat": load, "code": 5.0 - load})
    told = inputs(SPLIT, fleet.proposals({"chat": 2.0, "code": 3.0}), budget=fleet.budget, have=fleet.have, at_s=fleet.at_s)
    assert arbitrate(fleet.state, told, fleet.policy) == arbitrate(fleet.state, told, fleet.policy)
