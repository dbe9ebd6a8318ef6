"""Frozen records that are made by the thousand in every round. Pure.

The constructor that `dataclass(frozen=True)` writes looks up and calls `object.__setattr__` for every field. `quick` replaces
it by one that calls the slots' own setters, which it knows from the start: two thirds of the time, the same record, as frozen.
`by_place` is for the innermost loops: a function that takes all fields in their order, which needs half of what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, TypeVar

Record = TypeVar("Record")


def quick(record: type[Record]) -> type[Record]:
    """The class with a quicker constructor. For dataclasses that are frozen, slotted and keyword-only; raises TypeError for
    others, and where something is checked after construction.

    >>> from dataclasses import dataclass
    >>> @quick
    ... @dataclass(frozen=True, slots=True, kw_only=True)
    ... class Seat:
    ...     row: int
    ...     free: bool = True
    >>> Seat(row=3)
    Seat(row=3, free=True)
    """
    if not _is_plain(record):
        raise TypeError(f"{record.__name__} is not a plain frozen, slotted, keyword-only dataclass")
    own = fields(record)  # type: ignore[arg-type]
    known: dict[str, Any] = {"_not_given": object()}
    taken, lines = [], []
    for one in own:
        name, value = one.name, one.name
        known[f"_set_{name}"] = vars(record)[name].__set__
        if one.default is not MISSING:
            known[f"_default_{name}"] = one.default
            taken.append(f"{name}=_default_{name}")
        elif one.default_factory is not MISSING:
            known[f"_make_{name}"] = one.default_factory
            taken.append(f"{name}=_not_given")
            value = f"_make_{name}() if {name} is _not_given else {name}"
        else:
            taken.append(name)
        lines.append(f"        _set_{name}(self, {value})")
    head = [f"def written({', '.join(known)}):", f"    def __init__(self, *, {', '.join(taken)}):"]
    source = [*head, *lines, "    return __init__"]
    found: dict[str, Callable[..., Any]] = {}
    exec("\n".join(source), found)  # as dataclasses itself does; the names are those of the fields
    constructor = found["written"](**known)
    constructor.__qualname__ = f"{record.__qualname__}.__init__"
    constructor.__annotations__ = vars(record)["__init__"].__annotations__
    setattr(record, "__init__", constructor)  # noqa: B010
    return record


def by_place(record: type[Record]) -> Callable[..., Record]:
    """A function that makes the record of the values of all its fields, in their order. For what `quick` is for.

    >>> from dataclasses import dataclass
    >>> @quick
    ... @dataclass(frozen=True, slots=True, kw_only=True)
    ... class Seat:
    ...     row: int
    ...     free: bool = True
    >>> by_place(Seat)(3, False)
    Seat(row=3, free=False)
    """
    if not _is_plain(record):
        raise TypeError(f"{record.__name__} is not a plain frozen, slotted, keyword-only dataclass")
    names = [one.name for one in fields(record)]  # type: ignore[arg-type]
    known: dict[str, Any] = {"_new": object.__new__, "_record": record}
    known |= {f"_set_{name}": vars(record)[name].__set__ for name in names}
    head = [f"def written({', '.join(known)}):", f"    def make({', '.join(names)}):", "        self = _new(_record)"]
    lines = [f"        _set_{name}(self, {name})" for name in names]
    found: dict[str, Callable[..., Any]] = {}
    exec("\n".join([*head, *lines, "        return self", "    return make"]), found)
    made: Callable[..., Record] = found["written"](**known)
    return made


def _is_plain(record: type[Any]) -> bool:
    params: Any = getattr(record, "__dataclass_params__", None)
    if params is None or not params.frozen or "__slots__" not in vars(record) or hasattr(record, "__post_init__"):
        return False
    return all(one.init and one.kw_only for one in fields(record))
