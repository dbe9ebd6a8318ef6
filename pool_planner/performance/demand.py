"""Capacity and demand curve of a pool: the rate that n replicas carry within their SLA, for every n. Pure.

Two models of the same thing. `queueing_capacity` lets requests wait and crowd (see `queueing`); `plain_capacity` divides by
profiled throughput as the planner guide does. An SLA that an engine cannot meet even for one request alone is planned at the
nearest thing that it can (`notes` says so): a pool must keep up with its load also where its SLA is a wish.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pool_planner.performance import queueing
from pool_planner.performance.correction import Correction
from pool_planner.performance.door import share_served
from pool_planner.performance.overload import Served, shortest_first, up_to
from pool_planner.performance.queueing import Array
from pool_planner.performance.work import DecodeWork, Engine, PrefillWork, Shape, decode_curve, prefill_curve, unreachable
from pool_planner.types import DemandCurve

PATIENCE = 0.5  # of a TTFT target: so long who comes waits at the door that lets the shortest prompts in first
HEADROOM = 1.1  # a lower number of replicas is safe only where it carries this many times the load


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """`rps[n]`: the highest rate at which n replicas meet the target, n = 0..max; `share_met(rate)[n]` what share of the
    requests meets the SLA when all of `rate` is admitted. `in_flight[n]`: how many requests may be with n replicas at once
    (None: nobody knows), `full_rps[n]` the rate that they carry when they are kept so full (None: `rps`). `binding` names the
    constraint, `notes` what people must know. `shortest_first`: what is served in time of any rate where the shortest prompts
    come in first (None: that is no matter of prompts, or not known)."""

    rps: tuple[float, ...]
    share_met: Callable[[float], Sequence[float]]
    binding: Literal["ttft", "itl", "kv", "both"]
    notes: tuple[str, ...] = ()
    in_flight: tuple[float, ...] | None = None
    full_rps: tuple[float, ...] | None = None
    shortest_first: Served | None = None

    def served(self, *, shortest_first: bool) -> Served:
        """What n replicas serve in time of any rate, by who is let in."""
        chosen = self.shortest_first if shortest_first else None
        return up_to(self.rps) if chosen is None else chosen

    def attainment(self, load_rps: float) -> tuple[float, ...]:
        return attainment(self.rps, load_rps, self.full_rps)

    def curve(self, load_rps: float, open_rps: float | None = None) -> DemandCurve:
        """`open_rps`: the rate that the curve without admission is about, where that is not `load_rps`."""
        open_rps = load_rps if open_rps is None else open_rps
        return DemandCurve(
            attainment=self.attainment(load_rps),
            attainment_open=_rising(self.share_met(open_rps)),
            open_rps=open_rps,
            capacity_rps=self.rps,
            in_flight=self.in_flight,
            full_rps=self.full_rps,
        )

    def needed(self, load_rps: float) -> int | None:
        """The fewest replicas that carry `load_rps`, None when all of them do not."""
        for n, rps in enumerate(self.rps):
            if rps >= load_rps * (1.0 - 1e-9):
                return n
        return None


def attainment(capacity_rps: Sequence[float], load_rps: float, full_rps: Sequence[float] | None = None) -> tuple[float, ...]:
    """Share of the load that can be admitted with its SLA met, by replicas (see `door`); without load there is nothing to
    miss."""
    if load_rps <= 0.0:
        return (1.0,) * len(capacity_rps)
    if full_rps is None:
        return tuple(min(1.0, rps / load_rps) for rps in capacity_rps)
    return _rising([share_served(load_rps, rps, full) for rps, full in zip(capacity_rps, full_rps, strict=True)])


def queueing_capacity(engine: Engine, shape: Shape, correction: Correction, *, target: float, max_replicas: int) -> Capacity:
    """Capacity with waiting and crowding. Raises ValueError when the engine lacks a curve that its role needs."""
    n = np.arange(1, max_replicas + 1, dtype=np.float64)
    notes: list[str] = []
    decode = DecodeWork(engine, shape, correction, notes) if engine.role != "prefill" else None
    joined_s = decode.alone_s if decode is not None else 0.0
    prefill = PrefillWork(engine, shape, correction, notes, joined_s) if engine.role != "decode" else None

    def share(rate: Array, *, planned: bool) -> Array:
        met = np.ones_like(n)
        later: Array | float = 0.0
        if decode is not None:
            beside = None if prefill is None else prefill.mix
            crowd = decode.crowd(rate, n, shape, beside)
            met = decode.met(crowd, n, shape, beside, rate)
            later = decode.step_s(crowd) - decode.alone_s if prefill is not None else 0.0
        if prefill is not None:
            met = met * (prefill.planned if planned else prefill.met)(rate, n, shape, later)
        return met

    ceiling = np.minimum(
        queueing.MAX_UTILISATION * n / prefill.mix.work if prefill is not None else np.inf,
        n * decode.batching.pace[-1] / shape.osl.mean if decode is not None else np.inf,
    )
    rps = _highest(lambda rate: share(rate, planned=True), target, ceiling)
    binding: Literal["ttft", "itl", "kv", "both"] = "both"
    if decode is None:
        binding = "ttft"
    elif prefill is None:
        binding = "kv" if decode.limited_by_kv else "itl"

    def share_met(rate: float) -> tuple[float, ...]:
        return (0.0 if rate > 0.0 else 1.0, *share(np.full_like(n, rate), planned=False).tolist())

    first: Served | None = None
    if prefill is not None and decode is None:
        first = shortest_first(
            prefill.mix, max_replicas, arrival_cv2=shape.arrival_cv2, patience_s=PATIENCE * engine.ttft_ms / 1e3
        )
    inside = np.zeros_like(n)
    full: Array | None = None
    if decode is not None:
        held, full = decode.kept_full(rps, n, shape, None if prefill is None else prefill.mix)
        inside += held
    if prefill is not None:
        # By Little's law: those that wait and are computed at the planned rate.
        stay_s = queueing.mean_ttft_s(rps, n, prefill.mix, shape.arrival_cv2)
        inside += np.maximum(n, rps * np.where(np.isfinite(stay_s), stay_s, engine.ttft_ms / 1e3))
        # Of aggregated replicas kept full nobody knows what prefill and decode do to each other: what is planned counts.
        full = prefill.kept_full_rps(rps, n, engine.ttft_ms / 1e3) if decode is None else None
    return Capacity(
        rps=(0.0, *_rising(rps.tolist())),
        share_met=share_met,
        binding=binding,
        notes=tuple(notes),
        in_flight=(0.0, *_rising(inside.tolist())),
        full_rps=None if full is None else (0.0, *_rising(np.maximum(rps, full).tolist())),
        shortest_first=first,
    )


def plain_capacity(
    engine: Engine,
    isl: float,
    osl: float,
    *,
    ttft_ratio: float,
    itl_ratio: float,
    max_replicas: int,
    computed_tokens: float | None = None,
) -> Capacity:
    """The guide's formulas: load over profiled throughput, the ratios its correction factors (1: none). `computed_tokens`:
    prompt tokens that prefill computes (None: all of `isl`)."""
    prompt = isl if computed_tokens is None else computed_tokens
    notes: list[str] = []
    limits: list[float] = []
    if engine.role != "decode":
        curve = prefill_curve(engine)
        limits.append(curve.thpt_per_gpu(prompt) * engine.gpus / (prompt * min(1.0, ttft_ratio)))
    if engine.role != "prefill":
        decode, context = decode_curve(engine), isl + osl / 2.0
        usage = decode.max_kv_usage(engine.itl_ms / itl_ratio, context)
        one = min(1.0, context / decode.max_kv_tokens)
        if usage < one:
            notes.append(unreachable("ITL", engine.itl_ms, decode.itl_ms(one, context) * itl_ratio))
        limits.append(decode.thpt_per_gpu(max(usage, one), context) * engine.gpus / osl)
    per_replica = min(limits)
    rps = tuple(per_replica * count for count in range(max_replicas + 1))
    binding: Literal["ttft", "itl", "both"] = "both" if len(limits) == 2 else "ttft" if engine.role == "prefill" else "itl"
    return Capacity(rps=rps, share_met=lambda rate: tuple(float(r >= rate) for r in rps), binding=binding, notes=tuple(notes))


def _highest(share: Callable[[Array], Array], target: float, ceiling: Array) -> Array:
    """The highest rates up to `ceiling` at which `share` is at least `target` (it is 1 at rate 0 and falls), for all n at once.

    A few halvings, then a straight line through the two ends that are left: the share is smooth where they meet, so this is as
    exact as many more halvings (against 30, on 24 mixes of lengths: 1e-5 of the rate in the median, 7e-4 at worst).
    """
    low, high = np.zeros_like(ceiling), ceiling.copy()
    above, below = np.ones_like(ceiling), share(ceiling)
    full = below >= target
    for _ in range(queueing.BISECTIONS):
        middle = (low + high) / 2.0
        met = share(middle)
        good = met >= target
        low, above = np.where(good, middle, low), np.where(good, met, above)
        high, below = np.where(good, high, middle), np.where(good, below, met)
    part = np.clip((above - target) / np.maximum(above - below, 1e-12), 0.0, 1.0)
    return np.where(full, ceiling, low + part * (high - low))


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    """Non-decreasing, and clean of rounding: more replicas never carry less."""
    return tuple(np.maximum.accumulate(np.asarray(values, dtype=np.float64)).tolist())
