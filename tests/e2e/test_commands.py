"""The commands as processes, without a system behind them: help, dry run, and bad input that starts nothing."""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.e2e.runs import ROOT, TOPOLOGY, Run, console, finished

PYTHON = sys.executable
GLOBAL = (PYTHON, "-m", "global_planner")

# The commands of the three packages, and an option or command that their help must name.
HELP = {
    "global-planner": ((console("global-planner"),), "demo"),
    "pool-planner": ((console("pool-planner"),), "schema"),
    "pool-router": ((console("pool-router"),), "--config"),
    "-m global_planner": (GLOBAL, "plan"),
    "-m pool_planner": ((PYTHON, "-m", "pool_planner"), "schema"),
    "-m router": ((PYTHON, "-m", "router"), "--config"),
}


@pytest.mark.parametrize(("command", "names"), HELP.values(), ids=HELP)
def test_help(command: tuple[str, ...], names: str, tmp_path: Path) -> None:
    done = finished(*command, "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert names in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_project_promises_no_other_script() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {name for name in HELP if not name.startswith("-m")}


def refused(folder: Path, *arguments: str) -> str:
    """What `global-planner ARGUMENTS` says when it ends with status 2 without having started any process."""
    run = Run("-m", "global_planner", *arguments, folder=folder)
    try:
        while run.popen.poll() is None:
            assert len(run.processes()) <= 1, "a process was started"
            time.sleep(0.05)
        assert run.end(30) == 2, run.text
        assert "Traceback" not in run.text
        return run.text
    finally:
        run.finish()


def test_a_bad_trace_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,-5,44\n")
    text = refused(tmp_path, "demo", "--trace", "t.csv")
    assert "t.csv: line 2: ContextTokens is -5, must be 0.." in text
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_bad_topology_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TOPOLOGY.read_text().replace("gpu_type: h100", "gpu_type: h20", 1))
    (tmp_path / "profile").symlink_to(TOPOLOGY.parent / "profile")
    text = refused(tmp_path, "run", "--topology", "t.yaml")
    assert "t.yaml: groups[0].pools[0].gpu_type: 'h20' is not in budget" in text
    assert "h100" in text
    assert {path.name for path in tmp_path.iterdir()} == {"t.yaml", "profile"}


def test_plan_says_what_one_round_would_do(tmp_path: Path) -> None:
    done = finished(*GLOBAL, "plan", "--topology", str(TOPOLOGY), "--load", "demo/chat=1.5,900,60", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "demo/chat 1.5 req/s (900 → 60 tokens)" in done.stdout
    assert "Grow chat-decode 2 ->" in done.stdout
    assert "of 16 GPUs" in done.stdout
    assert "Nothing was changed." in done.stdout
    assert list(tmp_path.iterdir()) == []
