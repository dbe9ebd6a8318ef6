"""Deployments in virtual time, told as stories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest

from global_planner.compile import engine_specs, router_config_of
from global_planner.config import RouterConfig
from global_planner.replay.arrivals import arrivals, merge
from global_planner.replay.contenders import Contender, objective
from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineRequest
from global_planner.replay.policies import policy
from global_planner.replay.scenario import ColdStart, Outcome
from global_planner.replay.scores import COMPLETED
from global_planner.replay.simulator import simulate
from global_planner.replay.summary import summarise
from global_planner.replay.world import Fault
from global_planner.topology_file import load_profiles
from router.config import OutlierConfig
from router.config import RouterConfig as LiveRouter
from tests.replay.scenes import scenario, steady, topology

GOODPUT = objective("goodput")


def told(outcome: Outcome) -> tuple[object, ...]:
    """All that an outcome says."""
    columns = [list(column) for pool in outcome.timeline.pools.values() for column in pool.values()]
    return (repr(outcome.scores), dict(outcome.gpu_hours), outcome.moves, outcome.events, repr(columns))


def test_the_same_scenario_gives_the_same_outcome() -> None:
    here = topology(groups=2)
    play = scenario(here, steady(2, rps=0.8, minutes=6), seed=3, cold_start=ColdStart(mean_s=20.0, cv=0.5))
    assert told(simulate(play, GOODPUT)) == told(simulate(play, GOODPUT))


def test_every_request_is_counted_once_and_a_pool_grows_with_its_load() -> None:
    workload = steady(rps=1.5, minutes=10)
    ended: list[tuple[int, int, float, float, float, int]] = []
    outcome = simulate(scenario(topology(), workload), GOODPUT, each=lambda *request: ended.append(request))
    total = outcome.total()
    assert total.requests == len(workload) == len(ended) == total.completed + total.shed + total.failed
    assert sorted(at_s for _, _, at_s, *_ in ended) == workload.at_s.tolist()
    assert all(ttft_s > 0.0 for *_, ttft_s, _, how in ended if how == COMPLETED)
    # One replica of each cannot carry 1.5 requests/s; what was ordered came up 30 s later, and then all is well.
    decode = outcome.timeline.pools["m0-decode"]
    assert decode["ready"][0] == 1.0 and max(decode["ready"]) >= 2.0
    over_time = outcome.over_time["m0"]
    late = slice(over_time.requests.size // 2, None)
    assert over_time.met[late].sum() / over_time.requests[late].sum() > 0.95
    assert outcome.budget_violations == 0


def test_a_slow_replica_is_left_alone_and_comes_back_when_it_is_as_fast_as_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four replicas stay; at 2 minutes one takes eight times as long. As at the live door it gets nothing once its answers said
    so (and single requests now and then), so that the others' clients notice little; at 10 minutes it is well again, and is
    tried and taken back. Without ejection every request that comes to it is late."""
    here, workload = topology(agg=True), steady(rps=0.8, minutes=20, isl=300, osl=8)
    play = scenario(
        here, workload, start={"m0-agg": 4}, window_s=1200.0, pick="round_robin",
        faults=(Fault(at_s=120.0, pool="m0-agg", kind="slow", times=8.0), Fault(at_s=600.0, pool="m0-agg", kind="recover")),
    )  # fmt: skip
    ours = simulate(play, policy("static_start"))
    assert 1 <= ours.ejections["m0-agg"] <= 6
    over_time = ours.over_time["m0"]
    late = slice(3 * over_time.requests.size // 4, None)
    assert over_time.met[late].sum() / over_time.requests[late].sum() > 0.95

    def without(*args: Any, **more: Any) -> LiveRouter:
        config = router_config_of(*args, **more)
        return config.model_copy(update={"outliers": OutlierConfig(enabled=False)})

    monkeypatch.setattr("global_planner.replay.simulator.router_config_of", without)
    nobody = simulate(play, policy("static_start"))
    assert nobody.ejections["m0-agg"] == 0
    assert nobody.total().violations > 2 * ours.total().violations


def test_a_request_that_meets_a_model_at_zero_wakes_it_at_once() -> None:
    """Asleep for five minutes; the request at 301 s hurries the next round (two seconds after the one at 300 s at the soonest),
    which grows to one before any planner has seen it. It waits for the cold start of 30 s, and for the round after it, which
    tells the router; then it is answered, without waiting for a first token of the rate."""
    here = topology(agg=True, minimum=0)
    here = here.model_copy(update={"router": here.router.model_copy(update={"queue_deadline_s": 60.0})})
    here = here.model_copy(update={"groups": tuple(
        group.model_copy(update={"sla": group.sla.model_copy(update={"ttft_ms": 90_000.0})}) for group in here.groups
    )})  # fmt: skip
    ended: list[tuple[float, float, int]] = []
    outcome = simulate(
        scenario(here, merge([arrivals("m0", [301.0], [300], [10])]), window_s=400.0),
        GOODPUT,
        each=lambda model, priority, at_s, ttft_s, itl_s, how: ended.append((at_s, ttft_s, how)),
    )
    [(_, ttft_s, how)] = ended
    assert how == COMPLETED and 31.0 < ttft_s < 32.0
    at_s, ordered = outcome.timeline.at_s, outcome.timeline.pools["m0-agg"]["granted"]
    assert next(now for now, count in zip(at_s, ordered, strict=True) if count) == pytest.approx(302.0)


def test_a_request_alone_takes_what_its_engine_says() -> None:
    """Through the whole replay, one request of an idle aggregated replica has the latency of the engine by itself."""
    here = topology(agg=True)
    ended: list[tuple[int, int, float, float, float, int]] = []
    one = merge([arrivals("m0", [25.0], [900], [40])])
    simulate(scenario(here, one, window_s=60.0), GOODPUT, each=lambda *request: ended.append(request))
    engine = Replica(engine_specs(here, load_profiles(here))["m0-agg"])
    engine.submit(25.0, EngineRequest(id="x", isl=900, osl=40))
    first, last = engine.advance(1e6)
    (((_, _, _, ttft_s, itl_s, _)),) = ended
    assert ttft_s == pytest.approx(first.at_s - 25.0) and itl_s == pytest.approx((last.at_s - first.at_s) / 39)


def test_gpu_hours_are_those_of_what_stands_when_nothing_moves() -> None:
    outcome = simulate(scenario(topology(minimum=2, budget=4), steady(rps=0.05, minutes=10), window_s=600.0), GOODPUT)
    assert outcome.gpu_hours["h100"] == pytest.approx(4 * 600 / 3600)
    assert outcome.moves == 0 and outcome.most_held == {"h100": 4}


def test_a_replica_that_dies_is_replaced_and_its_unanswered_requests_are_tried_elsewhere() -> None:
    here, workload = topology(minimum=2), steady(rps=1.0, minutes=8, isl=3500)
    calm = simulate(scenario(here, workload), GOODPUT)
    faults = (
        *(Fault(at_s=at_s, pool="m0-prefill", kind="kill") for at_s in (200.0, 240.0, 280.0, 320.0)),
        *(Fault(at_s=at_s, pool="m0-decode", kind="kill") for at_s in (295.0, 345.0)),  # one alone may have nothing to do
    )
    rough = simulate(scenario(here, workload, faults=faults), GOODPUT)
    assert calm.total().failed == 0
    # Those that were streaming are broken off; what had not begun to answer got a second try.
    assert 0 < rough.total().failed < 40 and rough.total().retried > 0
    assert rough.total().requests == calm.total().requests
    ready = dict(zip(rough.timeline.at_s, rough.timeline.pools["m0-decode"]["ready"], strict=True))  # every 10 s
    # Both times one is gone at the next round, and back after a cold start of 30 s and the round that ordered it.
    assert ready[290.0] > ready[310.0] < ready[330.0] > ready[350.0] < ready[390.0]


def test_replicas_that_hang_are_cancelled_and_the_pool_backs_off() -> None:
    here = topology()
    faults = (Fault(at_s=5.0, pool="m0-decode", kind="hang"),)
    outcome = simulate(scenario(here, steady(rps=1.5, minutes=10), faults=faults), GOODPUT)
    decode = outcome.timeline.pools["m0-decode"]
    assert max(decode["ready"]) == 1.0 and max(decode["starting"]) >= 1.0
    assert outcome.budget_violations == 0


def test_nobody_is_served_before_the_first_replica_is_ready_and_the_room_has_a_deadline() -> None:
    """A pool at zero: who comes waits for `queue_deadline_s` and is turned away."""
    here = topology(minimum=0)
    outcome = simulate(scenario(here, steady(rps=1.0, minutes=8)), GOODPUT)
    total = outcome.total()
    assert total.shed > 0 and total.completed > 0
    assert outcome.over_time["m0"].shed[:3].sum() > 0


def test_answers_without_limit_are_shed_only_where_the_plan_admits_less() -> None:
    """Twice what the budget can carry: the plan admits a share within its SLA, and without admission nearly all are late."""
    # Who waits at the door for longer than the TTFT allows has missed it already.
    here = topology(budget=4, router=RouterConfig(queue_deadline_s=2.0))
    workload = steady(rps=3.0, minutes=10)
    open_door = replace(GOODPUT, admission=False)
    limited, unlimited = simulate(scenario(here, workload), GOODPUT), simulate(scenario(here, workload), open_door)
    assert limited.total().shed > 0.2 * len(workload)
    assert unlimited.total().shed == 0
    share, late = limited.total().attainment, unlimited.total().attainment
    assert share is not None and late is not None and share > late + 0.1


def test_a_model_that_is_not_in_the_topology_is_refused_by_name() -> None:
    stray = merge([arrivals("other", [1.0], [10], [10])])
    with pytest.raises(ValueError, match="no model 'other' \\(has: m0\\)"):
        simulate(scenario(topology(), stray), GOODPUT)


def test_prefixes_that_were_computed_before_cost_nothing_again() -> None:
    at_s = np.arange(20) * 20.0
    blocks = tuple((1, 2, 3, 4) for _ in at_s)
    same = merge([arrivals("m0", at_s, [4 * 512] * 20, [20] * 20, blocks=blocks)])
    times: dict[bool, list[float]] = {}
    for cached in (True, False):
        ended: list[float] = []
        play = scenario(topology(agg=True), same, prefix_cache=cached, window_s=500.0)
        simulate(play, GOODPUT, each=lambda *request, ended=ended: ended.append(request[3]))
        times[cached] = ended
    assert times[True][0] == pytest.approx(times[False][0])
    assert times[True][5] < 0.5 * times[False][5]


@pytest.mark.parametrize(
    ("budget", "rps", "osl", "agg"),
    [
        pytest.param(6, 1.5, 120, False, id="decode is short"),
        pytest.param(6, 1.5, 120, True, id="aggregated"),
        pytest.param(4, 3.5, 20, False, id="prefill is short"),
    ],
)
def test_replay_shows_which_of_the_two_attainment_curves_is_true(budget: int, rps: float, osl: int, agg: bool) -> None:
    """Twice what the budget carries and more. With admission, what the proposals' curve says of the replicas that are ready is
    attained, within 10 % of it; without, the cliff is. Rates alone let everybody wait until it is too late."""
    workload = steady(rps=rps, minutes=10, osl=osl)

    def attained(admission: Literal["rate", "sla"], contender: Contender = GOODPUT) -> Mapping[str, float]:
        here = topology(budget=budget, agg=agg)
        here = here.model_copy(update={"arbiter": here.arbiter.model_copy(update={"admission": admission})})
        play = scenario(here, workload)
        outcome = simulate(play, contender)
        total = outcome.total()
        assert total.requests == len(workload) == total.completed + total.shed + total.failed
        curves: Mapping[str, float] = summarise(outcome, play.profiles, workload)["models"]["m0"]["curves"]
        return curves

    closed, opened = attained("sla"), attained("sla", replace(GOODPUT, admission=False))
    assert closed["attained"] == pytest.approx(closed["with_admission"], rel=0.1)
    assert 0.3 < closed["attained"] < 0.6
    assert opened["attained"] == pytest.approx(opened["without_admission"], abs=0.02)
    if not agg:
        assert attained("rate")["attained"] < 0.1 * closed["attained"]


@pytest.mark.parametrize(
    ("rps", "isl", "osl"),
    [
        pytest.param(0.3, 700, 120, id="room enough"),
        pytest.param(0.4, 700, 120, id="full"),
        pytest.param(0.5, 700, 120, id="short"),
        pytest.param(0.4, 300, 200, id="long answers"),
        pytest.param(0.5, 2000, 30, id="long prompts, full"),
        pytest.param(0.8, 2000, 30, id="long prompts, short"),
    ],
)
def test_an_aggregated_pool_attains_what_its_curve_says_around_full_load_too(rps: float, isl: int, osl: int) -> None:
    """Four replicas that stay, and lengths that scatter. Chance makes half minutes of twice the load, which requests that stay
    for a minute and more do not feel; short answers meet many long prompts or none, and these they do feel."""
    here = topology(budget=4, agg=True, minimum=4)
    workload = steady(rps=rps, minutes=15, isl=isl, osl=osl)
    play = scenario(here, workload, start={"m0-agg": 4})
    curves = summarise(simulate(play, GOODPUT), play.profiles, workload)["models"]["m0"]["curves"]  # type: ignore[index]
    assert curves["attained"] == pytest.approx(curves["with_admission"], rel=0.1)
