"""What one replica has to do for one shape of requests: its prefill work and its decode work, as the model sees them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pool_planner.performance import queueing
from pool_planner.performance.correction import Correction
from pool_planner.performance.interpolation import SAME_CONTEXT
from pool_planner.performance.lengths import LengthMix
from pool_planner.performance.queueing import Array, Batching, ServiceMix
from pool_planner.types import Role

KV_CEILING = 0.92  # KV usage that is planned for at most: above it engines preempt, and lose what they computed
UNREACHABLE_ITL = 1.25  # ITL planned for where the SLA is below that of one sequence: this many times the latter
GRID = 48
SLACK = 0.15
STAY = 2.0 / math.e  # variance of a mean over one stay, of what is renewed within a stay: 2 (s - 1 + exp(-s)) / s^2 at s = 1
FILLED = np.linspace(0.6, 1.0, 41)  # parts of the limit that are looked at: beyond nearly all would be late
FULL_STEP = 0.35  # of the TTFT: steps of prefill engines at a door that gives them what they begin in time (`admission: sla`)


class PrefillTimes(Protocol):
    """TTFT over prompt length (`interpolation.PrefillCurve`)."""

    @property
    def isl_tokens(self) -> tuple[float, ...]: ...

    def covers(self, isl: float) -> bool: ...

    def ttft_ms(self, isl: float) -> float: ...

    def thpt_per_gpu(self, isl: float) -> float: ...


class DecodeTimes(Protocol):
    """ITL over KV usage (0..1) and mean context (`interpolation.DecodeCurve`)."""

    max_kv_tokens: int

    @property
    def context_range(self) -> tuple[float, float]: ...

    def itl_ms(self, kv_usage: float, context: float) -> float: ...

    def thpt_per_gpu(self, kv_usage: float, context: float) -> float: ...

    def max_kv_usage(self, itl_ms: float, context: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What one replica of a pool can do, and what is asked of it. A role needs the curves of its work. `max_num_seqs`: most
    sequences that run at once; `step_tokens`: most prompt tokens of one step (chunk of prefill)."""

    role: Role
    gpus: int
    ttft_ms: float
    itl_ms: float
    prefill: PrefillTimes | None = None
    decode: DecodeTimes | None = None
    max_num_seqs: int = 256
    step_tokens: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What requests are like: the lengths, and how irregularly they arrive (`arrival_cv2` 1: Poisson). `cached`: the share of
    prompt tokens that prefill finds in its prefix cache and need not compute; they take their room in the KV cache all the
    same."""

    isl: LengthMix
    osl: LengthMix
    arrival_cv2: float = 1.0
    cached: float = 0.0

    @property
    def computed(self) -> LengthMix:
        """What prefill computes of prompts: of each class the same share, because nobody tells which ones were found."""
        return self.isl if self.cached <= 0.0 else self.isl.scaled(1.0 - self.cached)

    @property
    def context_tokens(self) -> float:
        """Tokens in the KV cache of a sequence at a random moment of its decoding."""
        return self.isl.mean + self.osl.resident_half


class PrefillWork:
    """The prefill work of an engine for one shape of requests. `joined_s`: what a prompt waits for besides prefill work
    even on an empty replica (an aggregated one finishes a decode step first).

    Capacity is judged on the classes of prompts whose SLA leaves something to plan with: a class that needs nearly all of
    it for its own computation would ask for idle replicas, and one that needs more cannot be helped. `judged` weighs the
    classes so, without a jump (full weight from SLACK of the SLA on).
    """

    def __init__(self, engine: Engine, shape: Shape, correction: Correction, notes: list[str], joined_s: float = 0.0) -> None:
        curve, computed = prefill_curve(engine), shape.computed
        seconds = np.array([curve.ttft_ms(tokens) for tokens in computed.tokens]) / 1e3
        self.mix = ServiceMix(
            seconds=seconds,
            share=np.array(computed.share),
            # Among decoding sequences a step is never idle, and what it pays once is paid already.
            start_s=min(start_ms(curve) / 1e3, float(seconds.min())) if engine.role == "prefill" else 0.0,
            tokens=np.array(computed.tokens),
            step_tokens=float(engine.step_tokens),
        )
        self.offset_s = correction.ttft_offset_ms / 1e3
        sla_s = engine.ttft_ms / 1e3
        if not curve.covers(computed.mean):
            notes.append(_beyond("prompts", computed.mean, curve.isl_tokens[0], curve.isl_tokens[-1]))
        self.slack_s = sla_s - self.offset_s - joined_s - seconds
        weight = self.mix.share * np.clip(self.slack_s / (SLACK * sla_s), 0.0, 1.0)
        beyond = float(self.mix.share[self.slack_s < 0.0].sum())
        if weight.sum() <= 1e-6:
            notes.append(unreachable("TTFT", engine.ttft_ms, 1e3 * (float(seconds.min()) + self.offset_s + joined_s)))
            self.planned_slack_s, weight = seconds, self.mix.share
        else:
            self.planned_slack_s = self.slack_s
            if beyond > 0.005:
                notes.append(f"{beyond:.0%} of the prompts are too long for a TTFT of {engine.ttft_ms:.0f} ms")
        self.judged = weight / weight.sum()

    def met(self, rate: Array, n: Array, shape: Shape, later_s: Array | float = 0.0) -> Array:
        """Share of all prompts that meet the SLA; `later_s` is taken from everybody's slack."""
        return queueing.share_in_time(rate, n, self.mix, self.slack_s, shape.arrival_cv2, self.mix.share, later_s)

    def planned(self, rate: Array, n: Array, shape: Shape, later_s: Array | float = 0.0) -> Array:
        """Share that capacity is judged on."""
        return queueing.share_in_time(rate, n, self.mix, self.planned_slack_s, shape.arrival_cv2, self.judged, later_s)

    def kept_full_rps(self, planned_rps: Array, n: Array, sla_s: float) -> Array:
        """Requests/s of replicas that compute all the time, in steps of FULL_STEP of the SLA, when twice of what is planned
        comes: the shortest prompts, because the door lets them in first, as many as there is time for."""
        order = np.argsort(self.mix.seconds)
        share = np.where(self.slack_s >= 0.0, self.mix.share, 0.0)[order]
        served = np.concatenate([[0.0], np.cumsum(share)])
        work = np.concatenate([[0.0], np.cumsum(share * (self.mix.seconds[order] - self.mix.start_s))])
        step_s = max(FULL_STEP * sla_s, self.mix.mean)
        came = 2.0 * planned_rps
        time = n * (1.0 - self.mix.start_s / step_s) / np.maximum(came, 1e-12)
        full: Array = came * np.interp(time, work, served)
        return full


