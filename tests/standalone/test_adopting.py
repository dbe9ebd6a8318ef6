"""A planner that runs takes over other limits, and is replaced where what it learned is about something else."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

from global_planner.compile import planner_setups_of
from global_planner.topology_file import load_profiles, load_topology, with_budget
from pool_planner.live import may_adopt

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "two-models" / "topology.yaml"


def test_another_budget_is_adopted_and_other_pools_are_not() -> None:
    topology = load_topology(EXAMPLE)
    # As it is in an actor: a copy that came over the wire, whose curves are other objects.
    running = pickle.loads(pickle.dumps(planner_setups_of(topology, load_profiles(topology))["chat-main"]))
    bigger = planner_setups_of(with_budget(topology, 20), load_profiles(topology))
    assert may_adopt(running, bigger["chat-main"])
    assert not may_adopt(running, bigger["chat-long"])
    renamed = replace(running, pools=tuple(replace(pool, name=f"{pool.name}-2") for pool in running.pools))
    assert not may_adopt(running, renamed)
