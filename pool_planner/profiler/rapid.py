"""Rapid profiling: compare engine shapes by estimates, take the best for the SLA, sweep its curves. Pure, over an Estimator.

An end-to-end SLA is split between TTFT and the time of the answer where the two phases together need the fewest GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pool_planner.profiler.shapes import (
    Candidate,
    Choice,
    EngineShape,
    EstimateError,
    Estimator,
    Phase,
    Target,
    choose,
    decode_candidate,
    gpus_per_rps,
    prefill_candidate,
)
from pool_planner.profiler.sweep import decode_columns, decode_points, longest_context, prefill_columns, prefill_lengths

Progress = Callable[[str, int, int], None]  # what, done, of how many
SPLITS = tuple(k / 10 for k in range(1, 10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """What profiling found: the choice of each phase, the target that it was made for, the columns of each curve (the keys of
    the raw_data files), and what people must know."""

    target: Target
    choices: Mapping[Phase, Choice]
    prefill: Mapping[str, object] | None = None
    decode: Mapping[str, object] | None = None
    warnings: tuple[str, ...] = ()
    extras: Mapping[str, object] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        return next(iter(self.choices.values())).candidate.shape.backend

    def gpus(self, phase: Phase) -> int | None:
        choice = self.choices.get(phase)
        return None if choice is None else choice.candidate.shape.gpus


def choose_shapes(
    estimator: Estimator,
    shapes: Sequence[EngineShape],
    phases: Sequence[Phase],
    target: Target,
    *,
    e2e_ms: float | None = None,
    same: bool = False,
    given: Mapping[str, int] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> tuple[Target, dict[Phase, Choice]]:
    """The best shape of each phase, all of one backend, and the target with the SLA that they were judged by. `same`: one
    engine does both phases (aggregated). `given`: GPUs of an engine by phase, where they are not to be chosen; other sizes are
    compared all the same. Raises EstimateError when nothing can be used."""
    options: list[tuple[float, Target, dict[Phase, Choice]]] = []
    targets = [target] if e2e_ms is None else [_split(target, e2e_ms, share) for share in SPLITS]
    backends = sorted({shape.backend for shape in shapes})
    problems: list[str] = []
    steps, done = len(targets) * len(backends), 0
    for backend in backends:
        mine = [shape for shape in shapes if shape.backend == backend]
        for each in targets:
            progress("candidates", done, steps)
            done += 1
            try:
                options.append((*_option(estimator, mine, phases, each, same=same, given=given or {}),))
            except EstimateError as error:
                problems.append(str(error))
    progress("candidates", steps, steps)
    if not options:
        raise EstimateError("; ".join(dict.fromkeys(problems)))
    best = min(options, key=lambda option: option[0])
    everything = {
        phase: tuple(
            candidate
            for _, its_target, choices in sorted(options, key=lambda option: option[0])
            if its_target == best[1]
            for candidate in choices[phase].ranking
        )
        for phase in phases
    }
    choices = {
        phase: Choice(
            candidate=choice.candidate, ranking=_with_all(choice.candidate, everything[phase]), warning=choice.warning
        )
        for phase, choice in best[2].items()
    }
    return best[1], choices


def _option(
    estimator: Estimator,
    shapes: Sequence[EngineShape],
    phases: Sequence[Phase],
    target: Target,
    *,
    same: bool,
    given: Mapping[str, int],
) -> tuple[float, Target, dict[Phase, Choice]]:
    """(what it costs, the target, the choices) of one backend. Cost: GPUs for a request/s; a miss of the SLA outweighs it."""
    candidates = {
        phase: [(prefill_candidate if phase == "prefill" else decode_candidate)(estimator, shape, target) for shape in shapes]
        for phase in phases
    }
    choices = {phase: _given(choose(found, target), given.get(phase), target) for phase, found in candidates.items()}
    if same and len(phases) == 2:
        choices = _aggregated(candidates, choices, target, given=bool(given))
    cost = 0.0
    for phase, choice in choices.items():
        tokens, limit = (target.isl, target.ttft_ms) if phase == "prefill" else (target.osl, target.itl_ms)
        cost += tokens / choice.candidate.thpt_per_gpu
        cost += 1e6 * max(0.0, choice.candidate.latency_ms / limit - 1.0)
    return cost, target, choices


def _given(choice: Choice, gpus: int | None, target: Target) -> Choice:
    """The choice among shapes of `gpus` GPUs; better ones stay in the ranking. Raises EstimateError where there is none."""
    if gpus is None or choice.candidate.shape.gpus == gpus:
        return choice
    mine = [candidate for candidate in choice.ranking if candidate.shape.gpus == gpus]
    if not mine:
        has = ", ".join(str(size) for size in sorted({candidate.shape.gpus for candidate in choice.ranking}))
        raise EstimateError(f"{choice.candidate.phase} engines of {gpus} GPUs were not compared (has: {has})")
    taken = choose(mine, target)
    better = choice.candidate
    said = f"{better.shape} would give {better.thpt_per_gpu:.0f} tokens/s/GPU, the given {taken.candidate.shape} "
    said += f"gives {taken.candidate.thpt_per_gpu:.0f}"
    return Choice(
        candidate=taken.candidate,
        ranking=_with_all(taken.candidate, choice.ranking),
        warning=said if taken.warning is None else f"{taken.warning}; {said}",
    )


def _aggregated(
    candidates: Mapping[Phase, Sequence[Candidate]], choices: dict[Phase, Choice], target: Target, *, given: bool
) -> dict[Phase, Choice]:
    """Both phases on one shape: the pair that meets both SLAs at the fewest GPUs, else that misses them by the least."""
    wanted = {choice.candidate.shape.gpus for choice in choices.values()} if given else set()
    pairs = [
        (prefill, decode)
        for prefill, decode in zip(candidates["prefill"], candidates["decode"], strict=True)
        if prefill.problem is None and decode.problem is None and (not wanted or prefill.shape.gpus in wanted)
    ]
    if not pairs:
        raise EstimateError("no engine shape can be used for both phases")

    def rank(pair: tuple[Candidate, Candidate]) -> tuple[float, float]:
        missed = max(0.0, pair[0].latency_ms / target.ttft_ms - 1) + max(0.0, pair[1].latency_ms / target.itl_ms - 1)
        return missed, gpus_per_rps(*pair, target)

    prefill, decode = min(pairs, key=rank)
    chosen: dict[Phase, Choice] = {}
    for phase, candidate in (("prefill", prefill), ("decode", decode)):
        found = choices[phase]  # type: ignore[index]
        warning = None
        if not candidate.meets_sla:
            warning = choose([candidate], target).warning
        chosen[phase] = Choice(candidate=candidate, ranking=_with_all(candidate, found.ranking), warning=warning)  # type: ignore[index]
    return chosen


def _with_all(chosen: Candidate, ranking: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The chosen one first, then the others once each."""
    return (chosen, *(candidate for candidate in dict.fromkeys(ranking) if candidate != chosen))


