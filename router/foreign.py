"""The JSON of existing global routers, turned into our configuration. Pure.

That form names pools by Dynamo namespace and index, one file for one model whose name is given on the command line; keys come
with and without an `_ms` suffix. What the form cannot say (listeners, limits) takes our defaults. `routing_priority` is the
ordered list of pools that some deployments use instead of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.config import ANY_MODEL, ConfigError, RouterConfig, validate

_AXES = {
    "prefill": (("isl", "isl_tokens"), ("ttft", "ttft_ms")),
    "decode": (("context_length", "context_tokens"), ("itl", "itl_ms")),
    "agg": (("ttft", "ttft_ms"), ("itl", "itl_ms"), ("isl", "isl_tokens")),
}
_ROLES = {"disagg": ("prefill", "decode"), "agg": ("agg",)}


def is_foreign(raw: Mapping[str, Any]) -> bool:
    """Whether a mapping is of that form: it has no `models`, and names pools by number."""
    return "models" not in raw and any(key in raw for key in ("num_prefill_pools", "num_decode_pools", "num_agg_pools"))


def translate(
    raw: Mapping[str, Any],
    *,
    source: str = "global router configuration",
    model: str = ANY_MODEL,
    default_ttft_ms: float | None = None,
    default_itl_ms: float | None = None,
) -> RouterConfig:
    """Our configuration for that form. `model` "*" serves every model name. Raises ConfigError with every problem and its
    path."""
    problems: list[str] = []
    mode = raw.get("mode", "disagg")
    if mode not in _ROLES:
        raise ConfigError(f"{source}: mode: {mode!r} is neither 'disagg' nor 'agg'")
    known = {"mode", "enable_priority_retry"}
    pools: list[dict[str, Any]] = []
    grids: dict[str, Any] = {}
    for role in _ROLES[mode]:
        suffixes = ("dynamo_namespaces", "priorities", "selection_strategy")
        keys = (f"num_{role}_pools", *(f"{role}_pool_{suffix}" for suffix in suffixes))
        known.update(keys)
        names = _names(raw, keys, problems)
        orders = raw.get(keys[2])
        if orders is not None and (not isinstance(orders, list) or len(orders) != len(names)):
            problems.append(f"{keys[2]}: must be a list of {len(names)} numbers, one for each pool")
            orders = None
        pools += [{"name": name, "role": role, "order": orders[i] if orders else None} for i, name in enumerate(names)]
        strategy = raw.get(keys[3])
        if not isinstance(strategy, dict):
            problems.append(f"{keys[3]}: is missing")
        else:
            grids[role] = _grid(strategy, role, names, keys[3], problems)
    problems += [f"{key}: unknown key (known: {', '.join(sorted(known))})" for key in sorted(set(raw) - known)]
    if raw.get("enable_priority_retry") and any(pool["order"] is None for pool in pools):
        problems.append("enable_priority_retry: needs *_pool_priorities for every role")
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
    described = {
        "model": model,
        "pools": pools,
        "grids": grids,
        "priority_retry": bool(raw.get("enable_priority_retry", False)),
        "spill": False,
        "default_ttft_ms": default_ttft_ms,
        "default_itl_ms": default_itl_ms,
    }
    return validate({"models": [described]}, source=source)


def _names(raw: Mapping[str, Any], keys: tuple[str, ...], problems: list[str]) -> list[str]:
    names = raw.get(keys[1])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        problems.append(f"{keys[1]}: must be a list of namespaces")
        return []
    if raw.get(keys[0]) != len(names):
        problems.append(f"{keys[0]}: is {raw.get(keys[0])!r}, but {keys[1]} names {len(names)}")
    return names


def _grid(strategy: Mapping[str, Any], role: str, names: list[str], path: str, problems: list[str]) -> dict[str, Any]:
    values = {key.removesuffix("_ms"): value for key, value in strategy.items()}
    axes = [
        {"by": by, **{bound: values.get(f"{name}_{bound}") for bound in ("min", "max", "resolution")}}
        for name, by in _AXES[role]
        if not (role == "agg" and name == "isl" and "isl_resolution" not in values)
    ]
    mapping = f"{role}_pool_mapping"
    fields = {f"{name}_{bound}" for name, _ in _AXES[role] for bound in ("min", "max", "resolution")}
    fields |= {mapping, "priority_overrides", "routing_priority"}
    problems += [f"{path}.{key}: unknown key" for key in sorted(set(values) - fields)]

    def name_of(index: Any, where: str) -> str:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(names):
            problems.append(f"{path}.{where}: pool {index!r} is not one of 0..{len(names) - 1}")
            return ""
        return names[index]

    def named(cells: Any, where: str) -> Any:
        if isinstance(cells, list):
            return [named(item, f"{where}[{i}]") for i, item in enumerate(cells)]
        return name_of(cells, where)

    overrides = []
    for i, rule in enumerate(values.get("priority_overrides") or ()):
        if not isinstance(rule, dict) or set(rule) != {"min_priority", "max_priority", "target_pool"}:
            problems.append(f"{path}.priority_overrides[{i}]: needs exactly min_priority, max_priority and target_pool")
            continue
        pool = name_of(rule["target_pool"], f"priority_overrides[{i}].target_pool")
        overrides.append({"min_priority": rule["min_priority"], "max_priority": rule["max_priority"], "pool": pool})
    chain = [name_of(index, f"routing_priority[{i}]") for i, index in enumerate(values.get("routing_priority") or ())]
    return {"axes": axes, "cells": named(values.get(mapping), mapping), "overrides": overrides, "chain": chain}
