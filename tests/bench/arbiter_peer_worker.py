"""[I/O] Drives the global planner of ai-dynamo inside its own environment: JSON in, JSON out. Imports nothing of this project.

Input: {"groups": [{"prefill": {"gpus", "kind"}, "decode": {…}}], "max_gpus": {kind: n}, "rounds": [{"at_s", "order", "want"}]}.
In every round the groups ask in `order` for `want[group] = [prefill, decode]` replicas, those that have it already not at all.
What is approved is there at once. The mediator knows one total, so there is one for each GPU type (`kind`), and a group that
spans two asks both. Output: {"counts": [[prefill, decode] of every group, by round], "ms": …, "asked": …, "refused": …}.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import signal
import sys
import time
from importlib import import_module
from typing import Any

PR_SET_PDEATHSIG = 1


def backend(base: Any, spec: Any) -> Any:
    """A capacity manager over plain numbers."""

    class Numbers(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self.pools: dict[str, dict[str, Any]] = {}

        def ensure_participant(self, participant_id: str, **_: str) -> None:
            self.pools.setdefault(participant_id, {})

        def participant_exists(self, participant_id: str) -> bool:
            return participant_id in self.pools

        def observe(self, require_complete: bool = False) -> Any:
            return {name: dict(pools) for name, pools in self.pools.items()}

        async def scale(self, participant_id: str, targets: list[Any], blocking: bool) -> None:
            for target in targets:
                role = target.sub_component_type.value
                known = self.pools[participant_id][role]
                self.pools[participant_id][role] = spec(
                    sub_type=role, current_replicas=target.desired_replicas, gpu_per_replica=known.gpu_per_replica
                )

        def current_replicas(self, participant_id: str) -> dict[str, int]:
            return {role: pool.current_replicas for role, pool in self.pools[participant_id].items()}

    return Numbers()


async def play(request: dict[str, Any]) -> dict[str, Any]:
    orchestrator = import_module("dynamo.global_planner.orchestrator")
    capacity = import_module("dynamo.global_planner.capacity_manager")
    planner = import_module("dynamo.planner")
    clock = [0.0]
    mediators, backends = {}, {}
    for kind, most in request["max_gpus"].items():
        backends[kind] = backend(capacity.CapacityManager, capacity.PoolSpec)
        mediators[kind] = orchestrator.Orchestrator(
            backends[kind], None, max_total_gpus=most, now=lambda: clock[0], use_lock=False
        )
    groups = request["groups"]
    for number, group in enumerate(groups):
        for role in ("prefill", "decode"):
            kind, gpus = group[role]["kind"], group[role]["gpus"]
            name = f"g{number}"
            mediators[kind].register(name, caller_name=name, namespace="bench", deployment_name=name)
            backends[kind].pools[name][role] = capacity.PoolSpec(sub_type=role, current_replicas=1, gpu_per_replica=gpus)
    answer: dict[str, Any] = {"counts": [], "ms": [], "asked": [], "refused": []}
    for told in request["rounds"]:
        clock[0] = told["at_s"]
        asked = refused = 0
        started = time.process_time()
        for number in told["order"]:
            name, group = f"g{number}", groups[number]
            by_kind: dict[str, list[Any]] = {}
            for role, wanted in zip(("prefill", "decode"), told["want"][number], strict=True):
                kind = group[role]["kind"]
                if backends[kind].pools[name][role].current_replicas != wanted:
                    target = planner.TargetReplica(sub_component_type=planner.SubComponentType(role), desired_replicas=wanted)
                    by_kind.setdefault(kind, []).append(target)
            for kind, targets in by_kind.items():
                asked += 1
                outcome = await mediators[kind].submit(name, targets, False, name, name)
                refused += outcome.status.value != "success"
        answer["ms"].append((time.process_time() - started) * 1e3)
        answer["asked"].append(asked)
        answer["refused"].append(refused)
        answer["counts"].append(
            [
                [backends[group[role]["kind"]].pools[f"g{number}"][role].current_replicas for role in ("prefill", "decode")]
                for number, group in enumerate(groups)
            ]
        )
    return answer


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    request = json.load(sys.stdin)
    out = sys.stdout
    sys.stdout = sys.stderr
    import_module("dynamo.global_planner.orchestrator")  # which sets logging up anew
    logging.disable(logging.CRITICAL)
    json.dump(asyncio.run(play(request)), out)


if __name__ == "__main__":
    main()