def _split(target: Target, e2e_ms: float, share: float) -> Target:
    """`share` of an end-to-end latency for the first token, the rest for the tokens after it."""
    return Target(
        isl=target.isl,
        osl=target.osl,
        ttft_ms=share * e2e_ms,
        itl_ms=(1.0 - share) * e2e_ms / max(1, target.osl - 1),
    )


def sweep(
    estimator: Estimator,
    target: Target,
    choices: Mapping[Phase, Choice],
    *,
    prefill_points: int,
    decode_points_: int,
    progress: Progress = lambda what, done, total: None,
) -> tuple[dict[str, object] | None, dict[str, object] | None]:
    """The columns of the prefill and of the decode curve of the chosen shapes; None for a phase that was not chosen."""
    prefill = decode = None
    if "prefill" in choices:
        shape = choices["prefill"].candidate.shape
        longest = longest_context(target.isl, target.osl, estimator.kv_tokens(shape))
        lengths = prefill_lengths(longest, prefill_points)
        times = {}
        for number, isl in enumerate(lengths):
            progress("prefill", number, len(lengths))
            times[isl] = estimator.prefill_ms(shape, isl)
        progress("prefill", len(lengths), len(lengths))
        prefill = prefill_columns(times, shape.gpus)
    if "decode" in choices:
        shape = choices["decode"].candidate.shape
        held = estimator.kv_tokens(shape)
        points = decode_points(longest_context(target.isl, target.osl, held), held, decode_points_)
        rows = []
        for number, point in enumerate(points):
            progress("decode", number, len(points))
            itl_ms = estimator.decode_ms(shape, point.context, point.batch)
            rows.append((float(point.context), min(1.0, point.batch * point.context / held), float(point.batch), itl_ms))
        progress("decode", len(points), len(points))
        decode = decode_columns(rows, shape.gpus, held)
    return prefill, decode
