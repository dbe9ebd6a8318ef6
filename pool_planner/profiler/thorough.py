"""[I/O] Thorough profiling: the same comparison and the same curves as `rapid`, measured on engines that run.

What is going to be asked is known before the first request: the points, and how many requests they take at most. Where several
candidates are deployed for a phase, each is measured at the request's own lengths first, and only the best is swept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pool_planner.clock import SpeedClock
from pool_planner.performance.profile import Profile, decode_curve, prefill_curve
from pool_planner.profiler.endpoint import Endpoint
from pool_planner.profiler.measure import Bench
from pool_planner.profiler.measure_plan import Limits, Point, PrefillPoint, at_once, key, queue_points, requests_at_most
from pool_planner.profiler.rapid import Profiled, choose_shapes
from pool_planner.profiler.record import Record
from pool_planner.profiler.request import ProfileRequest
from pool_planner.profiler.shapes import Choice, EngineShape, EstimateError, Phase, Target
from pool_planner.profiler.sweep import (
    DecodePoint,
    decode_columns,
    decode_points,
    longest_context,
    prefill_columns,
    prefill_lengths,
)


class ThoroughError(ValueError):
    """Engines or options that cannot be measured; the text says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """An engine that runs, on `gpus` GPUs, to be measured in one phase."""

    phase: Phase
    gpus: int
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`kv_tokens`: what the KV cache of an engine holds, where its /metrics do not tell. `max_context`: the longest context to
    sweep (None: four times the request's). `max_requests`: refuse a plan that may take more."""

    limits: Limits
    kv_tokens: int | None = None
    max_context: int | None = None
    max_requests: int | None = None


@dataclass(slots=True)
class _Engine:
    deployed: Deployed
    endpoint: Endpoint
    shape: EngineShape
    kv_tokens: int
    ranking: tuple[Point, ...]
    sweep: tuple[Point, ...]


async def measure(
    request: ProfileRequest,
    engines: Sequence[Deployed],
    options: Options,
    record_path: Path,
    clock: SpeedClock,
    *,
    announce: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Profiled:
    """Profile `request` on engines that run. Raises ThoroughError, EndpointError, EstimateError, RecordError, OSError."""
    engines = [engine for engine in engines if engine.phase in request.phases]
    _check(request, engines)
    if options.limits.concurrency < 2 and "decode" in request.phases:
        raise ThoroughError("--max-concurrency 1: how ITL rises with load cannot be measured with one request at a time")
    opened: list[_Engine] = []
    try:
        for deployed in engines:
            endpoint = Endpoint(deployed.url, model=request.model, clock=clock, budget=0, seed=len(opened) + 1)
            opened.append(
                _Engine(deployed, endpoint, EngineShape(backend=request.backend, tensor_parallel=deployed.gpus), 0, (), ())
            )
            await _prepare(opened[-1], request, options, several=_several(engines, deployed.phase))
        most = _at_most(opened, options.limits)
        widest = max(_widest(engine) for engine in opened)
        announce(f"at most {most} requests in all, at most {widest} at once; one engine after the other")
        if options.max_requests is not None and most > options.max_requests:
            raise ThoroughError(
                f"that may take {most} requests, --max-requests allows {options.max_requests}: "
                "lower the granularity, --max-concurrency or --repetitions"
            )
        record = Record(record_path, _identity(request, opened, options))
        return await _Run(request, opened, options.limits, record, progress).profile()
    finally:
        for engine in opened:
            await engine.endpoint.close()


class _Run:
    def __init__(
        self,
        request: ProfileRequest,
        engines: Sequence[_Engine],
        limits: Limits,
        record: Record,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._request = request
        self._engines = engines
        self._limits = limits
        self._record = record
        self._progress = progress
        self._warnings: list[str] = []

    async def profile(self) -> Profiled:
        request, target = self._request, _target(self._request)
        profiles: dict[tuple[Phase, EngineShape], Profile] = {}
        for engine in self._engines:
            if engine.ranking:
                measured = await self._all(engine, engine.ranking, "candidates")
                profiles[engine.deployed.phase, engine.shape] = self._curves(engine, measured)
        winners = self._engines
        ranked: Mapping[Phase, Choice] = {}
        if profiles:
            _, ranked = self._choose(profiles, target)
            winners = [
                engine
                for engine in self._engines
                if engine.deployed.phase not in ranked or ranked[engine.deployed.phase].candidate.shape == engine.shape
            ]
            profiles = {}
        columns: dict[Phase, Mapping[str, object]] = {}
        queue: dict[str, object] = {}
        for engine in winners:
            measured = await self._all(engine, engine.sweep, engine.deployed.phase)
            profiles[engine.deployed.phase, engine.shape] = self._curves(engine, measured)
            columns[engine.deployed.phase] = self._columns(engine, measured)
            queue |= {
                str(point.depth): {
                    "mean_ttft_ms": ms,
                    "slowest_ttft_ms": self._record.points[f"{_prefix(engine)} {key(point)}"].get("slowest"),
                }
                for point, ms in measured.items()
                if isinstance(point, PrefillPoint) and point.depth > 1
            }
        # What was swept is what is deployed: a choice that wavers between candidates of equal worth must not part the two.
        target, choices = self._choose(profiles, target)
        for phase, ranking in ranked.items():
            others = tuple(c for c in ranking.ranking if c.shape != choices[phase].candidate.shape)
            choices[phase] = replace(choices[phase], ranking=(choices[phase].candidate, *others))
        self._warnings += self._beyond(choices)
        found = {name: entry for name, entry in self._record.points.items() if entry.get("outliers")}
        loose = [name for name, entry in self._record.points.items() if entry.get("tight") is False]
        if loose:
            self._warnings.append(
                f"{len(loose)} of {len(self._record.points)} points are not known within "
                f"{self._limits.tight:.0%} after {self._limits.most} repetitions"
            )
        return Profiled(
            target=target,
            choices=choices,
            prefill=columns.get("prefill"),
            decode=columns.get("decode"),
            warnings=tuple(self._warnings),
            extras={
                "queue": queue,
                "queue_isl": request.isl,
                "requests_sent": sum(engine.endpoint.sent for engine in self._engines),
                "outliers": {name: entry["outliers"] for name, entry in found.items()},
                "not_tight": loose,
            },
        )

    async def _all(self, engine: _Engine, points: Sequence[Point], what: str) -> dict[Point, float]:
        """Medians (ms) of the points that the engine takes. Raises EndpointError; EstimateError when it takes none."""
        bench = Bench(engine.endpoint, self._record, self._limits, prefix=_prefix(engine), kv_tokens=engine.kv_tokens)
        measured: dict[Point, float] = {}
        problems = []
        for number, point in enumerate(points):
            self._progress(f"{what} ({engine.deployed.url})", number, len(points))
            try:
                measured[point] = await bench.median_ms(point)
            except EstimateError as error:
                problems.append(str(error))
        self._progress(f"{what} ({engine.deployed.url})", len(points), len(points))
        if not measured:
            raise EstimateError(f"{engine.deployed.url}: no point could be measured: {problems[0]}")
        self._warnings += [f"left out: {problem}" for problem in problems]
        return measured

    def _choose(
        self, profiles: Mapping[tuple[Phase, EngineShape], Profile], target: Target
    ) -> tuple[Target, dict[Phase, Choice]]:
        held: dict[EngineShape, int] = {}
        for engine in self._engines:
            held[engine.shape] = min(engine.kv_tokens, held.get(engine.shape, engine.kv_tokens))
        shapes = sorted(dict.fromkeys(shape for _, shape in profiles), key=lambda shape: shape.gpus)
        phases: list[Phase] = [phase for phase in ("prefill", "decode") if any(p == phase for p, _ in profiles)]
        found, choices = choose_shapes(
            _Measured(profiles, held),
            shapes,
            phases,
            target,
            e2e_ms=self._request.e2e_ms,
            same=self._request.planner.mode == "agg",
        )
        return found, {
            phase: Choice(
                candidate=choice.candidate,
                ranking=tuple(c for c in choice.ranking if (c.phase, c.shape) in profiles),
                warning=choice.warning,
            )
            for phase, choice in choices.items()
        }

    def _beyond(self, choices: Mapping[Phase, Choice]) -> list[str]:
        """Where a choice rests on more sequences than were ever sent at once."""
        judged = choices["decode"].candidate.batch if "decode" in choices else 0
        if judged <= self._limits.concurrency:
            return []
        return [
            f"decode is judged at {judged} sequences, and at most {self._limits.concurrency} were sent at once: extrapolated "
            "(see --max-concurrency)"
        ]

    def _columns(self, engine: _Engine, measured: Mapping[Point, float]) -> Mapping[str, object]:
        gpus = engine.deployed.gpus
        if engine.deployed.phase == "prefill":
            alone = {p.isl: ms for p, ms in measured.items() if isinstance(p, PrefillPoint) and p.depth == 1}
            return prefill_columns(alone, gpus)
        rows = []
        for point, itl_ms in measured.items():
            if isinstance(point, DecodePoint):
                context = float(self._record.points[f"{_prefix(engine)} {key(point)}"]["context"])
                usage = min(1.0, point.batch * context / engine.kv_tokens)
                rows.append((float(point.context), usage, float(point.batch), itl_ms))
        return decode_columns(rows, gpus, engine.kv_tokens)

    def _curves(self, engine: _Engine, measured: Mapping[Point, float]) -> Profile:
        columns = self._columns(engine, measured)
        if engine.deployed.phase == "prefill":
            return Profile(prefill=prefill_curve(columns, source=engine.deployed.url))
        return Profile(decode=decode_curve(columns, source=engine.deployed.url))


class _Measured:
    """An estimator over measured curves."""

    def __init__(self, profiles: Mapping[tuple[Phase, EngineShape], Profile], held: Mapping[EngineShape, int]) -> None:
        self._profiles = profiles
        self._held = held

    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        curve = self._profile("prefill", shape).prefill
        assert curve is not None
        return curve.ttft_ms(isl)

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        curve = self._profile("decode", shape).decode
        assert curve is not None
        return curve.itl_ms(batch * context / curve.max_kv_tokens, context)

    def kv_tokens(self, shape: EngineShape) -> int:
        return self._held[shape]

    def _profile(self, phase: Phase, shape: EngineShape) -> Profile:
        profile = self._profiles.get((phase, shape))
        if profile is None:
            raise EstimateError("not deployed for this phase")
        return profile


async def _prepare(engine: _Engine, request: ProfileRequest, options: Options, *, several: bool) -> None:
    """Ask the engine what it is, and plan its points."""
    await engine.endpoint.discover()
    held = options.kv_tokens or await engine.endpoint.kv_tokens()
    limits = options.limits
    if held is None:
        if engine.deployed.phase == "decode":
            raise ThoroughError(
                f"{engine.deployed.url}: its /metrics do not tell how large the KV cache is "
                "(vllm:cache_config_info); give --max-kv-tokens"
            )
        held = 1 << 40  # a prefill engine is measured one prompt at a time
    engine.kv_tokens = held
    limit = engine.endpoint.max_model_len
    longest = longest_context(request.isl, request.osl, held, limit)
    if options.max_context is not None:
        longest = min(longest, options.max_context)
    if limit is not None:
        longest = min(longest, limit - 4 * limits.window)
    if engine.deployed.phase == "prefill":
        swept: list[Point] = [PrefillPoint(isl=isl) for isl in prefill_lengths(longest, request.prefill_granularity)]
        engine.sweep = (*swept, *queue_points(request.isl, limits))
        engine.ranking = (PrefillPoint(isl=request.isl),) if several else ()
        return
    engine.sweep = decode_points(longest, held, request.decode_granularity, limits.concurrency)
    own = request.isl + request.osl // 2
    engine.ranking = ()
    if several:
        engine.ranking = decode_points(own, held, request.decode_granularity, limits.concurrency, shortest=own)


def _at_most(engines: Sequence[_Engine], limits: Limits) -> int:
    """Of every candidate its ranking, of every phase the largest sweep; and each endpoint gets its own budget."""
    total = 0
    sweeps: dict[Phase, int] = {}
    for engine in engines:
        ranking, sweep = requests_at_most(engine.ranking, limits), requests_at_most(engine.sweep, limits)
        engine.endpoint.budget = ranking + sweep
        total += ranking
        sweeps[engine.deployed.phase] = max(sweeps.get(engine.deployed.phase, 0), sweep)
    return total + sum(sweeps.values())


def _widest(engine: _Engine) -> int:
    points = (*engine.ranking, *engine.sweep)
    return max(at_once(point) for point in points)


def _check(request: ProfileRequest, engines: Sequence[Deployed]) -> None:
    for phase in request.phases:
        if not any(engine.phase == phase for engine in engines):
            raise ThoroughError(
                f"no engine to measure {phase} on: give --{phase}-url, --engine-url for one that does both, "
                f"or --candidate {phase}:GPUS:URL"
            )
    for engine in engines:
        same = [other for other in engines if (other.phase, other.gpus) == (engine.phase, engine.gpus)]
        if len(same) > 1:
            raise ThoroughError(
                f"two {engine.phase} engines of {engine.gpus} GPUs ({', '.join(e.url for e in same)}): one is enough"
            )


def _several(engines: Sequence[Deployed], phase: Phase) -> bool:
    return sum(engine.phase == phase for engine in engines) > 1


def _target(request: ProfileRequest) -> Target:
    return Target(isl=request.isl, osl=request.osl, ttft_ms=request.ttft_ms or 1.0, itl_ms=request.itl_ms or 1.0)


def _identity(request: ProfileRequest, engines: Sequence[_Engine], options: Options) -> dict[str, object]:
    """What must be the same for a measurement to be gone on with. Not the URL: engines move."""
    return {
        "model": request.model,
        "backend": request.backend,
        "engines": sorted(f"{e.deployed.phase} {e.deployed.gpus} GPUs, KV {e.kv_tokens}" for e in engines),
        "window": options.limits.window,
    }


def _prefix(engine: _Engine) -> str:
    return f"{engine.deployed.phase} gpus={engine.deployed.gpus}:"
