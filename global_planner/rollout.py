"""From an allocation to the steps that may be taken now: releases first, growth only against GPUs that are free. Pure.

Nothing is planned ahead. Every round looks at what the cluster holds, lowers what is above its grant as far as it is empty of
work, and raises what is below with GPUs that no charge counts any more, so that a step that was lost, came late or half
happened is simply decided again. One order a pool and round, each on the version that was observed.
"""

from __future__ import annotations

from dataclasses import replace

from global_planner.charge import account, charge, ordered_replicas
from global_planner.growth import Climb, climb
from global_planner.release import keep_serving, release, take_back
from global_planner.rollout_observed import seen, with_memory
from global_planner.rollout_state import (
    BY_HAND,
    Order,
    PoolMemory,
    RolloutPolicy,
    RolloutState,
    after_apply,
    backing_off,
    effective_pools,
    ordering,
)
from global_planner.types import (
    Allocation,
    Grow,
    Holding,
    PoolGrant,
    PoolSpec,
    RoundInputs,
    Shrink,
    Step,
    Undrain,
)

__all__ = [
    "RolloutPolicy",
    "RolloutState",
    "acting",
    "acting_pools",
    "after_apply",
    "effective_pools",
    "next_steps",
    "with_memory",
]

DEFAULT_POLICY = RolloutPolicy()


def next_steps(
    state: RolloutState, inputs: RoundInputs, allocation: Allocation, policy: RolloutPolicy = DEFAULT_POLICY
) -> tuple[RolloutState, tuple[Step, ...]]:
    """The steps of this round, drains and releases before growth, and the memory as if all of them were sent.

    `inputs.holdings` are merged by `with_memory`. Pools that are held, unknown or in a rolling update get no order. Steps of
    pools that are not `acting_pools` are planned but not remembered: whoever applies steps sends only those of `acting`.
    After applying, `after_apply` takes back what certainly was not written.
    """
    holdings = {holding.pool: holding for holding in inputs.holdings}
    grants = {grant.pool: grant for grant in allocation.pools}
    acts = acting_pools(inputs, allocation)
    set_by_hand = {item.pool for item in inputs.overrides if item.kind == "hold" and item.by == BY_HAND}
    memories: dict[str, PoolMemory] = {}  # a pool that left the topology is forgotten
    for spec in inputs.pools:
        holding = holdings.get(spec.name)
        memory = state.of(spec.name)
        hand = spec.name in set_by_hand
        memories[spec.name] = memory if holding is None else seen(memory, holding, spec, policy, inputs.at_s, by_hand=hand)

    endpoint_steps: list[Step] = []
    releases: list[Step] = []
    for spec in inputs.pools:
        grant = grants.get(spec.name)
        holding = holdings.get(spec.name)
        if grant is None or holding is None or not _readable(holding):
            continue
        memory = memories[spec.name]
        if grant.held:
            serve = keep_serving(memory, holding, spec, f"held: {grant.reason}")
            if serve is not None:
                endpoint_steps.append(serve)
                memory = _forget_drains(memory, serve)
        else:
            plan = release(memory, holding, _bounded_below(spec, inputs), grant, policy, inputs.at_s)
            endpoint_steps.extend(plan.drains)
            if plan.undrain is not None:
                endpoint_steps.append(plan.undrain)
                memory = _forget_drains(memory, plan.undrain)
            memory = replace(memory, draining={**memory.draining, **dict(plan.drained)})
            if plan.order is not None:
                releases.append(plan.order)
                memory = ordering(memory, holding, spec, plan.order, inputs.at_s)
        if spec.name in acts:
            memories[spec.name] = memory

    grows = _grow(inputs, allocation, memories, {step.pool for step in releases}, acts)
    moved = {step.pool for step in releases} | {step.pool for step in grows}
    backs: list[Shrink] = []
    for spec in inputs.pools:
        grant, holding = grants.get(spec.name), holdings.get(spec.name)
        if spec.name not in moved and grant is not None and not grant.held and holding is not None and _readable(holding):
            back = take_back(holding, spec)
            if back is not None:
                backs.append(back)

    specs = {spec.name: spec for spec in inputs.pools}
    orders: tuple[Order, ...] = (*backs, *grows)
    for step in orders:
        spec = specs[step.pool]
        if spec.name in acts:
            memories[step.pool] = ordering(memories[step.pool], holdings[step.pool], spec, step, inputs.at_s)
    return RolloutState(pools=memories), (*endpoint_steps, *releases, *backs, *grows)


