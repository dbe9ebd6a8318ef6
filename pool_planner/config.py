"""The planner's configuration: the guide's fields under the guide's names, and our additions under `extensions`. Pure.

Fields that existing configurations carry beside the guide's stand here too when something reads them; `compatibility` says
what becomes of every other. Reading a file or a text is `config_source`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Mode = Literal["disagg", "prefill", "decode", "agg"]
Backend = Literal["vllm", "sglang", "trtllm", "mocker"]
Predictor = Literal["constant", "arima", "kalman", "prophet", "auto"]

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


DEFAULT_HOLD_S = 60.0


class Extensions(BaseModel):
    """What this planner does beyond the guide. Each switch, when off, gives the guide's plain behaviour in that respect;
    `plain: true` turns all of them off at once (a switch that is also given explicitly keeps its given value)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plain: bool = Field(default=False, description="Plan as the guide describes: every switch below is off unless it is given.")
    offered_load: bool = Field(
        default=True,
        description="Forecast arrivals, with queued and shed requests. Off: completed requests, which lag.",
    )
    pending_tokens: bool = Field(
        default=True,
        description="What waits at the router counts by its prompt tokens where the router tells them: a few long prompts are "
        "as much prefill as many short ones. Off: by the number of requests.",
    )
    uncached_tokens: bool = Field(
        default=True,
        description="Plan prefill for the prompt tokens that are not found in prefix caches, where engines or router tell how "
        "many are. Off: for all prompt tokens.",
    )
    start_from_provisioned: bool = Field(
        default=True,
        description="Begin from what the pool has, and lower it only after the hold. Off: the first plan moves at once.",
    )
    cover_cold_start: bool = Field(
        default=True,
        description="Look at least one cold start ahead, for the highest load until then. Off: the next interval only.",
    )
    cold_start_s: NonNegativeFloat = Field(
        default=60.0, description="Seconds from order to ready, until the pool's own were measured."
    )
    prometheus_token_file: str | None = Field(
        default=None, description="File with the bearer token for Prometheus, read for every query because tokens are rotated."
    )
    prometheus_ca_file: str | None = Field(
        default=None, description="Certificates that Prometheus's own must be signed by. null: the system's."
    )
    metrics_timeout_s: PositiveFloat = Field(
        default=5.0, description="Seconds that Prometheus or a router may take to answer one query."
    )
    vllm_series: bool = Field(
        default=False, description="Read the engines' own vllm: series instead of Dynamo's, for deployments without Dynamo."
    )
    isl_until_known: PositiveFloat = Field(default=3000.0, description="Prompt tokens to plan for until some were measured.")
    osl_until_known: PositiveFloat = Field(default=150.0, description="Answer tokens to plan for until some were measured.")
    forecast_quantile: Share | None = Field(
        default=0.8,
        description="Plan on this quantile of the forecast rate (0.8 is best where a replica too few costs four times one too "
        "many), where no reserve is kept (remember_starts). null: on its mean, as the guide does.",
    )
    react_early: bool = Field(
        default=True,
        description="Raise inside a forecast interval when arrivals are already significantly above the forecast.",
    )
    remember_starts: NonNegativeFloat = Field(
        default=10.0,
        description="Keep a reserve for the bursts of the last so many cold starts, even where a lull is forecast: a burst "
        "comes sooner than a replica. How much: violation_price. 0: forget at once, no reserve.",
    )
    violation_price: Annotated[float, Field(gt=1, allow_inf_nan=False)] = Field(
        default=25.0,
        description="What a request outside its SLA costs, in the GPU time that a request takes of a busy replica: a replica "
        "is kept for bursts while what it alone serves in time takes more than 1/violation_price of its own. 10: frugal; "
        "60: careful.",
    )
    length_distribution: bool = Field(
        default=True, description="Plan on the distribution of ISL and OSL where histograms have it. Off: on their means."
    )
    queueing: bool = Field(
        default=True,
        description="TTFT is queue wait plus prefill, ITL varies with the number of running sequences; live latencies "
        "correct both slowly and within bounds (no_correction: false). Off: load over profiled throughput, with the guide's "
        "two ratios.",
    )
    attainment_target: Share = Field(
        default=0.97, description="Share of requests that are to meet their SLA (with `queueing`)."
    )
    check_survivors: bool = Field(
        default=True,
        description="Lower by load only if the survivors' load and the queueing model both say that fewer suffice.",
    )
    load_target: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.7,
        description="Share of the load at which the SLA is reached that load-based scaling plans for: at 1, as in the guide, "
        "replicas come when half of the requests miss it already.",
    )
    max_load_step: PositiveInt = Field(
        default=4,
        description="Most replicas that one load-based decision adds, when the regression asks for several. 1: as the guide.",
    )
    hold_s: NonNegativeFloat | None = Field(
        default=None,
        description="Lower only to what would have sufficed, at 1.1 x the load, for this long (seconds). null: 60, or 0 in "
        "environment global-planner, where the arbiter holds.",
    )
    idle_to_min: bool = Field(
        default=True, description="Zero requests through a living front door lead to the minimum, in steps."
    )
    idle_hold_s: NonNegativeFloat = Field(default=120.0, description="Seconds without a request before a pool counts as idle.")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """`plain` sets what is not given to the guide's behaviour."""
        if not isinstance(given, Mapping) or given.get("plain") is not True:
            return given
        return {**PLAIN, **given}


