"""Child processes: found through their port file, ended by id, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from global_planner.processes import ChildProcess, ProcessFailed, start
from global_planner.stopping import Stopped, stop_on_signals
from tests.e2e.runs import look, until

ROOT = Path(__file__).resolve().parent.parent

# A program with a port file; what it does before and after writing it is the test's.
PROGRAM = """
import json, os, pathlib, signal, sys, time
ports = pathlib.Path(sys.argv[sys.argv.index("--port-file") + 1]) if "--port-file" in sys.argv else None
def tell(**what):
    part = ports.with_suffix(".part")
    part.write_text(json.dumps(what))
    part.replace(ports)
"""
FOREVER = "\nwhile True: time.sleep(0.1)\n"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that does what `write` says."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "child_program"


def write(folder: Path, text: str) -> None:
    (folder / "child_program.py").write_text(PROGRAM + text)


def launch(program: str, folder: Path, **more: object) -> ChildProcess:
    return start("child", program, [], folder=folder / "logs", environment={"COLOUR": "blue"}, **more)  # type: ignore[arg-type]


def test_a_child_tells_its_ports_and_ends_when_told(program: str, tmp_path: Path) -> None:
    write(
        tmp_path, 'print("hello", os.environ["COLOUR"], flush=True)\ntell(port=1234, admin_port=5, pid=os.getpid())' + FOREVER
    )
    child = launch(program, tmp_path)
    assert (child.port(), child.port("admin_port"), child.listening["pid"]) == (1234, 5, child.pid)
    assert child.running()
    assert child.log_tail() == "hello blue"
    child.stop(5)
    assert not child.running()
    assert child.popen.returncode == -signal.SIGTERM
    child.stop(5)  # once more is harmless


def test_a_port_that_was_not_told_is_an_error(program: str, tmp_path: Path) -> None:
    write(tmp_path, 'tell(port="many")' + FOREVER)
    child = launch(program, tmp_path)
    with pytest.raises(ProcessFailed, match="child did not tell its port"):
        child.port()
    child.stop(5)


def test_what_ends_while_starting_is_told_with_the_end_of_its_log(program: str, tmp_path: Path) -> None:
    write(tmp_path, 'print("\\n".join(f"line {n}" for n in range(30)), file=sys.stderr)\nsys.exit(3)')
    with pytest.raises(ProcessFailed, match=r"child ended with status 3 while starting") as failed:
        launch(program, tmp_path)
    assert "line 29" in str(failed.value)
    assert "line 14" not in str(failed.value)


def test_an_old_port_file_is_not_believed(program: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "child.ports.json").write_text(json.dumps({"port": 1}))
    write(tmp_path, "sys.exit(1)")
    with pytest.raises(ProcessFailed):
        launch(program, tmp_path)


def test_what_is_never_ready_is_ended(program: str, tmp_path: Path) -> None:
    write(tmp_path, '(pathlib.Path(sys.argv[2]).parent / "pid").write_text(str(os.getpid()))' + FOREVER)
    with pytest.raises(ProcessFailed, match=r"child was not ready after 1 s"):
        launch(program, tmp_path, timeout_s=1.0)
    pid = int((tmp_path / "logs" / "pid").read_text())
    assert look(pid) is None


def test_what_does_not_listen_to_sigterm_is_killed(program: str, tmp_path: Path) -> None:
    write(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell(port=1)" + FOREVER)
    child = launch(program, tmp_path)
    begun = time.monotonic()
    child.stop(0.3)
    assert child.popen.returncode == -signal.SIGKILL
    assert time.monotonic() - begun < 3


def test_a_child_without_a_port_file_is_returned_at_once(program: str, tmp_path: Path) -> None:
    write(tmp_path, 'assert "--port-file" not in sys.argv\nsys.exit(7)')
    child = launch(program, tmp_path, port_file=False)
    assert child.popen.wait(10) == 7
    assert not child.running()


def test_ctrl_c_of_the_terminal_does_not_reach_it(program: str, tmp_path: Path) -> None:
    """It is in a session of its own: the parent ends it when it is time."""
    write(tmp_path, "tell(port=1)" + FOREVER)
    child = launch(program, tmp_path)
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.stop(5)


def test_a_signal_while_it_starts_leaves_no_child(program: str, tmp_path: Path) -> None:
    """The child itself interrupts its parent before it is ready."""
    write(
        tmp_path,
        '(pathlib.Path(sys.argv[2]).parent / "pid").write_text(str(os.getpid()))\nos.kill(os.getppid(), signal.SIGINT)'
        + FOREVER,
    )
    with pytest.raises(Stopped, match="SIGINT"), stop_on_signals():
        launch(program, tmp_path)
    assert look(int((tmp_path / "logs" / "pid").read_text())) is None


def test_it_ends_with_a_parent_that_was_killed(program: str, tmp_path: Path) -> None:
    """Even where the child itself watches nobody."""
    write(tmp_path, "tell(port=1)" + FOREVER)
    code = f"""
from pathlib import Path
from global_planner.processes import start
import time
child = start("child", {program!r}, [], folder=Path({str(tmp_path / "logs")!r}), environment={{}})
print(child.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    child = look(int(parent.stdout.readline()))
    assert child is not None
    parent.kill()
    parent.communicate()
    until(lambda: not child.alive(), 5, "the child ends")
