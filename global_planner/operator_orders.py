"""What operators may order, and what their orders mean in a deployment: approvals, overrides, what waits for a word. Pure.

An order is checked here against what is deployed and what was decided last, before it is written down; what it does in a round
is the arbiter's (overrides) and the rollout's (approvals, freeze).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from global_planner.config import Topology
from global_planner.explain import step_line
from global_planner.policies import schedule_of
from global_planner.rollout import acting_pools
from global_planner.rule_checks import check_rules
from global_planner.topology_draft import read_draft
from global_planner.types import Approval, Budget, Override, PoolSpec, Round, Schedule

OverrideKind = Literal["pin", "cap", "hold"]


class OrderRefused(ValueError):
    """An order that nobody could follow; the text says what there is instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A pool in mode `approve` whose steps are not applied. `ordered` None: unknown. `refused`: the word that stands against
    them, if one does."""

    pool: str
    ordered: int | None
    granted: int
    steps: tuple[str, ...]
    refused: Approval | None


def waiting(done: Round, approvals: Sequence[Approval], now_s: float) -> tuple[Waiting, ...]:
    """What waits for a word since the last round `done`, in the order of the pools. `approvals`: those of now, which may be
    newer than the round's."""
    found = []
    acts = acting_pools(done.inputs, done.allocation)
    for spec in done.inputs.pools:
        steps = tuple(step_line(step) for step in done.steps if step.pool == spec.name)
        grant = next((item for item in done.allocation.pools if item.pool == spec.name), None)
        if spec.mode != "approve" or spec.name in acts or not steps or grant is None:
            continue
        words = [
            item
            for item in approvals
            if item.pool == spec.name and item.replicas == grant.granted and now_s < item.expires_at_s
        ]
        if any(item.verdict == "approve" for item in words):
            continue
        refused = words[-1] if words else None
        found.append(Waiting(pool=spec.name, ordered=grant.before, granted=grant.granted, steps=steps, refused=refused))
    return tuple(found)


def approval_of(
    pools: Sequence[PoolSpec],
    done: Round | None,
    *,
    pool: str,
    replicas: int | None,
    verdict: Literal["approve", "refuse"],
    expires_at_s: float,
    by: str,
    reason: str = "",
) -> Approval:
    """A person's word on a pool. `replicas` None: on what the last round `done` granted it. Raises OrderRefused."""
    spec = known_pool(pools, pool)
    if spec.mode != "approve":
        why = "its steps are applied without a word" if spec.mode == "act" else "its steps are never applied"
        raise OrderRefused(f"{pool} is in mode {spec.mode}: {why}")
    if replicas is None:
        grant = None if done is None else next((item for item in done.allocation.pools if item.pool == pool), None)
        if grant is None:
            raise OrderRefused(f"no round has granted {pool} anything yet: say how many replicas with --replicas")
        replicas = grant.granted
    return Approval(pool=pool, replicas=replicas, verdict=verdict, expires_at_s=expires_at_s, by=by, reason=reason)


def override_of(
    pools: Sequence[PoolSpec],
    budget: Budget,
    *,
    pool: str,
    kind: OverrideKind,
    replicas: int | None,
    expires_at_s: float | None,
    by: str,
    reason: str = "",
) -> tuple[Override, tuple[str, ...]]:
    """A person's number for a pool, and what they should know about it. Raises OrderRefused."""
    spec = known_pool(pools, pool)
    known = []
    if replicas is not None:
        gpus, most = replicas * spec.gpus_per_replica, budget.max_gpus.get(spec.gpu_type)
        if kind == "pin" and most is not None and gpus > most:
            raise OrderRefused(f"{replicas} replicas of {pool} take {gpus} GPUs, and the budget of {spec.gpu_type} is {most}")
        if replicas < spec.min_replicas:
            known.append(f"{pool} is configured with at least {spec.min_replicas}; the override goes below that")
        if kind == "pin" and spec.max_replicas is not None and replicas > spec.max_replicas:
            known.append(f"{pool} is configured with at most {spec.max_replicas}; the override goes above that")
    if spec.mode != "act":
        then = (
            "its steps still wait for approval" if spec.mode == "approve" else "so the override changes only what is recorded"
        )
        known.append(f"{pool} is in mode {spec.mode}: {then}")
    made = Override(pool=pool, kind=kind, replicas=replicas, expires_at_s=expires_at_s, by=by, reason=reason)
    return made, tuple(known)


def known_pool(pools: Sequence[PoolSpec], name: str) -> PoolSpec:
    """Raises OrderRefused with the pools that there are."""
    for spec in pools:
        if spec.name == name:
            return spec
    raise OrderRefused(f"no pool {name!r} (has: {', '.join(spec.name for spec in pools)})")


def schedule_order(
    topology: Topology,
    *,
    name: str,
    start: str,
    duration_s: float,
    timezone: str,
    days: Sequence[str],
    date: str | None,
    lead_s: float | None,
    pool: str | None,
    group: str | None,
    min_replicas: int | None,
    load_factor: float | None,
) -> Schedule:
    """A known event that is set at run time; it is checked as if it stood in the topology. Raises OrderRefused."""
    if any(event.name == name for event in topology.schedules):
        raise OrderRefused(f"the topology has a schedule {name!r} already")
    written = {
        "name": name,
        "start": start,
        "duration_s": duration_s,
        "timezone": timezone,
        "days": list(days),
        "date": date,
        "lead_s": lead_s,
        "match": {"pool": pool, "group": group},
        "set": {"min_replicas": min_replicas, "load_factor": load_factor},
    }
    raw = topology.model_dump(mode="json")
    place = len(topology.schedules)
    raw["schedules"] = [*raw["schedules"], written]
    whole, draft, problems = read_draft(raw)
    problems += check_rules(draft)
    if whole is None or problems:
        own = f"schedules[{place}]."
        raise OrderRefused("\n".join(str(problem).removeprefix(own) for problem in problems))
    return schedule_of(whole.schedules[place], lead_s=topology.cluster.cold_start_s)
