"""A selection grid from the pools' curves: for each cell, the cheapest pool that serves everything in it in time. Pure.

A cell stands for its hardest request: the longest prompt and the tightest target in it; the last cell of the length axis
holds everything longer too. A pool serves a cell when its latency alone, times a margin for what waits in front, is within
the target; where no pool does, the fastest is taken. A grid cannot see the queue; adaptive selection does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from pool_planner.types import Role
from router.adaptive import Predictor
from router.config_pools import AxisConfig, AxisName, GridConfig, ModelConfig

MARGIN = 1.5
RESOLUTION = 8


def grids(
    model: ModelConfig,
    predictors: Mapping[str, Predictor],
    *,
    isl_max_tokens: float,
    longest_tokens: float,
    ttft_ms: float,
    itl_ms: float,
    osl_tokens: float,
    resolution: int = RESOLUTION,
    margin: float = MARGIN,
) -> dict[Role, GridConfig]:
    """A grid for each role of the model that has pools. The length axis goes from 0 to `isl_max_tokens`, prompts to
    `longest_tokens`; targets go from a quarter of `ttft_ms` and `itl_ms`, the model's own, to twice."""
    ttft = AxisConfig(by="ttft_ms", min=ttft_ms / 4, max=ttft_ms * 2, resolution=resolution)
    itl = AxisConfig(by="itl_ms", min=itl_ms / 4, max=itl_ms * 2, resolution=resolution)
    isl = AxisConfig(by="isl_tokens", min=0.0, max=isl_max_tokens, resolution=resolution)
    context = AxisConfig(by="context_tokens", min=0.0, max=isl_max_tokens, resolution=resolution)
    axes: dict[Role, tuple[AxisConfig, ...]] = {"prefill": (isl, ttft), "decode": (context, itl), "agg": (ttft, itl, isl)}
    made: dict[Role, GridConfig] = {}
    for role, of_role in axes.items():
        if model.role_pools(role):
            drawing = _Drawing(model, role, predictors, osl_tokens, margin, max(longest_tokens, isl_max_tokens))
            made[role] = GridConfig(axes=of_role, cells=drawing.cells(of_role, {}))
    return made


@dataclass(frozen=True, slots=True)
class _Drawing:
    model: ModelConfig
    role: Role
    predictors: Mapping[str, Predictor]
    osl_tokens: float
    margin: float
    longest_tokens: float

    def cells(self, axes: tuple[AxisConfig, ...], at: dict[AxisName, float]) -> Any:
        """Nested lists of pool names over the axes that are left; `at`: the hardest request along the others."""
        if not axes:
            return self.best(at)
        axis, rest = axes[0], axes[1:]
        return [self.cells(rest, {**at, axis.by: self.hardest(axis, i)}) for i in range(axis.resolution)]

    def hardest(self, axis: AxisConfig, index: int) -> float:
        width = (axis.max - axis.min) / axis.resolution
        if axis.by in ("ttft_ms", "itl_ms"):
            return axis.min + index * width
        return self.longest_tokens if index == axis.resolution - 1 else axis.min + (index + 1) * width

    def best(self, at: dict[AxisName, float]) -> str:
        tokens = at.get("isl_tokens", at.get("context_tokens", 0.0))
        ttft_ms, itl_ms = at.get("ttft_ms", inf), at.get("itl_ms", inf)
        pools = self.model.role_pools(self.role)
        fitting = [pool for pool in pools if pool.isl_max_tokens is None or tokens <= pool.isl_max_tokens]
        ranked = []
        for pool in fitting or pools:
            predicted = self.predictors[pool.name].predict([_IDLE], tokens, self.osl_tokens, itl_ms / self.margin)
            excess = self.margin * predicted.excess(ttft_ms, itl_ms)
            limit = pool.isl_max_tokens or inf
            ranked.append(((0.0, predicted.cost, limit) if excess <= 1.0 else (1.0, excess, limit), pool.name))
        return min(ranked)[1]


class _Idle:
    """An endpoint with nothing to do."""

    in_flight = 0
    outstanding_tokens = 0.0
    unstarted = 0
    unstarted_tokens = 0.0


_IDLE = _Idle()


def as_global_router(model: ModelConfig, made: Mapping[Role, GridConfig]) -> dict[str, Any]:
    """The same grids as the JSON of existing global routers, which name pools by Dynamo namespace and number."""
    roles: tuple[Role, ...] = ("agg",) if "agg" in made else ("prefill", "decode")
    out: dict[str, Any] = {"mode": "agg" if "agg" in made else "disagg", "enable_priority_retry": False}
    names = {"isl_tokens": "isl", "context_tokens": "context_length", "ttft_ms": "ttft", "itl_ms": "itl"}
    for role in roles:
        pools = model.role_pools(role)
        numbers = {pool.name: number for number, pool in enumerate(pools)}
        out[f"num_{role}_pools"] = len(pools)
        out[f"{role}_pool_dynamo_namespaces"] = [pool.dynamo_namespace or pool.name for pool in pools]
        strategy: dict[str, Any] = {}
        for axis in made[role].axes:
            name = names[axis.by]
            strategy |= {f"{name}_min": axis.min, f"{name}_max": axis.max, f"{name}_resolution": axis.resolution}
        strategy[f"{role}_pool_mapping"] = _numbered(made[role].cells, numbers)
        out[f"{role}_pool_selection_strategy"] = strategy
    return out


def _numbered(cells: Any, numbers: Mapping[str, int]) -> Any:
    return numbers[cells] if isinstance(cells, str) else [_numbered(cell, numbers) for cell in cells]
