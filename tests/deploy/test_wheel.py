"""What the image does with the source: a wheel into an empty place that nobody may write, run with nothing of the checkout at
hand. Whatever a package needs at run time has to be in it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as a wheel brings them, in a folder that nobody may write. Their dependencies are this environment's."""
    uv = shutil.which("uv") or str(ROOT / ".cache" / "uv" / "bin" / "uv")
    place = tmp_path_factory.mktemp("image") / "site"
    command = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--compile-bytecode",
        "--python",
        sys.executable,
        "--target",
        str(place),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=place.parent)
    assert done.returncode == 0, done.stderr
    for path in (place, *place.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return place


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """With its home and working directory in `folder`."""
    folder.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(installed),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",
    }
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


LOOK = """
import json, sys
from importlib.resources import files
from click.testing import CliRunner
import global_planner.__main__, global_planner.actor, global_planner.demo.report, pool_planner.__main__, router.__main__

OURS = ("global_planner", "pool_planner", "router")
modules = [each.__file__ for name, each in sys.modules.items() if name.partition(".")[0] in OURS and each.__file__]
arbiter, example = global_planner.__main__.main, sys.argv[2]
commands = {
    "global-planner": (arbiter, ["--help"]),
    "pool-planner": (pool_planner.__main__.main, ["--help"]),
    "pool-router": (router.__main__.main, ["--help"]),
    "plan": (arbiter, ["plan", "--topology", example, "--load", "demo/chat=1.5,900,60"]),
}
told = {}
for name, (command, arguments) in commands.items():
    result = CliRunner().invoke(command, arguments)
    told[name] = (result.exit_code, result.output)
print(json.dumps({
    "modules": len(modules),
    "strangers": [path for path in modules if not path.startswith(sys.argv[1])],
    "css": len(files("global_planner.demo").joinpath("report.css").read_text()),
    "told": told,
}))
"""


def test_the_packages_are_whole_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    before = sorted(path.relative_to(installed).as_posix() for path in installed.rglob("*"))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # as the image has them, apart from the packages
    example = tmp_path / "examples" / "two-models" / "topology.yaml"
    done = run(installed, tmp_path / "home", "-c", LOOK, str(installed), str(example))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["strangers"] == [] and found["modules"] > 100 and found["css"] > 100
    for name, (status, text) in found["told"].items():
        assert status == 0 and ("chat-decode" if name == "plan" else "Usage:") in text, (name, text)
    after = sorted(path.relative_to(installed).as_posix() for path in installed.rglob("*"))
    assert after == before and list((tmp_path / "home").iterdir()) == [], "nothing is written but where it is told to"
    tracked = subprocess.run(
        ["git", "ls-files", "global_planner", "pool_planner", "router"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()  # none: an unpacked archive
    assert {path for path in tracked if (ROOT / path).exists()} <= set(after)


def test_a_command_is_one(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path / "home", "-m", "global_planner", "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout, done.stderr[-2000:]
