"""Who may begin while a stage is full: stories on a virtual clock, and the live router with engines that are full."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission import Admission, Ticket
from router.crowds import MEAN_S, Crowds
from router.limits import RateLimit
from router.openings import Room
from router.policy import Path
from tests.router.conftest import MODEL, StartEngine, StartRouter, until
from tests.router.engines import hang
from tests.router.test_admin import call

SPLIT = Path(prefill=("p",), serve=("d",))
ALONE = Path(prefill=(), serve=("d",), instead_of=("p",))
AGG = Path(prefill=(), serve=("a",))


@dataclass
class House:
    """A model's pools and their door. `at` counts who is with which pool."""

    bounds: dict[str, float]
    paths: tuple[Path, ...] = (SPLIT,)
    at: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.door = Admission(
            {"m": (0, RateLimit())}, room=100, starting_retry_after_s=7.0, now=0.0, inside=lambda pool: self.at[pool]
        )
        self.door.put_plan(1, {"m": RateLimit(in_flight_by_pool=self.bounds)}, valid_s=1e6, now=0.0)

    def come(self, now: float, *, paid: bool = False) -> str:
        ticket = Ticket(model="m", priority=0, tokens=1.0, deadline_s=1e9, paths=self.paths, paid=paid)
        verdict = self.door.offer(ticket, now, True)
        assert isinstance(verdict, str)
        if verdict == "admitted":
            self.at["p"] += 1
        return verdict

    def turn(self, now: float) -> int:
        """How many of those that wait come in."""
        admitted, _ = self.door.turn(now, lambda path: True, lambda path: Room(float("inf"), float("inf")))
        self.at["p"] += len(admitted)
        return len(admitted)

    def handed_over(self) -> None:
        self.at["p"] -= 1
        self.at["d"] += 1


def test_a_request_waits_while_prefill_is_full_though_decode_is_idle() -> None:
    house = House({"p": 2.5, "d": 50.0})
    assert [house.come(0.0) for _ in range(4)] == ["admitted", "admitted", "waiting", "waiting"]
    assert house.door.bounds_in_flight and house.turn(1.0) == 0
    # One is handed over to decode: prefill has room at once, not when the answer ends.
    house.handed_over()
    assert (house.turn(2.0), house.turn(2.0)) == (1, 0)
    house.handed_over()
    house.handed_over()
    assert (house.turn(3.0), house.at) == (1, {"p": 1, "d": 3})


def test_decode_counts_of_those_with_prefill_what_is_more_than_their_mean() -> None:
    """As many leave decode as come to it from prefill, so two that are there all the time are not in its way."""
    house = House({"p": 9.0, "d": 4.1})
    house.at.update(p=2, d=3)
    assert [house.come(0.0), house.come(0.0)] == ["admitted", "waiting"]
    house.handed_over()
    assert house.turn(0.0) == 0  # 4 decode
    house.at["d"] -= 1
    assert house.turn(0.0) == 1 and house.at == {"p": 3, "d": 3}
    # Three are more than usual, until they have been there for long.
    assert house.come(1.0) == "waiting" and house.turn(2.0) == 0
    assert house.turn(10.0 * MEAN_S) == 1


@pytest.mark.parametrize(("busy_s", "places"), [(1, 0), (3, 1)])
def test_of_those_who_leave_decode_by_then_only_whole_ones_make_room(busy_s: int, places: int) -> None:
    """Prefill has one for a quarter of the time, or for three: in the mean less than one leaves decode meanwhile, and nearest
    to it nobody, or one. Cut off, the part of one would have been a place that is never taken."""
    house = House({"p": 9.0, "d": 5.0})
    house.at.update(d=5)
    assert house.come(0.0) == "waiting"
    for second in range(int(4 * MEAN_S)):
        house.at["p"] = 1 if second % 4 < busy_s else 0
        if house.at["p"]:
            assert house.turn(float(second)) == 0
        else:
            house.door._crowds.places(SPLIT, float(second))  # looked at, as for any other request
    house.at["p"] = 0
    assert house.turn(4.0 * MEAN_S) == places


def test_a_burst_into_an_idle_house_fills_decode_once() -> None:
    house = House({"p": 100.0, "d": 6.0})
    assert [house.come(0.0) for _ in range(10)].count("admitted") == 6
    for _ in range(6):
        house.handed_over()
    assert house.turn(1.0) == 0
    house.at["d"] -= 2
    # What was with prefill for a second is a little of the mean already.
    assert house.turn(1.0) == 2


