"""Frozen records that are made by the thousand in every round. Pure.

The constructor that `dataclass(frozen=True)` writes looks up and calls `object.__setattr__` for every field. `quick` replaces
it by one that calls the slots' own setters, which it knows from the start: two thirds of the time, the same record, as frozen.
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
    params: Any = getattr(record, "__dataclass_params__", None)
    own = () if params is None else fields(record)  # type: ignore[arg-type]
    plain = all(one.init and one.kw_only for one in own)
    if params is None or not params.frozen or "__slots__" not in vars(record) or not plain or hasattr(record, "__post_init__"):
        raise TypeError(f"{record.__name__} is not a plain frozen, slotted, keyword-only dataclass")
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
