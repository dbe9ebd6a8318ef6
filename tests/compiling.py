"""When tests of compiled code run: where a build is there, and with the nightly profile, which makes one."""

from __future__ import annotations

import os
import shutil

import pytest

from pool_planner.compiled import CompiledSet

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def where_built(group: CompiledSet) -> pytest.MarkDecorator:
    """Skips where compiling would take minutes that nobody asked for, or cannot begin. A compiler that fails is a failure."""
    can = any(shutil.which(name) is not None for name in ("cc", "gcc"))
    return pytest.mark.skipif(
        not group.available() and not (NIGHTLY and can),
        reason=f"compiles: only HYPOTHESIS_PROFILE=nightly does it (with a C compiler), or global-planner compile {group.name}",
    )
