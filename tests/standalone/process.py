"""`python -m pool_planner` as a process, and the JSON lines that it writes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PROFILE = ROOT / "examples" / "two-models" / "profile"
SPEED = 20.0


class Planner:
    """A running planner. A context manager: it is gone after it."""

    def __init__(self, config: dict[str, Any] | Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        given = str(config) if isinstance(config, Path) else json.dumps(config)
        command = [sys.executable, "-m", "pool_planner", "--config", given, *arguments]
        clock = {"PLANNER_SPEED": repr(SPEED), "PLANNER_ORIGIN": repr(time.time())}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "DYN_", "GLOBAL_PLANNER"))}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**clean, **clock, **(environment or {})}, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, Any]] = []
        self._new: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            try:
                self._new.put(json.loads(text))
            except ValueError:
                self._new.put({"event": "text", "text": text.rstrip()})
        self._new.put(None)

    def until(self, event: str, within_s: float = 30.0, **fields: object) -> dict[str, Any]:
        """The next line of this event with these fields."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._new.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                raise AssertionError(f"the planner ended before {event}: {self.lines[-8:]}")
            self.lines.append(line)
            if line["event"] == event and all(line.get(key) == value for key, value in fields.items()):
                return line
        raise AssertionError(f"no {event} {fields} within {within_s} s: {self.lines[-8:]}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def __enter__(self) -> Planner:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


def config(door_url: str, **more: Any) -> dict[str, Any]:
    return {
        "mode": "agg",
        "namespace": "demo-agg",
        "throughput_metrics_source": "router",
        "throughput_adjustment_interval": 10,
        "load_predictor": "constant",
        "ttft": 6000,
        "itl": 500,
        "profile_results_dir": str(PROFILE),
        "load_router_metrics_url": door_url,
        **more,
    }
