"""Load-based scaling: what the workers' live load says about the number of replicas. Pure.

The rule of the guide: all workers above the load at which the SLA is reached: one more; all far enough below it that one
fewer would carry the same: one less. Beyond it: several more at once when the total load says so, replicas that are
starting count, and a scale-down is judged by what the survivors would carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pool_planner.performance.regression import Window
from pool_planner.types import Role, WorkerLoad

Verdict = Literal["up", "down", "stay", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One kind of load of every worker: `loads` against `limit`, what is planned for of the load at which the SLA is reached.
    `movable`: the part of each load that goes to the survivors when a worker leaves (a prompt's own tokens do not multiply)."""

    name: Literal["ttft", "itl"]
    loads: tuple[float, ...]
    movable: tuple[float, ...]
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """`max_step`: most replicas added at once. `sensitivity` 0..1: how close to the limit survivors may come."""

    sensitivity: float
    max_step: int
    check_survivors: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadNeed:
    """`replicas` None: the load says nothing (why: `reason`)."""

    verdict: Verdict
    replicas: int | None
    reason: str


def load_points(workers: Sequence[WorkerLoad], kind: Literal["ttft", "itl"]) -> dict[str, tuple[float, float]]:
    """(load, latency in ms) by worker, for the workers that report both."""
    points = {}
    for worker in workers:
        load, latency = prefill_load(worker) if kind == "ttft" else worker.active_decode_blocks, worker.last_itl_ms
        if kind == "ttft":
            latency = worker.last_ttft_ms
        if load is not None and latency is not None and math.isfinite(load) and math.isfinite(latency) and latency > 0.0:
            points[worker.worker_id] = (load, latency)
    return points


def prefill_load(worker: WorkerLoad) -> float | None:
    """Prefill tokens in progress plus those of a prompt like the last one."""
    if worker.active_prefill_tokens is None or worker.last_isl_tokens is None:
        return None
    return worker.active_prefill_tokens + worker.last_isl_tokens


def signals(
    role: Role,
    workers: Sequence[WorkerLoad],
    ttft: Window,
    itl: Window,
    *,
    ttft_ms: float,
    itl_ms: float,
    least: int,
    target: float,
) -> tuple[list[Signal], list[str]]:
    """The signals that the role has and the data allow, and why the others are missing. Fewer than `least` observations are
    not enough. Where latency does not rise with load, the latencies themselves are the load and the SLA its limit. `target`:
    the share of the limit that is planned for."""
    found: list[Signal] = []
    missing: list[str] = []
    kinds: list[tuple[Literal["ttft", "itl"], Window, float]] = []
    if role != "decode":
        kinds.append(("ttft", ttft, ttft_ms))
    if role != "prefill":
        kinds.append(("itl", itl, itl_ms))
    for name, window, sla in kinds:
        line = window.line()
        if line is None or line.points < least:
            missing.append(f"{name.upper()} regression has {0 if line is None else line.points} of {least} observations")
            continue
        limit = line.load_at(sla)
        if limit is not None:
            loads, movable = _loads(workers, name)
            known, threshold = len(loads) == len(workers), limit
        else:
            loads = [latency for _, latency in load_points(workers, name).values()]
            movable, known, threshold = loads, len(loads) == len(workers), sla
        if not known or not loads:
            missing.append(f"{len(loads)} of {len(workers)} workers report their {name.upper()} load")
            continue
        found.append(Signal(name=name, loads=tuple(loads), movable=tuple(movable), limit=target * threshold))
    return found, missing


def _loads(workers: Sequence[WorkerLoad], name: Literal["ttft", "itl"]) -> tuple[list[float], list[float]]:
    """(loads, movable parts) of the workers that are known."""
    loads: list[float] = []
    movable: list[float] = []
    for worker in workers:
        load = prefill_load(worker) if name == "ttft" else worker.active_decode_blocks
        part = worker.active_prefill_tokens if name == "ttft" else worker.active_decode_blocks
        if load is not None and part is not None and math.isfinite(load):
            loads.append(load)
            movable.append(part)
    return loads, movable


def load_need(found: Sequence[Signal], missing: Sequence[str], *, ready: int, starting: int, limits: LoadLimits) -> LoadNeed:
    """What the signals of a pool with `ready` and `starting` replicas say. Up if any signal says up, down only if all do."""
    if not found or missing:
        return LoadNeed(verdict="unknown", replicas=None, reason="; ".join(missing) or "no worker reports its load")
    workers = len(found[0].loads)
    if workers != ready:
        return LoadNeed(
            verdict="unknown", replicas=None, reason=f"{workers} workers report their load, {ready} replicas are ready"
        )
    have = ready + starting
    wanted = max(_wanted_up(signal, ready, limits) for signal in found)
    if wanted > ready:
        worst = max(found, key=lambda signal: min(signal.loads) / signal.limit)
        share = min(worst.loads) / worst.limit
        text = f"every worker is at {share:.0%} or more of the load at which the {worst.name.upper()} SLA is reached"
        if wanted <= have:
            return LoadNeed(verdict="stay", replicas=have, reason=f"{text}; {starting} starting replicas will carry it")
        return LoadNeed(verdict="up", replicas=wanted, reason=f"{text}: {wanted} wanted")
    if ready > 1 and starting == 0 and all(_may_shrink(signal, ready, limits) for signal in found):
        fullest = max(max(signal.loads) / signal.limit for signal in found)
        return LoadNeed(
            verdict="down", replicas=have - 1, reason=f"the fullest worker is at {fullest:.0%} of its limit: {have - 1} suffice"
        )
    return LoadNeed(verdict="stay", replicas=have, reason="the workers' load fits their number")


def _wanted_up(signal: Signal, ready: int, limits: LoadLimits) -> int:
    if not all(load > signal.limit for load in signal.loads):
        return ready
    total = sum(signal.movable)
    own = sum(signal.loads) - total
    room = max(signal.limit - own / ready, 0.1 * signal.limit)
    return max(ready + 1, min(ready + limits.max_step, math.ceil(total / room)))


def _may_shrink(signal: Signal, ready: int, limits: LoadLimits) -> bool:
    after = ready - 1
    bound = signal.limit * limits.sensitivity
    if not all(load < bound * after / ready for load in signal.loads):
        return False
    if not limits.check_survivors:
        return True
    # The leaver's work is shared by the survivors; the fullest of them must still fit.
    leaving = min(signal.movable)
    return max(signal.loads) + leaving / after < bound
