"""What a change of one group's replicas is surely worth: the worst case over what the loads may be in truth. Pure.

What was measured for a pool may be off by some percent, and each of its group's stages for itself. So a change is judged at
the loads as they are, with all of them 1.1 times as large, and with those of one stage alone so: a stage that looks too large
for its partner by less than that is not too large, and one that looks too small not too small. The least gain, or greatest
loss, counts. A move that is worth it by this measure is worth it in truth while noise stays below +-5 %, so noise cannot pay for a
move and for the way back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.frontier import Counts
from global_planner.arbiter.view import HEADROOM, GroupView

Array = NDArray[np.float64]


def sure_changes(group: GroupView, present: Sequence[int], options: Sequence[Counts]) -> tuple[Array, Array]:
    """For each option against `present`, in requests/s: the change in served load, at worst; and the load that is to be served
    by new replicas, which nobody serves while they start."""
    counts = np.array([present, *options], dtype=np.int64)
    cases = np.zeros((4, len(counts)))  # at the loads; all higher; those of the first stage higher; those of the last
    fresh = np.zeros(len(options))
    for path, load, ceiling in zip(group.paths, group.path_loads, group.ceilings, strict=True):
        now = [_stage(group, stage, counts, hi=False) for stage in path]
        high = [_stage(group, stage, counts, hi=True) for stage in path]
        mixed = ([high[0], now[1]], [now[0], high[1]]) if len(path) == 2 else (now, now)
        for case, levels in enumerate((now, high, *mixed)):
            reached = np.minimum(levels[0], ceiling) if len(levels) == 1 else np.minimum(np.minimum(*levels), ceiling)
            cases[case] += reached * (load * HEADROOM if case == 1 else load)
        rises = [stage[1:] - stage[0] for stage in now]
        fresh += load * np.maximum(rises[0] if len(rises) == 1 else np.maximum(*rises), 0.0)
    return (cases[:, 1:] - cases[:, :1]).min(axis=0), fresh


def _stage(group: GroupView, stage: Sequence[int], counts: NDArray[np.int64], *, hi: bool) -> Array:
    """Attainment of a stage for each row of counts; 1 where nothing is known of it (the path's ceiling says what it lets
    through)."""
    total = np.zeros(len(counts))
    known = 0.0
    for place in stage:
        pool = group.pools[place]
        if pool.now and group.shares[place] > 0:
            curve = np.asarray(pool.hi if hi else pool.now, dtype=np.float64)
            total += group.shares[place] * curve[np.minimum(counts[:, place], len(curve) - 1)]
            known += group.shares[place]
    return total / known if known > 0 else np.ones(len(counts))
