"""Which ways take whom in one turn of the door: a table, and the admission that asks it against a dumb twin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission import Admission, Ticket
from router.limits import RateLimit
from router.openings import Openings, Room
from router.policy import Path

FAST, SLOW, ASLEEP = (Path(prefill=(), serve=(name,)) for name in ("fast", "slow", "asleep"))
WAYS = (FAST, SLOW, ASLEEP)


@pytest.mark.parametrize(
    ("rooms", "wanted", "told"),
    [
        pytest.param({FAST: (2, 100)}, [((FAST,), 10)] * 3, [True, True, False], id="a place is given once"),
        pytest.param({FAST: (9, 100)}, [((FAST,), 60)] * 3, [True, True, False], id="tokens may go over once"),
        pytest.param({FAST: (1, 100), SLOW: (1, 100)}, [((FAST, SLOW), 1)] * 3, [True, True, False], id="then the next way"),
        pytest.param({SLOW: (1, 100)}, [((FAST, SLOW), 1), ((SLOW,), 1)], [True, False], id="the first is not usable"),
        pytest.param({}, [((ASLEEP,), 1)], [False], id="nothing is usable"),
        pytest.param({FAST: (0.5, 100)}, [((FAST,), 1)], [False], id="half a place is none"),
    ],
)
def test_who_finds_a_place(
    rooms: Mapping[Path, tuple[float, float]], wanted: list[tuple[tuple[Path, ...], float]], told: list[bool]
) -> None:
    openings = Openings(lambda path: path in rooms, lambda path: Room(*rooms[path]))
    assert [openings.take(paths, tokens) for paths, tokens in wanted] == told
    assert openings.full({paths for paths, _ in wanted}) is not any(told[-1:])


def test_each_way_is_asked_once_a_turn() -> None:
    asked: Counter[tuple[str, Path]] = Counter()

    def usable(path: Path) -> bool:
        asked["usable", path] += 1
        return path is not ASLEEP

    def room(path: Path) -> Room:
        asked["room", path] += 1
        return Room(1.0, 10.0)

    openings = Openings(usable, room)
    for _ in range(5):
        assert openings.usable((ASLEEP, FAST)) and not openings.usable((ASLEEP,))
        openings.take((ASLEEP, FAST), 1.0)
    assert asked == {("usable", ASLEEP): 1, ("usable", FAST): 1, ("room", FAST): 1}


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(range(3)), min_size=1, max_size=3, unique=True),
            st.integers(0, 2),
            st.floats(1.0, 50.0),
            st.floats(0.5, 4.0),
        ),
        max_size=30,
    ),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.floats(0.0, 80.0)), min_size=3, max_size=3),
    st.sampled_from([None, 1.0, 5.0]),
)
def test_a_turn_is_what_asking_everybody_one_by_one_comes_to(
    crowd: list[tuple[list[int], int, float, float]], ways: list[tuple[bool, int, float]], rate: float | None
) -> None:
    """Who comes in, who is refused and who stays, at three times: `turn` asks no more than it must, the twin everybody."""

    def door() -> Admission:
        admission = Admission({"m": (0, RateLimit(rate_rps=rate))}, room=100, starting_retry_after_s=7.0, now=0.0)
        for at, priority, tokens, deadline_s in crowd:
            paths = tuple(WAYS[index] for index in at)
            ticket = Ticket(model="m", priority=priority, tokens=tokens, length=tokens, deadline_s=deadline_s, paths=paths)
            admission.offer(ticket, 0.0, False)
        return admission

    def usable(path: Path) -> bool:
        return ways[WAYS.index(path)][0]

    def room(path: Path) -> Room:
        _, requests, tokens = ways[WAYS.index(path)]
        return Room(float(requests), tokens)

    quick, dumb = door(), door()
    for now in (0.4, 1.5, 3.0):
        admitted, refused = quick.turn(now, usable, room)
        rooms = {path: room(path) if usable(path) else Room(0.0, 0.0) for path in WAYS}
        let_in, turned_away = dumb.pump(
            now,
            lambda ticket: any(usable(path) for path in ticket.paths),
            lambda ticket, rooms=rooms: any(rooms[path].take(ticket.tokens) for path in ticket.paths),
        )
        assert [one.seq for one in admitted] == [one.seq for one in let_in]
        assert [(one.seq, refusal) for one, refusal in refused] == [(one.seq, refusal) for one, refusal in turned_away]
        assert [one.seq for one in quick.waiting("m")] == [one.seq for one in dumb.waiting("m")]