@pytest.mark.parametrize(
    ("bounds", "path", "at", "places"),
    [
        pytest.param({}, SPLIT, {"p": 99, "d": 99}, float("inf"), id="nobody says"),
        pytest.param({"d": 5.0}, SPLIT, {"p": 99, "d": 2}, 3.0, id="decode alone says"),
        pytest.param({"p": 5.0}, SPLIT, {"p": 2, "d": 99}, 3.0, id="prefill alone says"),
        pytest.param({"p": 0.2, "d": 0.0}, SPLIT, {}, 1.0, id="one is let in always"),
        pytest.param({"p": 5.0, "d": 9.0}, ALONE, {"p": 4, "d": 0}, 1.0, id="decode instead of prefill is no way round it"),
        pytest.param({"a": 5.0}, AGG, {"a": 4, "p": 9}, 1.0, id="one stage"),
        pytest.param({"p": 2.0, "q": 3.0}, Path(prefill=("q", "p"), serve=("d",)), {"p": 2, "q": 1}, 2.0, id="a chain as one"),
        pytest.param({"p": 2.0}, Path(prefill=("q", "p"), serve=("d",)), {"p": 2}, float("inf"), id="of a chain one says"),
    ],
)
def test_how_many_more_may_come(bounds: dict[str, float], path: Path, at: dict[str, int], places: float) -> None:
    crowds = Crowds(lambda pool: at.get(pool, 0))
    crowds.put(bounds)
    assert crowds.places(path, 0.0) == places


def test_who_comes_back_from_a_failed_engine_has_its_place() -> None:
    house = House({"p": 1.0, "d": 1.0})
    assert [house.come(0.0), house.come(0.0, paid=True)] == ["admitted", "admitted"]


def test_the_bounds_go_with_the_plan() -> None:
    house = House({"p": 1.0, "d": 9.0})
    assert [house.come(0.0), house.come(0.0)] == ["admitted", "waiting"]
    assert house.turn(1e6 + 1.0) == 1 and house.come(1e6 + 1.0) == "admitted"


@given(
    st.floats(0.0, 6.0),
    st.floats(0.0, 12.0),
    st.lists(st.sampled_from(["come", "hand over", "end", "turn"]), max_size=60),
)
def test_no_more_are_let_in_than_the_bounds_say_and_nobody_waits_for_an_empty_house(
    prefill: float, decode: float, story: list[str]
) -> None:
    house, now = House({"p": prefill, "d": decode}), 0.0
    for event in story:
        now += 0.5
        before = house.at["p"]
        if event == "come":
            house.come(now)
        elif event == "turn":
            house.turn(now)
        elif event == "hand over" and house.at["p"]:
            house.handed_over()
        elif event == "end" and house.at["d"]:
            house.at["d"] -= 1
        if house.at["p"] > before:
            assert house.at["p"] <= max(1.0, prefill)
            # The mean of prefill's crowd is never more than the most that it ever was.
            assert house.at["d"] <= max(1.0, decode) + max(1.0, prefill)
    house.at.clear()
    waits = len(house.door.waiting("m"))
    assert waits == 0 or house.turn(now + 100 * MEAN_S) >= 1


# ---- over sockets ------------------------------------------------------------------------------------------------------


async def test_prefill_has_room_again_when_decode_took_over(start_router: StartRouter, start_engine: StartEngine) -> None:
    """Decode holds every answer; prefill takes one request at a time. All three get through prefill while none has ended."""
    prefill, decode = await start_engine(role="prefill"), await start_engine(role="decode", script=hang)
    pools = [
        {"name": "p", "role": "prefill", "endpoints": [prefill.url]},
        {"name": "d", "role": "decode", "endpoints": [decode.url]},
    ]
    router = await start_router(pools)
    bounds = {"p": 1.0, "d": 2.0, "stranger": 1.0}
    groups = [{"model": MODEL, "admitted_rps": None, "in_flight_by_pool": bounds}]
    answer = await call(router, "PUT", "/admin/admission", {"version": 1, "groups": groups})
    assert answer == (200, {"version": 1, "unknown_models": [], "unknown_pools": ["stranger"]})
    assert (await router.state())["admission"]["in_flight_by_pool"] == {MODEL: bounds}
    asked = [asyncio.ensure_future(router.chat()) for _ in range(3)]
    await until(lambda: decode.running == 2 and router.app.door.waiting == 1)  # prefill is idle, but decode is full
    assert (len(prefill.calls), prefill.running) == (2, 0)
    asked[0].cancel()
    await until(lambda: len(prefill.calls) == 3 and decode.running == 2)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ({"p": -1.0}, "groups.0.in_flight_by_pool.p: Input should be greater than or equal to 0"),
        ({"p": "many"}, "groups.0.in_flight_by_pool.p: Input should be a valid number"),
        ([1.0], "groups.0.in_flight_by_pool: Input should be"),
        ({"p": 1e13}, "groups.0.in_flight_by_pool.p: Input should be less than or equal to"),
    ],
)
async def test_bounds_that_make_no_sense_change_nothing(start_router: StartRouter, bounds: Any, told: str) -> None:
    router = await start_router([{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}])
    groups = [{"model": MODEL, "admitted_rps": None, "in_flight_by_pool": bounds}]
    status, answer = await call(router, "PUT", "/admin/admission", {"version": 1, "groups": groups})
    assert status == 400 and told in answer["error"]["message"]
    assert (await router.state())["admission"]["version"] == 0
