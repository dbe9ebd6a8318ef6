"""[I/O] Estimates from aiconfigurator's measured kernels (extra `aic`), which is imported only when it is asked for.

Nothing is downloaded: a model is one whose configuration the library carries, or a folder with a config.json. Its context and
generation passes are used one by one ("static"), which is what a prefill or a decode replica does.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pool_planner.profiler.shapes import MAX_SEQUENCES, EngineShape, EstimateError

BACKENDS = ("vllm", "sglang", "trtllm")
# The fraction of memory that each backend gives to weights and KV by default, and of what it is a fraction.
_MEMORY = {"vllm": ("of_total", 0.9), "sglang": ("of_total", 0.88), "trtllm": ("of_free", 0.9)}
STEP_TOKENS = 8192
MISSING = (
    "rapid profiling needs aiconfigurator: install the extra 'aic' (pip install 'global-planner[aic]'), "
    "or measure with searchStrategy: thorough"
)


class RapidUnavailable(RuntimeError):
    """aiconfigurator is not installed; the text names the extra."""


class Unsupported(ValueError):
    """A model, GPU type or backend that the library does not know; the text has the nearest that it does."""


def library() -> Any:
    """The library's estimate interface. Raises RapidUnavailable."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from aiconfigurator.cli import api
    except ImportError as error:
        raise RapidUnavailable(f"{MISSING} ({error})") from error
    for name in ("aiconfigurator", "aiconfigurator_core"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return api


def library_version() -> str:
    """The installed version, without loading it. Raises RapidUnavailable."""
    try:
        return version("aiconfigurator")
    except PackageNotFoundError as error:
        raise RapidUnavailable(MISSING) from error


class Aiconfigurator:
    """Estimates for one model on one GPU type, of any backend. `quantization`: what the library's own quantization modes are
    overridden with ({"gemm_quant_mode": "fp8"}); empty: what the model's configuration says."""

    def __init__(self, model: str, gpu: str, *, quantization: dict[str, str] | None = None) -> None:
        """Raises RapidUnavailable, and Unsupported for a model or GPU type that is not known."""
        self._api = library()
        from aiconfigurator.sdk import common, memory, perf_database

        self._memory, self._databases = memory, perf_database
        self.gpu = known_gpu(gpu, sorted(map(str, common.SupportedSystems)))
        self.model = known_model(model, sorted(map(str, common.DefaultHFModels)))
        self._quantization = dict(quantization or {})
        self._moe = bool(self._api.check_is_moe(self.model))
        self._versions: dict[str, str] = {}

    def version(self, backend: str) -> str:
        """The newest measured version of a backend on this GPU type. Raises Unsupported."""
        if backend not in self._versions:
            if backend not in BACKENDS:
                raise Unsupported(f"backend: {backend!r} is not known (has: {', '.join(BACKENDS)})")
            found = self._databases.get_latest_database_version(system=self.gpu, backend=backend)
            if found is None:
                has = [name for name in BACKENDS if self._databases.get_latest_database_version(system=self.gpu, backend=name)]
                raise Unsupported(
                    f"backend: nothing was measured of {backend} on {self.gpu} (has: {', '.join(has) or 'no backend there'})"
                )
            self._versions[backend] = str(found)
        return self._versions[backend]

    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        return self._positive(lambda: self._estimate(shape, "static_ctx", isl=isl, osl=2, batch_size=1).ttft, shape)

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        return self._positive(lambda: self._estimate(shape, "static_gen", isl=context, osl=2, batch_size=batch).tpot, shape)

    def aggregated_ms(self, shape: EngineShape, isl: int, osl: int, batch: int) -> tuple[float, float]:
        """(TTFT, ITL) in ms of `batch` requests at once on an engine that computes prompts between decode steps."""
        both = self._guard(lambda: self._estimate(shape, "agg", isl=isl, osl=osl, batch_size=batch), shape)
        return float(both.ttft), float(both.tpot)

    def kv_tokens(self, shape: EngineShape) -> int:
        kind, share = _MEMORY[shape.backend]
        estimate = self._guard(
            lambda: self._memory.estimate_kv_cache(
                self.model, self.gpu, shape.backend, self.version(shape.backend),
                max_num_tokens=STEP_TOKENS, max_batch_size=MAX_SEQUENCES,
                memory_fraction_kind=kind, memory_fraction_value=share, **self._parallel(shape), **self._quantization,
            ),
            shape,
        )  # fmt: skip
        return int(estimate["total_kv_size_tokens"])

    def _estimate(self, shape: EngineShape, mode: str, **point: int) -> Any:
        return self._api.cli_estimate(
            self.model,
            self.gpu,
            mode=mode,
            backend_name=shape.backend,
            backend_version=self.version(shape.backend),
            **self._parallel(shape),
            **point,
            **self._quantization,
        )

    def _parallel(self, shape: EngineShape) -> dict[str, int]:
        parallel = {"tp_size": shape.tensor_parallel}
        return {**parallel, "moe_tp_size": shape.tensor_parallel, "moe_ep_size": 1} if self._moe else parallel

    def _positive(self, ask: Callable[[], float], shape: EngineShape) -> float:
        value = float(self._guard(ask, shape))
        if not 0.0 < value < float("inf"):
            raise EstimateError(f"{shape}: the library estimates {value} ms")
        return value

    def _guard(self, ask: Callable[[], Any], shape: EngineShape) -> Any:
        # Its "does not fit", "was not measured" and "cannot be split so" are ValueErrors, RuntimeErrors and AssertionErrors.
        try:
            return ask()
        except Unsupported:
            raise
        except (ValueError, RuntimeError, AssertionError, KeyError) as error:
            raise EstimateError(f"{shape}: {' '.join(str(error).split())[:200] or type(error).__name__}") from error


def known_gpu(asked: str, known: Iterable[str]) -> str:
    """The library's name of a GPU type, however people write it. Raises Unsupported with the nearest names.

    >>> known_gpu("NVIDIA H200-SXM", ["h100_sxm", "h200_sxm"])
    'h200_sxm'
    >>> known_gpu("h100", ["h100_pcie", "h100_sxm", "h200_sxm"])
    'h100_sxm'
    """
    names = sorted(known)
    plain = re.sub(r"[^a-z0-9]+", "_", asked.lower()).strip("_").removeprefix("nvidia_")
    for wanted in (plain, f"{plain}_sxm"):
        if wanted in names:
            return wanted
    begun = [name for name in names if name.startswith(f"{plain}_")] if plain else []
    if len(begun) == 1:
        return begun[0]
    raise Unsupported(f"hardware.gpuSku: {asked!r} is not known; nearest: {', '.join(_nearest(plain, names))}")


def known_model(asked: str, known: Iterable[str]) -> str:
    """The library's name of a model: itself, its base where an instruction-tuned model of the same shape is asked for, or a
    folder with a config.json. Raises Unsupported with the nearest names.

    >>> known_model("meta-llama/Llama-3.1-8B-Instruct", ["meta-llama/Meta-Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-8B"])
    'meta-llama/Meta-Llama-3.1-8B'
    """
    names = sorted(known)
    if (Path(asked) / "config.json").is_file():
        return asked
    for name in names:
        if name.lower() == asked.lower():
            return name
    same = [name for name in names if _plain_model(name) == _plain_model(asked)]
    if len(same) == 1:
        return same[0]
    raise Unsupported(f"model: {asked!r} is not known; nearest: {', '.join(_nearest(asked, names))}")


def _plain_model(name: str) -> str:
    """Owner and size without what does not change the shape: tuning, and the family's name said twice."""
    owner, _, rest = name.lower().rpartition("/")
    rest = re.sub(r"-(instruct|chat|it|base|hf)(?=-|$)", "", rest)
    return f"{owner}/{rest.removeprefix('meta-')}"


def _nearest(asked: str, names: list[str]) -> list[str]:
    lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(asked.lower(), list(lower), n=5, cutoff=0.3)
    return [lower[name] for name in found] or names
