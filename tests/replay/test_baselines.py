"""Whom we compare with: the autoscaler's arithmetic, shares of a budget, fleets counted from a trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from global_planner.compile import planner_setups_of
from global_planner.replay.arrivals import arrivals, merge
from global_planner.replay.baselines import HpaReporter
from global_planner.replay.hpa import SYNC_S, Autoscaler
from global_planner.replay.needs import pool_loads, setups_by_pool, shares, static_replicas
from global_planner.replay.policies import POLICIES, policy
from global_planner.replay.simulator import simulate
from global_planner.replay.world import Fault
from global_planner.topology_file import load_profiles
from pool_planner.config import Extensions
from pool_planner.types import Grant, Proposal
from tests.replay.scenes import scenario, steady, topology


def hpa_run(loads: list[float], *, most: int = 50) -> list[int]:
    """Replicas ordered at each sync when what is ordered is ready at the next; 10 in flight a replica are the target."""
    scaler, spec, ordered = Autoscaler(), 1, []
    for index, load in enumerate(loads):
        scaler, spec = scaler.next(index * SYNC_S, in_flight=load, target=10.0, ready=spec, spec=spec, least=1, most=most)
        ordered.append(spec)
    return ordered


def test_an_hpa_adds_four_or_doubles_and_waits_five_minutes_before_it_removes() -> None:
    # 1 -> at most 5 -> at most 10 -> what 120 in flight need.
    assert hpa_run([120.0] * 4) == [5, 10, 12, 12]
    # Load gone: the highest recommendation of the last 300 s holds, then all go at once.
    gone = hpa_run([120.0] * 4 + [0.0] * 25)
    assert gone[3:23] == [12] * 20 and gone[-1] == 1


def test_an_hpa_does_nothing_within_its_tolerance_and_never_exceeds_its_most() -> None:
    assert hpa_run([40.0, 40.0, 43.0, 38.0]) == [4, 4, 4, 4]
    assert hpa_run([1000.0] * 6, most=7)[-1] == 7


@given(
    wanted=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    budget=st.integers(0, 60),
)
def test_shares_fit_the_budget_and_waste_no_whole_replica(wanted: list[int], sizes: list[int], budget: int) -> None:
    pools = {f"p{index}": each for index, each in enumerate(wanted)}
    gpus = {pool: sizes[index] for index, pool in enumerate(pools)}
    minima = dict.fromkeys(pools, 0)
    given_ = shares(pools, minima, gpus, budget)
    used = sum(given_[pool] * gpus[pool] for pool in pools)
    assert used <= budget
    assert all(0 <= given_[pool] <= pools[pool] for pool in pools)
    short = [gpus[pool] for pool in pools if given_[pool] < pools[pool]]
    # One round of remainders leaves less than a replica of everybody who is short.
    assert not short or budget - used < sum(short)


def test_the_fleet_that_stands_at_the_start_stays_whatever_comes() -> None:
    """Four times what it is for, then nothing: still 3 and 2, and a replica that dies is replaced."""
    deployment = topology(budget=12)
    busy = scenario(
        deployment, steady(rps=8.0, minutes=5), start={"m0-prefill": 3, "m0-decode": 2}, window_s=1200.0,
        faults=(Fault(at_s=60.0, pool="m0-decode", kind="kill"),),
    )  # fmt: skip
    outcome = simulate(busy, policy("static_start"))
    assert outcome.moves == 0 and outcome.most_held == {"h100": 5} and outcome.budget_violations == 0
    assert outcome.gpu_hours == {"h100": pytest.approx(5 * 1200 / 3600)}


def test_a_static_fleet_is_counted_from_the_trace() -> None:
    """100 prompts of 1,000 tokens in one moment and one a second else: the peak is that moment's ten seconds."""
    here = topology(budget=100)
    at_s = np.concatenate([np.arange(600.0), np.full(100, 305.0)])
    workload = merge([arrivals("m0", at_s, np.full(700, 1000), np.full(700, 50))])
    setup = setups_by_pool(planner_setups_of(here, load_profiles(here)))["m0-prefill"]
    load = pool_loads(here, workload)["m0-prefill"]
    assert load.at_s.size == 700 and set(load.osl.tolist()) == {1}
    engine = setup.engine
    assert engine is not None and engine.prefill is not None
    each = engine.prefill.thpt_per_gpu(1000.0)
    assert static_replicas(setup, load, 600.0, peak=True) == int(np.ceil(110 * 1000 / 10 / each))
    half = static_replicas(setup, load, 600.0, peak=True, quantile=0.5)
    assert half == int(np.ceil(10 * 1000 / 10 / each))
    assert static_replicas(setup, load, 600.0, peak=False) == int(np.ceil(700 * 1000 / 600 / each))


