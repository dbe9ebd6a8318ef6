"""[I/O] The runs of a sweep as Ray tasks, some at a time, with a progress bar.

Workers import this module, and choose compiled code before they import anything of the replay; so imports stand where they do.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from global_planner.compiled_sets import REPLAY
from pool_planner.compiled import wanted

if TYPE_CHECKING:
    from global_planner.replay.scenario import Scenario
    from global_planner.replay.summary import Numbers
    from global_planner.replay.sweep import Variant


def swept(scenarios: Sequence[Scenario], chosen: Sequence[Variant], jobs: int) -> tuple[dict[str, Numbers], dict[str, str]]:
    """The numbers of every variant, by its label, in their order, and why the others have none: one that fails stops no other.
    `jobs` run at a time. All scenarios have the same workload, which is handed over once."""
    from global_planner.replay.arrivals import merge

    workload = ray.put(scenarios[0].workload)
    # Workers read the profiles again: compiled curves do not travel.
    bare = [replace(scenario, workload=merge([]), profiles={}) for scenario in scenarios]
    waiting = list(zip(bare, chosen, strict=True))
    running: dict[Any, str] = {}
    done: dict[str, Numbers] = {}
    failed: dict[str, str] = {}
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("variants", total=len(chosen))
        while waiting or running:
            while waiting and len(running) < jobs:
                scenario, variant = waiting.pop(0)
                # In a list: a worker must choose its code before it unpacks what that code defines.
                reference = ray.remote(_run).options(num_cpus=0).remote(pickle.dumps(scenario), [workload], variant.policy)
                running[reference] = variant.label
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            label = running.pop(ready)
            try:
                done[label] = ray.get(ready)
            except RayError as error:
                failed[label] = str(error).strip().splitlines()[-1]
            progress.advance(task)
            if not progress.console.is_terminal:
                progress.console.print(f"[{len(done) + len(failed)}/{len(chosen)}] {label}", highlight=False, markup=False)
    return {variant.label: done[variant.label] for variant in chosen if variant.label in done}, failed


def _run(packed: bytes, workload: Sequence[Any], name: str) -> Numbers:
    """The policy is made where it runs: it holds functions, which do not travel."""
    REPLAY.choose(wanted())
    from global_planner.replay.policies import policy
    from global_planner.replay.sweep import run
    from global_planner.topology_file import load_profiles

    scenario: Scenario = pickle.loads(packed)  # from the process that started this one
    whole = replace(scenario, workload=ray.get(workload[0]), profiles=load_profiles(scenario.topology))
    return run(whole, policy(name))
