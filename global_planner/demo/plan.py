"""What a demo plays: the built-in workload or a trace, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from global_planner.config import Topology
from global_planner.replay.trace import play
from global_planner.replay.trace_file import load_trace
from global_planner.replay.workload import Request, WorkloadParameters, generate


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What a user can set. `minutes` (model time) and `scale` (of the rate) apply to a trace and to the built-in workload
    alike; `trace` None plays the built-in workload, drawn from `seed`."""

    topology: Topology
    out: Path
    trace: Path | None = None
    minutes: float = 40.0
    speed: float = 20.0
    scale: float = 1.0
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be played, and its name for people."""

    requests: tuple[Request, ...]
    span_s: float
    source: str
    remark: str | None = None


def make_plan(options: DemoOptions) -> Plan:
    """The requests to play. Raises TraceError for a bad trace, ValueError when nothing is left to play."""
    models = [group.model for group in options.topology.groups]
    rng = np.random.default_rng(options.seed)
    span_s = options.minutes * 60.0
    if options.trace is None:
        parameters = WorkloadParameters(span_s=span_s)
        parameters = WorkloadParameters(span_s=span_s, mean_rps=parameters.mean_rps * options.scale)
        requests = generate(models, parameters, rng)
        if not requests:
            raise ValueError(f"no request falls into {options.minutes:g} minutes at scale {options.scale:g}")
        return Plan(requests=requests, span_s=span_s, source=f"built-in workload, seed {options.seed}")
    longest = min(group.engine.max_model_len for group in options.topology.groups)
    played = play(load_trace(options.trace, minutes=options.minutes), models, rng, scale=options.scale, max_model_len=longest)
    remark = f"{played.shortened} requests were cut to {longest} tokens" if played.shortened else None
    last_s = played.requests[-1].at_s
    return Plan(requests=played.requests, span_s=min(span_s, last_s + 1.0), source=options.trace.name, remark=remark)
