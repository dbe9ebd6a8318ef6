"""What a profile says about one load and one SLA, in words: what one replica can do, and how many are needed. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pool_planner.performance.correction import Correction
from pool_planner.performance.demand import queueing_capacity
from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve
from pool_planner.performance.lengths import LengthMix
from pool_planner.performance.profile import Profile
from pool_planner.performance.work import Engine, Shape
from pool_planner.types import Role

MOST = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Lengths in tokens, SLA in ms, GPUs of an engine of each phase; `rps` None: no load is asked about."""

    isl: int
    osl: int
    ttft_ms: float
    itl_ms: float
    prefill_gpus: int = 1
    decode_gpus: int = 1
    rps: float | None = None
    attainment: float = 0.97


def answer(profile: Profile, question: Question) -> list[str]:
    """Lines, ready to be printed."""
    lines: list[str] = []
    if profile.prefill is not None:
        lines += _prefill(profile.prefill, question)
    if profile.decode is not None:
        lines += _decode(profile.decode, question)
    if question.rps is not None:
        lines.append(f"For {question.rps:g} requests/s, {question.attainment:.0%} of them within the SLA, waiting counted:")
        for role, present, gpus in (
            ("prefill", profile.prefill is not None, question.prefill_gpus),
            ("decode", profile.decode is not None, question.decode_gpus),
        ):
            if present:
                lines.append(f"  {_needed(profile, question, role, gpus)}")  # type: ignore[arg-type]
    else:
        for role, present, gpus in (
            ("prefill", profile.prefill is not None, question.prefill_gpus),
            ("decode", profile.decode is not None, question.decode_gpus),
        ):
            if present:
                lines.append(_carries(profile, question, role, gpus))  # type: ignore[arg-type]
    return lines


def _prefill(curve: PrefillCurve, question: Question) -> list[str]:
    ttft_ms = curve.ttft_ms(question.isl)
    margin = question.ttft_ms - ttft_ms
    verdict = (
        f"within the SLA of {question.ttft_ms:g} ms, with {margin:.0f} ms left for waiting"
        if margin >= 0
        else f"{-margin:.0f} ms beyond the SLA of {question.ttft_ms:g} ms"
    )
    lines = [
        f"Prefill: a prompt of {question.isl} tokens alone has its first token after {ttft_ms:.1f} ms, {verdict}.",
        f"  One replica computes {1e3 / ttft_ms:.2f} such prompts/s, "
        f"{curve.thpt_per_gpu(question.isl):.0f} prompt tokens/s/GPU.",
    ]
    longest = _longest(curve, question.ttft_ms)
    if longest is not None:
        at_least = "at least " if longest >= int(curve.isl_tokens[-1]) else ""
        lines.append(f"  The longest prompt within {question.ttft_ms:g} ms has {at_least}{longest} tokens.")
    if not curve.covers(question.isl):
        lines.append(
            f"  Extrapolated: the profile has prompts of {curve.isl_tokens[0]:.0f} to {curve.isl_tokens[-1]:.0f} tokens."
        )
    return lines


def _longest(curve: PrefillCurve, ttft_ms: float) -> int | None:
    """The longest prompt (tokens) whose TTFT alone is within `ttft_ms`, as far as the profile goes; None: none is."""
    low, high = int(curve.isl_tokens[0]), int(curve.isl_tokens[-1])
    if curve.ttft_ms(low) > ttft_ms:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if curve.ttft_ms(middle) <= ttft_ms else (low, middle - 1)
    return low


def _decode(curve: DecodeCurve, question: Question) -> list[str]:
    context = question.isl + question.osl / 2
    one = min(1.0, context / curve.max_kv_tokens)
    alone_ms = curve.itl_ms(one, context)
    usage = curve.max_kv_usage(question.itl_ms, context)
    lines = [
        f"Decode: the KV cache holds {curve.max_kv_tokens} tokens, {math.floor(curve.max_kv_tokens / context)} sequences of "
        f"{context:.0f} tokens; one alone gets a token every {alone_ms:.1f} ms."
    ]
    if usage < one:
        lines.append(f"  An ITL of {question.itl_ms:g} ms is out of reach: the best achievable is {alone_ms:.1f} ms.")
        usage = one
    else:
        batch = math.floor(usage * curve.max_kv_tokens / context)
        lines.append(
            f"  Within an ITL of {question.itl_ms:g} ms {batch} run at once (KV usage {usage:.0%}): "
            f"{curve.thpt_per_gpu(usage, context):.0f} output tokens/s/GPU."
        )
    if not curve.covers(usage, context):
        shortest, longest = curve.context_range
        lines.append(f"  Extrapolated: the profile has contexts of {shortest:.0f} to {longest:.0f} tokens, and less KV usage.")
    return lines


def _needed(profile: Profile, question: Question, role: Role, gpus: int) -> str:
    assert question.rps is not None
    capacity = queueing_capacity(
        _engine(profile, question, role, gpus), _shape(question), Correction(), target=question.attainment, max_replicas=MOST
    )
    needed = capacity.needed(question.rps)
    notes = "".join(f"; {note}" for note in capacity.notes)
    if needed is None:
        return f"{role}: more than {MOST} replicas{notes}"
    fewer = f", {needed - 1} would carry {capacity.rps[needed - 1]:.2f}" if needed > 1 else ""
    plural = "s" if needed != 1 else ""
    carried = f"which carry {capacity.rps[needed]:.2f} requests/s"
    total = needed * gpus
    return f"{role}: {needed} replica{plural} ({total} GPU{'s' if total != 1 else ''}), {carried}{fewer}{notes}"


def _carries(profile: Profile, question: Question, role: Role, gpus: int) -> str:
    capacity = queueing_capacity(
        _engine(profile, question, role, gpus), _shape(question), Correction(), target=question.attainment, max_replicas=1
    )
    notes = "".join(f"; {note}" for note in capacity.notes)
    return f"One {role} replica carries {capacity.rps[1]:.2f} requests/s with {question.attainment:.0%} within the SLA{notes}."


def _engine(profile: Profile, question: Question, role: Role, gpus: int) -> Engine:
    return Engine(
        role=role,
        gpus=gpus,
        ttft_ms=question.ttft_ms,
        itl_ms=question.itl_ms,
        prefill=profile.prefill,
        decode=profile.decode,
    )


def _shape(question: Question) -> Shape:
    return Shape(isl=LengthMix.of_mean(question.isl), osl=LengthMix.of_mean(question.osl))
