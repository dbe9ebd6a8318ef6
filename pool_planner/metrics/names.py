"""Which series tell what, by source, and which of them belong to a pool. Pure.

`router` series are per pool where the router knows pools, else per Dynamo namespace; `frontend` series are per model and
namespace. Sources write label values differently: namespaces with "-" or "_", models in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pool_planner.config import PlannerConfig
from pool_planner.setup import PoolSetup
from pool_planner.types import Role

Source = Literal["router", "frontend"]
_PREFIX: Mapping[Source, str] = {"router": "dynamo_component_router_", "frontend": "dynamo_frontend_"}
SHED = "global_planner_router_shed_total"
QUEUED_REQUESTS = "global_planner_router_queued_requests"
QUEUED_TOKENS = "global_planner_router_queued_tokens"
START_TIME = "process_start_time_seconds"
HISTOGRAMS: Mapping[str, str] = {
    "ttft": "time_to_first_token_seconds",
    "itl": "inter_token_latency_seconds",
    "isl": "input_sequence_tokens",
    "osl": "output_sequence_tokens",
    "duration": "request_duration_seconds",
}
WORKER_PREFIX = "dynamo_frontend_worker_"
WORKER_GAUGES: Mapping[str, str] = {
    "active_prefill_tokens": WORKER_PREFIX + "active_prefill_tokens",
    "active_decode_blocks": WORKER_PREFIX + "active_decode_blocks",
    "last_ttft_s": WORKER_PREFIX + "last_time_to_first_token_seconds",
    "last_isl_tokens": WORKER_PREFIX + "last_input_sequence_tokens",
    "last_itl_s": WORKER_PREFIX + "last_inter_token_latency_seconds",
}


def started(source: Source) -> str:
    return _PREFIX[source] + "requests_started_total"


def completed(source: Source) -> str:
    return _PREFIX[source] + "requests_total"


def histogram(source: Source, what: str) -> str:
    return _PREFIX[source] + HISTOGRAMS[what]


def wanted(name: str) -> bool:
    """Whether any observation reads the metric `name`."""
    return name.startswith(("dynamo_component_router_", "dynamo_frontend_", "global_planner_router_")) or name == START_TIME


def normalised(label: str, value: str) -> str:
    """A label value as it is compared: model names in lower case, namespaces with "_"."""
    if label == "model":
        return value.lower()
    return value.replace("-", "_") if label == "dynamo_namespace" else value


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeries:
    """Which series are about one pool: those of `source` whose labels include `match`."""

    pool: str
    role: Role
    source: Source = "router"
    match: Mapping[str, str] = field(default_factory=dict)

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
    """Series of a deployment's own frontend or router, which knows namespace and model only."""
    match = {"dynamo_namespace": config.namespace}
    if config.model_name is not None:
        match["model"] = config.model_name
    return PoolSeries(pool=pool.name, role=pool.role, source=config.throughput_metrics_source, match=match)
