"""[I/O] The judge's scenarios through the replay of ai-dynamo, with its own planner in the loop, side by side with ours.

It runs in a virtual environment of its own, which is made and filled when it is not there. What is the same: the requests, the
curves (its mock engines read the same profile, and its planner starts from it), tokens a step, sequences and KV blocks of an
engine, the hand-off's bandwidth, start-up time, GPUs, SLA, and what stands at the start. Its own are the engine model, the
router (requests by turns), the planner, and that nobody is turned away. Its replay plays one deployment, so only scenarios of
one model have a peer.

Told for each of its modes: `sla` (throughput- and load-based scaling together), `sla-load` (load-based alone), and the two
that need no targets, `throughput` (its default) and `latency`. Where one of them lets requests pile up, its engine model
becomes slow: its time goes with the requests that wait (a replay of 400 s of `conv-90s` in mode `latency`: up to a CPU second
for each second of the trace, of which its planner takes a thousandth). So it is stopped after a limit, and what is told then
is how far it came. GPUs count while they start and drain, as ours do; a change between two of its ticks counts from the next.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pool_planner.performance.profile import Profile
from tests.bench.forecast_peers import environment
from tests.bench.outcome_scenarios import Case

MODES: Mapping[str, Mapping[str, Any]] = {
    "sla": {"optimization_target": "sla", "enable_throughput_scaling": True, "enable_load_scaling": True},
    "sla-load": {"optimization_target": "sla", "enable_throughput_scaling": False, "enable_load_scaling": True},
    "throughput": {"optimization_target": "throughput"},
    "latency": {"optimization_target": "latency"},
}
THROUGHPUT_EVERY = 12  # of its load-based ticks: 60 s where those come every 5 s, so that it can act within the scenario
WORKER = Path(__file__).with_name("outcome_peer_worker.py")
ENVIRONMENTS = Path(__file__).parents[2] / ".cache/peers"
LIMIT_S = 1200.0


class NotFinished(Exception):
    """A run that was stopped `after_s` seconds, when the share `played` of the trace's time had been played."""

    def __init__(self, after_s: float, played: float) -> None:
        super().__init__(f"not finished after {after_s:.0f} s, {played:.0%} of the trace")
        self.after_s = after_s
        self.played = played


def has_peer(each: Case) -> bool:
    """Its replay plays one deployment at a time."""
    return len(each.models) == 1


def peer_figures(
    each: Case, mode: str, *, quick: bool, limit_s: float = LIMIT_S, progress: Callable[[float], None] | None = None,
    folder: Path = ENVIRONMENTS,
) -> dict[str, Any]:  # fmt: skip
    """What came of a scenario with one of its modes, by the names that `outcome` uses; None for what its replay does not
    tell. `progress` is told the share of the trace's time. Raises NotFinished; ends the process when the peer fails."""
    python = environment("dynamo-replay", folder)
    with tempfile.TemporaryDirectory(prefix="outcome-peer-") as place:
        asked = _asked(each, MODES[mode], Path(place), quick=quick)
        told = watched([str(python), str(WORKER)], asked, Path(place), limit_s, progress or (lambda share: None))
    return _figures(told, asked["window_s"])


def watched(
    command: list[str], asked: Mapping[str, Any], place: Path, limit_s: float, progress: Callable[[float], None]
) -> dict[str, Any]:
    """What a worker tells last. Raises NotFinished when it takes longer than `limit_s`, and SystemExit when it fails."""
    played, began, late = 0.0, time.monotonic(), threading.Event()
    last: dict[str, Any] = {}
    with (place / "errors.log").open("w+") as errors:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=place
        )  # fmt: skip

        def stop() -> None:
            late.set()
            worker.kill()

        watch = threading.Timer(limit_s, stop)
        watch.start()
        try:
            assert worker.stdin is not None and worker.stdout is not None
            with worker.stdin as stdin:
                json.dump(asked, stdin)
            for line in worker.stdout:
                last = json.loads(line)
                if "now_s" in last:
                    played = min(1.0, last["now_s"] / asked["window_s"])
                    progress(played)
        finally:
            watch.cancel()
            worker.kill()
            failed = worker.wait() != 0 and "requests" not in last
            worker.stdout.close()
        if late.is_set():
            raise NotFinished(time.monotonic() - began, played)
        if failed:
            errors.seek(0)
            raise SystemExit(f"--peer: ai-dynamo's replay failed in {command[0]}:\n{errors.read()[-2000:]}")
    return last


