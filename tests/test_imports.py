"""What a process loads before it can do anything: a system on one machine has a dozen of them, and everybody waits for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

# By what runs: libraries that take long to import and that it does not need, as a rule or before its end.
SPARED = {
    "pool_planner.actor": ("kubernetes", "plotly", "statsmodels", "pandas"),
    "pool_planner.standalone": ("kubernetes", "plotly", "statsmodels", "pandas", "ray"),
    "global_planner.actor": ("kubernetes", "plotly", "statsmodels", "pandas"),
    "global_planner.demo.run": ("kubernetes", "plotly", "statsmodels", "pandas", "ray"),
    "global_planner.mocker.cluster": ("kubernetes", "plotly", "statsmodels", "pandas", "ray"),
    "global_planner.mocker.engine": ("kubernetes", "plotly", "numpy", "pydantic", "ray"),
    "router.app": ("kubernetes", "plotly", "pandas", "ray", "global_planner"),
}


@pytest.mark.parametrize(("module", "spared"), SPARED.items(), ids=SPARED)
def test_a_process_starts_without_what_it_does_not_need(module: str, spared: tuple[str, ...]) -> None:
    code = f"import sys, {module}\nprint([name for name in {spared!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
