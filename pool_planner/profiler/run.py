"""[I/O] One profile from its request to its folder: what is called by the command and, once a pool, by a whole hierarchy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from pool_planner.clock import SpeedClock, clock_from_environment
from pool_planner.config import PlannerConfig
from pool_planner.performance.profile import ProfileError
from pool_planner.profiler.aic import BACKENDS, Aiconfigurator, RapidUnavailable, Unsupported, library_version
from pool_planner.profiler.cache import CachedEstimator, default_folder
from pool_planner.profiler.endpoint import EndpointError
from pool_planner.profiler.files import MEASUREMENTS, write_results, write_status
from pool_planner.profiler.manifests import PLANNER_IMAGE
from pool_planner.profiler.rapid import Profiled, choose_shapes, sweep
from pool_planner.profiler.record import RecordError
from pool_planner.profiler.request import ProfileRequest, Sweeping
from pool_planner.profiler.shapes import EngineShape, EstimateError, Estimator, Phase, Target, sizes
from pool_planner.profiler.thorough import Deployed, Options, ThoroughError, measure

Progress = Callable[[str, int, int], None]
FAILURES = (Unsupported, RapidUnavailable, EstimateError, ThoroughError, EndpointError, RecordError, ProfileError, OSError)


class ProfileFailed(RuntimeError):
    """No profile came of a request; the text says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to profile. `engines` and `options` are for `thorough`. `cache`: folder of estimates; None: none is kept.
    Granularities are points of a curve, instead of the request's.
    `deployment`: write final_config.yaml; not where the manifests of a whole hierarchy are made."""

    engines: Sequence[Deployed] = ()
    options: Options | None = None
    cache: Path | None = field(default_factory=default_folder)
    deployment: bool = True
    prefill_granularity: int | None = None
    decode_granularity: int | None = None
    planner_image: str = PLANNER_IMAGE
    clock: SpeedClock = field(default_factory=clock_from_environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was written. `profiled` None: no curves (load-based scaling only)."""

    folder: Path
    request: ProfileRequest
    profiled: Profiled | None
    backend: str
    warnings: tuple[str, ...]


def profile(
    request: ProfileRequest,
    folder: Path,
    settings: Settings,
    *,
    announce: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda what, done, total: None,
) -> Outcome:
    """Profile and write everything into `folder`. Raises ProfileFailed; profiler_status.yaml then says `failed`, and why."""
    request = replace(
        request,
        prefill_granularity=settings.prefill_granularity or request.prefill_granularity,
        decode_granularity=settings.decode_granularity or request.decode_granularity,
    )
    try:
        write_status(folder, "running", f"profiling {request.model} ({request.sweeping})")
        request, profiled, warnings = _found(request, folder, settings, announce, progress)
        backend = _backend(request, profiled)
        image = settings.planner_image if settings.deployment else None
        write_results(folder, request, profiled, backend=backend, planner_image=image, warnings=warnings)
        write_status(folder, "success", _summary(profiled), warnings=warnings)
    except FAILURES as error:
        text = str(error) or type(error).__name__
        if folder.is_dir():
            write_status(folder, "failed", text)
        raise ProfileFailed(text) from error
    return Outcome(folder=folder, request=request, profiled=profiled, backend=backend, warnings=warnings)


def _found(
    request: ProfileRequest, folder: Path, settings: Settings, announce: Callable[[str], None], progress: Progress
) -> tuple[ProfileRequest, Profiled | None, tuple[str, ...]]:
    profiled: Profiled | None = None
    warnings = list(request.warnings)
    if request.sweeping == "rapid":
        try:
            profiled = _rapid(request, settings, progress)
        except Unsupported as error:
            if request.planner.enable_throughput_scaling or request.mocker:
                needs = "a mocker" if request.mocker else "throughput-based scaling"
                raise Unsupported(
                    f"{error}. {needs[0].upper()}{needs[1:]} needs curves: measure them (searchStrategy: thorough), or give a "
                    "profile of your own and set profile_results_dir"
                ) from error
            warnings.append(f"{error}. No curves are made (as with pre_deployment_sweeping_mode: none)")
            request = _without_curves(request)
    elif request.sweeping == "thorough":
        if settings.options is None:
            raise ThoroughError("thorough profiling needs engines: --prefill-url and --decode-url, or --engine-url")
        profiled = asyncio.run(
            measure(
                request,
                settings.engines,
                settings.options,
                folder / MEASUREMENTS,
                settings.clock,
                announce=announce,
                progress=progress,
            )
        )
    if profiled is not None:
        warnings += [*profiled.warnings, *(c.warning for c in profiled.choices.values() if c.warning is not None)]
    return request, profiled, tuple(dict.fromkeys(warnings))


