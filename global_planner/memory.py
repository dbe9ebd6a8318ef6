"""What the planner must not forget, and the records in which the journal keeps it. Pure.

A round leaves two records: `Orders` before anything is applied (what is about to be done, and the memory as if it had been),
and the `Round` after. A restart takes the last `Orders` and, where the `Round` to it exists, what became of its steps: so an
order whose outcome a crash hid is still counted. Decisions are never run again to find out what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from global_planner import ports, rollout_state, types
from global_planner.arbiter import state as arbiter_state
from global_planner.arbiter.solve import arbitrate
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState
from global_planner.rollout import acting, after_apply, next_steps
from global_planner.rollout_state import RolloutPolicy, RolloutState
from global_planner.types import Allocation, Round, RoundInputs, Step
from pool_planner import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerMemory:
    """`round_no` is the number of the last round that was decided (0: none yet)."""

    round_no: int = 0
    arbiter: ArbiterState = field(default_factory=ArbiterState)
    rollout: RolloutState = field(default_factory=RolloutState)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """How decisions are made: beside inputs and memory, all that they depend on."""

    arbiter: ArbiterPolicy = field(default_factory=ArbiterPolicy)
    rollout: RolloutPolicy = field(default_factory=RolloutPolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The first record of every journal segment: the memory before its first round, and the policies of all its rounds."""

    at_s: float
    memory: PlannerMemory
    policies: Policies


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a round is about to apply (`steps`, those of pools that act), and the memory as if all of it were sent."""

    round_no: int
    at_s: float
    memory: PlannerMemory
    steps: tuple[Step, ...]


def decide(
    memory: PlannerMemory, inputs: RoundInputs, policies: Policies
) -> tuple[PlannerMemory, Allocation, tuple[Step, ...]]:
    """One decision: the allocation, the steps towards it, and the memory as if those of pools that act were all sent.
    Everything that it depends on is in the arguments, so the same call is what a journal is checked with."""
    arbiter, allocation = arbitrate(memory.arbiter, inputs, policies.arbiter)
    rollout, steps = next_steps(memory.rollout, inputs, allocation, policies.rollout)
    return PlannerMemory(round_no=inputs.round_no, arbiter=arbiter, rollout=rollout), allocation, steps


def after_round(memory: PlannerMemory, done: Round) -> PlannerMemory:
    """The memory after a round: that of its `Orders`, less the orders that certainly were not written."""
    acted = acting(done.steps, done.inputs, done.allocation)
    return replace(memory, rollout=after_apply(memory.rollout, acted, done.outcomes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A recorded round with what it was decided from: the memory before it and the policies. `continues` is False when that
    memory is not what the records before left (somebody started anew)."""

    memory: PlannerMemory
    policies: Policies
    orders: Orders
    done: Round
    continues: bool = True


def decided(records: Iterable[object]) -> Iterator[Decided]:
    """The rounds of a journal's records, each with what was before it. Orders whose round was cut off count as sent."""
    memory: PlannerMemory | None = None
    policies, orders, continues = Policies(), None, True
    for record in records:
        if isinstance(record, Snapshot | Orders) and orders is not None:
            memory, orders = orders.memory, None
        if isinstance(record, Snapshot):
            continues = continues and memory in (None, record.memory)
            memory, policies = record.memory, record.policies
        elif isinstance(record, Orders):
            orders = record
        elif isinstance(record, Round) and orders is not None and memory is not None:
            yield Decided(memory=memory, policies=policies, orders=orders, done=record, continues=continues)
            memory, orders, continues = after_round(orders.memory, record), None, True


def memories(records: Iterable[object]) -> Iterator[PlannerMemory]:
    """The memory at every point of a journal's records, in order; the last one is where a restart goes on."""
    memory: PlannerMemory | None = None
    for record in records:
        if isinstance(record, Snapshot | Orders):
            memory = record.memory
        elif isinstance(record, Round) and memory is not None:
            memory = after_round(memory, record)
        else:
            continue
        yield memory


wire.register_module(types)
wire.register_module(ports)
wire.register_module(arbiter_state)
wire.register_module(rollout_state)
for _record in (PlannerMemory, Policies, Snapshot, Orders):
    wire.strict(_record)
wire.register(PlannerMemory, Policies, Snapshot, Orders)
