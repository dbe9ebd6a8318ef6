"""The compiled router answers as the plain one does: the router's own tests pass on both.

`PLANNER_COMPILED=yes python -m pytest tests/router` runs any of them on compiled code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pool_planner.compiled import ENV_CHOICE
from router.compiled_set import ROUTER
from tests.compiling import NIGHTLY, where_built

HERE = Path(__file__).parent
# Those that send requests through sockets, and those that decide where they go.
FEW = ("test_serving.py", "test_handoff.py", "test_faults.py", "test_admission.py", "test_policy.py", "test_web.py")


@where_built(ROUTER)
@pytest.mark.skipif(os.environ.get(ENV_CHOICE) == "yes", reason="this is the compiled router")
def test_the_routers_tests_pass_on_compiled_code() -> None:
    ROUTER.build()
    names = sorted(path.name for path in HERE.glob("test_*.py")) if NIGHTLY else FEW
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(HERE / name) for name in names)]
    # Once more, not longer: that a property holds is shown by the plain run.
    environment = {**os.environ, ENV_CHOICE: "yes", "HYPOTHESIS_PROFILE": "quick"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(os.environ.get(ENV_CHOICE) != "yes", reason="only where the compiled router is under test")
def test_this_is_the_compiled_router() -> None:
    import router.dispatch
    import router.http1

    assert ROUTER.in_use()
    assert router.dispatch.__file__.endswith(".so")