def _rapid(request: ProfileRequest, settings: Settings, progress: Progress) -> Profiled:
    asked = BACKENDS if request.backend == "auto" else (request.backend,)
    if settings.cache is None:
        progress("aiconfigurator", 0, 1)
        source = Aiconfigurator(request.model, request.gpu)
        progress("aiconfigurator", 1, 1)
        return rapid_with(source, request, _known_backends(source.version, asked), progress)
    identity = f"aiconfigurator {library_version()} | {request.model} | {request.gpu}"
    cached = CachedEstimator(_Lazy(request.model, request.gpu, progress), identity=identity, folder=settings.cache)
    try:
        return rapid_with(cached, request, _known_backends(cached.version, asked), progress)
    finally:
        cached.save()


class _Lazy:
    """The library, loaded (which takes seconds) when it is first asked."""

    def __init__(self, model: str, gpu: str, progress: Progress) -> None:
        self._asked = (model, gpu)
        self._made: Aiconfigurator | None = None
        self._progress = progress

    def _library(self) -> Aiconfigurator:
        if self._made is None:
            self._progress("aiconfigurator", 0, 1)
            self._made = Aiconfigurator(*self._asked)
            self._progress("aiconfigurator", 1, 1)
        return self._made

    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        return self._library().prefill_ms(shape, isl)

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        return self._library().decode_ms(shape, context, batch)

    def kv_tokens(self, shape: EngineShape) -> int:
        return self._library().kv_tokens(shape)

    def version(self, backend: str) -> str:
        return self._library().version(backend)


def _known_backends(version: Callable[[str], str], asked: Sequence[str]) -> list[str]:
    """The backends to compare: of those asked for, the ones that were measured. Raises Unsupported when there is none."""
    known, problems = [], []
    for backend in asked:
        try:
            version(backend)
            known.append(backend)
        except Unsupported as error:
            problems.append(error)
    if not known:
        raise problems[0]
    return known


def rapid_with(estimator: Estimator, request: ProfileRequest, backends: Sequence[str], progress: Progress) -> Profiled:
    """The rapid profile by any estimator. Raises EstimateError."""
    target = Target(isl=request.isl, osl=request.osl, ttft_ms=request.ttft_ms or 1.0, itl_ms=request.itl_ms or 1.0)
    phases = cast("tuple[Phase, ...]", request.phases)
    gpus = sizes(request.gpus_per_node, request.total_gpus)
    shapes = [EngineShape(backend=backend, tensor_parallel=size) for backend in backends for size in gpus]
    same = request.planner.mode == "agg"
    found, choices = choose_shapes(
        estimator, shapes, phases, target, e2e_ms=request.e2e_ms, same=same, given=request.given_gpus, progress=progress
    )
    prefill, decode = sweep(
        estimator,
        found,
        choices,
        prefill_points=request.prefill_granularity,
        decode_points_=request.decode_granularity,
        progress=progress,
    )
    return Profiled(target=found, choices=choices, prefill=prefill, decode=decode)


def _without_curves(request: ProfileRequest) -> ProfileRequest:
    fields = {**request.planner_fields, "pre_deployment_sweeping_mode": "none"}
    planner = PlannerConfig.model_validate({**request.planner.model_dump(), "pre_deployment_sweeping_mode": "none"})
    none: Sweeping = "none"
    return replace(request, sweeping=none, planner=planner, planner_fields=fields)


def _backend(request: ProfileRequest, profiled: Profiled | None) -> str:
    if profiled is not None:
        return profiled.backend
    return "vllm" if request.backend == "auto" else request.backend


def _summary(profiled: Profiled | None) -> str:
    if profiled is None:
        return "no curves: load-based scaling only"
    return "; ".join(
        f"{phase}: {choice.candidate.shape}, {choice.candidate.latency_ms:.1f} ms, "
        f"{choice.candidate.thpt_per_gpu:.0f} tokens/s/GPU"
        for phase, choice in profiled.choices.items()
    )
