"""Compiled or not, a replay gives the same bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from global_planner.compiled_sets import REPLAY
from pool_planner.compiled import CannotCompile
from tests.compiling import where_built
from tests.replay.golden_replay import summary

PLAY = """
from global_planner.compiled_sets import REPLAY
REPLAY.use()
from tests.replay.golden_replay import summary
import sys
whole = summary()
assert REPLAY.in_use()
sys.stdout.buffer.write(whole)
"""


@where_built(REPLAY)
def test_the_compiled_hot_path_gives_the_same_bytes() -> None:
    REPLAY.build()
    assert subprocess.run([sys.executable, "-c", PLAY], check=True, stdout=subprocess.PIPE).stdout == summary()


def test_it_is_refused_when_it_would_come_too_late() -> None:
    """The modules that this process has imported stay what they are."""
    with pytest.raises((RuntimeError, CannotCompile), match=r"imported before|not built"):
        REPLAY.use()
