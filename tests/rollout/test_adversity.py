"""Whatever cluster, routers, people and crashes do: never over budget because of us, never below a minimum, no work lost, and
everything that was decided can be decided again from the record. Once the faults stop, the allocation is reached."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings

from global_planner import memory as memory_module
from global_planner.memory import decided
from global_planner.replay.check import decided_again
from global_planner.types import Budget, Grow
from tests.dice import Dice, thrown
from tests.rollout.play import Play, grant_in_order, proposal
from tests.rollout.world import Crash, World, specs

POOLS = tuple(spec.name for spec in specs())
FAULTS = ("ok", "lost", "late", "accepted", "twice", "conflict")


@dataclass(frozen=True)
class Bad:
    """What goes wrong in one round."""

    wanted: tuple[int | None, ...]
    faults: tuple[str, ...] = ()
    crash_at: int | None = None
    edit_at: int | None = None
    edit: tuple[str, int] = ("chat-prefill", 1)
    routers_up: tuple[bool, bool] = (True, True)
    cluster_up: bool = True
    broken_starts: bool = False
    lazy: bool = False
    absurd: bool = False
    traffic: bool = True
    burst_at: int | None = None


def bad_round(dice: Dice) -> Bad:
    return Bad(
        wanted=tuple(dice.number(0, 9) if dice.yes() else None for _ in POOLS),
        faults=tuple(dice.pick(FAULTS) for _ in range(dice.number(0, 4))),
        crash_at=dice.number(1, 18) if dice.yes() else None,
        edit_at=dice.number(1, 14) if dice.number(0, 2) == 2 else None,
        edit=(dice.pick(POOLS), dice.number(0, 5)),
        routers_up=dice.pick([(True, True)] * 4 + [(True, False), (False, True), (False, False)]),
        cluster_up=dice.number(0, 6) < 6,
        broken_starts=dice.number(0, 4) == 4,
        lazy=dice.yes(),
        absurd=dice.number(0, 5) == 5,
        traffic=not dice.yes(),
        burst_at=dice.number(1, 14) if dice.yes() else None,
    )


def history(dice: Dice) -> tuple[list[Bad], tuple[int, ...]]:
    """Some bad rounds, and what everybody wants at the end."""
    rounds = dice.pick((1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 10, 14))
    finally_wanted = tuple(dice.number(0, 6) for _ in POOLS)
    return [bad_round(dice) for _ in range(rounds)], finally_wanted


def crash() -> None:
    raise Crash


def suffer(play: Play, bad: Bad) -> None:
    world = play.world
    play.want(**{name.replace("-", "_"): number for name, number in zip(POOLS, bad.wanted, strict=True)})
    if bad.absurd:
        world.reports_now["chat-decode"] = proposal("chat-decode", float("nan"), 10**9)
    world.faults = list(bad.faults)
    world.cluster_up, world.broken_starts, world.lazy = bad.cluster_up, bad.broken_starts, bad.lazy
    world.traffic = bad.traffic
    for router, up in zip(world.routers, bad.routers_up, strict=True):
        router.up = up
    if bad.burst_at is not None:
        world.at_operation[bad.burst_at] = world.burst
    if bad.edit_at is not None:
        world.at_operation[bad.edit_at] = lambda: world.people_set(*bad.edit)
    if bad.crash_at is not None:
        world.at_operation[bad.crash_at] = crash
    done = play.round()
    assert world.violations == []
    if done is not None and done.charged_gpus["h100"] > 14:
        assert not any(isinstance(step, Grow) for step in done.steps), "over budget we only release"


SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
HISTORIES = thrown(460, history)
History = tuple[list[Bad], tuple[int, ...]]


@settings(deadline=None, suppress_health_check=SUPPRESSED)
@given(HISTORIES)
def test_nothing_is_broken_whatever_happens_under_an_arbiter_that_jumps(
    monkeypatch: pytest.MonkeyPatch, story: History
) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)
    go_through(*story)


@settings(deadline=None, suppress_health_check=SUPPRESSED)
@given(HISTORIES)
def test_nothing_is_broken_whatever_happens_under_the_real_arbiter(story: History) -> None:
    go_through(*story)


def go_through(bad_times: list[Bad], finally_wanted: tuple[int, ...]) -> None:
    play = Play(World(specs=specs(), budget=Budget(max_gpus={"h100": 14})))
    for bad in bad_times:
        suffer(play, bad)

    suffer(play, Bad(wanted=finally_wanted))
    for pod in [pod for pool in play.world.pools.values() for pod in pool.pods]:
        pod.stuck = False
    play.until_quiet(pause_s=30.0)
    granted = {grant.pool: grant.granted for grant in play.rounds[-1].allocation.pools}
    for name in POOLS:
        assert play.world.settled_at(name, granted[name]), (name, granted[name], play.world.pools[name])
    assert play.world.violations == []
    records = list(decided(play.journal.records()))
    assert len(records) >= len(play.rounds)
    for item in records:
        assert decided_again(item.memory, item.orders, item.done, item.policies) is None
