"""Which series tell what, by source, and which of them belong to a pool. Pure.

`router` series are per pool where the router knows pools, else per Dynamo namespace; `frontend` series are per model and
namespace; `vllm` series are the engines' own, for deployments without Dynamo. Sources write label values differently:
namespaces with "-" or "_", models in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pool_planner.config import PlannerConfig
from pool_planner.setup import PoolSetup
from pool_planner.types import Role

Source = Literal["router", "frontend", "vllm"]
START_TIME = "process_start_time_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNames:
    """Metric names of one source. Counters: `started` (None: not exposed), `completed`, `shed`, and `offered` by request
    priority; `cache_queries` and `cache_hits` are prompt tokens looked for and found in prefix caches. Histograms without their
    suffixes; `offered_isl`: prompt lengths of arrivals (None: those of answers must do). `waiting` and `running` are gauges of
    requests; where `started` is missing, arrivals are completions plus what these grew by, if both are there."""

    prefix: str
    completed: str
    ttft: str
    itl: str
    isl: str
    osl: str
    duration: str
    started: str | None = None
    shed: str | None = None
    offered: str | None = None
    offered_isl: str | None = None
    cache_queries: str | None = None
    cache_hits: str | None = None
    waiting: str | None = None
    waiting_tokens: str | None = None
    running: str | None = None


def _dynamo(prefix: str, **own: str) -> SourceNames:
    return SourceNames(
        prefix=prefix,
        started=prefix + "requests_started_total",
        completed=prefix + "requests_total",
        ttft=prefix + "time_to_first_token_seconds",
        itl=prefix + "inter_token_latency_seconds",
        isl=prefix + "input_sequence_tokens",
        osl=prefix + "output_sequence_tokens",
        duration=prefix + "request_duration_seconds",
        **own,
    )


NAMES: Mapping[Source, SourceNames] = {
    "router": _dynamo(
        "dynamo_component_router_",
        shed="global_planner_router_shed_total",
        offered="global_planner_router_offered_total",
        offered_isl="global_planner_router_offered_input_sequence_tokens",
        cache_queries="global_planner_router_cache_queried_tokens_total",
        cache_hits="global_planner_router_cached_tokens_total",
        waiting="global_planner_router_queued_requests",
        waiting_tokens="global_planner_router_queued_tokens",
    ),
    "frontend": _dynamo(
        "dynamo_frontend_",
        cache_queries="dynamo_frontend_input_sequence_tokens_sum",
        cache_hits="dynamo_frontend_cached_tokens_sum",
    ),
    "vllm": SourceNames(
        prefix="vllm:",
        completed="vllm:request_success_total",
        ttft="vllm:time_to_first_token_seconds",
        itl="vllm:inter_token_latency_seconds",
        isl="vllm:request_prompt_tokens",
        osl="vllm:request_generation_tokens",
        duration="vllm:e2e_request_latency_seconds",
        cache_queries="vllm:prefix_cache_queries_total",
        cache_hits="vllm:prefix_cache_hits_total",
        waiting="vllm:num_requests_waiting",
        running="vllm:num_requests_running",
    ),
}
# What waits in the scheduler of Dynamo's own router, by worker type; router-wide, so no namespace is on it.
PENDING_REQUESTS = "dynamo_frontend_router_queue_pending_requests"
PENDING_TOKENS = "dynamo_frontend_router_queue_pending_isl_tokens"
VLLM_KV_USAGE = "vllm:kv_cache_usage_perc"
WORKER_PREFIX = "dynamo_frontend_worker_"
WORKER_GAUGES: Mapping[str, str] = {
    "active_prefill_tokens": WORKER_PREFIX + "active_prefill_tokens",
    "active_decode_blocks": WORKER_PREFIX + "active_decode_blocks",
    "last_ttft_s": WORKER_PREFIX + "last_time_to_first_token_seconds",
    "last_isl_tokens": WORKER_PREFIX + "last_input_sequence_tokens",
    "last_itl_s": WORKER_PREFIX + "last_inter_token_latency_seconds",
}


_PREFIXES = (*(names.prefix for names in NAMES.values()), "global_planner_router_")


def wanted(name: str) -> bool:
    """Whether any observation reads the metric `name`."""
    return name.startswith(_PREFIXES) or name == START_TIME


def normalised(label: str, value: str) -> str:
    """A label value as it is compared: model names in lower case, namespaces with "_"."""
    if label in ("model", "model_name"):
        return value.lower()
    return value.replace("-", "_") if label == "dynamo_namespace" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeries:
    """Which series are about one pool: those of `source` whose labels include `match`."""

    pool: str
    role: Role
    source: Source = "router"
    match: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> SourceNames:
        return NAMES[self.source]

    def mine(self, labels: Mapping[str, str]) -> bool:
        return all(normalised(key, labels.get(key, "")) == normalised(key, value) for key, value in self.match.items())

    def my_worker(self, labels: Mapping[str, str]) -> bool:
        """Worker gauges carry the pool where the router knows pools, else the worker's type."""
        if "pool" in labels:
            return labels["pool"] == self.pool
        kinds = ("prefill",) if self.role == "prefill" else ("decode", "backend")
        return labels.get("worker_type") in kinds


def by_pool(pool: PoolSetup) -> PoolSeries:
    """Series of our own router, which labels them with the pool."""
    return PoolSeries(pool=pool.name, role=pool.role, match={"pool": pool.name})


def by_namespace(pool: PoolSetup, config: PlannerConfig) -> PoolSeries:
    """Series of a deployment's own frontend, router or engines, which know namespace and model only."""
    if config.extensions.vllm_series:
        match = {} if config.model_name is None else {"model_name": config.model_name}
        return PoolSeries(pool=pool.name, role=pool.role, source="vllm", match=match)
    match = {"dynamo_namespace": config.namespace}
    if config.model_name is not None:
        match["model"] = config.model_name
    return PoolSeries(pool=pool.name, role=pool.role, source=config.throughput_metrics_source, match=match)
