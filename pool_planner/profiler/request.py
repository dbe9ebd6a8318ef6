"""What is to be profiled: a DynamoGraphDeploymentRequest, read and checked before anything runs. Pure.

Both forms of a request are read: `v1beta1` (spec.model, workload, sla, hardware, searchStrategy, features) and the older
`v1alpha1` (spec.profilingConfig.config.{sla, sweep, hardware, planner}); with or without the object around the spec. Every
problem is found before any is reported.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pool_planner.compatibility import ConfigError, read_config
from pool_planner.config import PlannerConfig

Sweeping = Literal["none", "rapid", "thorough"]
BACKENDS = ("auto", "vllm", "sglang", "trtllm")
STRATEGIES = ("rapid", "thorough")
PREFILL_GRANULARITY, DECODE_GRANULARITY = 16, 6

_SPEC_KEYS = (
    *("model", "backend", "image", "workload", "sla", "hardware", "searchStrategy", "autoApply", "features"),
    *("sweep", "useMocker", "enableGpuDiscovery", "overrides", "modelCache", "profilingJob"),
)
_IGNORED = {
    "enableGpuDiscovery": "GPUs are not looked for; hardware says what there is",
    "overrides": "write them into final_config.yaml",
    "modelCache": "write it into final_config.yaml",
    "profilingJob": "the profiler runs where it is called",
}
_WORKLOAD = ("isl", "osl", "requestRate", "concurrency")
_SLA = ("ttft", "itl", "e2eLatency", "optimizationType")
_HARDWARE = ("gpuSku", "numGpusPerNode", "totalGpus", "vramMb")


class RequestError(ValueError):
    """A request that cannot be served; `problems` are lines `path: what is wrong and what is allowed`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """A checked request. Latencies in ms; either `ttft_ms` and `itl_ms` or `e2e_ms` is given. `planner_fields` is
    features.planner as it was written, `planner` what it means. `given_gpus`: the shape is not to be chosen (GPUs by phase)."""

    name: str
    namespace: str
    model: str
    backend: str
    image: str
    isl: int
    osl: int
    gpu: str
    gpus_per_node: int
    sweeping: Sweeping
    planner: PlannerConfig
    planner_fields: Mapping[str, Any]
    ttft_ms: float | None = None
    itl_ms: float | None = None
    e2e_ms: float | None = None
    total_gpus: int | None = None
    request_rate_rps: float | None = None
    concurrency: int | None = None
    mocker: bool = False
    prefill_granularity: int = PREFILL_GRANULARITY
    decode_granularity: int = DECODE_GRANULARITY
    given_gpus: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases whose engines this deployment has: prefill, decode, or both."""
        mode = self.planner.mode
        return (mode,) if mode in ("prefill", "decode") else ("prefill", "decode")


def read_request(raw: object) -> ProfileRequest:
    """The request in a parsed DGDR (or in its spec alone). Raises RequestError with every problem."""
    if not isinstance(raw, Mapping):
        raise RequestError([f"expected a DynamoGraphDeploymentRequest or its spec, got {type(raw).__name__}"])
    metadata: Any = {}
    path = ""
    spec: Any = raw
    if "spec" in raw:
        kind = raw.get("kind", "DynamoGraphDeploymentRequest")
        if kind != "DynamoGraphDeploymentRequest":
            raise RequestError([f"kind: {kind!r} is not a DynamoGraphDeploymentRequest"])
        spec, metadata, path = raw["spec"], raw.get("metadata") or {}, "spec."
    if not isinstance(spec, Mapping):
        raise RequestError([f"{path or 'spec'}: expected a mapping, got {type(spec).__name__}"])
    if "profilingConfig" in spec:
        spec = _modern(spec)
    return _Reader(spec, path).request(metadata if isinstance(metadata, Mapping) else {})


class _Reader:
    """Takes values out of a spec and collects what is wrong with them."""

    def __init__(self, spec: Mapping[str, Any], path: str) -> None:
        self._spec = spec
        self._path = path
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def request(self, metadata: Mapping[str, Any]) -> ProfileRequest:
        spec = self._spec
        self._known(spec, _SPEC_KEYS, "")
        for key, instead in _IGNORED.items():
            if spec.get(key):
                self.warnings.append(f"{self._path}{key}: ignored; {instead}")
        if spec.get("autoApply") is True:
            self.warnings.append(f"{self._path}autoApply: nothing is applied here; use kubectl apply -f final_config.yaml")
        workload, sla, hardware = (
            self._section(key, known) for key, known in (("workload", _WORKLOAD), ("sla", _SLA), ("hardware", _HARDWARE))
        )
        model = self._text(spec, "model", "")
        image = self._text(spec, "image", "")
        backend = self._one_of(spec, "backend", BACKENDS, "auto")
        strategy = self._one_of(spec, "searchStrategy", STRATEGIES, "rapid")
        isl, osl = self._count(workload, "isl", "workload"), self._count(workload, "osl", "workload")
        gpu = self._text(hardware, "gpuSku", "hardware")
        per_node = self._count(hardware, "numGpusPerNode", "hardware")
        ttft, itl, e2e = (self._positive(sla, key, "sla") for key in ("ttft", "itl", "e2eLatency"))
        features = self._features()
        fields = features.get("planner") if isinstance(features.get("planner"), Mapping) else {}
        mocker = isinstance(features.get("mocker"), Mapping) and features["mocker"].get("enabled", True) is True
        if spec.get("useMocker") is True:
            mocker = True
        self._latencies(ttft, itl, e2e)
        planner, sweeping, written = self._planner(dict(fields or {}), strategy, backend, ttft, itl)
        if sweeping == "thorough" and backend == "auto":
            self._bad("backend", "'auto' cannot be measured: thorough profiling needs one of vllm, sglang, trtllm")
        if sweeping == "none" and mocker:
            self._bad("features.mocker", "a mocker plays the profile, and pre_deployment_sweeping_mode 'none' leaves none")
        granularity = [
            self._granularity(key, usual) for key, usual in (("prefill", PREFILL_GRANULARITY), ("decode", DECODE_GRANULARITY))
        ]
        total = self._count(hardware, "totalGpus", "hardware", needed=False)
        rate = self._positive(workload, "requestRate", "workload")
        concurrency = self._count(workload, "concurrency", "workload", needed=False)
        if self.problems:
            raise RequestError(self.problems)
        assert planner is not None and isl and osl and per_node
        return ProfileRequest(
            name=str(metadata.get("name") or _default_name(model)),
            namespace=str(metadata.get("namespace") or "default"),
            model=model,
            backend=backend,
            image=image,
            isl=isl,
            osl=osl,
            gpu=gpu,
            gpus_per_node=per_node,
            sweeping=sweeping,
            planner=planner,
            planner_fields=written,
            ttft_ms=ttft,
            itl_ms=itl,
            e2e_ms=e2e,
            total_gpus=total,
            request_rate_rps=rate,
            concurrency=concurrency,
            mocker=mocker,
            prefill_granularity=granularity[0],
            decode_granularity=granularity[1],
            given_gpus={
                phase: gpus
                for phase, gpus in (
                    ("prefill", planner.prefill_engine_num_gpu),
                    ("decode", planner.decode_engine_num_gpu),
                )
                if gpus is not None
            },
            warnings=tuple(self.warnings),
        )

    def _latencies(self, ttft: float | None, itl: float | None, e2e: float | None) -> None:
        sla = self._spec.get("sla")
        if not isinstance(sla, Mapping):
            return  # said already
        if "e2eLatency" in sla and ("ttft" in sla or "itl" in sla):
            self._bad("sla", "e2eLatency cannot stand beside ttft or itl: give one of the two forms")
        elif "e2eLatency" not in sla:
            missing = [key for key in ("ttft", "itl") if key not in sla]
            for key in missing:
                self._bad(f"sla.{key}", "is missing (ms; ttft and itl together, or e2eLatency alone)")

    def _planner(
        self, fields: dict[str, Any], strategy: str, backend: str, ttft: float | None, itl: float | None
    ) -> tuple[PlannerConfig | None, Sweeping, Mapping[str, Any]]:
        """features.planner as a configuration: the SLA and the backend of the request fill what it leaves out."""
        where = f"{self._path}features.planner"
        for name, value in (("ttft", ttft), ("itl", itl)):
            given = fields.get(name, fields.get(f"{name}_ms"))
            if given is not None and value is not None and given != value:
                self._bad(f"features.planner.{name}", f"{given} contradicts sla.{name}, which is {value:g}")
        sweeping = fields.get("pre_deployment_sweeping_mode", strategy)
        if sweeping not in ("none", *STRATEGIES):
            self._bad("features.planner.pre_deployment_sweeping_mode", f"{sweeping!r} is not one of none, rapid, thorough")
            return None, "none", fields
        if sweeping not in ("none", strategy) and "searchStrategy" in self._spec:
            self.warnings.append(
                f"{self._path}searchStrategy: {strategy}, but features.planner.pre_deployment_sweeping_mode says {sweeping}: "
                f"{sweeping} is used for both"
            )
        filled = {**fields, "pre_deployment_sweeping_mode": sweeping}
        for name, value in (("ttft", ttft), ("itl", itl)):
            if value is not None and f"{name}_ms" not in fields:
                filled[name] = value
        if backend != "auto":
            filled.setdefault("backend", backend)
        try:
            reading = read_config(filled, origin=where, environ={})
        except ConfigError as error:
            self.problems += [f"{where}.{problem}" for problem in error.problems]
            return None, "none", fields
        self.warnings += [f"{where}: {warning}" for warning in reading.warnings]
        if backend not in ("auto", reading.config.backend) and reading.config.backend != "mocker":
            self._bad("features.planner.backend", f"{reading.config.backend} contradicts backend, which is {backend}")
        return reading.config, sweeping, filled

    def _features(self) -> Mapping[str, Any]:
        features = self._spec.get("features") or {}
        if not isinstance(features, Mapping):
            self._bad("features", f"expected a mapping with planner and mocker, got {type(features).__name__}")
            return {}
        for key in ("planner", "mocker"):
            if key in features and not isinstance(features[key], Mapping):
                self._bad(f"features.{key}", f"expected a mapping, got {type(features[key]).__name__}")
        for key in sorted(set(features) - {"planner", "mocker"}):
            self.warnings.append(f"{self._path}features.{key}: ignored")
        return features

    def _section(self, key: str, known: Sequence[str]) -> Mapping[str, Any]:
        section = self._spec.get(key)
        if section is None:
            self._bad(key, f"is missing (has: {', '.join(known)})")
            return {}
        if not isinstance(section, Mapping):
            self._bad(key, f"expected a mapping, got {type(section).__name__}")
            return {}
        self._known(section, known, f"{key}.")
        return section

    def _known(self, section: Mapping[str, Any], known: Sequence[str], path: str) -> None:
        for key in section:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"has: {', '.join(known)}"
                self._bad(f"{path}{key}", f"unknown key ({hint})")

    def _text(self, section: Mapping[str, Any], key: str, path: str) -> str:
        value = section.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if section or not path:
            self._bad(f"{path}.{key}" if path else key, "is missing" if value is None else f"{value!r} is not a text")
        return ""

    def _one_of(self, section: Mapping[str, Any], key: str, allowed: Sequence[str], usual: str) -> str:
        value = section.get(key, usual)
        if value in allowed:
            return str(value)
        self._bad(key, f"{value!r} is not one of {', '.join(allowed)}")
        return usual

    def _count(self, section: Mapping[str, Any], key: str, path: str, *, needed: bool = True) -> int | None:
        value = section.get(key)
        if value is None:
            if needed and section:
                self._bad(f"{path}.{key}", "is missing")
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._bad(f"{path}.{key}", f"{value!r} is not a whole number >= 1")
            return None
        return value

    def _positive(self, section: Mapping[str, Any], key: str, path: str) -> float | None:
        value = section.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < float("inf"):
            self._bad(f"{path}.{key}", f"{value!r} is not a number > 0")
            return None
        return float(value)

    def _granularity(self, phase: str, usual: int) -> int:
        sweep = self._spec.get("sweep", {})
        value = sweep.get(phase, usual) if isinstance(sweep, Mapping) else usual
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            self._bad(f"profilingConfig.config.sweep: {phase} granularity", f"{value!r} is not a whole number >= 2")
            return usual
        return value

    def _bad(self, path: str, text: str) -> None:
        self.problems.append(f"{self._path}{path}: {text}")


def _modern(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A v1alpha1 spec in the words of v1beta1. What of it has no place there is left out."""
    outer = spec["profilingConfig"]
    config = outer.get("config", {}) if isinstance(outer, Mapping) else {}
    config = config if isinstance(config, Mapping) else {}
    sla, sweep, hardware = (
        section if isinstance(section := config.get(key), Mapping) else {} for key in ("sla", "sweep", "hardware")
    )
    overrides = spec.get("deploymentOverrides")
    image = overrides.get("workersImage") if isinstance(overrides, Mapping) else None
    rapid = _either(sweep, "useAiConfigurator", "use_ai_configurator")
    modern = {key: value for key, value in spec.items() if key not in ("profilingConfig", "deploymentOverrides")}
    modern.setdefault("image", image or (outer.get("profilerImage") if isinstance(outer, Mapping) else None))
    modern["workload"] = {key: sla[key] for key in ("isl", "osl") if key in sla}
    modern["sla"] = {key: sla[key] for key in ("ttft", "itl", "e2eLatency") if key in sla}
    modern["hardware"] = {
        key: value
        for key, value in (
            ("gpuSku", _either(sweep, "aicSystem", "aic_system") or _either(hardware, "gpuType", "gpu_type", "gpuModel")),
            ("numGpusPerNode", _either(hardware, "numGpusPerNode", "num_gpus_per_node")),
            ("totalGpus", _either(hardware, "maxNumGpusPerEngine", "max_num_gpus_per_engine")),
        )
        if value is not None
    }
    modern["searchStrategy"] = "rapid" if rapid else "thorough"
    planner = config.get("planner")
    if isinstance(planner, Mapping):
        modern["features"] = {"planner": {str(key).removeprefix("planner_"): value for key, value in planner.items()}}
    modern["sweep"] = {
        phase: value
        for phase in ("prefill", "decode")
        if (value := _either(sweep, f"{phase}InterpolationGranularity", f"{phase}_interpolation_granularity")) is not None
    }
    return modern


def _either(section: Mapping[str, Any], *keys: str) -> Any:
    return next((section[key] for key in keys if key in section), None)


def _default_name(model: str) -> str:
    plain = "".join(c if c.isalnum() else "-" for c in model.rpartition("/")[2].lower()).strip("-")
    return plain[:40] or "model"
