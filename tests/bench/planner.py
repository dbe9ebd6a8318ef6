"""How long a planner's tick takes and how much memory its pools take: `python -m tests.bench.planner --json F`.

1, 10 and 100 prefill and decode pools in one process, both scaling modes, fits of `arima` run where the actor would run them:
elsewhere, so they are not part of a tick; their time is told beside it. `cpu` is the tick's own processor time: what is left of
it on a machine where others wait for the same processors too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

from pool_planner.compatibility import read_config
from pool_planner.performance.profile import load_profile
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.state import fit_jobs, fitted, start
from pool_planner.types import Grant, Histogram, Observation, WorkerLoad

PROFILE = Path(__file__).parents[2] / "examples/two-models/profile"
EDGES = tuple(float(base << shift) for shift in range(4, 17) for base in (2, 3))
TICKS = 240


def measure(pools: int, predictor: str, ticks: int) -> dict[str, float]:
    """One planner a pool, as in a deployment; a tick is one `plan` of one planner."""
    profile = load_profile(PROFILE)
    rng = random.Random(pools)
    before_kb = resident_kb()
    setups = []
    for index in range(pools):
        role = "prefill" if index % 2 == 0 else "decode"
        config = read_config(
            {
                "mode": role,
                "load_predictor": predictor,
                "enable_load_scaling": True,
                "throughput_adjustment_interval": 30,
                "load_adjustment_interval": 10,
            },
            origin="bench",
        ).config
        pool = PoolSetup(
            name=f"{role}-{index}", role=role, ttft_ms=6000.0, itl_ms=500.0, max_replicas=32, profile=profile, cold_start_s=45.0
        )
        setups.append(PlannerSetup(config=config, pools=(pool,)))
    states = [start(setup) for setup in setups]
    taken: list[float] = []
    cpu: list[float] = []
    fits: list[float] = []
    now = 0.0
    for tick in range(ticks):
        now += 10.0
        for index, setup in enumerate(setups):
            pool = setup.pools[0]
            told = observed(pool, now, tick, rng)
            grant = Grant(pool=pool.name, at_s=now, replicas_spec=4, replicas_ready=4, replicas_starting=0, cold_start_s=45.0)
            begin, begin_cpu = time.perf_counter(), time.thread_time()
            states[index], _ = plan(states[index], {pool.name: told}, {pool.name: grant}, now, setup)
            jobs = fit_jobs(states[index])
            taken.append(1e3 * (time.perf_counter() - begin))
            cpu.append(1e3 * (time.thread_time() - begin_cpu))
            for name, series, job in jobs:
                begin = time.perf_counter()
                result = job.run()
                fits.append(1e3 * (time.perf_counter() - begin))
                states[index] = fitted(states[index], name, series, result, now=now)
    after_kb = resident_kb()
    ordered = sorted(taken)
    return {
        "tick_p50_ms": round(statistics.median(ordered), 3),
        "tick_p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 3),
        "tick_max_ms": round(ordered[-1], 3),
        "tick_cpu_p50_ms": round(statistics.median(cpu), 3),
        "tick_cpu_max_ms": round(max(cpu), 3),
        "rss_mb_per_pool": round((after_kb - before_kb) / 1024 / pools, 3),
        "fits": len(fits),
        "fit_p50_ms": round(statistics.median(fits), 3) if fits else 0.0,
    }


def resident_kb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024


def observed(pool: PoolSetup, now: float, tick: int, rng: random.Random) -> Observation:
    rate = 2.0 + 1.5 * ((tick % 60) / 60.0) + rng.gauss(0.0, 0.2)
    counts = tuple(rng.random() for _ in range(len(EDGES) + 1))
    workers = tuple(
        WorkerLoad(
            worker_id=f"w{k}",
            active_prefill_tokens=rng.uniform(0, 5000),
            active_decode_blocks=rng.uniform(0, 500),
            last_ttft_ms=rng.uniform(500, 3000),
            last_isl_tokens=rng.uniform(100, 2000),
            last_itl_ms=rng.uniform(250, 500),
        )
        for k in range(4)
    )
    return Observation(
        pool=pool.name,
        at_s=now,
        interval_s=10.0,
        front_door_up=True,
        requests=max(0.0, rate * 10.0),
        completed=max(0.0, rate * 10.0),
        isl_tokens=1000.0 + rng.gauss(0, 50),
        osl_tokens=60.0 + rng.gauss(0, 3),
        ttft_ms=1500.0,
        itl_ms=400.0,
        isl_histogram=Histogram(edges=EDGES, counts=counts),
        osl_histogram=Histogram(edges=EDGES, counts=counts),
        workers=workers,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--predictor", default="arima")
    parser.add_argument("--ticks", type=int, default=TICKS)
    arguments = parser.parse_args()
    measure(2, arguments.predictor, 60)  # imports and first calls are no part of a tick or of a pool
    results: dict[str, dict[str, float]] = {}
    for pools in (1, 10, 100):
        results[str(pools)] = measure(pools, arguments.predictor, arguments.ticks)
        print(f"{pools} pools: {json.dumps(results[str(pools)])}", file=sys.stderr, flush=True)
    print(json.dumps(results, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"predictor": arguments.predictor, "pools": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
