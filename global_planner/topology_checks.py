"""What no single section of a topology can know: names, GPU types, prompts without a pool, placement. Pure.

Each check is a generator of problems over a draft, and looks only at fields that the draft can trust.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain

from global_planner.config import ClusterConfig, GpuBudget, KubernetesConfig
from global_planner.planner_settings import check_planners
from global_planner.rule_checks import check_rules
from global_planner.topology_draft import Draft, DraftGroup, DraftPool, Problem, once
from pool_planner.performance.profile import Profile
from pool_planner.types import Role

LOOPBACK_NAMES = ("localhost",)


def check(draft: Draft, profiles: Mapping[str, Profile]) -> list[Problem]:
    """Every problem between the sections of `draft`. `profiles`: what could be read, by the path of the pool."""
    return list(
        chain(
            _names(draft),
            _gpu_types(draft),
            _replica_ranges(draft),
            _whole_replicas(draft),
            check_rules(draft),
            _stages(draft),
            _placement(draft),
            _profiles(draft, profiles),
            _cluster(draft),
            _arbiter(draft),
            _router(draft),
            _api(draft),
            check_planners(draft),
        )
    )


def _names(draft: Draft) -> Iterator[Problem]:
    groups: dict[str, str] = {}
    models: dict[str, str] = {}
    for group in draft.groups:
        if group.knows("name"):
            yield from once(groups, group.config.name, f"{group.path}.name", "a group")
        if group.knows("model"):  # metrics carry the model in lower case: two that differ in case only would be mixed up
            yield from once(models, group.config.model, f"{group.path}.model", "a model", key=str.lower)
    pools: dict[str, str] = {}
    for _, pool in draft.pools():
        if pool.knows("name"):
            yield from once(pools, pool.config.name, f"{pool.path}.name", "a pool")


def _gpu_types(draft: Draft) -> Iterator[Problem]:
    if draft.gpus is None:
        return
    for _, pool in draft.pools():
        if pool.knows("gpu_type") and pool.config.gpu_type not in draft.gpus:
            known = ", ".join(sorted(draft.gpus))
            yield Problem(path=f"{pool.path}.gpu_type", text=f"{pool.config.gpu_type!r} is not in budget.gpus (has: {known})")
    for gpu_type, budget in draft.gpus.items():
        if budget is None:
            continue
        path = f"budget.gpus.{gpu_type}"
        if budget.max is not None and budget.min_total > budget.max:
            yield Problem(path=f"{path}.min_total", text=f"{budget.min_total} is more than max ({budget.max})")
        if not all(pool.knows("name", "gpu_type") for _, pool in draft.pools()):
            continue
        takers = [pool.config.name for _, pool in draft.pools() if pool.config.gpu_type == gpu_type]
        has = f"(pools of that type: {', '.join(takers) or 'none'})"
        for index, name in enumerate(budget.surplus_pools):
            if name not in takers:
                text = f"{name!r} is not a pool on GPUs of type {gpu_type!r} {has}"
                yield Problem(path=f"{path}.surplus_pools[{index}]", text=text)
        if budget.min_total and not budget.surplus_pools:
            text = f"{budget.min_total}: say in surplus_pools which pools keep what nobody asks for {has}"
            yield Problem(path=f"{path}.min_total", text=text)


def _replica_ranges(draft: Draft) -> Iterator[Problem]:
    for _, pool in draft.pools():
        config = pool.config
        if config.max_replicas is None or not pool.knows("max_replicas"):
            continue
        for name in ("min_replicas", "guarantee_replicas"):
            if pool.knows(name) and getattr(config, name) > config.max_replicas:
                text = f"{getattr(config, name)} is more than max_replicas ({config.max_replicas})"
                yield Problem(path=f"{pool.path}.{name}", text=text)


def _budget_of(draft: Draft, pool: DraftPool) -> GpuBudget | None:
    if draft.gpus is None or not pool.knows("gpu_type"):
        return None
    return draft.gpus.get(pool.config.gpu_type)


def _whole_replicas(draft: Draft) -> Iterator[Problem]:
    for _, pool in draft.pools():
        budget = _budget_of(draft, pool)
        if pool.knows("gpus_per_replica") and pool.knows("nodes_per_replica"):
            gpus, nodes = pool.config.gpus_per_replica, pool.config.nodes_per_replica
            if gpus % nodes:
                text = f"{nodes} does not divide gpus_per_replica ({gpus}): each node has an equal part of a replica's GPUs"
                yield Problem(path=f"{pool.path}.nodes_per_replica", text=text)
        if budget is None or budget.max is None or not pool.knows("gpus_per_replica"):
            continue
        if pool.config.gpus_per_replica > budget.max:
            text = f"{pool.config.gpus_per_replica} is more than budget.gpus.{pool.config.gpu_type}.max ({budget.max})"
            yield Problem(path=f"{pool.path}.gpus_per_replica", text=f"{text}: no replica could ever start")


_VIRTUAL_ONLY = ("initial_cold_start_s", "termination_s", "nodes")


def _cluster(draft: Draft) -> Iterator[Problem]:
    """Settings of one kind of cluster stand with that kind only; those of Kubernetes agree with each other."""
    cluster = draft.cluster
    if cluster is None:
        return
    if cluster.kind == "virtual":
        if cluster.kubernetes != KubernetesConfig():
            yield Problem(path="cluster.kubernetes", text="is of cluster.kind: kubernetes only (cluster.kind is virtual)")
        if draft.gpus is not None:
            for number, kind in enumerate(cluster.nodes):
                if kind.gpu_type not in draft.gpus:
                    known = ", ".join(sorted(draft.gpus))
                    text = f"{kind.gpu_type!r} is not in budget.gpus (has: {known})"
                    yield Problem(path=f"cluster.nodes[{number}].gpu_type", text=text)
        return
    for name in _VIRTUAL_ONLY:
        if getattr(cluster, name) != ClusterConfig.model_fields[name].default:
            yield Problem(path=f"cluster.{name}", text="is of cluster.kind: virtual only (cluster.kind is kubernetes)")
    if draft.arbiter is not None and draft.arbiter.calendar_start is not None:
        text = "is of cluster.kind: virtual only: schedules in a real cluster follow its clock"
        yield Problem(path="arbiter.calendar_start", text=text)
    config, path = cluster.kubernetes, "cluster.kubernetes"
    if config.access == "in-cluster":
        for name in ("kubeconfig", "context"):
            if getattr(config, name) is not None:
                yield Problem(path=f"{path}.{name}", text="a pod's service account (access: in-cluster) reads no kubeconfig")
    if config.write_deadline_s >= config.lease_s:
        text = f"{config.write_deadline_s:g} must be less than lease_s ({config.lease_s:g}): a write may not outlive its lease"
        yield Problem(path=f"{path}.write_deadline_s", text=text)
    if draft.arbiter is not None and config.lease_s <= draft.arbiter.round_interval_s:
        interval_s = draft.arbiter.round_interval_s
        text = f"{config.lease_s:g} must be more than arbiter.round_interval_s ({interval_s:g}), at which it is renewed"
        yield Problem(path=f"{path}.lease_s", text=text)


def _arbiter(draft: Draft) -> Iterator[Problem]:
    arbiter = draft.arbiter
    if arbiter is not None and arbiter.backoff_s is not None and arbiter.backoff_s > arbiter.backoff_max_s:
        yield Problem(
            path="arbiter.backoff_s", text=f"{arbiter.backoff_s:g} is more than backoff_max_s ({arbiter.backoff_max_s:g})"
        )


def _stages(draft: Draft) -> Iterator[Problem]:
    for group in draft.groups:
        if not group.knows("pools") or not all(pool.knows("role") for pool in group.pools):
            continue
        roles = {pool.config.role for pool in group.pools}
        wanted: tuple[Role, ...] = () if roles == {"agg"} else ("prefill", "decode")
        missing = [role for role in wanted if role not in roles]
        if missing:
            has = ", ".join(sorted(roles)) or "none"
            text = f"no {' and no '.join(missing)} pool (has: {has}); a group needs prefill and decode pools, or agg pools"
            yield Problem(path=f"{group.path}.pools", text=text)
        for role in sorted(roles):
            yield from _prompts(group, [pool for pool in group.pools if pool.config.role == role], role)


def _prompts(group: DraftGroup, pools: list[DraftPool], role: Role) -> Iterator[Problem]:
    """Exactly one pool of a stage takes prompts of any length, and no two have the same limit."""
    if not all(pool.knows("isl_max_tokens") for pool in pools):
        return
    path = f"{group.path}.pools"
    unlimited = [pool.config.name for pool in pools if pool.config.isl_max_tokens is None]
    if not unlimited:
        longest = max(pool.config.isl_max_tokens or 0 for pool in pools)
        text = f"prompts over {longest} tokens have no {role} pool: exactly one {role} pool must be without isl_max_tokens"
        yield Problem(path=path, text=text)
    elif len(unlimited) > 1:
        text = f"{', '.join(unlimited)} all take prompts of any length: exactly one {role} pool may be without isl_max_tokens"
        yield Problem(path=path, text=text)
    limits: dict[int, DraftPool] = {}
    for pool in pools:
        limit = pool.config.isl_max_tokens
        if limit is None:
            continue
        if limit in limits:
            text = f"{limit} is the limit of {limits[limit].config.name!r} too: one of the two would get no prompts"
            yield Problem(path=f"{pool.path}.isl_max_tokens", text=text)
        elif group.knows("engine") and limit >= group.config.engine.max_model_len:
            text = f"{limit} is not below engine.max_model_len ({group.config.engine.max_model_len}): leave it out"
            yield Problem(path=f"{pool.path}.isl_max_tokens", text=text)
        limits.setdefault(limit, pool)


def _placement(draft: Draft) -> Iterator[Problem]:
    """A DGD belongs to one group, and one planner plans it: one pool, or one prefill and one decode pool."""
    dgds: dict[str, list[tuple[DraftGroup, DraftPool]]] = {}
    for group, pool in draft.pools():
        if not pool.knows("name", "dgd", "role", "component"):
            continue
        others = dgds.setdefault(pool.config.dgd_name, [])
        clash = _clash(group, pool, others)
        if clash:
            path = f"{pool.path}.{'dgd' if pool.config.dgd else 'name'}"
            yield Problem(path=path, text=f"DGD {pool.config.dgd_name!r} {clash}")
        for _, other in others:
            if pool.knows("planned") and other.knows("planned") and pool.config.planned != other.config.planned:
                text = f"{pool.config.planned!r}, but {other.config.planned!r} for {other.config.name!r}"
                yield Problem(path=f"{pool.path}.planned", text=f"{text}, which has the same planner (DGD)")
        others.append((group, pool))


def _clash(group: DraftGroup, pool: DraftPool, others: list[tuple[DraftGroup, DraftPool]]) -> str | None:
    config = pool.config
    for other_group, other in others:
        if other_group is not group:
            return f"holds pool {other.config.name!r} of {other_group.path} already; the pools of a DGD are of one group"
    for _, other in others:
        if config.component_name == other.config.component_name:
            return f"has component {config.component_name!r} already ({other.config.name}); set component, or another dgd"
    if (others and {config.role, *(other.config.role for _, other in others)} != {"prefill", "decode"}) or len(others) > 1:
        held = ", ".join(f"{other.config.role} pool {other.config.name!r}" for _, other in others)
        return f"holds {held} already; a DGD has one pool, or one prefill and one decode pool"
    return None


def _profiles(draft: Draft, profiles: Mapping[str, Profile]) -> Iterator[Problem]:
    """Every engine computes prompts (a decode engine those whose KV it lost); decode and agg engines also decode."""
    for group, pool in draft.pools():
        profile = profiles.get(pool.path)
        if profile is None or not pool.knows("role", "profile"):
            continue
        path, role = f"{pool.path}.profile", pool.config.role
        if profile.prefill is None:
            yield Problem(path=path, text=f"{pool.config.profile!r} has no prefill curve, and every engine computes prompts")
        if role == "prefill":
            continue
        if profile.decode is None:
            yield Problem(path=path, text=f"{pool.config.profile!r} has no decode curve, which a {role} pool needs")
            continue
        engine = group.config.engine
        capacity = engine.max_kv_tokens or profile.decode.max_kv_tokens
        if group.knows("engine") and capacity < engine.max_model_len:
            field = "max_kv_tokens" if engine.max_kv_tokens else "max_model_len"
            text = (
                f"{getattr(engine, field)}: the KV cache of {pool.config.name!r} holds {capacity} tokens, less than the "
                f"longest request (max_model_len {engine.max_model_len}), which could never run"
            )
            yield Problem(path=f"{group.path}.engine.{field}", text=text)


def _router(draft: Draft) -> Iterator[Problem]:
    router = draft.router
    if router is None:
        return
    if router.port and router.port == router.admin_port:
        yield Problem(
            path="router.admin_port", text=f"{router.admin_port} is router.port too; the two listeners need two ports"
        )
    if not router.allow_remote and not _is_loopback(router.host):
        text = f"{router.host!r} can be reached from other machines; if that is meant, set router.allow_remote: true"
        yield Problem(path="router.host", text=text)


def _api(draft: Draft) -> Iterator[Problem]:
    api = draft.api
    if api is None:
        return
    if not api.allow_remote and not _is_loopback(api.host):
        text = f"{api.host!r} can be reached from other machines; if that is meant, set api.allow_remote: true"
        yield Problem(path="api.host", text=text)
    seen: dict[str, str] = {}
    pools = [pool.config.name for _, pool in draft.pools() if pool.knows("name")]
    for index, credential in enumerate(api.credentials):
        path = f"api.credentials[{index}]"
        yield from once(seen, credential.name, f"{path}.name", "a credential")
        if (credential.sha256 is None) == (credential.token_file is None):
            yield Problem(path=path, text="needs sha256 or token_file, one of the two")
        for position, pattern in enumerate(credential.pools):
            if not any(fnmatchcase(pool, pattern) for pool in pools):
                text = f"{pattern!r} matches no pool (has: {', '.join(pools)})"
                yield Problem(path=f"{path}.pools[{position}]", text=text)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK_NAMES
