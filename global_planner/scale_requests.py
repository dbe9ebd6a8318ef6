"""The central scaling contract: what existing planners ask of a central one, and what such a request means here. Pure.

A request for replicas becomes a proposal without a curve: n of the wanted replicas serve the share n / wanted of the pool's
load. The load is the one that the request names, else the one last observed; without either, nobody can say what the replicas
would be worth, and the pool is held. The answer is `success` or `rejected`, both normal, or `error` where nothing was
understood.

What a request carries beside the contract is ignored: newer planners may say more, and none of it could set a priority or an
SLA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from global_planner.reports import MOST_REPLICAS
from global_planner.types import PoolSpec, Round
from pool_planner.types import Hold, Observation, PlannerStatus, Proposal, Report

Text = Annotated[str, Field(min_length=1, max_length=253)]


class ScaleRefused(ValueError):
    """A request that names what is not here, or what the caller may not ask for; the text is the answer's message."""


class _Target(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    sub_component_type: Literal["prefill", "decode"]
    desired_replicas: Annotated[int, Field(ge=0, le=MOST_REPLICAS)]
    component_name: Text | None = None


class ScaleRequest(BaseModel):
    """`timestamp`: Unix seconds. `predicted_load`: `requests_per_s`, or `num_requests` in one adjustment interval."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    caller_namespace: Text
    graph_deployment_name: Text
    k8s_namespace: Text
    target_replicas: list[_Target] = Field(min_length=1, max_length=16)
    blocking: bool = False
    timestamp: Annotated[float, Field(allow_inf_nan=False)] | None = None
    predicted_load: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One target, as it is meant here. `predicted_rps` None: the request does not say."""

    pool: PoolSpec
    desired: int
    predicted_rps: float | None


def read_request(body: bytes) -> ScaleRequest:
    """Raises ScaleRefused with the first thing that is wrong, and where."""
    try:
        return ScaleRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise ScaleRefused(f"{where}: {first['msg']} ({error.error_count()} problems in all)") from error


def asks(
    request: ScaleRequest, pools: Sequence[PoolSpec], allowed: frozenset[str], intervals_s: Mapping[str, float]
) -> tuple[Ask, ...]:
    """What the request asks of which pools. `intervals_s` by pool: the adjustment interval of its planner. Raises ScaleRefused:
    unknown deployments and components, pools that the caller may not speak for, one pool twice."""
    here = [pool for pool in pools if (pool.namespace, pool.dgd) == (request.k8s_namespace, request.graph_deployment_name)]
    if not here:
        where = f"{request.k8s_namespace}/{request.graph_deployment_name}"
        raise ScaleRefused(f"graph_deployment_name: no pool of the topology runs in {where}")
    found: dict[str, Ask] = {}
    for target in request.target_replicas:
        # Aggregated workers count as decode, as they do in that contract.
        roles = ("prefill",) if target.sub_component_type == "prefill" else ("decode", "agg")
        fitting = [
            pool
            for pool in here
            if pool.role in roles and (target.component_name is None or pool.component == target.component_name)
        ]
        if len(fitting) != 1:
            named = f" named {target.component_name!r}" if target.component_name else ""
            has = ", ".join(f"{pool.component} ({pool.role})" for pool in here)
            raise ScaleRefused(f"target_replicas: {len(fitting)} {target.sub_component_type} components{named} (has: {has})")
        pool = fitting[0]
        if pool.name not in allowed:
            raise ScaleRefused(f"this credential may not propose for pool {pool.name}")
        if pool.name in found:
            raise ScaleRefused(f"target_replicas: pool {pool.name} is asked for twice")
        rps = _predicted_rps(request.predicted_load, intervals_s.get(pool.name))
        found[pool.name] = Ask(pool=pool, desired=target.desired_replicas, predicted_rps=rps)
    return tuple(found.values())


def _predicted_rps(load: Mapping[str, Any] | None, interval_s: float | None) -> float | None:
    """Requests/s that a request expects; what is no sensible number is none."""
    if load is None:
        return None
    rate, count = _sensible(load.get("requests_per_s")), _sensible(load.get("num_requests"))
    if rate is not None:
        return rate
    return count / interval_s if count is not None and interval_s else None


def _sensible(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value < 1e9
    return float(value) if number else None


def as_report(ask: Ask, status: PlannerStatus | None, caller: str, now_s: float, valid_s: float) -> Report:
    """The request as a report of the pool, in force for `valid_s`."""
    rps = ask.predicted_rps if ask.predicted_rps is not None else _observed_rps(None if status is None else status.observation)
    if rps is None:
        reason = (
            f"{caller} asks for {ask.desired} replicas, but the pool's load is not known: nobody can say what they are worth"
        )
        return Hold(pool=ask.pool.name, at_s=now_s, reason=reason, expires_at_s=now_s + valid_s)
    return Proposal(
        pool=ask.pool.name,
        at_s=now_s,
        expires_at_s=now_s + valid_s,
        load_rps=rps,
        wanted=ask.desired,
        reasons=(f"{caller} asks for {ask.desired} replicas",),
    )


def _observed_rps(seen: Observation | None) -> float | None:
    return None if seen is None or seen.requests is None or seen.interval_s <= 0.0 else seen.requests / seen.interval_s


def answer(wanted: Sequence[Ask], done: Round | None) -> dict[str, Any]:
    """The contract's answer by the round that decided: rejected where a pool was granted less than it asked for."""
    if done is None:
        return {"status": "rejected", "message": "no round has decided yet; ask again", "current_replicas": {}}
    short = []
    for ask in wanted:
        grant = next((item for item in done.allocation.pools if item.pool == ask.pool.name), None)
        if grant is None or grant.held or grant.granted != ask.desired:
            given = "nothing" if grant is None else str(grant.granted)
            why = "" if grant is None else f": {grant.reason}"
            short.append(f"{ask.pool.name} asked for {ask.desired} and is granted {given}{why}")
        elif ask.pool.mode != "act":
            short.append(f"{ask.pool.name} is in mode {ask.pool.mode}: {ask.desired} would be granted, nothing is ordered")
    current = current_replicas(wanted, done)
    if short:
        return {"status": "rejected", "message": "; ".join(short), "current_replicas": current}
    decided = ", ".join(f"{ask.pool.name} {ask.desired}" for ask in wanted)
    return {"status": "success", "message": f"granted in round {done.inputs.round_no}: {decided}", "current_replicas": current}


def current_replicas(wanted: Sequence[Ask], done: Round) -> dict[str, int]:
    """Ready replicas by sub-component type; a pool that is unknown is absent, never 0."""
    current: dict[str, int] = {}
    for ask in wanted:
        holding = next((item for item in done.inputs.holdings if item.pool == ask.pool.name), None)
        if holding is not None and holding.spec is not None:
            kind = "prefill" if ask.pool.role == "prefill" else "decode"
            ready = sum(1 for replica in holding.replicas if replica.state == "ready")
            current[kind] = current.get(kind, 0) + ready
    return current
