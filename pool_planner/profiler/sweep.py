"""Which points of an engine's curves to ask for, and the columns that come of the answers. Pure.

Prefill: prompt lengths from MIN_TOKENS to the longest, evenly spaced. Decode: context lengths in equal ratios (interpolation
between them is linear in 1/context), and for each the numbers of sequences from one to what the KV cache or the engine takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pool_planner.profiler.shapes import MAX_SEQUENCES

MIN_TOKENS = 100
KV_SHARE = 0.95  # of the KV cache that a sweep fills at most: beyond, engines preempt


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    """`batch` sequences of `context` tokens."""

    context: int
    batch: int


def longest_context(isl: int, osl: int, kv_tokens: int, model_limit: int | None = None) -> int:
    """The longest context to sweep: four times the request's own, 8k at least, within the model and a third of the KV cache
    (two sequences must fit with what they generate).

    >>> longest_context(3000, 150, 945_029)
    12600
    """
    return max(2 * MIN_TOKENS, min(max(8192, 4 * (isl + osl)), kv_tokens // 3, model_limit or kv_tokens))


def prefill_lengths(longest: int, points: int) -> tuple[int, ...]:
    """>>> prefill_lengths(1600, 4)
    (100, 600, 1100, 1600)
    """
    step = (longest - MIN_TOKENS) / (points - 1)
    return tuple(sorted({round(MIN_TOKENS + step * i) for i in range(points)}))


def decode_points(
    longest: int, kv_tokens: int, points: int, max_sequences: int = MAX_SEQUENCES, shortest: int = MIN_TOKENS
) -> tuple[DecodePoint, ...]:
    """`points` contexts, and up to `points` batches for each; every context has a batch of one, and two batches at least."""
    ratio = (longest / shortest) ** (1 / (points - 1))
    swept = []
    for context in sorted({round(shortest * ratio**i) for i in range(points)}):
        most = max(2, min(max_sequences, int(KV_SHARE * kv_tokens / context)))
        batches = sorted({round(1 + (most - 1) * i / (points - 1)) for i in range(points)})
        swept += [DecodePoint(context=context, batch=batch) for batch in batches]
    return tuple(swept)


def prefill_columns(ttft_ms: Mapping[int, float], gpus: int) -> dict[str, object]:
    """The keys of prefill_raw_data.json from TTFT (ms) by ISL, in the order of ISL; throughput is that of one prompt after the
    other."""
    lengths = sorted(ttft_ms)
    return {
        "prefill_isl": lengths,
        "prefill_ttft": [ttft_ms[isl] for isl in lengths],
        "prefill_thpt_per_gpu": [1e3 * isl / ttft_ms[isl] / gpus for isl in lengths],
    }


def decode_columns(rows: Sequence[tuple[float, float, float, float]], gpus: int, kv_tokens: int) -> dict[str, object]:
    """The keys of decode_raw_data.json from (context tokens, KV usage 0..1, sequences, ITL ms)."""
    ordered = sorted(rows)
    return {
        "x_kv_usage": [usage for _, usage, _, _ in ordered],
        "y_context_length": [context for context, _, _, _ in ordered],
        "z_itl": [itl_ms for _, _, _, itl_ms in ordered],
        "z_thpt_per_gpu": [1e3 * sequences / itl_ms / gpus for _, _, sequences, itl_ms in ordered],
        "max_kv_tokens": kv_tokens,
    }
