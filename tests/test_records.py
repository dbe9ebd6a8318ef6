"""A record with the quicker constructor is the dataclass that it was."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from pool_planner.records import quick


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    name: str
    size: int = 3
    parts: dict[str, int] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class Quick:
    name: str
    size: int = 3
    parts: dict[str, int] = field(default_factory=dict)


def test_it_is_the_same_record() -> None:
    one = Quick(name="a")
    assert repr(one) == repr(Plain(name="a")).replace("Plain", "Quick")
    assert one == Quick(name="a", size=3, parts={}) and one != Quick(name="a", size=4)
    assert replace(one, size=5, parts={"x": 1}) == Quick(name="a", size=5, parts={"x": 1})
    assert one.parts is not Quick(name="b").parts, "what a factory makes is made anew"
    assert pickle.loads(pickle.dumps(one)) == one
    assert Quick.__init__.__annotations__ == Plain.__init__.__annotations__


def test_it_is_as_strict() -> None:
    with pytest.raises(FrozenInstanceError):
        Quick(name="a").size = 4  # type: ignore[misc]
    with pytest.raises(TypeError, match="name"):
        Quick()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="color"):
        Quick(name="a", color="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Quick("a")  # type: ignore[misc]


def test_what_it_cannot_make_is_refused() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Checked:
        name: str

        def __post_init__(self) -> None:
            raise ValueError

    @dataclass(slots=True, kw_only=True)
    class Open:
        name: str

    for record in (Checked, Open, int):
        with pytest.raises(TypeError, match="plain frozen, slotted, keyword-only"):
            quick(record)
