"""Which reports of the pools a round may believe. Pure.

A report that has expired is a missing one. One with numbers that cannot be (not finite, negative, a curve that falls) says
nothing about its pool: it becomes a `Hold` that tells why, so that the pool keeps what it has and people see it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from global_planner.types import PoolSpec
from pool_planner.types import Hold, Proposal, Report

MOST_REPLICAS = 1_000_000
"""More than any pool can have: a number beyond it is a mistake, not a wish."""

REFUSED_FOR_S = 60.0
"""How long the Hold in place of a refused report is in force; only the round that made it reads it."""


def believable(reports: Mapping[str, Report], pools: Sequence[PoolSpec], at_s: float) -> tuple[Report, ...]:
    """The reports of `pools` that are in force at `at_s`, in the pools' order; senseless ones as a Hold."""
    taken: list[Report] = []
    for spec in pools:
        report = reports.get(spec.name)
        if report is None:
            continue
        fault = flaw(report, spec.name)
        if fault is not None:
            reason = f"its report was refused: {fault}"
            taken.append(Hold(pool=spec.name, at_s=at_s, reason=reason, expires_at_s=at_s + REFUSED_FOR_S))
        elif report.expires_at_s > at_s:
            taken.append(report)
    return tuple(taken)


def flaw(report: Report, pool: str) -> str | None:
    """What makes a report unbelievable, or None."""
    if report.pool != pool:
        return f"it is about pool {report.pool!r}"
    if not _finite(report):
        return _non_finite(report, "")
    if isinstance(report, Hold):
        return None
    return _odd_proposal(report)


def _odd_proposal(report: Proposal) -> str | None:
    if report.load_rps < 0:
        return f"load_rps is {report.load_rps}"
    if report.expected_rps is not None and report.expected_rps < 0:
        return f"expected_rps is {report.expected_rps}"
    if not 0 <= report.wanted <= MOST_REPLICAS:
        return f"wanted is {report.wanted}"
    curves = {"attainment_headroom": report.attainment_headroom}
    if report.curve is not None:
        if not report.curve.attainment:
            return "curve.attainment is empty"
        curves["curve.attainment"] = report.curve.attainment
    for name, curve in curves.items():
        if curve is not None and any(not 0.0 <= value <= 1.0 for value in curve):
            return f"{name} leaves 0..1"
        if curve is not None and any(after < before for before, after in pairwise(curve)):
            return f"{name} falls"
    if report.prefix_hit_rate is not None and not 0.0 <= report.prefix_hit_rate <= 1.0:
        return f"prefix_hit_rate is {report.prefix_hit_rate}"
    if min((report.load_by_priority or {}).values(), default=0.0) < 0:
        return "load_by_priority is negative"
    if report.curve is not None and report.curve.capacity_rps is not None and min(report.curve.capacity_rps, default=0.0) < 0:
        return "curve.capacity_rps is negative"
    return None


_FIELDS: dict[type, tuple[str, ...]] = {}


def _fields(kind: type) -> tuple[str, ...]:
    """The names of a record's fields; none of what is no record."""
    if kind not in _FIELDS:
        _FIELDS[kind] = tuple(item.name for item in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()
    return _FIELDS[kind]


def _finite(value: object) -> bool:
    """Whether every number in it is finite: asked of every report in every round, so without making the paths to them."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, str | int):
        return True
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(_finite(getattr(value, name)) for name in _fields(type(value)))


def _non_finite(value: object, path: str) -> str | None:
    """The path of a number that is not finite, or None."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value}"
    children: list[tuple[str, object]] = []
    if dataclasses.is_dataclass(value):
        children = [(item.name, getattr(value, item.name)) for item in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        children = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, tuple | list):
        children = [(str(index), item) for index, item in enumerate(value)]
    for name, item in children:
        found = _non_finite(item, f"{path}.{name}" if path else name)
        if found is not None:
            return found
    return None