def acting_pools(inputs: RoundInputs, allocation: Allocation) -> frozenset[str]:
    """The pools whose steps are applied: those in mode `act`, and those in mode `approve` whose present grant a person has
    approved; none while everything is frozen."""
    if inputs.freeze is not None:
        return frozenset()
    granted = {grant.pool: grant.granted for grant in allocation.pools}
    approved = {
        item.pool
        for item in inputs.approvals
        if item.verdict == "approve" and inputs.at_s < item.expires_at_s and item.replicas == granted.get(item.pool)
    }
    return frozenset(
        spec.name for spec in inputs.pools if spec.mode == "act" or (spec.mode == "approve" and spec.name in approved)
    )


def acting(steps: tuple[Step, ...], inputs: RoundInputs, allocation: Allocation) -> tuple[Step, ...]:
    """The steps that are to be applied: those of the `acting_pools`."""
    pools = acting_pools(inputs, allocation)
    return tuple(step for step in steps if step.pool in pools)


def _bounded_below(spec: PoolSpec, inputs: RoundInputs) -> PoolSpec:
    """The pool with its minimum in force: what a person pins or caps below the configured one is not ours to keep up."""
    set_lower = [
        item.replicas
        for item in inputs.overrides
        if item.pool == spec.name
        and item.replicas is not None
        and item.kind in ("pin", "cap")
        and (item.expires_at_s is None or inputs.at_s < item.expires_at_s)
    ]
    return replace(spec, min_replicas=min([spec.min_replicas, *set_lower]))


def _readable(holding: Holding) -> bool:
    return ordered_replicas(holding) is not None and holding.gpus_per_replica is not None and not holding.updating


def _forget_drains(memory: PoolMemory, step: Undrain) -> PoolMemory:
    return replace(memory, draining={id_: order for id_, order in memory.draining.items() if id_ not in step.replicas})


def _grow(
    inputs: RoundInputs, allocation: Allocation, memories: dict[str, PoolMemory], releasing: set[str], acting: frozenset[str]
) -> tuple[Grow, ...]:
    """Growth of the pools that act, then, on paper, of the others with what those leave."""
    if allocation.infeasible:
        return ()
    free = {gpu_type: entry.free_gpus for gpu_type, entry in account(inputs.budget, inputs.pools, inputs.holdings).items()}
    grants = {grant.pool: grant for grant in allocation.pools}
    holdings = {holding.pool: holding for holding in inputs.holdings}
    classes = {group.name: group.priority_class for group in inputs.groups}
    steps: list[Grow] = []
    for acts in sorted({spec.name in acting for spec in inputs.pools}, reverse=True):
        pools = []
        for spec in inputs.pools:
            holding, grant = holdings.get(spec.name), grants.get(spec.name)
            if holding is None or grant is None or (ordered := ordered_replicas(holding)) is None:
                continue
            charged = charge(holding, spec)
            if charged is None:
                continue
            grows = (
                (spec.name in acting) == acts
                and spec.name not in releasing
                and _may_grow(memories[spec.name], holding, grant, inputs.at_s)
            )
            pools.append(
                Climb(
                    spec=spec,
                    holding=holding,
                    now=ordered,
                    target=max(ordered, grant.granted) if grows else ordered,
                    charged_gpus=charged,
                    priority_class=classes.get(spec.group, 0),
                    marginal_value=grant.marginal_value or 0.0,
                )
            )
        charged_before = {pool.spec.name: pool.charged_gpus for pool in pools}
        raised = climb(pools, free)
        for pool in pools:
            if pool.spec.name not in raised:
                continue
            room = free[pool.spec.gpu_type]
            if room is not None:
                free[pool.spec.gpu_type] = room - (pool.charged_gpus - charged_before[pool.spec.name])
            steps.append(_grow_step(pool, grants[pool.spec.name]))
    return tuple(steps)


def _may_grow(memory: PoolMemory, holding: Holding, grant: PoolGrant, at_s: float) -> bool:
    if grant.held or not _readable(holding) or backing_off(memory, at_s):
        return False
    # An order downwards that may still take effect comes first: raising on the same version could be what is lost.
    return memory.write is None or memory.write.lowest >= memory.write.before


def _grow_step(pool: Climb, grant: PoolGrant) -> Grow:
    before = ordered_replicas(pool.holding)
    if before is None:
        raise ValueError(f"{pool.spec.name}: growth of an unknown holding")
    partly = "" if pool.now == grant.granted else f"{pool.now} of {grant.granted} granted, the rest when GPUs are free: "
    reason = partly + grant.reason
    return Grow(pool=pool.spec.name, before=before, after=pool.now, version=pool.holding.version, reason=reason)
