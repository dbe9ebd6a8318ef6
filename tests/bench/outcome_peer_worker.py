"""[I/O] Plays a trace through the replay of ai-dynamo inside its own environment: JSON in, JSON out. Imports nothing of this
project.

While it plays, a line {"now_s"} comes out at every tick of its planner. It ends itself when whoever asked is gone: a trace that
overloads its engines can take hours.

Input: {"trace", "profile": paths, "start": [prefill, decode], "window_s", "sla_ms": [ttft, itl], "engine": arguments of its
mock engines, "planner": its PlannerConfig}. Output, the last line: counts of requests by what they met (a request's ITL is the
mean over its tokens, as its own report has it), GPU-hours over the window with starting and draining workers, and orders.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["DYN_LOG"] = "error"


class Account:
    """Stands before the planner's adapter: passes everything on, adds up GPUs and orders, and tells how far it is."""

    def __init__(self, adapter: Any, window_s: float, tell: Callable[[float], None] = lambda now_s: None) -> None:
        self._adapter = adapter
        self._tell = tell
        self._window_s = window_s
        self._since_s, self._gpus = 0.0, 0
        self.gpu_s = 0.0
        self.moves = 0

    def begin(self, gpus: int) -> None:
        self._gpus = gpus

    def initial_tick_ms(self) -> float:
        return float(self._adapter.initial_tick_ms())

    def on_tick(self, seen: dict[str, Any]) -> dict[str, Any]:
        self._tell(seen["now_ms"] / 1e3)
        answer: dict[str, Any] = self._adapter.on_tick(seen)
        self.until(seen["now_ms"] / 1e3)
        self._gpus = 0
        for role in ("prefill", "decode"):
            held, wanted = seen[f"total_{role}_count"], answer[f"target_{role}"]
            stays = seen[f"non_draining_{role}_count"]  # with those that start
            grows = 0 if wanted is None else max(0, wanted - stays)
            self._gpus += held + grows
            self.moves += wanted is not None and wanted != stays
        return answer

    def until(self, now_s: float) -> None:
        end_s = min(now_s, self._window_s)
        self.gpu_s += max(0.0, end_s - self._since_s) * self._gpus
        self._since_s = max(self._since_s, end_s)


def play(asked: dict[str, Any], tell: Callable[[float], None]) -> dict[str, Any]:
    replay = import_module("dynamo.replay.main")
    measured = import_module("dynamo.planner.monitoring.perf_metrics")
    converter = import_module("dynamo.mocker.utils.planner_profiler_perf_data_converter")
    run = import_module("dynamo._core").run_mocker_trace_replay
    profile, curves = asked["profile"], Path("curves.npz").absolute()
    converter.convert_profile_results_to_npz(Path(profile), curves)
    engines = [
        replay._load_engine_args(
            json.dumps({**asked["engine"], "worker_type": role, "planner_profile_data": str(curves)}),
        )
        for role in ("prefill", "decode")
    ]
    requests = Path("requests.jsonl").absolute()
    began = time.process_time()
    with replay._planner_replay_adapter(None, *engines, json.dumps(asked["planner"])) as adapter:
        if asked["planner"]["optimization_target"] == "sla":
            # What a live planner reads from the same profile when it starts.
            adapter.install_benchmark_fpms(
                prefill_fpms=measured._convert_prefill_profiling(profile),
                decode_fpms=measured._convert_decode_profiling(profile),
            )
        account = Account(adapter, asked["window_s"], tell)
        account.begin(sum(asked["start"]))
        run(
            [asked["trace"]],
            prefill_engine_args=engines[0],
            decode_engine_args=engines[1],
            num_prefill_workers=asked["start"][0],
            num_decode_workers=asked["start"][1],
            trace_block_size=512,
            report_jsonl_path=str(requests),
            scaling_policy=account,
        )
        account.until(asked["window_s"])
    told = {"requests": 0, "streams": 0, "ttft_met": 0, "itl_met": 0, "met": 0}
    ttft_ms, itl_ms = asked["sla_ms"]
    with requests.open() as lines:
        for line in lines:
            one = json.loads(line)
            streams = one["output_length"] > 1
            in_time = one["ttft_ms"] is not None and one["ttft_ms"] <= ttft_ms
            fluent = streams and one["itl_ms"] is not None and one["itl_ms"] <= itl_ms
            told["requests"] += 1
            told["streams"] += streams
            told["ttft_met"] += in_time
            told["itl_met"] += fluent
            told["met"] += in_time and (fluent or not streams)
    return {**told, "gpu_hours": account.gpu_s / 3600.0, "moves": account.moves, "cpu_s": round(time.process_time() - began, 1)}


def main() -> None:
    out, parent = sys.stdout, os.getppid()

    def tell(now_s: float) -> None:
        if os.getppid() != parent:
            os._exit(1)  # in the middle of its replay, which swallows what a tick raises
        print(json.dumps({"now_s": now_s}), file=out, flush=True)

    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        told = play(asked, tell)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
