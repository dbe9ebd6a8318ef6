"""How long a start may take: longer than the pool's own starts do, and for as long as it visibly moves on."""

from __future__ import annotations

import math

import pytest

from global_planner.memory import PlannerMemory
from global_planner.release import START_MARGIN, overdue, start_limit_s
from global_planner.rollout_observed import seen
from global_planner.rollout_state import STARTS_KEPT, PoolMemory, RolloutPolicy, RolloutState, slowest_start_s
from global_planner.types import Holding, PoolSpec, Replica
from pool_planner import wire
from tests.rollout.world import specs

SPEC: PoolSpec = specs()[0]  # its limit is 100 s
ROUND_S = 10.0


def show(*replicas: Replica, at_s: float) -> Holding:
    return Holding(pool=SPEC.name, at_s=at_s, spec=len(replicas), gpus_per_replica=1, replicas=replicas)


def start_one(memory: PoolMemory, name: str, at_s: float, takes_s: float, unschedulable_s: float = 0.0) -> PoolMemory:
    """Rounds from the order of one replica until the one that sees it ready."""
    now_s = at_s
    while True:
        up = now_s >= at_s + takes_s
        why = "no GPU is free" if now_s < at_s + unschedulable_s else None
        since_s = at_s + takes_s if up else at_s
        replica = Replica(id=name, state="ready" if up else "starting", since_s=since_s, unschedulable=why)
        memory = seen(memory, show(replica, at_s=now_s), SPEC, RolloutPolicy(), now_s)
        if up:
            return memory
        now_s += ROUND_S


def test_a_pool_that_starts_slowly_gets_more_time_and_keeps_it_over_a_restart() -> None:
    memory = PoolMemory()
    nothing = show(at_s=0.0)
    assert start_limit_s(memory, nothing, SPEC) == SPEC.start_limit_s == 100.0
    for number, takes_s in enumerate((62.0, 95.0, 70.0)):
        memory = start_one(memory, f"pod-{number}", 1000.0 * number, takes_s)
    assert memory.starts_s == (62.0, 95.0, 70.0)
    assert start_limit_s(memory, nothing, SPEC) == START_MARGIN * 95.0
    # One that takes 150 s is not cancelled, and after it 300 s are allowed: the limit stays above what was measured.
    slow = Replica(id="slow", state="starting", since_s=5000.0)
    assert not overdue(slow, memory, show(slow, at_s=5150.0), SPEC, 5150.0)
    memory = start_one(memory, "slow", 5000.0, 150.0)
    assert start_limit_s(memory, nothing, SPEC) == 300.0
    kept = PlannerMemory(rollout=RolloutState(pools={SPEC.name: memory}))
    again = wire.decode(wire.encode(kept), expect=PlannerMemory)
    assert start_limit_s(again.rollout.of(SPEC.name), nothing, SPEC) == 300.0


def test_waiting_for_a_place_and_coming_back_are_no_starts() -> None:
    memory = start_one(PoolMemory(), "waits", 0.0, 400.0, unschedulable_s=350.0)
    assert memory.starts_s == ()
    memory = start_one(memory, "plain", 1000.0, 30.0)
    # An engine that served, restarts and serves again has its weights already.
    memory = start_one(memory, "plain", 2000.0, 5.0)
    assert memory.starts_s == (30.0,)


@pytest.mark.parametrize(("starts", "slowest"), [((), None), ((7.0,), 7.0), (tuple(map(float, range(1, 101))), 99.0)])
def test_the_slowest_start_is_the_99th_percentile(starts: tuple[float, ...], slowest: float | None) -> None:
    assert slowest_start_s(PoolMemory(starts_s=starts)) == slowest


def test_only_the_last_starts_are_remembered() -> None:
    memory = PoolMemory()
    for number in range(STARTS_KEPT + 5):
        memory = start_one(memory, f"pod-{number}", 1000.0 * number, 20.0 if number else 90.0)
    assert len(memory.starts_s) == STARTS_KEPT and max(memory.starts_s) == 20.0


def test_progress_extends_any_limit() -> None:
    pulls = Replica(id="pod", state="starting", since_s=0.0, progress_at_s=9_990.0)
    assert not overdue(pulls, PoolMemory(), show(pulls, at_s=10_000.0), SPEC, 10_000.0)
    stuck = Replica(id="pod", state="starting", since_s=0.0, progress_at_s=9_800.0)
    assert overdue(stuck, PoolMemory(), show(stuck, at_s=10_000.0), SPEC, 10_000.0)
    assert math.isfinite(start_limit_s(PoolMemory(), show(at_s=0.0), SPEC))
