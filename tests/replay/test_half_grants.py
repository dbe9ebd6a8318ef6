"""GPU-hours of half grants: replicas of one stage that stand ready while the other stage starves."""

from __future__ import annotations

import pytest

from global_planner.replay.scenario import Outcome
from global_planner.replay.summary import half_granted_gpu_hours
from global_planner.replay.timeline import POOL_COLUMNS, Timeline
from global_planner.topology_file import load_profiles
from tests.replay.scenes import steady, topology

WINDOW_S, ROUND_S = 600.0, 10.0
LOAD = steady(rps=3.0, minutes=10.0)  # some three prefill replicas' worth


def half_granted(ready: dict[str, tuple[int, ...]], *, agg: bool = False, minimum: int = 1) -> float:
    """With so many ready replicas of each pool, in equal parts of the time."""
    here = topology(agg=agg, budget=200, minimum=minimum)
    timeline = Timeline(list(ready), ["m0"])
    rounds = int(WINDOW_S / ROUND_S)
    for number in range(rounds):
        timeline.at_s.append(number * ROUND_S)
        for pool, parts in ready.items():
            for name in POOL_COLUMNS:
                timeline.pools[pool][name].append(float(parts[number * len(parts) // rounds]) if name == "ready" else 0.0)
    outcome = Outcome(
        policy="by hand", topology=here, window_s=WINDOW_S, scores={}, over_time={}, timeline=timeline, gpu_hours={},
        most_held={}, rounds=rounds, moves=0, grown=0, shrunk=0, budget_violations=0, events=0, ejections={},
    )  # fmt: skip
    return half_granted_gpu_hours(outcome, load_profiles(here), LOAD)


def test_stages_that_both_carry_the_load_are_no_half_grant_however_large() -> None:
    assert half_granted({"m0-prefill": (40,), "m0-decode": (90,)}) == 0.0


def test_what_decode_has_beyond_a_starving_prefill_is_a_half_grant() -> None:
    """One prefill replica carries a part of the load, for which a few of 30 decode replicas suffice. 12 more of them make it
    worse by 12 GPUs over the ten minutes, to the GPU."""
    few, more = (half_granted({"m0-prefill": (1,), "m0-decode": (count,)}) for count in (30, 42))
    assert 20 / 6 < few < 30 / 6
    assert more - few == pytest.approx(12 / 6)


def test_it_counts_the_other_way_round_too() -> None:
    few, more = (half_granted({"m0-prefill": (count,), "m0-decode": (2,)}) for count in (20, 25))
    assert 10 / 6 < few < 20 / 6
    assert more - few == pytest.approx(5 / 6)


def test_only_the_time_in_which_somebody_starves_counts() -> None:
    """Half of the time prefill is large enough: half of the GPU-hours."""
    whole = half_granted({"m0-prefill": (1,), "m0-decode": (90,)})
    half = half_granted({"m0-prefill": (1, 40), "m0-decode": (90,)})
    assert half == pytest.approx(whole / 2, rel=0.05)


def test_minima_are_nobodys_half_grant_and_without_two_stages_there_is_none() -> None:
    """Ten decode replicas stand there because they are the minimum."""
    assert half_granted({"m0-prefill": (1,), "m0-decode": (10,)}, minimum=1) > 0.5
    assert half_granted({"m0-prefill": (1,), "m0-decode": (10,)}, minimum=10) == 0.0
    assert half_granted({"m0-agg": (1,)}, agg=True) == 0.0
