"""Engine shapes and which of them serves an SLA best: the most throughput per GPU that meets it. Pure, over a port.

A shape is judged at the request's own lengths. Prefill: TTFT of a prompt alone, and prompt tokens/s/GPU. Decode: the largest
batch whose ITL is within the SLA and whose KV fits, and output tokens/s/GPU there. Where no shape meets the SLA, the one that
comes nearest is taken and said to miss it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Phase = Literal["prefill", "decode"]
MAX_SEQUENCES = 256  # that engines run at once by default; a batch beyond it is not promised


class EstimateError(ValueError):
    """A shape, or a point of it, that cannot be estimated; the text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """How an engine is spread over GPUs: `tensor_parallel` of them in one engine of `backend`."""

    backend: str
    tensor_parallel: int

    @property
    def gpus(self) -> int:
        return self.tensor_parallel

    def __str__(self) -> str:
        return f"{self.backend} tp{self.tensor_parallel}"


class Estimator(Protocol):
    """What is known about engines of one model on one GPU type, wherever it comes from. All raise EstimateError."""

    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        """TTFT (ms) of a prompt of `isl` tokens that is alone on the engine."""
        ...

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        """ITL (ms) of `batch` sequences of `context` tokens each."""
        ...

    def kv_tokens(self, shape: EngineShape) -> int:
        """Tokens that the KV cache of one engine holds. Raises EstimateError where the weights do not fit."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The lengths and the SLA that shapes are judged for."""

    isl: int
    osl: int
    ttft_ms: float
    itl_ms: float

    @property
    def context(self) -> int:
        """Mean tokens in the KV cache of a sequence while it decodes."""
        return self.isl + self.osl // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One shape in one phase. `latency_ms`: TTFT alone, or ITL at `batch`. Throughput in prompt (prefill) or output (decode)
    tokens/s/GPU. `problem`: why the shape cannot be used at all; then the numbers are 0."""

    shape: EngineShape
    phase: Phase
    latency_ms: float = 0.0
    thpt_per_gpu: float = 0.0
    batch: int = 0
    meets_sla: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The shape taken for a phase; `ranking` best first, unusable ones last. `warning`: the SLA is out of reach."""

    candidate: Candidate
    ranking: tuple[Candidate, ...]
    warning: str | None = None


def sizes(per_node: int, total: int | None = None) -> tuple[int, ...]:
    """Tensor parallel sizes to try: powers of two within a node and within what there is.

    >>> sizes(8)
    (1, 2, 4, 8)
    >>> sizes(8, total=6)
    (1, 2, 4)
    """
    most = per_node if total is None else min(per_node, total)
    return tuple(1 << k for k in range(most.bit_length()) if 1 << k <= most)


def prefill_candidate(estimator: Estimator, shape: EngineShape, target: Target) -> Candidate:
    try:
        held = estimator.kv_tokens(shape)
        if held < target.isl:
            raise EstimateError(f"its KV cache holds {held} tokens, one prompt has {target.isl}")
        ttft_ms = estimator.prefill_ms(shape, target.isl)
    except EstimateError as error:
        return Candidate(shape=shape, phase="prefill", problem=str(error))
    return Candidate(
        shape=shape,
        phase="prefill",
        latency_ms=ttft_ms,
        thpt_per_gpu=1e3 * target.isl / ttft_ms / shape.gpus,
        batch=1,
        meets_sla=ttft_ms <= target.ttft_ms,
    )


def decode_candidate(estimator: Estimator, shape: EngineShape, target: Target, max_sequences: int = MAX_SEQUENCES) -> Candidate:
    """At the largest batch within the SLA (found by bisection: ITL does not fall as the batch grows), else at one sequence."""
    try:
        room = min(max_sequences, estimator.kv_tokens(shape) // (target.isl + target.osl))
        if room < 1:
            raise EstimateError(f"its KV cache does not hold one sequence of {target.isl + target.osl} tokens")
        batch, itl_ms = _largest(lambda b: estimator.decode_ms(shape, target.context, b), room, target.itl_ms)
    except EstimateError as error:
        return Candidate(shape=shape, phase="decode", problem=str(error))
    return Candidate(
        shape=shape,
        phase="decode",
        latency_ms=itl_ms,
        thpt_per_gpu=1e3 * batch / itl_ms / shape.gpus,
        batch=batch,
        meets_sla=itl_ms <= target.itl_ms,
    )


def _largest(itl_ms: Callable[[int], float], most: int, limit_ms: float) -> tuple[int, float]:
    """The largest batch up to `most` within the limit and its ITL; (1, its ITL) when even one is slower."""
    low, best = 1, itl_ms(1)
    if best > limit_ms or most == 1:
        return low, best
    at_most = itl_ms(most)
    if at_most <= limit_ms:
        return most, at_most
    high = most
    while high - low > 1:
        middle = (low + high) // 2
        value = itl_ms(middle)
        if value <= limit_ms:
            low, best = middle, value
        else:
            high = middle
    return low, best


def choose(candidates: Sequence[Candidate], target: Target) -> Choice:
    """The best of the candidates of one phase. Raises EstimateError when none can be used, with every reason."""
    ranking = tuple(sorted(candidates, key=_rank))
    best = ranking[0]
    if best.problem is not None:
        reasons = "; ".join(f"{candidate.shape}: {candidate.problem}" for candidate in ranking)
        raise EstimateError(f"no engine shape can be used for {best.phase}: {reasons}")
    if best.meets_sla:
        return Choice(candidate=best, ranking=ranking)
    what, wanted = ("TTFT", target.ttft_ms) if best.phase == "prefill" else ("ITL", target.itl_ms)
    warning = (
        f"no shape meets a {what} of {wanted:g} ms; the best achievable is {best.latency_ms:.1f} ms with {best.shape} "
        f"({best.shape.gpus} GPUs a replica)"
    )
    return Choice(candidate=best, ranking=ranking, warning=warning)


def _rank(candidate: Candidate) -> tuple[int, float, int]:
    """Within the SLA by throughput per GPU, then by latency, then what cannot be used; equal ones by fewer GPUs."""
    if candidate.problem is not None:
        return 2, 0.0, candidate.shape.gpus
    if candidate.meets_sla:
        return 0, -candidate.thpt_per_gpu, candidate.shape.gpus
    return 1, candidate.latency_ms, candidate.shape.gpus


def gpus_per_rps(prefill: Candidate, decode: Candidate, target: Target) -> float:
    """GPUs that one request/s needs in both phases together: what a split of an end-to-end SLA is judged by."""
    return target.isl / prefill.thpt_per_gpu + target.osl / decode.thpt_per_gpu
