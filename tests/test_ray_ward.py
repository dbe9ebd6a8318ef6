"""The ward of a local Ray's folder: it ends what our programs left open there, and nothing else, when the driver has gone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from global_planner.ray_ward import Ward, holders
from tests.e2e.runs import look, until

HOLD = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gp-1" / "session").mkdir(parents=True)
    (tmp_path / "gp-1" / "session" / "log").write_text("hello")
    (tmp_path / "gp-10").mkdir()
    (tmp_path / "gp-10" / "log").write_text("another's")
    return tmp_path / "gp-1"


@pytest.fixture
def left(folder: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Processes that have a file open: one of ours in the folder, one in another's, and somebody's `tail`."""
    hold = [sys.executable, "-c", HOLD]
    started = {
        "ours": subprocess.Popen([*hold, str(folder / "session" / "log")], stdout=subprocess.PIPE, text=True),
        "another's": subprocess.Popen([*hold, str(folder.parent / "gp-10" / "log")], stdout=subprocess.PIPE, text=True),
        "tail": subprocess.Popen(["tail", "-f", str(folder / "session" / "log")], stdout=subprocess.PIPE, text=True),
    }
    for process in started.values():
        assert process.stdout is not None
        process.stdout.readline() if process is not started["tail"] else process.stdout.read(5)
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def test_holders_are_our_programs_in_this_folder(folder: Path, left: dict[str, subprocess.Popen[str]]) -> None:
    with (folder / "session" / "own").open("w"):
        assert list(holders(folder)) == [left["ours"].pid]


def test_told_to_end_it_clears_and_spares_the_driver(folder: Path, left: dict[str, subprocess.Popen[str]]) -> None:
    with (folder / "session" / "own").open("w"):
        Ward(folder).end()
    assert left["ours"].wait(5) == -9
    assert left["tail"].poll() is left["another's"].poll() is None
    assert not folder.exists()
    assert (folder.parent / "gp-10" / "log").exists()


def test_when_the_driver_is_killed_nothing_stays(folder: Path, left: dict[str, subprocess.Popen[str]]) -> None:
    code = (
        "import sys, time; from pathlib import Path; from global_planner.ray_ward import Ward; "
        "ward = Ward(Path(sys.argv[1])); print(ward._process.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    driver = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=environment, text=True)
    assert driver.stdout is not None
    ward = int(driver.stdout.readline())
    driver.kill()
    driver.communicate()
    assert left["ours"].wait(10) == -9
    until(lambda: look(ward) is None, 5, "the ward ends")
    assert not folder.exists()
    assert left["tail"].poll() is None
