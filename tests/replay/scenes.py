"""Small deployments and workloads for the replay's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from global_planner.config import Topology
from global_planner.replay.arrivals import Workload, arrivals, merge
from global_planner.replay.scenario import Scenario
from global_planner.topology_file import load_profiles, parse_topology

PROFILE = Path(__file__).parents[2] / "examples/two-models/profile"


def topology(*, budget: int = 12, agg: bool = False, groups: int = 1, minimum: int = 1, **changed: Any) -> Topology:
    """`groups` models on the demo's slow engines (a token takes 0.25 s and more), TTFT 6 s, ITL 500 ms, cold start 30 s."""
    roles = ("agg",) if agg else ("prefill", "decode")
    pools = "".join(
        f"""
  - name: m{number}
    model: m{number}
    sla: {{ttft_ms: 6000, itl_ms: 500}}
    pools:
"""
        + "".join(
            f"    - {{name: m{number}-{role}, role: {role}, dgd: m{number}, gpu_type: h100, "
            f"min_replicas: {minimum}, profile: {PROFILE}}}\n"
            for role in roles
        )
        for number in range(groups)
    )
    text = f"""
name: small
budget: {{gpus: {{h100: {{max: {budget}}}}}}}
cluster: {{cold_start_s: 30, termination_s: 10}}
arbiter: {{round_interval_s: 10, hold_s: 60}}
router: {{queue_deadline_s: 10, request_timeout_s: 3600}}
planner: {{throughput_adjustment_interval: 10, load_predictor: constant}}
groups:{pools}"""
    parsed = parse_topology(text, source="small", folder=Path())
    return parsed.model_copy(update=changed)


def steady(
    models: int = 1, *, rps: float = 1.0, minutes: float = 10.0, seed: int = 1, isl: int = 700, osl: int = 60
) -> Workload:
    """Poisson arrivals of equal rate, prompts and answers of varied length."""
    parts = []
    for number in range(models):
        rng = np.random.default_rng([seed, number])
        count = int(rng.poisson(rps * minutes * 60.0))
        at_s = np.sort(rng.uniform(0.0, minutes * 60.0, count))
        parts.append(
            arrivals(f"m{number}", at_s, rng.integers(isl // 2, isl * 2, count), rng.integers(osl // 2, osl * 2, count))
        )
    return merge(parts)


def scenario(topology: Topology, workload: Workload, **more: Any) -> Scenario:
    return Scenario(topology=topology, profiles=load_profiles(topology), workload=workload, **more)
