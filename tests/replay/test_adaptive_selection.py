"""Adaptive selection in virtual time: the router's own predictions send requests to the cheapest pool that is in time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from global_planner.compile import engine_specs
from global_planner.config import Topology
from global_planner.replay.arrivals import Workload, arrivals, merge
from global_planner.replay.contenders import objective
from global_planner.replay.scenario import Outcome, Scenario
from global_planner.replay.simulator import Simulation
from pool_planner.performance.profile import Profile
from tests.engine.engines import profile

FIXED = replace(objective("goodput"), admission=False)  # no pool may move, and everybody is let in
# A prompt of 1,000 tokens: 500 ms on the cheap engine, 150 ms on the fast one, which costs eight times as much.
CURVES = {
    "cheap": profile(start_ms=100.0, token_ms=0.4, step_ms=20.0, max_kv=400_000),
    "fast": profile(start_ms=50.0, token_ms=0.1, step_ms=10.0, max_kv=400_000),
}
ALIKE = {"cheap": CURVES["cheap"], "fast": CURVES["cheap"]}


def deployment(selection: str) -> Topology:
    prices = {"cheap": 1.0, "fast": 8.0}
    return Topology.model_validate({
        "name": "two-kinds",
        "budget": {"gpus": {name: {"max": 1, "price_per_hour": price} for name, price in prices.items()}},
        "router": {"selection": selection},
        "groups": [{
            "name": "m", "model": "m", "sla": {"ttft_ms": 800, "itl_ms": 60},
            "pools": [
                {"name": name, "role": "agg", "dgd": name, "gpu_type": name, "profile": name, "min_replicas": 1,
                 "max_replicas": 1}
                for name in prices
            ],
        }],
    })  # fmt: skip


def every(gap_s: float, count: int, *isl: int) -> Workload:
    """Requests at equal distances, their prompts of these lengths by turns."""
    return merge([arrivals("m", np.arange(count) * gap_s + 1.0, np.resize(isl or (1000,), count), [20] * count)])


def play(selection: str, whole: Workload, curves: dict[str, Profile] = CURVES) -> tuple[dict[str, int], Outcome]:
    """(requests that each pool got, the outcome)."""
    simulation = Simulation(Scenario(topology=deployment(selection), profiles=curves, workload=whole), FIXED)
    outcome = simulation.run()
    return {name: station.started for name, station in simulation.dispatch.stations.items()}, outcome


def test_while_the_cheap_pool_is_in_time_it_gets_everything() -> None:
    """A request every two seconds, done in one: the cheap replica is free for each."""
    got, outcome = play("adaptive", every(2.0, 60))
    assert got == {"cheap": 60, "fast": 0} and outcome.total().attainment == 1.0


def test_what_would_be_late_in_the_queue_goes_to_the_fast_pool() -> None:
    """Three prompts a second are more than the cheap replica computes: it takes what it can, the rest is in time elsewhere."""
    got, outcome = play("adaptive", every(1 / 3, 300))
    assert got["cheap"] > 80 and got["fast"] > 80 and outcome.total().attainment == 1.0


def test_prompts_that_the_cheap_engine_cannot_do_in_time_go_to_the_fast_one_at_once() -> None:
    """2,500 tokens take 1,100 ms there, and 800 are allowed. By rules (two pools alike by their limits: whichever has less to
    do) many of them go where they cannot be in time."""
    whole = every(0.5, 300, 2500, 2500, 600)
    got, outcome = play("adaptive", whole)
    assert got["fast"] >= 200 and got["cheap"] > 80 and outcome.total().attainment == 1.0
    _, ruled = play("rules", whole)
    assert ruled.total().met < 0.8 * len(whole)


def test_predictions_learn_from_answers_as_the_live_router_does() -> None:
    """The router believes that both pools are alike, but the fast one's engine takes half as long for everything. What its
    answers teach is seen in the correction of its predictions, and in nobody else's."""
    topology = deployment("adaptive")
    truth = {"fast": engine_specs(topology, CURVES)["fast"]}
    faster = Simulation(Scenario(topology=topology, profiles=ALIKE, workload=every(0.4, 400), engines=truth), FIXED)
    faster.run()
    predictors = faster.dispatch.lanes["m"].predictors
    assert predictors["fast"].correction.ttft_offset_ms == -80.0  # as far as a profile is doubted
    assert predictors["fast"].correction.itl_factor == pytest.approx(0.5, abs=0.1)
    assert predictors["cheap"].correction.itl_factor >= 1.0


def test_the_same_inputs_give_the_same_outcome() -> None:
    whole = every(1 / 3, 100)
    scenario = Scenario(topology=deployment("adaptive"), profiles=CURVES, workload=whole)
    assert repr(Simulation(scenario, FIXED).run().scores) == repr(Simulation(scenario, FIXED).run().scores)
