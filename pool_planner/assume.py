"""What a planner would report after a few ticks of constant, assumed traffic: for dry runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import start
from pool_planner.types import Grant, Observation, Report

# Forecasters need a few bins before they trust a series; a constant load says the same in each.
TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class AssumedLoad:
    """Requests/s with mean prompt and answer tokens."""

    rps: float
    isl_tokens: float = 700.0
    osl_tokens: float = 60.0


def parse_load(text: str) -> AssumedLoad:
    """`RPS[,ISL[,OSL]]`. Raises ValueError with what is allowed.

    >>> parse_load("1.5,900")
    AssumedLoad(rps=1.5, isl_tokens=900.0, osl_tokens=60.0)
    """
    try:
        values = [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r}: must be RPS[,ISL[,OSL]] with numbers") from None
    if len(values) > 3 or not 0.0 <= values[0] < 1e9 or not all(1.0 <= value < 1e9 for value in values[1:]):
        raise ValueError(f"{text!r}: RPS must be 0 or more, ISL and OSL 1 or more, and nothing may follow")
    return AssumedLoad(**dict(zip(("rps", "isl_tokens", "osl_tokens"), values, strict=False)))


def mixed(loads: tuple[AssumedLoad, ...]) -> AssumedLoad:
    """Several loads as one: rates add, lengths are means over requests."""
    rps = sum(load.rps for load in loads)
    if rps == 0.0:
        return AssumedLoad(rps=0.0)
    return AssumedLoad(
        rps=rps,
        isl_tokens=sum(load.rps * load.isl_tokens for load in loads) / rps,
        osl_tokens=sum(load.rps * load.osl_tokens for load in loads) / rps,
    )


def assumed_reports(setup: PlannerSetup, loads: Mapping[str, AssumedLoad], replicas: Mapping[str, int]) -> tuple[Report, ...]:
    """The reports of a planner whose pools (by name) have seen these loads all along, with so many replicas ready."""
    state = start(setup)
    reports: tuple[Report, ...] = ()
    for tick in range(1, TICKS + 1):
        now = tick * setup.tick_s
        seen = {pool.name: _observation(pool.name, loads[pool.name], now, setup.tick_s) for pool in setup.pools}
        have = {pool.name: _grant(pool.name, replicas[pool.name], now) for pool in setup.pools}
        state, reports = plan(state, seen, have, now, setup)
    return reports


def _observation(pool: str, load: AssumedLoad, now: float, tick_s: float) -> Observation:
    requests = load.rps * tick_s
    return Observation(
        pool=pool,
        at_s=now,
        interval_s=tick_s,
        front_door_up=True,
        requests=requests,
        completed=requests,
        shed=0.0,
        queued_requests=0.0,
        queued_tokens=0.0,
        isl_tokens=load.isl_tokens if requests else None,
        osl_tokens=load.osl_tokens if requests else None,
    )


def _grant(pool: str, replicas: int, now: float) -> Grant:
    return Grant(pool=pool, at_s=now, replicas_spec=replicas, replicas_ready=replicas, replicas_starting=0, replicas_draining=0)
