"""[I/O] The runs of a sweep as Ray tasks, some at a time, with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from rich.console import Console
from rich.progress import Progress

from global_planner.replay.arrivals import Workload, merge
from global_planner.replay.policies import policy
from global_planner.replay.scenario import Scenario
from global_planner.replay.summary import Numbers
from global_planner.replay.sweep import Variant, run


def swept(scenarios: Sequence[Scenario], chosen: Sequence[Variant], jobs: int) -> dict[str, Numbers]:
    """The numbers of every variant, by its label, in their order; `jobs` run at a time. All scenarios have the same workload,
    which is handed over once."""
    workload = ray.put(scenarios[0].workload)
    waiting = [(replace(scenario, workload=merge([])), variant) for scenario, variant in zip(scenarios, chosen, strict=True)]
    running: dict[Any, str] = {}
    done: dict[str, Numbers] = {}
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("variants", total=len(chosen))
        while waiting or running:
            while waiting and len(running) < jobs:
                scenario, variant = waiting.pop(0)
                reference = ray.remote(_run).options(num_cpus=0).remote(scenario, workload, variant.policy)
                running[reference] = variant.label
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            done[running.pop(ready)] = ray.get(ready)
            progress.advance(task)
    return {variant.label: done[variant.label] for variant in chosen}


def _run(scenario: Scenario, workload: Workload, name: str) -> Numbers:
    """The policy is made where it runs: it holds functions, which do not travel."""
    return run(replace(scenario, workload=workload), policy(name))
