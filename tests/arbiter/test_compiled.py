"""Compiled or not, the arbiter decides the same, to the byte."""

from __future__ import annotations

import os
import subprocess
import sys

from global_planner.compiled_sets import ARBITER
from tests.compiling import where_built

PLAY = """
import sys
from dataclasses import replace
from global_planner import compiled_arbiter
from global_planner.compiled_sets import ARBITER
import numpy as np
from global_planner.arbiter import ArbiterState, arbitrate
from tests.bench.arbiter import AT_ONCE, POLICY, counts_of
from tests.bench.arbiter_instances import make
assert ARBITER.in_use() == (sys.argv[1] == "yes"), compiled_arbiter.CHOSEN
for types, share, classes, rules in (
    (1, 0.45, 2, POLICY), (3, 0.6, 1, POLICY), (3, 0.9, 1, POLICY), (1, 0.45, 1, AT_ONCE),
    (1, 0.6, 1, replace(POLICY, objective="max_min")), (3, 0.6, 1, replace(POLICY, objective="proportional")),
    (1, 0.6, 1, replace(POLICY, objective="first_come")),
):
    instance = make(40, types, share, 6, classes=classes)
    state, counts = ArbiterState(), np.ones(40, dtype=np.int64)
    for number in range(6):
        told = instance.inputs(number, counts)
        if number % 2:  # every third planner asks for more than it expects
            reports = [replace(r, expected_rps=0.7 * r.load_rps) if n % 3 == 0 else r for n, r in enumerate(told.reports)]
            told = replace(told, reports=tuple(reports))
        state, allocation = arbitrate(state, told, rules)
        counts = counts_of(allocation)
        print(repr((allocation, state)))
"""


def played(choice: str) -> bytes:
    settings = {**os.environ, "PLANNER_COMPILED": choice}
    return subprocess.run([sys.executable, "-c", PLAY, choice], check=True, stdout=subprocess.PIPE, env=settings).stdout


@where_built(ARBITER)
def test_the_compiled_arbiter_decides_the_same() -> None:
    ARBITER.build()
    plain = played("no")
    assert len(plain.splitlines()) == 42
    assert played("yes") == plain
