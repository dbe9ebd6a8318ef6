"""The examples do what their comments say: `plan` under a load, and ten minutes of a load that rises and falls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from global_planner.__main__ import main
from global_planner.topology_file import load_topology

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

LOADS = {
    "two-models": {"demo/chat": "1,900,60", "demo/code": "1,900,30"},
    "two-prefill-one-decode": {"demo/chat": "2,900,60"},
    "priorities": {"demo/paid": "1.5,900,60", "demo/free": "4,900,60", "demo/batch": "4,900,60"},
    "three-gpu-types": {"demo/chat": "3,900,60", "demo/code": "2,1800,30"},
}
NOON_S = 1_764_158_400.0  # 2025-11-26 12:00 UTC: no schedule of the examples holds then
# What `plan` gives each pool under that load, by day.
GETS = {
    "two-models": {"chat-prefill-short": 2, "code-decode": 2},
    "two-prefill-one-decode": {"prefill-short": 2, "prefill-long": 1, "decode": 6},
    "priorities": {"paid": 8, "free": 4, "batch": 0},
    "three-gpu-types": {"chat-decode": 6, "chat-decode-long": 0, "code-agg": 4},
}


def planned(name: str) -> tuple[Mapping[str, int], str]:
    """What `plan` gives each pool of an example under its load, and all that it says."""
    loads = [word for model, load in LOADS[name].items() for word in ("--load", f"{model}={load}")]
    result = CliRunner().invoke(main, ["plan", "--topology", str(EXAMPLES / name / "topology.yaml"), *loads])
    assert result.exit_code == 0, result.output
    rows = (re.match(r"(\S+) +\w+ +\d+ +\d+ +(\d+) ", line) for line in result.output.splitlines())
    return {row[1]: int(row[2]) for row in rows if row}, result.output


def test_every_example_is_tested() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/topology.yaml")} == set(LOADS) == set(GETS)


@pytest.mark.parametrize("name", LOADS)
def test_plan_gives_what_the_comments_say(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("global_planner.dry_run.time", SimpleNamespace(time=lambda: NOON_S))
    gets, output = planned(name)
    assert {pool: gets[pool] for pool in GETS[name]} == GETS[name]
    for gpu_type, used, budget in re.findall(r"^(\w+): (\d+) of (\d+) GPUs", output, re.MULTILINE):
        assert int(used) <= int(budget), gpu_type


def test_plan_at_night_keeps_the_floor_that_is_scheduled_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("global_planner.dry_run.time", SimpleNamespace(time=lambda: NOON_S + 14 * 3600.0))
    gets, _ = planned("priorities")
    assert gets == {"paid": 8, "free": 1, "batch": 3}


def trace(path: Path, rps: float) -> Path:
    """Ten minutes of an Azure CSV: up for five, down for five, one prompt in ten long."""

    def arrivals() -> Iterator[float]:
        at_s = 0.0
        while at_s < 600.0:
            yield at_s
            at_s += 1.0 / max(0.05, rps * (1.0 - abs(at_s - 300.0) / 300.0))

    rows = [
        f"2023-11-16 18:{int(at_s // 60):02d}:{at_s % 60:010.7f},{3000 if number % 10 == 9 else 700},{40}"
        for number, at_s in enumerate(arrivals())
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("name", LOADS)
def test_ten_minutes_within_the_budget(name: str, tmp_path: Path) -> None:
    path = EXAMPLES / name / "topology.yaml"
    topology = load_topology(path)
    traces = [
        word
        for number, group in enumerate(topology.groups)
        for word in ("--trace", f"{group.name}={trace(tmp_path / f'{group.name}.csv', 1.2 + 0.2 * number)}")
    ]
    result = CliRunner().invoke(main, ["replay", "--topology", str(path), *traces, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())["policies"]["goodput"]
    assert found["budget_violations"] == 0 and found["failed"] == 0
    assert found["completed"] + found["shed"] == found["requests"] > 100
    for gpu_type, used in found["gpu_types"].items():
        assert used["most_held"] <= topology.budget.gpus[gpu_type].max, gpu_type
    assert found["replicas_added"] > 0
    if name == "priorities":
        # The class that is served first attains at least what the others do.
        attained = {model: each["attainment"] for model, each in found["models"].items()}
        assert attained["demo/paid"] >= attained["demo/free"] - 0.05
