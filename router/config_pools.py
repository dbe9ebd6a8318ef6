"""The part of the router's configuration that describes models: their pools, and how a pool is chosen. Pure.

Four ways of saying which pool of a stage serves a request, all of them data: `isl_max_tokens` on the pools (the compact
form), a grid per role, the JSON of existing global routers (`router.foreign`), or `selection: adaptive`, which predicts
latencies from the pools' profiles (`router.adaptive`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pool_planner.types import Role
from router.handoff import Engine, decodes_alone

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^/\s?#]+(/[^\s?#]*)?$")]

Pick = Literal["least_tokens", "round_robin", "power_of_two", "prefix_affinity"]
AxisName = Literal["isl_tokens", "context_tokens", "ttft_ms", "itl_ms"]
ANY_MODEL = "*"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DiscoveryConfig(Section):
    """Where a pool's endpoints are found: exactly one of `file` (a list of URLs, JSON or YAML, read again every `every_s`),
    `dns` ("name:port", every address of the name, asked every `every_s`) and `service` ("namespace/name:port", the
    EndpointSlices of a Kubernetes service, watched; `port` is a name or a number, and may be left out where there is one).
    `kubeconfig` absent: the pod's service account, else the default kubeconfig. Wall seconds."""

    file: str | None = None
    dns: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+:[0-9]{1,5}$")] | None = None
    service: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+(:[a-z0-9-]+)?$")] | None = None
    kubeconfig: str | None = None
    scheme: Literal["http", "https"] = "http"
    every_s: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _is_one(self) -> DiscoveryConfig:
        named = [name for name in ("file", "dns", "service") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of file, dns and service (has: {', '.join(named) or 'none'})")
        return self


class PoolConfig(Section):
    """One pool of a model. `name` is what the planner calls it; `dynamo_namespace` labels its metrics ("<k8s
    namespace>-<dgd>"; default: the name).

    Among the pools of one role, prompts up to `isl_max_tokens` come here (absent: any length); the smallest limit that fits
    wins. `order` ranks speed for priority retry (lower is faster). `max_in_flight` bounds the requests sent to one endpoint
    at a time; more wait in the router, where priority counts. An endpoint that has `max_outstanding_tokens` under way is given
    nothing more until it has less. Prefill hands over only to decode pools of the same
    `kv_format`. `bootstrap_port`: where an SGLang prefill engine's bootstrap server listens. `endpoints` are static,
    `discovery` finds them; both hold until the planner names others. `profile` (a directory of profile data, from the
    configuration's folder) and `cost_per_hour` (of one replica, in any unit) are what adaptive selection and `pool-router
    grid` weigh. `metrics_source`: who shows the pool's traffic; with `frontend`, its own, the router's series of it are left
    out, so that nobody counts a request twice.
    """

    name: str = Field(min_length=1, max_length=200)
    role: Role
    dynamo_namespace: str | None = None
    isl_max_tokens: PositiveInt | None = None
    order: int | None = None
    pick: Pick = "least_tokens"
    max_in_flight: PositiveInt | None = None
    max_outstanding_tokens: PositiveInt | None = None
    kv_format: str = ""
    bootstrap_port: Annotated[int, Field(gt=0, le=65535)] = 8998
    endpoints: tuple[HttpUrl, ...] = ()
    discovery: DiscoveryConfig | None = None
    metrics_source: Literal["router", "frontend"] = "router"
    profile: str | None = None
    cost_per_hour: PositiveFloat = 1.0

    @property
    def is_bounded(self) -> bool:
        """Whether a ready endpoint may be full, so that what ends there may let somebody in."""
        return self.max_in_flight is not None or self.max_outstanding_tokens is not None

    @property
    def namespace_label(self) -> str:
        """The `dynamo_namespace` label value: Prometheus series carry it with "-" turned into "_"."""
        return (self.dynamo_namespace or self.name).replace("-", "_")


class AxisConfig(Section):
    """One axis of a grid: `resolution` equal cells over [min, max]."""

    by: AxisName
    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)
    resolution: PositiveInt

    @model_validator(mode="after")
    def _has_a_width(self) -> AxisConfig:
        if self.max <= self.min:
            raise ValueError(f"max {self.max} must be above min {self.min}")
        return self


class OverrideConfig(Section):
    """Requests whose priority lies in [min_priority, max_priority] go to `pool` whatever the grid says; the first match
    wins."""

    min_priority: int
    max_priority: int
    pool: str

    @model_validator(mode="after")
    def _is_a_range(self) -> OverrideConfig:
        if self.max_priority < self.min_priority:
            raise ValueError(f"max_priority {self.max_priority} is below min_priority {self.min_priority}")
        return self


class GridConfig(Section):
    """`cells[i][j]…` is the pool for cell i of the first axis, j of the second, …; nested lists of pool names.
    With `chain`, the grid and the overrides are ignored: its pools are tried in that order."""

    axes: tuple[AxisConfig, ...] = Field(min_length=1, max_length=3)
    cells: Any
    overrides: tuple[OverrideConfig, ...] = ()
    chain: tuple[str, ...] = ()

    def flat_cells(self) -> tuple[str, ...]:
        """The pool names in row-major order. Raises ValueError where the nesting does not match the axes."""
        return tuple(_flatten(self.cells, [axis.resolution for axis in self.axes], "cells"))

    @model_validator(mode="after")
    def _shape_matches(self) -> GridConfig:
        self.flat_cells()
        return self


