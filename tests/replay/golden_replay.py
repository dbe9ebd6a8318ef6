"""The golden replay: a small workload of our own generator through two policies, whose summary is committed.

`python -m tests.replay.golden_replay` writes it anew; the difference is to be read like any other change of behaviour. The
trace is committed too, so that the generator may change without it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from global_planner.replay.policies import policy
from global_planner.replay.run import read_sources, summary_bytes
from global_planner.replay.scenario import ColdStart, Scenario
from global_planner.replay.simulator import simulate
from global_planner.replay.sources import parse_source
from global_planner.replay.summary import summarise
from global_planner.replay.workload import WorkloadParameters, generate
from global_planner.replay.world import Fault
from global_planner.topology_file import load_profiles
from tests.replay.scenes import topology

FOLDER = Path(__file__).parent / "golden"
SUMMARY = FOLDER / "summary.json"
SEED = 7
MODELS = ("m0", "m1")


def write_traces() -> None:
    """The workload as Azure CSVs, one a model."""
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    requests = generate(MODELS, WorkloadParameters(span_s=600.0, mean_rps=0.6), np.random.default_rng(SEED))
    for model in MODELS:
        rows = [
            f"{(begin + timedelta(seconds=each.at_s)).isoformat()},{each.isl_tokens},{each.osl_tokens}"
            for each in requests
            if each.model == model
        ]
        (FOLDER / f"{model}.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")


def summary() -> bytes:
    """summary.json of the golden replay."""
    here = topology(groups=2, budget=6)
    sources = [f"{model}={FOLDER / f'{model}.csv'}" for model in MODELS]
    scenario = Scenario(
        topology=here,
        profiles=load_profiles(here),
        workload=read_sources([parse_source(text) for text in sources], here, SEED),
        seed=SEED,
        cold_start=ColdStart(mean_s=30.0, cv=0.3),
        faults=(Fault(at_s=400.0, pool="m0-decode", kind="kill"),),
    )
    outcomes = [simulate(scenario, policy(name)) for name in ("goodput", "hpa")]
    numbers = {each.policy: summarise(each, scenario.profiles, scenario.workload) for each in outcomes}
    return summary_bytes(scenario, outcomes[0].window_s, numbers, [f"{model}.csv" for model in MODELS], True)


if __name__ == "__main__":
    write_traces()
    SUMMARY.write_bytes(summary())
    print(f"{SUMMARY}: written; read the difference")
