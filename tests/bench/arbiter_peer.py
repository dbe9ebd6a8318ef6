"""[I/O] The mediator of ai-dynamo on the same instances: requests one by one, in the order in which they come.

It runs in a virtual environment of its own, which is made and filled when it is not there. A mediator knows one total of GPUs,
so it gets one budget for each GPU type; everything that it approves is there at once, without draining or cold start, which
flatters it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.arbiter_instances import ROUND_S, Instance
from tests.bench.forecast_peers import environment

MOST_POOLS, MOST_ROUNDS = 1000, 24
"""Larger instances are left out, and of those beyond 200 pools the first rounds are played: a request looks at all pools for
every pool that could give way, so a round of 1,000 pools takes most of a second."""


def peer_figures(instance: Instance, rounds: int, tight: np.ndarray[Any, np.dtype[np.bool_]], folder: Path) -> dict[str, Any]:
    """Its goodput, moves, half-granted GPUs (at most, in contended rounds), requests refused, and time a round."""
    rounds = rounds if len(instance.pools) <= 200 else min(rounds, MOST_ROUNDS)
    tight = tight[:rounds]
    python = environment("dynamo", folder)
    worker = Path(__file__).with_name("arbiter_peer_worker.py")
    done = subprocess.run(
        [str(python), str(worker)], input=json.dumps(_request(instance, rounds)), capture_output=True, text=True, check=False,
        cwd=python.parent,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"--peer: the mediator failed in {python}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    counts = np.array(answer["counts"], dtype=np.int64).reshape(rounds, -1)
    where = np.flatnonzero(tight) if tight.any() else np.arange(rounds)
    refused = np.array(answer["refused"]) / np.maximum(np.array(answer["asked"]), 1)
    changed = (counts[1:] != counts[:-1]).sum(axis=1)
    return {
        "goodput": float(np.mean([instance.goodput(number, counts[number]) for number in where])),
        "moves_per_round": float(changed.mean()) if rounds > 1 else 0.0,
        "rounds": rounds,
        "half_granted_gpus": int(max(instance.half_granted_gpus(counts[number]) for number in where)),
        "idle_gpus": int(max(instance.idle_gpus(number, counts[number]) for number in where)),
        "refused_share": float(np.mean(refused[where])),
        "p50_ms": float(np.median(answer["ms"])),
    }


def _request(instance: Instance, rounds: int) -> dict[str, Any]:
    pools = instance.pools
    told = []
    for number in range(rounds):
        wanted = np.maximum(1, np.ceil(instance.need(number) - 1e-9)).astype(int).reshape(-1, 2)
        asked = np.random.default_rng(number).uniform(0.0, ROUND_S, len(pools)).reshape(-1, 2).min(axis=1)
        told.append({"at_s": number * ROUND_S, "order": np.argsort(asked).tolist(), "want": wanted.tolist()})
    return {
        "groups": [
            {
                role: {"gpus": spec.gpus_per_replica, "kind": spec.gpu_type}
                for role, spec in (("prefill", pools[place]), ("decode", pools[place + 1]))
            }
            for place in range(0, len(pools), 2)
        ],
        "max_gpus": dict(instance.budget.max_gpus),
        "rounds": told,
    }
