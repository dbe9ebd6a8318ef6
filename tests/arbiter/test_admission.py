"""The admitted rate follows what is ready, and a class of requests that starves does not starve the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from global_planner.types import PoolSpec, RoundInputs
from tests.arbiter.builders import decide, holding, inputs, pool, proposal

SHORT, LONG, DECODE = pool("chat-short", "prefill"), pool("chat-long", "prefill"), pool("chat-decode", "decode")
LOADS = {"chat-short": 6.0, "chat-long": 2.0, "chat-decode": 8.0}


def ready(counts: dict[str, int], *, blind: str | None = None) -> RoundInputs:
    specs: list[PoolSpec] = [SHORT, LONG, DECODE]
    reports = [proposal(spec.name, LOADS[spec.name], 1.0) for spec in specs if spec.name != blind]
    told = inputs(specs, reports, budget={"h100": 40})
    return replace(told, holdings=tuple(holding(spec, 20, ready=counts[spec.name]) for spec in specs))


@pytest.mark.parametrize(
    ("short", "long", "decode", "admitted"),
    [
        (6, 2, 8, 8.0),  # exactly the load
        (9, 3, 20, 12.0),  # room to spare in all: as much as the mix allows
        (9, 2, 20, 8.0),  # long is full at the load
        (9, 1, 20, 7.0),  # long starves, short does not
        (6, 2, 5, 5.0),  # decode is what is short
        (0, 0, 9, 0.0),  # nothing is ready yet
    ],
)
def test_what_may_be_admitted(short: int, long: int, decode: int, admitted: float) -> None:
    told = ready({"chat-short": short, "chat-long": long, "chat-decode": decode})
    assert decide(told).groups[0].admitted_rps == pytest.approx(admitted)


def test_what_nobody_can_tell_is_not_limited() -> None:
    counts = {"chat-short": 6, "chat-long": 2, "chat-decode": 3}
    # Of the prefill stage nothing is known: decode alone limits.
    assert decide(ready(counts, blind="chat-short")).groups[0].admitted_rps == pytest.approx(3.0)
    told = ready(counts)
    bare = replace(told, reports=tuple(replace(r, curve=None) for r in told.reports))  # type: ignore[type-var]
    assert decide(bare).groups[0].admitted_rps is None


def test_paths_add_up() -> None:
    whole = pool("chat-agg")
    told = inputs(
        [SHORT, DECODE, whole],
        [proposal("chat-short", 4.0, 1.0), proposal("chat-decode", 4.0, 1.0), proposal("chat-agg", 3.0, 1.0)],
        budget={"h100": 40},
        have={"chat-short": 4, "chat-decode": 3, "chat-agg": 2},
    )
    assert decide(told).groups[0].admitted_rps == pytest.approx(5.0)
