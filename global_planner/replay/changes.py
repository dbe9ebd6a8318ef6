"""What other code would have decided in a recorded round, in sentences: grants, admission, steps. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from global_planner.explain import step_line
from global_planner.types import Allocation, Drain, GroupGrant, PoolGrant, Round, Step, Undrain


def changes(done: Round, allocation: Allocation, steps: tuple[Step, ...]) -> Iterator[str]:
    """A sentence for every pool that would be granted another number, every group that would be admitted another rate, and
    every step that would be taken or not. Nothing: the decision is the same, whatever is said of it."""
    number = done.inputs.round_no
    recorded = {grant.pool: grant for grant in done.allocation.pools}
    for grant in allocation.pools:
        before = recorded.get(grant.pool)
        if before is None or _decision(before) != _decision(grant):
            was = "nothing was granted" if before is None else f"was granted {_granted(before)}"
            yield f"round {number}, {grant.pool}: {was}, would be {_granted(grant)} ({grant.reason})"
    rates = {grant.group: grant for grant in done.allocation.groups}
    for group in allocation.groups:
        old = rates.get(group.group)
        if old is not None and _admits(old) != _admits(group):
            yield f"round {number}, {group.group}: {_admits(old)} was admitted, would be {_admits(group)}"
    if done.allocation.infeasible != allocation.infeasible:
        named = [", ".join(names) or "nobody" for names in (done.allocation.infeasible, allocation.infeasible)]
        yield f"round {number}: minima did not fit of {named[0]}, would not of {named[1]}"
    planned, would = [_acts(step) for step in done.steps], [_acts(step) for step in steps]
    yield from (f"round {number}: would not {step_line(s)}" for s, a in zip(done.steps, planned, strict=True) if a not in would)
    yield from (f"round {number}: would {step_line(s)}" for s, a in zip(steps, would, strict=True) if a not in planned)


def _decision(grant: PoolGrant) -> tuple[int, bool]:
    return grant.granted, grant.held


def _granted(grant: PoolGrant) -> str:
    return f"{grant.granted} (held)" if grant.held else str(grant.granted)


def _admits(group: GroupGrant) -> str:
    rate = "any rate" if group.admitted_rps is None else f"{group.admitted_rps:.4g} req/s"
    told = rate if group.in_flight is None else f"{rate}, {group.in_flight:.4g} under way"
    return told + "".join(f", {most:.4g} with {pool}" for pool, most in group.in_flight_by_pool.items())


def _acts(step: Step) -> tuple[object, ...]:
    """What a step does, without its reason."""
    if isinstance(step, Drain | Undrain):
        return (type(step), step.pool, tuple(step.replicas))
    return (type(step), step.pool, step.before, step.after, tuple(getattr(step, "victims", ())))