def _asked(each: Case, mode: Mapping[str, Any], place: Path, *, quick: bool) -> dict[str, Any]:
    scenario = each.scenario(quick=quick)
    [model] = each.models
    prefixes = scenario.workload.blocks is not None
    lines, fresh = [], 1 << 40
    for at_s, _, isl, osl, _, blocks in scenario.workload.rows():
        if not blocks:  # its traces name blocks of 512 tokens: where nothing is shared each is new
            count = -(-isl // 512)
            blocks, fresh = tuple(range(fresh, fresh + count)), fresh + count
        line = {"timestamp": round(1e3 * at_s, 3), "input_length": isl, "output_length": osl, "hash_ids": blocks}
        lines.append(json.dumps(line))
    trace = place / "trace.jsonl"
    trace.write_text("\n".join(lines) + "\n")
    profile = next(iter(scenario.profiles.values()))
    _write_profile(profile, place / "profile")
    tick_s = round(each.tick_s)
    assert profile.decode is not None and scenario.window_s is not None
    return {
        "trace": str(trace),
        "profile": str(place / "profile"),
        "start": model.start,
        "window_s": scenario.window_s,
        "sla_ms": (model.ttft_ms, model.itl_ms),
        "engine": {
            "block_size": 16,
            "num_gpu_blocks": profile.decode.max_kv_tokens // 16,
            "max_num_seqs": 256,
            "max_num_batched_tokens": 8192,
            "enable_prefix_caching": prefixes,
            "startup_time": each.cold_start_s,
            "kv_bytes_per_token": 65536,
            "kv_transfer_bandwidth": 50.0 / each.slow,
        },
        "planner": {
            "mode": "disagg",
            "backend": "mocker",
            "environment": "virtual",
            "ttft_ms": model.ttft_ms,
            "itl_ms": model.itl_ms,
            "max_gpu_budget": each.budget,
            "min_endpoint": 1,
            "prefill_engine_num_gpu": 1,
            "decode_engine_num_gpu": 1,
            "load_adjustment_interval_seconds": tick_s,
            "throughput_adjustment_interval_seconds": THROUGHPUT_EVERY * tick_s,
            "report_interval_hours": None,
            "live_dashboard_port": 0,
            **mode,
        },
    }


def _write_profile(profile: Profile, folder: Path) -> None:
    """In the layout that profilers write; its reader wants floats of 64 bits."""
    prefill, decode = profile.prefill, profile.decode
    assert prefill is not None and decode is not None
    usage, context, itl, thpt = (np.array(column, dtype=np.float64) for column in zip(*decode.raw, strict=True))
    tables = {
        "selected_prefill_interpolation": {
            "prefill_isl": np.array(prefill.isl_tokens, dtype=np.float64),
            "prefill_ttft": np.array(prefill.raw_ttft_ms, dtype=np.float64),
            "prefill_thpt_per_gpu": np.array(prefill.raw_thpt_per_gpu, dtype=np.float64),
        },
        "selected_decode_interpolation": {
            "x_kv_usage": usage,
            "y_context_length": context,
            "z_itl": itl,
            "z_thpt_per_gpu": thpt,
            "max_kv_tokens": np.array([decode.max_kv_tokens], dtype=np.float64),
        },
    }
    for name, columns in tables.items():
        (folder / name).mkdir(parents=True)
        np.savez(folder / name / "raw_data.npz", **columns)


def _figures(told: Mapping[str, Any], window_s: float) -> dict[str, Any]:
    requests, streams = told["requests"], told["streams"]
    return {
        "ttft_attainment": told["ttft_met"] / requests,
        "itl_attainment": told["itl_met"] / streams if streams else None,
        "attainment": told["met"] / requests,
        "gpu_hours": round(told["gpu_hours"], 4),
        "violations": requests - told["met"],
        "violations_by_priority": {},
        "moves": told["moves"],
        "reconfigurations_per_hour": 3600.0 * told["moves"] / window_s,
        "budget_violations": None,
        "half_granted_gpu_hours": None,
        "jain_fairness": 1.0,
        "requests": requests,
        "shed": 0,
        "cpu_s": told["cpu_s"],
    }