def test_every_policy_plays_and_none_exceeds_its_budget() -> None:
    play = scenario(topology(budget=8), steady(rps=1.0, minutes=4))
    told = {name: simulate(play, policy(name)) for name in POLICIES}
    assert all(outcome.total().requests == len(play.workload) for outcome in told.values())
    assert all(outcome.budget_violations == 0 for outcome in told.values())
    assert told["static_peak"].moves == told["static_mean"].moves == 0
    assert told["static_peak"].gpu_hours["h100"] > told["static_mean"].gpu_hours["h100"]
    limits = told["independent"].topology.placed_pools()
    assert sum((pool.max_replicas or 99) * pool.gpus_per_replica for _, pool in limits) <= 8


def test_a_replica_that_an_hpa_ordered_beyond_the_budget_is_pending_and_starts_when_a_gpu_is_free() -> None:
    """Six GPUs: decode gets the two that are free at 0 s and waits for a third, so it has the next one before prefill, which is
    short from 15 s on; the one after that is prefill's, because decode orders another only then."""
    here = topology(budget=6)
    setups = setups_by_pool(planner_setups_of(here, load_profiles(here)))
    hpa = HpaReporter(here, setups, dict.fromkeys(setups, 10.0))
    assert [name.rpartition("-")[2] for name in setups] == ["prefill", "decode"]

    def wishes(now: float, has: tuple[int, int], in_flight: tuple[int, int]) -> tuple[int, ...]:
        grants = {
            pool: Grant(pool=pool, at_s=now, replicas_spec=count, replicas_ready=count)
            for pool, count in zip(setups, has, strict=True)
        }
        told = hpa.tick(now, {}, grants, dict(zip(setups, in_flight, strict=True)))
        return tuple(report.wanted for report in told if isinstance(report, Proposal))

    assert wishes(0.0, (2, 2), (20, 50)) == (2, 4)  # decode orders five
    assert wishes(15.0, (2, 4), (30, 50)) == (2, 4)  # now both would have one more, and there is none
    assert wishes(30.0, (1, 4), (30, 50)) == (1, 5)  # prefill was taken one away by hand
    assert wishes(45.0, (1, 5), (30, 50)) == (1, 5)
    assert wishes(60.0, (1, 4), (30, 70)) == (2, 4)


def test_an_existing_system_plans_by_the_guide_alone() -> None:
    """Whatever the deployment, a group or a pool of it sets beyond the guide does not count; what the guide knows does."""
    ours = {"load_predictor": "auto", "min_endpoint": 1, "extensions": {"queueing": True}}
    base = topology(budget=8)
    strange = base.model_copy(
        update={
            "planner": {"throughput_adjustment_interval": 20, **ours},
            "groups": tuple(group.model_copy(update={"planner": ours}) for group in base.groups),
        }
    )
    deploy = policy("existing").deploy
    assert deploy is not None
    deployed, _ = deploy(strange, {}, merge([]))
    configs = [setup.config for setup in planner_setups_of(deployed, load_profiles(base)).values()]
    switches = {name: value for name, value in Extensions(plain=True) if isinstance(value, bool)}
    assert not switches["queueing"] and not switches["cover_cold_start"]
    for config in configs:
        beyond = [name for name, default in switches.items() if getattr(config.extensions, name) != default]
        assert not beyond and config.load_predictor == "arima"
        assert config.throughput_adjustment_interval == 20
    assert not policy("existing").admission and not policy("first_come").admission and policy("first_come_door").admission


def test_an_unknown_policy_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no policy 'best' \\(has: goodput, max_min"):
        policy("best")
