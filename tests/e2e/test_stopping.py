"""However a demo is ended, in the middle of its work or while it starts: soon nothing of it is left. Two run at once in one
folder, with one name for their reports, each on a real trace, and neither meets the other."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.e2e.runs import ROOT, Run, started, until

ENDED_WITHIN_S = 15.0
DEMO = ("demo", "--minutes", "30", "--speed", "20", "--out", "demo-report")
TRACES = Path(os.environ.get("PLANNER_TEST_TRACES", ROOT.parent / "shared" / "data" / "traces"))
# The rates of the two are 5.5 and 3.4 requests/s; the demo's engines are slow on purpose.
AZURE, MOONCAKE = ("azure2023_conv.csv.gz", "0.2"), ("mooncake_conversation.jsonl.gz", "0.1")


def played(name: str, scale: str) -> tuple[str, ...]:
    """The options for a real trace; where it is missing, the built-in workload plays."""
    file = TRACES / name
    return ("--trace", str(file), "--scale", scale) if file.exists() else ()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def killed(home: Path) -> Iterator[Run]:
    with started(*DEMO, *played(*MOONCAKE), folder=home) as run:
        yield run


@pytest.fixture(scope="module")
def in_a_terminal(home: Path, killed: Run) -> Iterator[Run]:
    """A demo in a terminal; it starts beside the other one, as soon as that has its folder."""
    until((home / "demo-report").exists, 30, "the first one's folder")
    with started(*DEMO, *played(*AZURE), folder=home, terminal=True) as run:
        yield run


def wait_for_requests(home: Path, name: str) -> None:
    """Until the load has had answers."""
    records = home / name / "run" / "load.jsonl"
    until(lambda: records.exists() and records.stat().st_size > 0, 150, f"{name}: the first answer")


def ray_folder(run: Run) -> Path:
    """Where the run's Ray keeps its files, as its raylet was told."""
    [raylet] = [process for process in run.titled("--raylet_socket_name=") if "/raylet/raylet " in process.title]
    found = re.search(r"--raylet_socket_name=(/tmp/[^/]+)/", raylet.title)
    assert found is not None
    return Path(found.group(1))


def test_ctrl_c_in_a_terminal(home: Path, in_a_terminal: Run) -> None:
    """The view is drawn until then, the terminal is given back, and what was played is reported."""
    run = in_a_terminal
    wait_for_requests(home, "demo-report-2")
    assert "demo-report is in use by another run; writing to demo-report-2" in run.text
    run.wait_for("GPUs charged against the budget", 10)
    run.wait_for("chat-prefill-short", 10)
    folder = ray_folder(run)
    assert len(run.processes()) >= 14
    run.ctrl_c()
    assert run.end(ENDED_WITHIN_S) == 130, run.text
    run.wait_gone(ENDED_WITHIN_S)
    assert "SIGINT: everything is stopped" in run.text
    assert "Traceback" not in run.text
    assert run.text.rindex("\x1b[?25h") > run.text.rindex("\x1b[?25l"), "the cursor is shown again"
    summary = orjson.loads((home / "demo-report-2" / "summary.json").read_bytes())
    assert summary["stopped"] is True
    assert summary["lost"] == 0
    assert summary["requests"] == summary["completed"] + summary["rejected"] + summary["abandoned"] > 0
    assert summary["budget_violations"] == 0
    if (TRACES / AZURE[0]).exists():
        assert summary["trace"].endswith(AZURE[0])
    assert not folder.exists()


def test_they_do_not_meet(home: Path, in_a_terminal: Run, killed: Run) -> None:
    """Endpoints of their own, and the end of one was no event for the other."""
    ports = [(home / folder / "run" / "router.ports.json").read_bytes() for folder in ("demo-report", "demo-report-2")]
    assert ports[0] != ports[1]
    assert in_a_terminal.popen.poll() is not None
    assert killed.popen.poll() is None
    before = (home / "demo-report" / "run" / "load.jsonl").stat().st_size
    until(lambda: (home / "demo-report" / "run" / "load.jsonl").stat().st_size > before, 30, "answers after the other's end")


def test_kill_9_of_the_demo_alone(home: Path, killed: Run) -> None:
    """It can tidy up nothing, and still no process outlives it."""
    wait_for_requests(home, "demo-report")
    until(lambda: len(killed.titled("ray::PoolPlannerActor")) == 4, 30, "all planners")
    there = killed.processes()
    assert len(there) >= 14
    assert {"ray::GlobalPlannerActor"} <= {process.title.split(".")[0] for process in there}
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.end(5) == -signal.SIGKILL
    killed.wait_gone(ENDED_WITHIN_S)


@pytest.mark.parametrize("sign", ["cluster", "gcs_server"])
def test_sigterm_while_it_starts(tmp_path: Path, sign: str) -> None:
    """As soon as the virtual cluster's process is there, which has told nobody its port, and in the middle of Ray's start."""
    with started(*DEMO, folder=tmp_path) as run:
        until(lambda: bool(run.titled(sign)), 60, f"a process with {sign} in its title")
        run.processes()
        os.kill(run.pid, signal.SIGTERM)
        assert run.end(ENDED_WITHIN_S) == 130, run.text
        run.wait_gone(ENDED_WITHIN_S)
        assert "SIGTERM: everything is stopped" in run.text
        assert "Traceback" not in run.text