PLAIN: Mapping[str, object] = {
    "offered_load": False,
    "pending_tokens": False,
    "uncached_tokens": False,
    "start_from_provisioned": False,
    "cover_cold_start": False,
    "forecast_quantile": None,
    "react_early": False,
    "remember_starts": 0.0,
    "length_distribution": False,
    "queueing": False,
    "check_survivors": False,
    "load_target": 1.0,
    "max_load_step": 1,
    "hold_s": 0.0,
    "idle_to_min": False,
}


class PlannerConfig(BaseModel):
    """Settings of one planner, which plans the pools of one deployment. Times in seconds unless the name says otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # Scaling modes
    enable_throughput_scaling: bool = Field(default=True, description="Plan capacity from profile data and a traffic forecast.")
    enable_load_scaling: bool = Field(default=False, description="React to live per-worker load by online regression.")

    # Pre-deployment sweeping
    pre_deployment_sweeping_mode: Literal["none", "rapid", "thorough"] = Field(
        default="rapid",
        description="How the profile data was made: simulated (rapid), measured (thorough), or not at all (none).",
    )

    # Throughput-based scaling
    throughput_adjustment_interval: PositiveInt = Field(default=180, description="Seconds between throughput-based decisions.")
    min_endpoint: NonNegativeInt = Field(default=1, description="Fewest replicas of each pool.")
    max_gpu_budget: PositiveInt | None = Field(
        default=8, description="Most GPUs of all pools of this planner; null: unlimited."
    )
    ttft: PositiveFloat = Field(default=500.0, description="SLA for the time to first token (ms).")
    itl: PositiveFloat = Field(default=50.0, description="SLA for the time between tokens (ms).")
    no_correction: bool = Field(
        default=True,
        description="Trust the profile as it is. Forced to true while load-based scaling is on, which corrects by itself.",
    )

    # Load-based scaling
    load_adjustment_interval: PositiveInt = Field(default=5, description="Seconds between load-based decisions.")
    load_learning_window: PositiveInt = Field(default=50, description="Observations that the regression keeps.")
    load_scaling_down_sensitivity: Annotated[int, Field(ge=0, le=100)] = Field(
        default=80,
        description="How close to the limit the survivors of a scale-down may come: 0 never scale down, 100 aggressive.",
    )
    load_metric_samples: PositiveInt = Field(
        default=10, description="Worker metric samples averaged for each load-based decision."
    )
    load_min_observations: PositiveInt = Field(default=5, description="Observations before the regression decides anything.")
    load_router_metrics_url: str | None = Field(
        default=None, description="The router's /metrics for per-worker load; several separated by commas. null: discovered."
    )

    # General
    mode: Mode = Field(
        default="disagg", description="Which pools are planned: prefill and decode together, one of them, or agg."
    )
    backend: Backend = Field(default="vllm", description="Inference engine; decides the default names of worker components.")
    environment: Literal["kubernetes", "virtual", "global-planner"] = Field(
        default="kubernetes", description="Who carries decisions out: the Kubernetes API, the virtual cluster, or the arbiter."
    )
    namespace: str = Field(default="dynamo", description="Dynamo namespace of the deployment (environment: DYN_NAMESPACE).")

    # Traffic prediction
    load_predictor: Predictor = Field(
        default="arima",
        description="Forecast method. `auto` (ours) selects online by recent loss and falls back to the naive one.",
    )
    load_predictor_log1p: bool = Field(default=False, description="Forecast log(1 + value) instead of the value.")
    prophet_window_size: PositiveInt = Field(default=50, description="Intervals that Prophet looks back on.")
    load_predictor_warmup_trace: str | None = Field(
        default=None,
        description="Trace file (Mooncake JSONL or Azure CSV, may be .gz) that the forecast learns before it starts.",
    )

    # Kalman filter
    kalman_q_level: PositiveFloat = Field(default=1.0, description="Process noise of the level.")
    kalman_q_trend: PositiveFloat = Field(default=0.1, description="Process noise of the trend.")
    kalman_r: PositiveFloat = Field(default=10.0, description="Measurement noise.")
    kalman_min_points: PositiveInt = Field(
        default=5, description="Observations before the filter's forecast replaces the last value."
    )

    # Carried by existing configurations beside the guide's fields, and read
    profile_results_dir: str | None = Field(default=None, description="Directory of the profile data (npz or JSON).")
    model_name: str | None = Field(
        default=None, description="Model whose series are read; null: any that the namespace serves."
    )
    prefill_engine_num_gpu: PositiveInt | None = Field(
        default=None, description="GPUs of a prefill replica; null: what is observed."
    )
    decode_engine_num_gpu: PositiveInt | None = Field(
        default=None, description="GPUs of a decode or agg replica; null: as observed."
    )
    throughput_metrics_source: Literal["frontend", "router"] = Field(
        default="frontend", description="Whose traffic series are read."
    )
    metric_pulling_prometheus_endpoint: str | None = Field(
        default=None, description="Prometheus to query (environment: PROMETHEUS_ENDPOINT); null: scrape the router directly."
    )
    metric_reporting_prometheus_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="Port of this planner's own metrics (environment: PLANNER_PROMETHEUS_PORT); null: none."
    )
    no_operation: bool = Field(default=False, description="Decide and report, but ask for nothing: every report is a hold.")
    min_gpu_budget: PositiveInt | None = Field(
        default=None, description="Fewest GPUs of all pools of this planner; null: no floor."
    )

    extensions: Extensions = Field(default_factory=lambda: Extensions(), description="Our additions to the guide.")

    @field_validator("no_correction")
    @classmethod
    def _forced(cls, no_correction: bool, info: ValidationInfo) -> bool:
        return True if info.data.get("enable_load_scaling") else no_correction

    @model_validator(mode="after")
    def _rules(self) -> PlannerConfig:
        problems = broken_rules({name: getattr(self, name) for name in type(self).model_fields})
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def tick_s(self) -> float:
        """Seconds between two observations: the interval of the fastest scaling mode that is on."""
        return float(self.load_adjustment_interval if self.enable_load_scaling else self.throughput_adjustment_interval)

    @property
    def hold_s(self) -> float:
        """Seconds that a lower number must have sufficed before it is asked for."""
        if self.extensions.hold_s is not None:
            return self.extensions.hold_s
        return 0.0 if self.environment == "global-planner" else DEFAULT_HOLD_S

    @property
    def router_metrics_urls(self) -> tuple[str, ...]:
        return tuple(url.strip() for url in (self.load_router_metrics_url or "").split(",") if url.strip())


def broken_rules(values: Mapping[str, Any]) -> list[str]:
    """The rules between fields that `values` (valid field by field; a field that is missing is not judged) break."""
    problems = []
    throughput, load = values.get("enable_throughput_scaling"), values.get("enable_load_scaling")
    if throughput is False and load is False:
        problems.append(
            "enable_throughput_scaling, enable_load_scaling: both are false; at least one scaling mode must be enabled"
        )
    if throughput and values.get("pre_deployment_sweeping_mode") == "none":
        problems.append(
            "pre_deployment_sweeping_mode: 'none' leaves no profile data, which enable_throughput_scaling needs "
            "(use rapid or thorough, or turn throughput scaling off)"
        )
    slow, fast = values.get("throughput_adjustment_interval"), values.get("load_adjustment_interval")
    if throughput and load and slow is not None and fast is not None and fast >= slow:
        problems.append(
            f"load_adjustment_interval: {fast} must be shorter than throughput_adjustment_interval, which is {slow}"
        )
    window, least = values.get("load_learning_window"), values.get("load_min_observations")
    if load and window is not None and least is not None and least > window:
        problems.append(f"load_min_observations: {least} can never be reached within load_learning_window, which is {window}")
    floor, ceiling = values.get("min_gpu_budget"), values.get("max_gpu_budget")
    if floor is not None and ceiling is not None and floor > ceiling:
        problems.append(f"min_gpu_budget: {floor} is above max_gpu_budget, which is {ceiling}")
    return problems


# Default names of worker components, by backend and role.
COMPONENTS: Mapping[Backend, Mapping[str, str]] = {
    "vllm": {"prefill": "VllmPrefillWorker", "decode": "VllmDecodeWorker", "agg": "VllmWorker"},
    "sglang": {"prefill": "prefill", "decode": "decode", "agg": "decode"},
    "trtllm": {"prefill": "prefill", "decode": "decode", "agg": "decode"},
    "mocker": {"prefill": "prefill", "decode": "decode", "agg": "decode"},
}
