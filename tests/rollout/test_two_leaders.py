"""Two planners at once, as when a lease changes hands while a write is under way: their rounds interleave operation by
operation, they want different things, and the budget holds all the same, because growth is reserved in one ledger first."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from global_planner import memory as memory_module
from global_planner.memory import PlannerMemory
from global_planner.ports import Reservation, Reservations
from global_planner.round import Ports, run_round
from global_planner.types import Budget, Grow, Round
from pool_planner.types import ClusterUnavailable, Conflict, Report
from tests.dice import Dice, thrown
from tests.rollout.play import Play, grant_in_order, proposal
from tests.rollout.world import World, specs

POOLS = tuple(spec.name for spec in specs())


@pytest.fixture(autouse=True)
def dumb_arbiter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "arbitrate", grant_in_order)


@dataclass(slots=True)
class SharedLedger:
    version: int = 0
    entries: tuple[Reservation, ...] = ()
    up: bool = True

    async def read(self) -> Reservations:
        if not self.up:
            raise ClusterUnavailable("the ledger does not answer")
        return Reservations(version=str(self.version), entries=self.entries)

    async def swap(self, version: str, entries: Sequence[Reservation]) -> None:
        if version != str(self.version):
            raise Conflict(f"the ledger is at {self.version}")
        self.version += 1
        self.entries = tuple(entries)


class Pause:
    """Gives the word to whoever drives the coroutine."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Slowly:
    """A port whose every operation can be overtaken by the other planner's, before it happens."""

    def __init__(self, port: Any) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._port, name)

        async def after_a_pause(*args: Any) -> Any:
            await Pause()
            return await operation(*args)

        return after_a_pause


@dataclass(slots=True)
class Wants:
    """The reports as one planner has them."""

    world: World
    wanted: tuple[int, ...] = ()

    def reports(self) -> Mapping[str, Report]:
        return {name: proposal(name, self.world.now_s, number) for name, number in zip(POOLS, self.wanted, strict=True)}


class Leader:
    def __init__(self, world: World, ledger: SharedLedger | None) -> None:
        self.play = Play(world)
        self.wants = Wants(world)
        self.ports = Ports(
            cluster=Slowly(world),
            router=Slowly(world),
            pools=self.wants,
            journal=self.play.journal,
            clock=world,
            ledger=None if ledger is None else Slowly(ledger),
        )

    def round(self) -> Coroutine[Any, Any, tuple[PlannerMemory, Round]]:
        return run_round(self.ports, self.play.memory, self.play.config, timer=lambda: 0.0)

    def done(self, result: tuple[PlannerMemory, Round]) -> None:
        self.play.memory = result[0]
        self.play.rounds.append(result[1])


def interleave(leaders: Sequence[Leader], turns: Sequence[bool]) -> None:
    """One round of each, one operation at a time, in the order of `turns` (then whoever is left)."""
    under_way = {number: leader.round() for number, leader in enumerate(leaders)}
    order = iter(turns)
    while under_way:
        wish = int(next(order, False))
        number = wish if wish in under_way else min(under_way)
        try:
            under_way[number].send(None)
        except StopIteration as stop:
            leaders[number].done(stop.value)
            del under_way[number]


def over_budget(world: World) -> list[str]:
    return [text for text in world.violations if " used of " in text]


Turn = tuple[tuple[int, ...], tuple[int, ...], list[bool], list[str]]
"""What each of the two is told that pools want, whose operation is next, and what becomes of the orders."""


def script(dice: Dice) -> list[Turn]:
    return [
        (
            tuple(dice.number(0, 9) for _ in POOLS),
            tuple(dice.number(0, 9) for _ in POOLS),
            [dice.yes() for _ in range(dice.number(0, 30))],
            [dice.pick(("ok", "late", "lost")) for _ in range(dice.number(0, 3))],
        )
        for _ in range(dice.number(1, 8))
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(thrown(360, script))
def test_two_leaders_never_exceed_the_budget_together(script: list[Turn]) -> None:
    world = World(specs=specs(), budget=Budget(max_gpus={"h100": 14}))
    ledger = SharedLedger()
    leaders = [Leader(world, ledger), Leader(world, ledger)]
    for first, second, turns, faults in script:
        leaders[0].wants.wanted, leaders[1].wants.wanted = first, second
        world.faults = list(faults)
        interleave(leaders, turns)
        world.pass_time(10.0)
        assert over_budget(world) == []


def test_without_the_ledger_they_do() -> None:
    """The test can fail: this is the race that the ledger is for."""
    world = World(specs=specs(), budget=Budget(max_gpus={"h100": 14}))
    leaders = [Leader(world, None), Leader(world, None)]
    leaders[0].wants.wanted, leaders[1].wants.wanted = (9, 1, 1, 0, 0), (1, 1, 1, 4, 0)
    interleave(leaders, [False, True] * 20)
    assert over_budget(world) != []


def test_who_comes_second_grows_nothing_and_says_so() -> None:
    world = World(specs=specs(), budget=Budget(max_gpus={"h100": 14}))
    ledger = SharedLedger()
    leaders = [Leader(world, ledger), Leader(world, ledger)]
    leaders[0].wants.wanted, leaders[1].wants.wanted = (9, 1, 1, 0, 0), (1, 1, 1, 4, 0)
    interleave(leaders, [False, True] * 20)
    outcomes = [[outcome.step for outcome in leader.play.rounds[0].outcomes] for leader in leaders]
    assert [len(steps) for steps in outcomes] in ([1, 0], [0, 1])
    loser = leaders[[len(steps) for steps in outcomes].index(0)]
    assert "another leader has reserved GPUs since this round began, so nothing grows in it" in loser.play.rounds[0].conditions
    assert all(memory.write is None for memory in loser.play.memory.rollout.pools.values())


def test_a_new_leader_counts_what_the_one_before_reserved_and_takes_back_what_nobody_wants() -> None:
    world = World(specs=specs(), budget=Budget(max_gpus={"h100": 14}))
    ledger = SharedLedger()
    before, after = Leader(world, ledger), Leader(world, ledger)
    before.wants.wanted, after.wants.wanted = (1, 1, 1, 0, 2), (9, 1, 1, 0, 0)
    world.faults = ["lost"]
    interleave([before], [])
    assert [item.pool for item in ledger.entries] == ["docs-agg"]

    interleave([after], [])  # the leader before is gone, and its order may still land
    first = after.play.rounds[0]
    assert first.charged_gpus == {"h100": 12}
    grown = {step.pool: step.after for step in first.steps if isinstance(step, Grow)}
    assert grown == {"chat-prefill": 3}, "no more than is free beside the reservation"
    world.pass_time(10.0)
    interleave([after], [])
    assert ledger.entries == () or {item.pool for item in ledger.entries} == {"chat-prefill"}
    assert after.play.rounds[-1].charged_gpus["h100"] < 12


def test_without_the_ledger_answering_nothing_grows_but_releases_go_on() -> None:
    world = World(specs=specs(), budget=Budget(max_gpus={"h100": 14}))
    ledger = SharedLedger()
    leader = Leader(world, ledger)
    leader.wants.wanted = (3, 1, 1, 0, 0)
    for _ in range(6):
        interleave([leader], [])
        world.pass_time(10.0)
    ledger.up = False
    leader.wants.wanted = (1, 3, 1, 0, 0)
    for _ in range(20):
        interleave([leader], [])
        world.pass_time(10.0)
    assert world.settled_at("chat-prefill", 1) and world.settled_at("chat-decode", 1)
    assert any("the ledger cannot be read, so nothing grows" in text for text in leader.play.rounds[-1].conditions)
