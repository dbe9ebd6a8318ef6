"""The wall clock and the virtual one: a fleet of engine processes behind the router's process, and the replay of the same
arrivals. What a client measures over HTTP is what replay says it will."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from global_planner.compile import engine_specs, router_config_of
from global_planner.config import Topology
from global_planner.mocker.load import Load
from global_planner.mocker.load_record import LoadRecord
from global_planner.ports import Endpoint, PoolEndpoints
from global_planner.replay.arrivals import Workload, arrivals, merge
from global_planner.replay.contenders import objective
from global_planner.replay.engine_spec import EngineSpec, raw_spec
from global_planner.replay.scenario import Scenario
from global_planner.replay.scores import COMPLETED
from global_planner.replay.simulator import simulate
from global_planner.replay.workload import Request
from global_planner.router_client import RouterClient
from pool_planner.clock import SpeedClock
from tests.engine.engines import profile
from tests.engine.processes import command, wait_for_port

# A prompt of 600 tokens takes 440 ms alone, a token some 45 ms: far more than the few milliseconds of the stack itself.
CURVES = profile(start_ms=80.0, token_ms=0.6, step_ms=40.0, sequence_ms=1.5, kv_ms=0.0003, max_kv=200_000)
SPAN_S = 15.0
WITHIN = 0.05
FLEET = {"whole-agg": 3, "split-prefill": 3, "split-decode": 2}
RATES = {"whole": 2.0, "split": 3.2}


def deployment() -> Topology:
    """One model on aggregated replicas, one on prefill and decode; nothing may grow."""
    roles = {"whole": ("agg",), "split": ("prefill", "decode")}
    return Topology.model_validate({
        "name": "twin",
        "budget": {"gpus": {"gpu": {"max": sum(FLEET.values())}}},
        "groups": [
            {
                "name": name, "model": name, "sla": {"ttft_ms": 2000, "itl_ms": 100}, "engine": {"kv_transfer_ms": 20},
                "pools": [
                    {"name": f"{name}-{role}", "role": role, "dgd": name, "gpu_type": "gpu", "profile": "curves",
                     "min_replicas": FLEET[f"{name}-{role}"], "max_replicas": FLEET[f"{name}-{role}"]}
                    for role in its
                ],
            }
            for name, its in roles.items()
        ],
    })  # fmt: skip


def workload() -> Workload:
    """Poisson arrivals, prompts of 150 to 2,000 tokens, answers of 10 to 40."""
    parts = []
    for number, (model, rps) in enumerate(RATES.items()):
        rng = np.random.default_rng([5, number])
        count = int(rps * SPAN_S)
        isl = np.clip(rng.lognormal(np.log(600), 0.6, count), 150, 2000)
        parts.append(arrivals(model, np.sort(rng.uniform(0.0, SPAN_S, count)), isl, rng.integers(10, 40, count)))
    return merge(parts)


def replayed(topology: Topology, whole: Workload) -> dict[tuple[str, float], tuple[float, float]]:
    """(TTFT, ITL) in ms by model and arrival."""
    told: dict[tuple[str, float], tuple[float, float]] = {}

    def ended(model: int, _: int, at_s: float, ttft_s: float, itl_s: float, how: int) -> None:
        assert how == COMPLETED
        told[topology.groups[model].model, at_s] = (1e3 * ttft_s, 1e3 * itl_s)

    scenario = Scenario(
        topology=topology, profiles=dict.fromkeys(FLEET, CURVES), workload=whole, start=FLEET, told_lengths=True
    )
    outcome = simulate(scenario, replace(objective("goodput"), admission=False), each=ended)
    assert {pool: set(columns["ready"]) for pool, columns in outcome.timeline.pools.items()} == {
        pool: {float(count)} for pool, count in FLEET.items()
    }
    return told


@contextmanager
def processes(folder: Path, specs: dict[str, EngineSpec]) -> Iterator[tuple[int, list[int], tuple[PoolEndpoints, ...]]]:
    """(port of the router, its admin ports, the endpoints of the fleet), all started at once on one clock of speed 1."""
    clock = SpeedClock(origin=time.time(), speed=1.0)
    environment = {**os.environ, **clock.environment()}
    started: dict[str, list[tuple[str, Path]]] = {pool: [] for pool in FLEET}
    with ExitStack() as stack:

        def start(words: list[str]) -> None:
            popen = stack.enter_context(subprocess.Popen(words, env=environment))
            stack.callback(popen.kill)

        for pool, count in FLEET.items():
            for number in range(count):
                name = f"{pool}-{number}"
                spec, ports = folder / f"{name}.json", folder / f"{name}.ports.json"
                spec.write_text(json.dumps(raw_spec(specs[pool])))
                start(command(spec, ports, "--replica-id", name, "--ready-at", "0"))
                started[pool].append((name, ports))
        ports = folder / "router.ports.json"
        start([sys.executable, "-m", "router", "--config", str(folder / "router.json"), "--die-with-parent",
               "--port", "0", "--admin-port", "0", "--port-file", str(ports)])  # fmt: skip
        fleet = tuple(
            PoolEndpoints(
                name=pool,
                role=specs[pool].role,
                endpoints=tuple(
                    Endpoint(id=name, url=f"http://127.0.0.1:{wait_for_port(file)}", state="ready") for name, file in each
                ),
            )
            for pool, each in started.items()
        )
        wait_for_port(ports)
        told = json.loads(ports.read_text())
        yield told["port"], told["admin_ports"], fleet


async def measured(folder: Path, topology: Topology, whole: Workload) -> dict[tuple[str, float], tuple[float, float]]:
    """What a client measures: (TTFT, ITL) in ms by model and arrival, of the requests that stream."""
    (folder / "router.json").write_text(router_config_of(topology).model_dump_json())
    asked = [
        Request(at_s=at_s, model=whole.models[model], isl_tokens=isl, osl_tokens=osl)
        for at_s, model, isl, osl, *_ in whole.rows()
    ]
    with processes(folder, dict(engine_specs(topology, dict.fromkeys(FLEET, CURVES)))) as (port, admin_ports, fleet):
        async with RouterClient([f"http://127.0.0.1:{each}" for each in admin_ports], admission_valid_s=600.0) as router:
            await router.put_endpoints(fleet)
        load = Load(
            asked,
            url=f"http://127.0.0.1:{port}",
            clock=SpeedClock(origin=time.time(), speed=1.0),
            out=folder / "records.jsonl",
            progress=folder / "progress.json",
            seed=1,
            deadline_s=30.0,
        )
        await load.play()
    reader = TypeAdapter(LoadRecord)
    records = [reader.validate_json(line) for line in (folder / "records.jsonl").read_bytes().splitlines()]
    assert len(records) == len(whole) and {record.outcome for record in records} == {"completed"}
    return {
        (record.model, record.at_s): (record.ttft_ms, record.itl_ms)
        for record in records
        if record.ttft_ms is not None and record.itl_ms is not None
    }


def test_the_mocker_over_http_and_the_replay_give_the_same_latencies(tmp_path: Path) -> None:
    """Over all requests p50 and p90 of TTFT and ITL are within 5 %; and for each fleet so is the typical single request, which
    a quantile alone could hide."""
    topology, whole = deployment(), workload()
    virtual = replayed(topology, whole)
    wall = asyncio.run(measured(tmp_path, topology, whole))
    assert len(virtual) == len(whole) and len(wall) > 0.8 * len(whole)
    told = {}
    for place, metric in enumerate(("TTFT", "ITL")):
        for share in (50, 90):
            there, here = (float(np.percentile([each[key][place] for key in wall], share)) for each in (wall, virtual))
            told[f"{metric} p{share}: {there:.1f} ms over HTTP, {here:.1f} ms in replay"] = there / here - 1.0
        for model in RATES:
            ratios = [wall[key][place] / virtual[key][place] for key in wall if key[0] == model]
            told[f"{metric} of one request of {model!r}"] = float(np.median(ratios)) - 1.0
    assert max(map(abs, told.values())) <= WITHIN, {name: f"{apart:+.1%}" for name, apart in told.items()}
