"""A small deployment as its topology compiles, and rounds of it in which whatever is granted is there by the next one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from global_planner.config import Topology
from global_planner.memory import PlannerMemory, decide
from global_planner.round import RoundConfig
from global_planner.topology_file import parse_topology
from global_planner.types import Allocation, RoundInputs
from tests.arbiter.builders import holding, proposal
from tests.topology.refusals import EXAMPLE

ROUND_S = 10.0
Loads = Mapping[str, float]
Change = Callable[[dict[str, Any]], None]


def _group(name: str) -> dict[str, Any]:
    pool = {"name": name, "role": "agg", "gpu_type": "h100", "min_replicas": 1, "max_replicas": 8, "profile": "profile"}
    return {"name": name, "model": f"demo/{name}", "sla": {"ttft_ms": 6000, "itl_ms": 500}, "pools": [pool]}


RAW: dict[str, Any] = {
    "name": "scene",
    "budget": {"gpus": {"h100": {"max": 8, "price_per_hour": 2.0}}},
    "cluster": {"cold_start_s": 30},
    "arbiter": {"round_interval_s": ROUND_S, "hold_s": 60, "move_horizon_s": 300},
    "groups": [_group("chat"), _group("code")],
}


def topology(*changes: Change) -> Topology:
    raw = copy.deepcopy(RAW)
    for change in changes:
        change(raw)
    return parse_topology(json.dumps(raw), source="scene.yaml", folder=EXAMPLE.parent)


def allocations(
    whole: Topology, rounds: Sequence[Loads], *, unix_at_zero_s: float = 0.0, memory: PlannerMemory | None = None
) -> list[Allocation]:
    """One allocation a round. `rounds`: requests/s by pool, of which one replica carries one; a pool that is absent says
    nothing. Every pool begins with its minimum."""
    config = RoundConfig.of(whole, unix_at_zero_s=unix_at_zero_s)
    memory = memory or PlannerMemory()
    have = {spec.name: spec.min_replicas for spec in config.pools}
    told = []
    for number, loads in enumerate(rounds, start=1):
        at_s = number * ROUND_S
        inputs = RoundInputs(
            round_no=number,
            at_s=at_s,
            budget=config.budget,
            groups=config.groups,
            pools=config.pools,
            # No cold start was measured yet: the configured one counts.
            holdings=tuple(replace(holding(spec, have[spec.name], at_s=at_s), cold_start_s=None) for spec in config.pools),
            reports=tuple(replace(proposal(pool, load, 1.0, at_s=at_s), prefix_hit_rate=0.6) for pool, load in loads.items()),
        )
        memory, allocation, _ = decide(memory, inputs, config.policies)
        have = {grant.pool: grant.granted for grant in allocation.pools}
        told.append(allocation)
    return told


def grants(allocation: Allocation) -> dict[str, int]:
    return {grant.pool: grant.granted for grant in allocation.pools}


def last(*changes: Change, rounds: Sequence[Loads], unix_at_zero_s: float = 0.0) -> dict[str, int]:
    """What is granted in the end."""
    return grants(allocations(topology(*changes), rounds, unix_at_zero_s=unix_at_zero_s)[-1])
