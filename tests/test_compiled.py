"""Compiled sets: which code runs is chosen by the sources, said to people, and never an error unless it was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from global_planner.__main__ import main
from global_planner.compiled_sets import SETS
from pool_planner import compiled
from pool_planner.compiled import BUILDS_KEPT, CannotCompile, CompiledSet

SMALL = CompiledSet(name="small", modules=("pool_planner.shown",))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of two modules, and an empty home for builds."""
    for package in compiled.PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "pool_planner" / "shown.py").write_text(
        "from pool_planner.unit import ONE\n\ndef two() -> int:\n    return 2 * ONE\n"
    )
    (tmp_path / "pool_planner" / "unit.py").write_text("from typing import Final\n\nONE: Final = 1\n")
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    monkeypatch.setenv(compiled.ENV_HOME, str(tmp_path / "builds"))
    return tmp_path


def built(group: CompiledSet, age_s: float = 0.0) -> Path:
    """A folder that looks like a build of the sources as they are."""
    folder = group.folder()
    folder.mkdir(parents=True)
    (folder / "whole").touch()
    then = (folder / "whole").stat().st_mtime - age_s
    os.utime(folder / "whole", (then, then))
    return folder


def test_a_build_is_of_its_sources_and_of_those_they_import(root: Path) -> None:
    """A constant of another module may be in the compiled code: when it changes, the build is not of these sources any more."""
    built(SMALL)
    assert SMALL.available()
    unit = root / "pool_planner" / "unit.py"
    before = unit.read_text()
    unit.write_text(before.replace("1", "3"))
    assert not SMALL.available()
    unit.write_text(before)
    assert SMALL.available()
    (root / "pool_planner" / "stranger.py").write_text("X = 1\n")
    assert SMALL.available()


def test_plain_python_is_no_error_unless_compiled_code_was_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "plain Python (not built for these sources yet" in SMALL.choose("auto")
    assert SMALL.choose("no") == "small: plain Python, as told"
    monkeypatch.setenv("PATH", "")  # no C compiler
    with pytest.raises(CannotCompile, match="there is no C compiler"):
        SMALL.choose("yes")
    assert not SMALL.in_use()


def test_a_word_that_is_no_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.ENV_CHOICE, "maybe")
    with pytest.raises(ValueError, match="PLANNER_COMPILED=maybe: must be auto, yes or no"):
        compiled.wanted()
    monkeypatch.setenv(compiled.ENV_CHOICE, "no")
    assert compiled.tell_children(None) == "no"
    assert compiled.tell_children(True) == "yes" == os.environ[compiled.ENV_CHOICE]


TWICE = """
import sys
from pathlib import Path
from pool_planner import compiled
compiled.ROOT = Path(sys.argv[1])
small = compiled.CompiledSet(name="small", modules=("pool_planner.shown",))
again = compiled.CompiledSet(name="again", modules=("pool_planner.unit",))
print(small.choose("auto"))
print(again.choose("auto"))
sys.path.insert(0, sys.argv[1])
import pool_planner
pool_planner.__path__ = [str(Path(sys.argv[1]) / "pool_planner")]
from pool_planner.shown import two
print(two(), small.in_use())
print(small.choose("auto"))
"""


@pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="compiles: only HYPOTHESIS_PROFILE=nightly")
def test_a_build_is_used_once_in_a_process_and_old_ones_go(root: Path) -> None:
    """The oldest builds are removed with a new one; a second set in the same process stays plain."""
    unit = root / "pool_planner" / "unit.py"
    older = []
    for age in range(BUILDS_KEPT + 1, 0, -1):
        unit.write_text(f"from typing import Final\n\nONE: Final = {10 + age}\n")
        older.append(built(SMALL, age_s=1000.0 * age))
    unit.write_text("from typing import Final\n\nONE: Final = 1\n")
    assert SMALL.build()
    assert not SMALL.build()
    assert [folder.exists() for folder in older] == [False, False, *[True] * (BUILDS_KEPT - 1)]
    built(CompiledSet(name="again", modules=("pool_planner.unit",)))
    done = subprocess.run([sys.executable, "-c", TWICE, str(root)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, second, value, late = done.stdout.splitlines()
    assert first.startswith("small: compiled")
    assert "this process uses the compiled small already" in second
    assert value == "2 True"
    assert "imported before: pool_planner.shown" in late


def test_the_command_says_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.ENV_HOME, str(tmp_path))
    told = CliRunner().invoke(main, ["compile", "--check"])
    assert told.exit_code == 1
    assert told.output.splitlines() == [f"{group.name}: not built for these sources" for group in SETS]
    built(SETS[0])
    assert CliRunner().invoke(main, ["compile", "--check", SETS[0].name]).exit_code == 0
    strange = CliRunner().invoke(main, ["compile", "engine"])
    assert strange.exit_code == 2
    assert "no set 'engine' (has: router, arbiter, replay)" in strange.output
    monkeypatch.setenv("PATH", "")
    refused = CliRunner().invoke(main, ["compile", "arbiter"])
    assert refused.exit_code == 2
    assert "there is no C compiler" in refused.output
