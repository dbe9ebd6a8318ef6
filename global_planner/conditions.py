"""What people should know about a round beyond its steps, in sentences. Pure.

Silence would read as health: whatever keeps the planner from doing what it would do (an unknown pool, a budget that is
overdrawn, a start that failed, a write that was refused) is said in every round in which it is so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from global_planner.charge import account, ordered_replicas
from global_planner.release import overdue, start_limit_s
from global_planner.rollout import acting_pools
from global_planner.rollout_state import PoolMemory, RolloutState, backing_off
from global_planner.types import Allocation, Holding, PoolSpec, RoundInputs, Step, StepOutcome


def conditions(
    state: RolloutState,
    inputs: RoundInputs,
    allocation: Allocation,
    steps: Sequence[Step],
    outcomes: Sequence[StepOutcome],
    troubles: Sequence[str],
) -> tuple[str, ...]:
    """The sentences of one round; `state` is the memory after it, `troubles` what its ports could not do."""
    return (
        *troubles,
        *_budget(inputs),
        *_taken(inputs),
        *_infeasible(allocation),
        *_pools(state, inputs, allocation),
        *_outcomes(outcomes),
        *_waiting(inputs, allocation, steps),
    )


def _budget(inputs: RoundInputs) -> Iterator[str]:
    for gpu_type, entry in sorted(account(inputs.budget, inputs.pools, inputs.holdings).items()):
        if entry.max_gpus is not None and entry.charged_gpus > entry.max_gpus:
            over = entry.charged_gpus - entry.max_gpus
            yield (
                f"{gpu_type} is over its budget: {entry.charged_gpus} GPUs charged of {entry.max_gpus}; "
                f"nothing of it grows until {over} are given back"
            )
        if entry.unknown_pools and entry.max_gpus is not None:
            pools = _names(entry.unknown_pools)
            yield f"nothing of {gpu_type} grows: what {pools} holds was never known, and unknown is not zero"
        if entry.stale_pools:
            yield f"{_names(entry.stale_pools)} cannot be read and is charged what was last known"


def _taken(inputs: RoundInputs) -> Iterator[str]:
    """GPUs that the budget has free (because we released them, or nobody took them yet) and others use on the nodes."""
    if inputs.nodes is None:
        return
    on_nodes: dict[str, int] = {}
    for node in inputs.nodes:
        on_nodes[node.gpu_type] = on_nodes.get(node.gpu_type, 0) + node.free_gpus
    for gpu_type, entry in sorted(account(inputs.budget, inputs.pools, inputs.holdings).items()):
        free, there = entry.free_gpus, on_nodes.get(gpu_type)
        if free is not None and there is not None and free > there:
            yield (
                f"{free - there} of the {free} GPUs of {gpu_type} that the budget has free are used by others: "
                f"only {there} are free on the nodes"
            )


def _infeasible(allocation: Allocation) -> Iterator[str]:
    if allocation.infeasible:
        yield f"the minima of {_names(allocation.infeasible)} do not fit the budget together; nothing grows until they do"


def _pools(state: RolloutState, inputs: RoundInputs, allocation: Allocation) -> Iterator[str]:
    holdings = {holding.pool: holding for holding in inputs.holdings}
    grants = {grant.pool: grant for grant in allocation.pools}
    for spec in inputs.pools:
        grant, holding, memory = grants.get(spec.name), holdings.get(spec.name), state.of(spec.name)
        if holding is not None and holding.unknown is not None:
            yield f"{spec.name} is held: {holding.unknown}"
        elif grant is not None and grant.held:
            yield f"{spec.name}: {grant.reason}" if grant.reason.startswith("held") else f"{spec.name} is held: {grant.reason}"
        if holding is None:
            continue
        if holding.updating:
            yield f"{spec.name} is left alone while a rolling update is under way"
        if backing_off(memory, inputs.at_s) and memory.backoff_until_s is not None:
            wait_s = memory.backoff_until_s - inputs.at_s
            failed = _times(memory.failed_starts)
            yield f"{spec.name} does not grow for another {wait_s:.0f} s: {failed} failed to start in time"
        yield from _replicas(spec, holding, memory, inputs.at_s)


def _replicas(spec: PoolSpec, holding: Holding, memory: PoolMemory, at_s: float) -> Iterator[str]:
    ordered = ordered_replicas(holding)
    for replica in holding.replicas:
        if replica.state == "starting" and replica.unschedulable is not None:
            yield f"{spec.name}: {replica.id} cannot be placed: {replica.unschedulable}"
        if ordered is not None and ordered <= spec.min_replicas and overdue(replica, memory, holding, spec, at_s):
            limit_s = start_limit_s(memory, holding, spec)
            yield f"{spec.name}: {replica.id} has not started within {limit_s:.0f} s and is kept, the pool being at its minimum"
        order = memory.draining.get(replica.id)
        if order is not None and replica.state == "draining" and not replica.drain_acked and order.since_s < at_s:
            yield f"{spec.name}: {replica.id} waits to be released: not every router process has acknowledged its drain"


def _outcomes(outcomes: Sequence[StepOutcome]) -> Iterator[str]:
    for outcome in outcomes:
        if outcome.applied or outcome.error is None:
            continue
        what = type(outcome.step).__name__.lower()
        then = "observed again" if outcome.conflict else "decided again next round"
        yield f"{outcome.step.pool}: {what} was not applied and is {then}: {outcome.error}"


def _waiting(inputs: RoundInputs, allocation: Allocation, steps: Sequence[Step]) -> Iterator[str]:
    if inputs.freeze is not None:
        why = f": {inputs.freeze.reason}" if inputs.freeze.reason else ""
        since = f"{_by(inputs.freeze.by)} since {inputs.freeze.at_s:.0f} s"
        yield f"everything is frozen{since}, {len(steps)} steps are not applied{why}"
    granted = {grant.pool: grant.granted for grant in allocation.pools}
    refused = {
        item.pool: item
        for item in inputs.approvals
        if item.verdict == "refuse" and inputs.at_s < item.expires_at_s and item.replicas == granted.get(item.pool)
    }
    moving = {step.pool for step in steps} - acting_pools(inputs, allocation)
    for spec in inputs.pools:
        if spec.name in moving and spec.mode == "approve" and spec.name in refused:
            verdict = refused[spec.name]
            why = f": {verdict.reason}" if verdict.reason else ""
            yield f"{spec.name}: {verdict.replicas} replicas were refused{_by(verdict.by)}{why}"
        elif spec.name in moving and spec.mode == "approve" and inputs.freeze is None:
            yield f"{spec.name}: its steps towards {granted.get(spec.name)} replicas wait for approval"
    observed = sorted(spec.name for spec in inputs.pools if spec.name in moving and spec.mode == "observe")
    if observed:
        yield f"steps of {_names(observed)} are recorded only: their pools are observed, not moved"


def _by(person: str) -> str:
    return f" by {person}" if person else ""


def _names(pools: Sequence[str]) -> str:
    return pools[0] if len(pools) == 1 else f"{', '.join(pools[:-1])} and {pools[-1]}"


def _times(failed: int) -> str:
    return "a replica" if failed == 1 else f"{failed} times in a row a replica"
