"""The judge's runs: each in its own process, kept as it ends, and used again only while what made it is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import outcome_kept
from tests.bench.outcome import applies
from tests.bench.outcome_kept import Kept, Runs
from tests.bench.outcome_play import ROOT, digest, versions
from tests.bench.outcome_traces import TRACES

SOURCE = "tests/bench/outcome_play.py"
RESULT = {"figures": {"attainment": 0.5}, "sources": {SOURCE: digest(ROOT / SOURCE)}, "versions": versions()}


@pytest.fixture(autouse=True)
def _look_again() -> None:
    outcome_kept._now.cache_clear()


def test_what_ended_is_there_after_a_stop(tmp_path: Path) -> None:
    Kept(tmp_path, quick=True).put(("week", "dynamo:sla"), RESULT)
    later = Kept(tmp_path, quick=True)
    assert later.get(("week", "dynamo:sla")) == RESULT["figures"]
    assert later.get(("week", "goodput")) is None
    assert Kept(tmp_path, quick=False).get(("week", "dynamo:sla")) is None, "a part of a scenario is not the whole"
    later.forget()
    assert later.get(("week", "dynamo:sla")) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"sources": {SOURCE: "another digest"}},
        {"sources": {"global_planner/gone.py": "0123456789abcdef"}},
        {"versions": {**versions(), "numpy": "0.0"}},
    ],
)
def test_other_sources_or_libraries_are_other_figures(tmp_path: Path, changed: dict[str, object]) -> None:
    kept = Kept(tmp_path, quick=False)
    kept.put(("ten", "hpa"), {**RESULT, **changed})
    assert kept.get(("ten", "hpa")) is None


def test_only_anchors_have_their_own_fleet_and_only_one_model_a_peer() -> None:
    assert applies("conv-90s", "static_anchor") and not applies("ten", "static_anchor")
    assert applies("long", "dynamo:sla") and not applies("opposite", "dynamo:sla") and applies("opposite", "hpa")


def test_a_run_that_fails_is_none_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    runs = Runs(quick=True, compiled=False, at_once=1, told=lambda job, share: None)
    assert list(runs.results([("no such scenario", "hpa")])) == [(("no such scenario", "hpa"), None)]
    assert "is not a scenario" in capfd.readouterr().err


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"no {TRACES}: the public traces are not in the repository")
def test_a_run_tells_its_figures_and_every_file_that_made_them() -> None:
    command = [sys.executable, "-m", "tests.bench.outcome_play", "code-0s", "static_anchor", "--quick"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT).stdout.splitlines()
    told = json.loads(lines[-1])
    assert told["figures"]["requests"] > 10_000 and told["figures"]["moves"] == 0
    assert told["figures"]["gpu_hours"] == pytest.approx(26 * 400 / 3600, abs=0.001)
    seen = {SOURCE, "global_planner/replay/engine.py", "tests/bench/outcome_scenarios.py", "router/admission.py"}
    assert seen <= set(told["sources"]) and all(digest(ROOT / place) == was for place, was in told["sources"].items())
