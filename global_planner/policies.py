"""How decisions are made in a deployment: the one place where a topology becomes the policies of arbiter and rollout. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from global_planner.arbiter.state import ArbiterPolicy, Limit, Selector
from global_planner.config import LimitConfig, Topology
from global_planner.config_rules import ScheduleConfig, SelectorConfig
from global_planner.config_types import WEEKDAYS
from global_planner.memory import Policies
from global_planner.rollout_state import RolloutPolicy
from global_planner.types import Override, Schedule

CONFIGURED_BY = "the topology"
MOST_HOLD_S = 60.0  # where it is not configured: pools that start more slowly have remembered bursts against it


def policies_of(topology: Topology, *, unix_at_zero_s: float) -> Policies:
    """The policies of a topology. `unix_at_zero_s`: Unix time of schedules at model time 0."""
    config, cluster = topology.arbiter, topology.cluster
    gpus = topology.budget.gpus
    return Policies(
        arbiter=ArbiterPolicy(
            objective=config.objective,
            stability=config.stability,
            hold_s=MOST_HOLD_S if config.hold_s is None else config.hold_s,
            hold_least_s=min(MOST_HOLD_S, 2.0 * config.round_interval_s) if config.hold_s is None else None,
            move_horizon_s=config.move_horizon_s,
            cold_start_s=cluster.cold_start_s,
            cache_loss_s=config.cache_loss_s,
            max_moves_per_hour=config.max_moves_per_hour,
            trust_s=config.trust_s,
            debt_half_life_s=config.debt_half_life_s,
            prices={name: budget.price_per_hour for name, budget in gpus.items() if budget.price_per_hour is not None},
            limits=tuple(_limit(limit) for limit in topology.budget.limits),
            selectors=tuple(selector_of(selector) for selector in topology.selectors),
            schedules=tuple(schedule_of(schedule, lead_s=cluster.cold_start_s) for schedule in topology.schedules),
            surplus_pools=tuple(pool for budget in gpus.values() for pool in budget.surplus_pools),
            unix_at_zero_s=unix_at_zero_s,
        ),
        rollout=RolloutPolicy(
            drain_deadline_s=config.drain_deadline_s,
            # A start that failed has cost one cold start; as long is waited before the next. A round at least.
            backoff_base_s=config.backoff_s or max(cluster.cold_start_s, config.round_interval_s),
            backoff_max_s=config.backoff_max_s,
            # What ends unseen was ordered away up to one round before its count was seen to fall.
            termination_grace_s=_unseen_termination_s(topology) + config.round_interval_s,
        ),
    )


def _unseen_termination_s(topology: Topology) -> float:
    cluster = topology.cluster
    return cluster.termination_s if cluster.kind == "virtual" else cluster.kubernetes.unseen_termination_s


def overrides_of(topology: Topology, *, unix_at_zero_s: float) -> tuple[Override, ...]:
    """The overrides that stand in a topology; a person's name on them is that of the file."""
    return tuple(
        Override(
            pool=override.pool,
            kind=override.kind,
            replicas=override.replicas,
            expires_at_s=None
            if override.until is None
            else datetime.fromisoformat(override.until).timestamp() - unix_at_zero_s,
            by=CONFIGURED_BY,
            reason=override.reason,
        )
        for override in topology.overrides
    )


def overrides_in_force(configured: Sequence[Override], ordered: Sequence[Override]) -> tuple[Override, ...]:
    """Those of the topology, except where one of the same kind was set for the pool at run time, and those."""
    newer = {(item.pool, item.kind) for item in ordered}
    return (*(item for item in configured if (item.pool, item.kind) not in newer), *ordered)


def _limit(limit: LimitConfig) -> Limit:
    return Limit(
        name=limit.name,
        namespace=limit.namespace,
        gpu_type=limit.gpu_type,
        max_gpus=limit.max_gpus,
        max_cost_per_hour=limit.max_cost_per_hour,
    )


def selector_of(selector: SelectorConfig) -> Selector:
    """The arbiter's record. Raises ValueError where it sets a group's value by what only pools have."""
    match, values = selector.match, selector.set
    return Selector(
        name=selector.name,
        pool=match.pool,
        group=match.group,
        model=match.model,
        namespace=match.namespace,
        role=match.role,
        gpu_type=match.gpu_type,
        min_replicas=values.min_replicas,
        guarantee_replicas=values.guarantee_replicas,
        max_replicas=values.max_replicas,
        priority_class=values.priority,
        weight=values.weight,
    )


def schedule_of(schedule: ScheduleConfig, *, lead_s: float) -> Schedule:
    """The arbiter's record; `lead_s` where the schedule has none of its own."""
    return Schedule(
        name=schedule.name,
        start=schedule.start,
        duration_s=schedule.duration_s,
        timezone=schedule.timezone,
        days=tuple(WEEKDAYS.index(day) for day in schedule.days),
        date=schedule.date,
        lead_s=lead_s if schedule.lead_s is None else schedule.lead_s,
        pool=schedule.match.pool,
        group=schedule.match.group,
        min_replicas=schedule.set.min_replicas,
        load_factor=schedule.set.load_factor,
    )
