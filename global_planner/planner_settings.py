"""Planner settings out of a topology: the layers that people write, and what the topology says once for all of them. Pure.

Settings stand in `planner` sections of the topology, of a group and of a pool, the narrower over the wider. What the rest of
the topology says already (SLA, minima, GPU budget, mode, names) is put in from there; to write it a second time is
allowed where it says the same, and refused by path where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from global_planner.topology_draft import Draft, DraftGroup, DraftPool, Problem
from pool_planner.compatibility import CARRIED, NONE_VALUES, ConfigError, read_config
from pool_planner.config import PlannerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A value that the topology says elsewhere. `where`: its path, or why it is so."""

    value: object
    where: str


# Two pools of one DGD may well differ in these; each is compared with its own pool.
_OF_EACH_POOL = ("min_endpoint", "max_gpu_budget", "profile_results_dir")
_NEEDED_OF_POOL = ("name", "role", "dgd", "gpu_type", "gpus_per_replica", "min_replicas", "planner")


def said_elsewhere(draft: Draft, group: DraftGroup, pool: DraftPool) -> Mapping[str, Said]:
    """By canonical planner field (`extensions.` included): what the topology says of this pool."""
    config, sla = pool.config, group.config.sla
    said: dict[str, Said] = {}
    if group.knows("sla"):
        said["ttft"] = Said(value=sla.ttft_ms, where=f"{group.path}.sla.ttft_ms")
        said["itl"] = Said(value=sla.itl_ms, where=f"{group.path}.sla.itl_ms")
    if group.knows("model"):
        said["model_name"] = Said(value=group.config.model, where=f"{group.path}.model")
    said["min_endpoint"] = Said(value=config.min_replicas, where=f"{pool.path}.min_replicas")
    budget = None if draft.gpus is None else draft.gpus.get(config.gpu_type)
    if budget is not None:
        said["max_gpu_budget"] = Said(value=budget.max, where=f"budget.gpus.{config.gpu_type}.max")
    engine = "prefill_engine_num_gpu" if config.role == "prefill" else "decode_engine_num_gpu"
    said[engine] = Said(value=config.gpus_per_replica, where=f"{pool.path}.gpus_per_replica")
    if pool.knows("profile"):
        said["profile_results_dir"] = Said(value=config.profile, where=f"{pool.path}.profile")
    if draft.cluster is not None and group.knows("namespace"):
        said["namespace"] = Said(
            value=f"{group.config.namespace or draft.cluster.namespace}-{config.dgd_name}",
            where="the namespace (the group's, or the cluster's) and the pool's dgd",
        )
    if draft.cluster is not None:
        said["extensions.cold_start_s"] = Said(value=draft.cluster.cold_start_s, where="cluster.cold_start_s")
    roles = {other.config.role for other in group.pools if other.config.dgd_name == config.dgd_name}
    mode = "disagg" if len(roles) > 1 else config.role
    said["mode"] = Said(value=mode, where=f"the roles of the pools of DGD {config.dgd_name}")
    if draft.cluster is None or draft.cluster.kind == "virtual":
        said["backend"] = Said(value="mocker", where="cluster.kind: virtual")
    said["environment"] = Said(value="global-planner", where="a topology is planned under one arbiter")
    said["throughput_metrics_source"] = Said(value="router", where="only the router can tell the pools of a model apart")
    return said


def check_planners(draft: Draft) -> list[Problem]:
    """Problems of every `planner` section: contradictions, unknown fields, values that no planner can use."""
    problems: dict[tuple[str, str], Problem] = {}
    for group in draft.groups:
        if not group.knows("planner"):
            continue
        for pools in dgds_of(group).values():
            if not all(pool.knows(*_NEEDED_OF_POOL) for pool in pools):
                continue
            for problem in _problems_of_dgd(draft, group, pools):
                # A section that several planners share has its problem once.
                problems.setdefault((problem.path, problem.text), problem)
    return list(problems.values())


def dgds_of(group: DraftGroup) -> Mapping[str, tuple[DraftPool, ...]]:
    """The pools of a group by DGD: those that one planner plans."""
    dgds: dict[str, tuple[DraftPool, ...]] = {}
    for pool in group.pools:
        dgds[pool.config.dgd_name] = (*dgds.get(pool.config.dgd_name, ()), pool)
    return dgds


def planner_config_of(draft: Draft, group: DraftGroup, pools: Sequence[DraftPool]) -> PlannerConfig:
    """The configuration of the planner of one DGD, which has `pools`. The draft has no problems."""
    return read_config(_merged(draft, group, pools), origin=group.path).config