class DecodeWork:
    """The decode work of an engine for one shape of requests."""

    def __init__(self, engine: Engine, shape: Shape, correction: Correction, notes: list[str]) -> None:
        curve, context = decode_curve(engine), shape.context_tokens
        usage_of_one = context / curve.max_kv_tokens
        shortest, longest = curve.context_range
        if not shortest * (1 - SAME_CONTEXT) <= context <= longest * (1 + SAME_CONTEXT):
            notes.append(_beyond("contexts", context, shortest, longest))
        room = max(1.0, min(float(engine.max_num_seqs), KV_CEILING / usage_of_one))
        grid = np.unique(np.concatenate([np.linspace(0.0, min(room, 8.0), 9), np.geomspace(1.0, room, GRID)]))
        itl = np.array([correction.itl_ms(curve.itl_ms(b * usage_of_one, context)) for b in grid]) / 1e3
        self.batching = Batching(sequences=grid, itl_s=itl, pace=np.maximum.accumulate(grid / itl))
        self.stays = np.array(shape.osl.tokens) * shape.osl.mean / shape.osl.second_moment
        self.tokens = np.array(shape.osl.tokens)
        self.share = np.array(shape.osl.share)
        self.sla_s = engine.itl_ms / 1e3
        self.alone_s = float(self.batching.itl_at(np.array([1.0]))[0])
        if self.alone_s > self.sla_s:
            notes.append(unreachable("ITL", engine.itl_ms, self.alone_s * 1e3))
            self.sla_s = UNREACHABLE_ITL * self.alone_s
        within = float(self._fitting(np.array([self.sla_s]))[0])
        self.limit = min(room, within)
        self.limited_by_kv = within >= room
        # Of a step at that limit, what one token more in the KV cache takes, and what one sequence more besides its tokens; and
        # how much contexts vary.
        wider, narrower = (
            correction.itl_ms(curve.itl_ms(self.limit * usage_of_one * part, context * part)) / 1e3 for part in (1.05, 0.95)
        )
        self._token_s = (wider - narrower) / (0.1 * max(1.0, self.limit) * context)
        limit = np.array([self.limit])
        self._sequence_s = max(0.0, float(self.batching.slope(limit, limit)[0]) - self._token_s * context)
        prompts = max(0.0, shape.isl.second_moment - shape.isl.mean**2)
        self._contexts = prompts + max(0.0, shape.osl.resident_second_moment - shape.osl.resident_half**2)
        self._unevenness = prompts / (shape.isl.mean + shape.osl.mean) ** 2

    def crowd(self, rate: Array, n: Array, shape: Shape, prefill: ServiceMix | None) -> Array:
        """Sequences that run on each of n replicas in the mean, beside that prefill work (None: there is none)."""
        busy = 0.0 if prefill is None else busy_share(rate, n, prefill)
        return self.batching.crowd(rate / n * shape.osl.mean / (1.0 - busy))

    def step_s(self, crowd: Array) -> Array:
        """Seconds of one decode step; of the largest batch where the crowd grows without end."""
        return self.batching.itl_at(np.where(np.isfinite(crowd), crowd, self.batching.sequences[-1]))

    def limit_beside(self, rate: Array, n: Array, prefill: ServiceMix | None) -> Array:
        """The largest crowd whose mean ITL is within the SLA: prefill work (None: there is none) stretches ITL by
        1 / (1 - its share of time)."""
        limit = self.limit * np.ones_like(n)
        return limit if prefill is None else np.minimum(limit, self._fitting(self.sla_s * (1.0 - busy_share(rate, n, prefill))))

    def kept_full(self, rate: Array, n: Array, shape: Shape, prefill: ServiceMix | None) -> tuple[Array, Array]:
        """How many sequences n replicas may hold all the time, and the requests/s that then are within the SLA: of whole
        numbers the one with the most. One more makes everybody slower, and where that reaches the SLA, nearly all are late.

        Sequences see a mean step that scatters around that of the mean crowd of mean contexts, because contexts do: over a stay
        those of the others are averaged as those come and go (STAY), the own one is not. A single replica has the tokens that
        come. The router evens tokens out among several: then it is the number of sequences that scatters, by as many as longer
        contexts take the place of."""
        limit = self.limit_beside(rate, n, prefill)
        held = np.maximum(n[:, None], np.floor(n[:, None] * limit[:, None] * FILLED[None, :] + 1e-6))
        crowd = held / n[:, None]
        several = 1.0 - 1.0 / n[:, None]
        each = (1.0 - several) * (self._token_s**2 * self._contexts) + several * (self._sequence_s**2 * self._unevenness)
        scatter_s = np.sqrt(np.maximum(each * (1.0 + STAY * np.maximum(crowd - 1.0, 0.0)), 1e-18))
        free = 1.0 if prefill is None else 1.0 - busy_share(rate, n, prefill)[:, None]
        met = queueing.normal_cdf((self.sla_s * free - self.batching.itl_at(crowd)) / scatter_s)
        within = n[:, None] * np.interp(crowd, self.batching.sequences, self.batching.pace) / shape.osl.mean * met
        best = np.argmax(within, axis=1)[:, None]
        return np.take_along_axis(held, best, axis=1)[:, 0], np.take_along_axis(within, best, axis=1)[:, 0]

    def met(self, crowd: Array, n: Array, shape: Shape, prefill: ServiceMix | None, rate: Array) -> Array:
        """Share of requests that see a crowd small enough for the SLA, and not too much of the prefill work between decode
        steps: that comes in lumps, of which a short answer may meet many or none."""
        beside = None
        if prefill is not None:
            # A router that sends to whoever has least gives each replica every n-th request or so: n times as regular.
            bursts_s = rate / n * prefill.square(shape.arrival_cv2 / n)
            free = 1.0 - busy_share(rate, n, prefill)
            beside = queueing.Beside(batching=self.batching, free=free, bursts_s=bursts_s, tokens=self.tokens, sla_s=self.sla_s)
        limit, elasticity = self.limit_beside(rate, n, prefill), self.batching.elasticity(crowd)
        return queueing.share_within(crowd, elasticity, n, limit, shape.arrival_cv2, self.stays, self.share, beside)

    def _fitting(self, itl_s: Array) -> Array:
        fitting: Array = np.interp(itl_s, self.batching.itl_s, self.batching.sequences)
        return fitting


