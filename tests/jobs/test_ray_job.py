"""`ray job submit … -- python -m global_planner run` on a real Ray cluster: twice, with another topology, and over a head that
was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from global_planner.journal import segments
from global_planner.journal_reader import read_segment
from global_planner.types import Round
from tests.jobs.ray_cluster import ROOT, RayHead, ray_head, redis_server

ROUND_S, SPEED = 5.0, 2.0


def topology(folder: Path, **changes: Any) -> Path:
    """One model on one aggregated pool, planned every 10 s."""
    raw = {
        "name": "job",
        "budget": {"gpus": {"h100": {"max": changes.get("budget", 4)}}},
        "cluster": {"kind": "virtual", "cold_start_s": 5},
        "arbiter": {"round_interval_s": ROUND_S, "hold_s": 10},
        "planner": {"throughput_adjustment_interval": 10, "load_predictor": "constant"},
        "groups": [
            {
                "name": "chat",
                "model": "demo/chat",
                "sla": {"ttft_ms": 6000, "itl_ms": 500},
                "weight": changes.get("weight", 1),
                "pools": [
                    {
                        "name": "chat-agg",
                        "role": "agg",
                        "gpu_type": "h100",
                        "min_replicas": 1,
                        "profile": str(ROOT / "examples" / "two-models" / "profile"),
                    }
                ],
            }
        ],
    }
    path = folder / f"topology-{len(list(folder.glob('topology-*')))}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def rounds(home: Path) -> list[Round]:
    found: list[Round] = []
    for path in segments(home / "journal"):
        found += [record for record in read_segment(path) if isinstance(record, Round)]
    return found


def until(there: Callable[[], bool], within_s: float, what: str) -> None:
    deadline = time.monotonic() + within_s
    while not there():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.2)


@pytest.fixture
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


def test_submitted_twice_with_another_topology(head: RayHead, tmp_path: Path) -> None:
    arguments = ("--speed", str(SPEED))
    first = head.submit("--topology", str(topology(tmp_path)), *arguments)
    home = head.folder / "home" / "job"
    assert re.search(r"arbiter \d+ decides since round \d+", first), first
    assert "chat-agg: has 1, granted 1" in first

    # The job has ended and the deployment goes on: rounds come, the planner reports, and the API answers.
    count = len(rounds(home))
    until(lambda: len(rounds(home)) > count + 1, 40, "rounds after the job has ended")
    until(lambda: bool(head.processes("ray::PoolPlannerActor")), 60, "a planner")
    until(lambda: bool(rounds(home)[-1].inputs.reports), 60, "a report of the planner")
    planner = head.processes("ray::PoolPlannerActor")
    api = json.loads((home / "api.json").read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{api['port']}/readyz", timeout=10) as answer:
        assert answer.read() == b"ok\n"

    second = head.submit("--topology", str(topology(tmp_path, budget=6, weight=3)), *arguments)
    assert re.search(r"arbiter \d+ took over from \d+: round \d+ came", second), second
    before = len(rounds(home))
    until(lambda: len(rounds(home)) > before + 1, 40, "rounds of the second arbiter")
    found = rounds(home)
    assert [done.inputs.round_no for done in found] == list(range(1, len(found) + 1))
    assert found[-1].inputs.budget.max_gpus == {"h100": 6} and found[-1].inputs.groups[0].weight == 3.0
    # No gap in control: between two rounds there never was more than one that could have been left out.
    longest_s = max(later.inputs.at_s - earlier.inputs.at_s for earlier, later in pairwise(found))
    assert longest_s < 2.5 * ROUND_S, longest_s
    assert {done.charged_gpus["h100"] for done in found} <= {1, 2}
    # The planner went on with what it had learned, and one arbiter is left.
    assert head.processes("ray::PoolPlannerActor") == planner
    until(lambda: len(head.processes("ray::GlobalPlannerActor")) == 1, 20, "the first arbiter has ended")


@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="minutes long: HYPOTHESIS_PROFILE=nightly")
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed (tests/services/install.sh)")
def test_control_resumes_after_the_head_was_killed(tmp_path: Path) -> None:
    """With GCS fault tolerance: the head's processes and everything in the cluster die at once; a new head on the same Redis
    brings the detached actors back, and they go on from the journal."""
    with redis_server(tmp_path) as redis, ray_head(redis=redis) as head:
        head.submit("--topology", str(topology(tmp_path)), "--speed", str(SPEED))
        home = head.folder / "home" / "job"
        until(lambda: bool(rounds(home)[-1].inputs.reports), 90, "a report of the planner")
        before = rounds(home)[-1].inputs.round_no

        head.kill()
        head.start()

        until(lambda: rounds(home)[-1].inputs.round_no > before + 2, 180, "rounds after the head came back")
        found = rounds(home)
        assert [done.inputs.round_no for done in found] == list(range(1, len(found) + 1))
        until(
            lambda: bool(rounds(home)[-1].inputs.reports) and rounds(home)[-1].inputs.holdings[0].spec == 1,
            180,
            "planner and engines are back",
        )
        # And it may be submitted again.
        again = head.submit("--topology", str(topology(tmp_path, budget=5)), "--speed", str(SPEED))
        assert "took over from" in again