def _problems_of_dgd(draft: Draft, group: DraftGroup, pools: Sequence[DraftPool]) -> list[Problem]:
    shared, own = _layers(draft, group), [_layer(pool) for pool in pools]
    problems = list(_differences(pools, own))
    for pool, layer in zip(pools, own, strict=True):
        problems += _contradictions((*shared, layer), said_elsewhere(draft, group, pool))
    told = {problem.path for problem in problems}
    for problem in _refused(draft, group, pools):
        if problem.path not in told:
            problems.append(problem)
    return problems


# ---- layers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    path: str
    settings: Mapping[str, Any]


def _layers(draft: Draft, group: DraftGroup) -> tuple[_Layer, ...]:
    """What all planners of a group share, widest first."""
    return (
        _Layer(path="planner", settings=draft.planner),
        _Layer(path=f"{group.path}.planner", settings=group.config.planner),
    )


def _layer(pool: DraftPool) -> _Layer:
    return _Layer(path=f"{pool.path}.planner", settings=pool.config.planner)


def _canonical(field: str) -> str:
    carried = CARRIED.get(field)
    return carried.target if carried is not None and carried.target is not None else field


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(the field as it is written, its canonical name, value), extensions one by one."""
    for field, value in settings.items():
        if field == "extensions" and isinstance(value, Mapping):
            for name, inner in value.items():
                yield f"extensions.{name}", f"extensions.{name}", inner
        else:
            name = _canonical(field)
            yield field, name, None if value in NONE_VALUES.get(name, ()) and value is not False else value


def _contradictions(layers: Sequence[_Layer], said: Mapping[str, Said]) -> Iterator[Problem]:
    for layer in layers:
        for field, name, value in _flat(layer.settings):
            if name in said and value != said[name].value:
                written = layer.settings.get(field, value)  # -1 for "unlimited" is shown as it was written
                text = f"{written!r} contradicts {said[name].where}, which says {said[name].value!r}: leave it out here"
                yield Problem(path=f"{layer.path}.{field}", text=text)


def _differences(pools: Sequence[DraftPool], layers: Sequence[_Layer]) -> Iterator[Problem]:
    """Pools of one DGD have one planner, which cannot have two values of one setting."""
    first: dict[str, tuple[DraftPool, object]] = {}
    for pool, layer in zip(pools, layers, strict=True):
        for field, name, value in _flat(layer.settings):
            other, theirs = first.setdefault(name, (pool, value))
            if theirs != value and name not in _OF_EACH_POOL:
                text = f"{value!r}, but {theirs!r} for {other.config.name!r}, which has the same planner (DGD)"
                yield Problem(path=f"{layer.path}.{field}", text=text)


def _merged(draft: Draft, group: DraftGroup, pools: Sequence[DraftPool]) -> dict[str, Any]:
    """One mapping, as a planner configuration file would have it: layers by precedence, then what is said elsewhere."""
    merged: dict[str, Any] = {}
    extensions: dict[str, Any] = {}
    for layer in (*_layers(draft, group), *map(_layer, pools)):
        for field, value in layer.settings.items():
            if field == "extensions" and isinstance(value, Mapping):
                extensions |= value
            else:
                merged[_canonical(field)] = value
    for pool in pools:
        for name, one in said_elsewhere(draft, group, pool).items():
            if name.startswith("extensions."):
                extensions[name.removeprefix("extensions.")] = one.value
            else:
                merged[name] = one.value
    # One floor for all pools of a planner: the lowest; each pool's own is in its setup.
    merged["min_endpoint"] = min(pool.config.min_replicas for pool in pools)
    merged.setdefault("extensions", extensions)
    return merged


def _refused(draft: Draft, group: DraftGroup, pools: Sequence[DraftPool]) -> Iterator[Problem]:
    """What the planner itself says of the merged settings, told where the field stands."""
    layers = (*_layers(draft, group), *map(_layer, pools))
    try:
        read_config(_merged(draft, group, pools), origin="")
    except ConfigError as error:
        for text in error.problems:
            named, _, rest = text.partition(":")
            fields = [field.strip() for field in named.split(",")]
            yield Problem(path=_origin(layers, fields), text=rest.strip() if len(fields) == 1 else text)


def _origin(layers: Sequence[_Layer], fields: Sequence[str]) -> str:
    """Where the first of `fields` that anybody wrote stands, the narrowest layer first."""
    for field in fields:
        for layer in reversed(layers):
            for written, name, _ in _flat(layer.settings):
                if field in (written, name) or field == written.partition(".")[0]:
                    return f"{layer.path}.{written if field in (written, name) else field}"
    return f"{layers[-1].path}.{fields[0]}"