def busy_share(rate: Array, n: Array, mix: ServiceMix) -> Array:
    """Of a replica's time, what prefill takes where it pays no start."""
    busy: Array = np.minimum(rate / n * mix.mean, 1.0 - 1e-6)
    return busy


def start_ms(curve: PrefillTimes) -> float:
    """What a prefill step costs whatever its length (ms): the line through the two shortest prompts, at no tokens."""
    shortest, next_one = curve.isl_tokens[0], curve.isl_tokens[min(1, len(curve.isl_tokens) - 1)]
    if next_one <= shortest:
        return 0.0
    slope = (curve.ttft_ms(next_one) - curve.ttft_ms(shortest)) / (next_one - shortest)
    return max(0.0, curve.ttft_ms(shortest) - slope * shortest)


def _beyond(what: str, tokens: float, shortest: float, longest: float) -> str:
    return f"extrapolated: {what} of {tokens:.0f} tokens, the profile has {shortest:.0f} to {longest:.0f}"


def unreachable(what: str, sla_ms: float, best_ms: float) -> str:
    return f"a {what} of {sla_ms:.0f} ms is out of reach of this engine (alone: {best_ms:.0f} ms); planning to keep up"


def prefill_curve(engine: Engine) -> PrefillTimes:
    if engine.prefill is None:
        raise ValueError(f"profile: a {engine.role} pool needs a prefill curve")
    return engine.prefill


def decode_curve(engine: Engine) -> DecodeTimes:
    if engine.decode is None:
        raise ValueError(f"profile: a {engine.role} pool needs a decode curve")
    return engine.decode