def _flatten(cells: Any, shape: list[int], path: str) -> Iterator[str]:
    if not shape:
        if not isinstance(cells, str):
            raise ValueError(f"{path} must be a pool name, not {cells!r}")
        yield cells
        return
    if not isinstance(cells, list | tuple) or len(cells) != shape[0]:
        size = len(cells) if isinstance(cells, list | tuple) else repr(cells)
        raise ValueError(f"{path} must be a list of {shape[0]} (its axis' resolution), not {size}")
    for index, item in enumerate(cells):
        yield from _flatten(item, shape[1:], f"{path}[{index}]")


class ModelConfig(Section):
    """One model (one group). It needs prefill and decode pools, or aggregated pools; with both, aggregated ones are used when
    the path through prefill and decode has no ready endpoint.

    `selection`: by `rules` (grids, else prompt length limits), or `adaptive`: the cheapest pool whose predicted latency meets
    the request's target. `priority_class`: when the waiting room is full, lower classes are shed first. `own_admitted_rps` and
    `own_burst` limit the model while no plan is in force (absent: unlimited). `patience_s`: how long a request waits for its
    turn where endpoints are ready (absent: the queue's deadline, as it waits for a replica that starts). `waiting_order`: who
    of those that wait, and are as important, comes first: by `arrival`, or the `shortest` prompt, which keeps the most
    requests within their TTFT and makes long prompts wait longest. Targets of requests that carry none: `default_ttft_ms`,
    `default_itl_ms` (absent: the middle of the grid's range). `spill`: when the chosen pool has no usable endpoint, another
    pool of the stage whose `isl_max_tokens` also fits serves the request; `priority_retry`: on failure, strictly faster pools
    (`order`) are tried, slowest first. `handoff`: how the engines pass KV blocks from prefill to decode.
    `decode_only_fallback`: when no prefill endpoint can be reached, decode does the prefill itself (default: where such an
    engine can). `tokenizer`: the model's `tokenizer.json`, to count prompts with (absent: lengths are estimated, and the
    estimate learns from answers).
    """

    model: str = Field(min_length=1, max_length=256)
    group: str | None = None
    priority_class: int = 0
    pools: tuple[PoolConfig, ...] = Field(min_length=1)
    selection: Literal["rules", "adaptive"] = "rules"
    grids: dict[Role, GridConfig] = Field(default_factory=dict)
    priority_retry: bool = False
    spill: bool = True
    decode_only_fallback: bool | None = None
    handoff: Engine = "vllm"
    tokenizer: str | None = None
    own_admitted_rps: PositiveFloat | None = None
    own_burst: PositiveFloat | None = None
    patience_s: PositiveFloat | None = None
    waiting_order: Literal["arrival", "shortest"] = "arrival"
    default_ttft_ms: PositiveFloat | None = None
    default_itl_ms: PositiveFloat | None = None

    @property
    def decodes_alone(self) -> bool:
        """Whether a request may go to decode without prefill."""
        return decodes_alone(self.handoff) if self.decode_only_fallback is None else self.decode_only_fallback

    def role_pools(self, role: Role) -> tuple[PoolConfig, ...]:
        return tuple(pool for pool in self.pools if pool.role == role)

    @model_validator(mode="after")
    def _can_serve(self) -> ModelConfig:
        problems = []
        roles = {pool.role for pool in self.pools}
        if "agg" not in roles and roles != {"prefill", "decode"}:
            missing = ", ".join(sorted({"prefill", "decode"} - roles))
            problems.append(f"{self.model!r} has no {missing} pool (it needs prefill and decode pools, or agg pools)")
        for role, grid in self.grids.items():
            names = [pool.name for pool in self.role_pools(role)]
            used = {*grid.flat_cells(), *grid.chain, *(override.pool for override in grid.overrides)}
            strangers = sorted(used - set(names))
            if strangers:
                allowed = ", ".join(names) or "(none)"
                problems.append(f"grids.{role} names {', '.join(strangers)}; the {role} pools are {allowed}")
        for pool in self.pools:
            if pool.endpoints and pool.discovery is not None:
                problems.append(f"pool {pool.name!r} has both endpoints and discovery; keep one")
        if self.selection == "adaptive":
            problems += self._cannot_adapt()
        formats = {pool.kv_format for pool in self.role_pools("decode")}
        for pool in self.role_pools("prefill"):
            if formats and pool.kv_format not in formats:
                problems.append(f"no decode pool takes kv_format {pool.kv_format!r} of prefill pool {pool.name!r}")
        if self.decode_only_fallback and not decodes_alone(self.handoff):
            problems.append(f"decode_only_fallback: a decode engine of {self.handoff} cannot prefill; leave it out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _cannot_adapt(self) -> Iterator[str]:
        if self.grids:
            yield "selection: adaptive and grids exclude each other; keep one"
        for name in ("default_ttft_ms", "default_itl_ms"):
            if getattr(self, name) is None:
                yield f"selection: adaptive needs {name}, the target of requests that name none"
        for pool in self.pools:
            if pool.profile is None:
                yield f"selection: adaptive needs a profile of pool {pool.name!r}"

    @field_validator("handoff", mode="before")
    @classmethod
    def _is_spoken(cls, value: Any) -> Any:
        if value not in get_args(Engine):
            known = ", ".join(map(repr, get_args(Engine)))
            raise ValueError(
                f"no hand-off is known for {value!r} (known: {known}). An engine that hands over behind its own frontend, as "
                "Dynamo does, is one pool of role agg here"
            )
        return value
