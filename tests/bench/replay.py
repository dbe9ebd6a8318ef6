"""How fast the replay is: `python -m tests.bench.replay --json F`.

A million conversation requests over a hundred replicas with the planners in the loop, and as many coding requests. Lengths
are those of the Azure traces where they are there, else drawn like them. Times are those of one core: CPU seconds of this
process beside the wall's. `--compiled` runs the same sources through mypyc (built on first use). `--scaling` also plays 0.1,
0.2 and 0.4 million, and the same load over 25, 50 and 100 replicas.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from global_planner.compiled_sets import REPLAY
from pool_planner.compiled import CannotCompile

DATA = Path(__file__).parents[3] / "shared/data"
PROFILE = DATA / "profiles/h200_llama31_8b_fp8_tp1"
EXAMPLE = Path(__file__).parents[2] / "examples/two-models/profile"
# Requests/s that keep a hundred replicas about two thirds busy, by workload and by the engines that there are.
RATE = {("conversation", True): 600.0, ("coding", True): 900.0, ("conversation", False): 12.0, ("coding", False): 20.0}
# Of a disaggregated fleet, so that both stages are about as busy: coding is nearly all prompt.
PREFILL = {"conversation": 1 / 3, "coding": 7 / 8}
LENGTHS = {"conversation": (1155.0, 0.99, 211.0, 0.77), "coding": (2048.0, 1.36, 28.0, 1.0)}
TOPOLOGY = """
name: bench
budget: {{gpus: {{gpu: {{max: {replicas}}}}}}}
groups:
  - name: m
    model: m
    sla: {{ttft_ms: {ttft}, itl_ms: {itl}}}
    pools:
{pools}"""
POOL = (
    "      - {{name: {name}, role: {role}, dgd: m, gpu_type: gpu, min_replicas: {n}, max_replicas: {n}, profile: {profile}}}\n"
)


def lengths(kind: str, count: int, rng: Any) -> Any:
    """(prompt, answer tokens) of `count` requests."""
    import numpy as np

    from global_planner.replay.rates import Lengths
    from global_planner.replay.trace_file import load_trace

    file = DATA / f"traces/azure2023_{'conv' if kind == 'conversation' else 'code'}.csv.gz"
    if file.exists():
        rows = np.array([(each.isl_tokens, each.osl_tokens) for each in load_trace(file).arrivals])
        return rows[rng.integers(len(rows), size=count)].T
    isl, isl_cv, osl, osl_cv = LENGTHS[kind]
    return Lengths(mean=isl, cv=isl_cv, most=16_000).draw(count, rng), Lengths(mean=osl, cv=osl_cv, most=2_000).draw(count, rng)


def measure(kind: str, requests: int, replicas: int, shape: str, load_replicas: int) -> dict[str, float]:
    """One replay; `load_replicas`: what the load is for, where that is not the fleet."""
    import numpy as np
    from rich.progress import Progress

    from global_planner.replay.arrivals import arrivals, merge
    from global_planner.replay.policies import policy
    from global_planner.replay.scenario import Scenario
    from global_planner.replay.simulator import simulate
    from global_planner.topology_file import load_profiles, parse_topology

    fast = PROFILE.exists()
    profile = PROFILE if fast else EXAMPLE
    prefill = max(1, round(PREFILL[kind] * replicas))
    parts = [("agg", replicas)] if shape == "agg" else [("prefill", prefill), ("decode", replicas - prefill)]
    pools = "".join(POOL.format(name=role, role=role, n=count, profile=profile) for role, count in parts)
    sla = {"ttft": 500, "itl": 50} if fast else {"ttft": 6000, "itl": 500}
    topology = parse_topology(TOPOLOGY.format(replicas=replicas, pools=pools, **sla), source="bench", folder=Path())
    rng = np.random.default_rng(1)
    at_s = np.cumsum(rng.exponential(100.0 / load_replicas / RATE[kind, fast], requests))
    isl, osl = lengths(kind, requests, rng)
    scenario = Scenario(topology=topology, profiles=load_profiles(topology), workload=merge([arrivals("m", at_s, isl, osl)]))
    with Progress(transient=True) as progress:
        task = progress.add_task(f"{kind}, {shape}", total=scenario.workload.span_s)
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = simulate(scenario, policy("goodput"), progress=lambda now, _: progress.update(task, completed=now))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total = outcome.total()
    assert total.requests == requests
    return {
        "requests": requests,
        "simulated_s": round(scenario.workload.span_s, 1),
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "requests_per_s": round(requests / wall),
        "requests_per_cpu_s": round(requests / cpu),
        "speedup_over_real_time": round(scenario.workload.span_s / wall, 1),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0),
        "replicas": replicas,
        "attainment": round(total.attainment or 0.0, 4),
    }


def alone(*words: object) -> dict[str, float]:
    """A measurement in a process of its own, so that memory is its own."""
    kind, requests, replicas = words[:3]
    print(f"{kind}: {requests:,} requests over {replicas} replicas …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "tests.bench.replay", "--one", *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m tests.bench.replay --compiled --requests 100000 --workload conversation --json replay.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--requests", type=int, default=1_000_000, metavar="N", help="of each workload (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--shape", choices=("agg", "disagg"), default="agg", help="aggregated replicas (default), or both stages"
    )
    parser.add_argument("--workload", choices=("conversation", "coding", "both"), default="both", help="default: both")
    parser.add_argument("--compiled", action="store_true", help="the same sources, compiled (extra: fast)")
    parser.add_argument("--scaling", action="store_true", help="also how the cost grows with requests and replicas")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, requests, replicas, shape, load_replicas, fast = arguments.one
        if fast == "True":
            REPLAY.use()
        print(json.dumps(measure(kind, int(requests), int(replicas), shape, int(load_replicas))))
        return
    if arguments.compiled:
        print("compiling what is not compiled yet …", file=sys.stderr)
        try:
            REPLAY.build()
        except CannotCompile as error:
            parser.error(f"--compiled: {error}")
    kinds = ("conversation", "coding") if arguments.workload == "both" else (arguments.workload,)
    full = (arguments.replicas, arguments.shape, arguments.replicas, arguments.compiled)
    by_kind = {kind: alone(kind, arguments.requests, *full) for kind in kinds}
    keys = ("requests", "simulated_s", "wall_s", "requests_per_s", "speedup_over_real_time", "rss_mb", "replicas")
    first = by_kind[kinds[0]]
    report: dict[str, Any] = {key: first[key] for key in keys} | {"workloads": by_kind, "compiled": arguments.compiled}
    if arguments.scaling:
        more = [alone(kinds[0], arguments.requests * part // 10, *full) for part in (1, 2, 4)]
        report["by_requests"] = {str(each["requests"]): each["cpu_s"] for each in more}
        few = max(4, arguments.replicas // 4)
        tenth = arguments.requests // 10
        less = [alone(kinds[0], tenth, few * times, arguments.shape, few, arguments.compiled) for times in (1, 2, 4)]
        report["by_replicas"] = {str(each["replicas"]): each["cpu_s"] for each in less}
    for name, each in by_kind.items():
        print(f"{name:13s} " + "  ".join(f"{key} {value:,}" for key, value in each.items()))
    for key in ("by_requests", "by_replicas"):
        if key in report:
            print(f"{key}: " + "  ".join(f"{name}: {cpu_s} CPU s" for name, cpu_s in report[key].items()))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
