"""Whole rounds against the adversarial world, with a dumb arbiter: what rollout and round promise must not depend on a clever
one. A crash throws the memory away and goes on from the journal's records."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from global_planner.arbiter.state import ArbiterPolicy, ArbiterState
from global_planner.charge import charge_or_last_known, ordered_replicas
from global_planner.memory import PlannerMemory, Policies, Snapshot, memories
from global_planner.ports import Operators
from global_planner.rollout_state import RolloutPolicy
from global_planner.round import Ports, RoundConfig, run_round
from global_planner.types import Allocation, GroupGrant, GroupSpec, PoolGrant, PoolSpec, Round, RoundInputs
from pool_planner import wire
from pool_planner.types import Proposal
from tests.rollout.world import Crash, World

ROUND_S = 10.0
POLICIES = Policies(
    arbiter=ArbiterPolicy(hold_s=30.0), rollout=RolloutPolicy(drain_deadline_s=60.0, backoff_base_s=30.0, backoff_max_s=240.0)
)

_T = TypeVar("_T")


def finish(doing: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never waits for anything."""
    try:
        doing.send(None)
    except StopIteration as stop:
        result: _T = stop.value
        return result
    raise AssertionError("the round waited for something")


def grant_in_order(state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy) -> tuple[ArbiterState, Allocation]:
    """Minima, then what each pool wants, in the order of the pools, as far as the budget goes. Pools without a proposal or
    that cannot be read keep what they have."""
    holdings = {holding.pool: holding for holding in inputs.holdings}
    proposals = {report.pool: report for report in inputs.reports if isinstance(report, Proposal)}
    left = dict(inputs.budget.max_gpus)
    granted: dict[str, int] = {}
    held = set()
    for spec in inputs.pools:
        holding = holdings[spec.name]
        ordered = ordered_replicas(holding)
        if ordered is None or spec.name not in proposals:
            held.add(spec.name)
            granted[spec.name] = ordered or 0
            left[spec.gpu_type] -= charge_or_last_known(holding, spec) or 0
        else:
            granted[spec.name] = spec.min_replicas
            left[spec.gpu_type] -= spec.min_replicas * spec.gpus_per_replica
    for spec in inputs.pools:
        if spec.name in held:
            continue
        most = proposals[spec.name].wanted if spec.max_replicas is None else min(spec.max_replicas, proposals[spec.name].wanted)
        more = max(0, min(most - granted[spec.name], left[spec.gpu_type] // spec.gpus_per_replica))
        granted[spec.name] += more
        left[spec.gpu_type] -= more * spec.gpus_per_replica
    grants = tuple(
        PoolGrant(
            pool=spec.name,
            wanted=proposals[spec.name].wanted if spec.name in proposals else None,
            granted=granted[spec.name],
            before=ordered_replicas(holdings[spec.name]),
            held=spec.name in held,
            reason="no report" if spec.name in held else "as wanted",
        )
        for spec in inputs.pools
    )
    groups = tuple(GroupGrant(group=group.name, load_rps=1.0, attainment=1.0, admitted_rps=5.0) for group in inputs.groups)
    return state, Allocation(pools=grants, groups=groups, objective="goodput", value=0.0, gap=0.0, solver="in order")


def groups(pools: Sequence[PoolSpec]) -> tuple[GroupSpec, ...]:
    names = sorted({pool.group for pool in pools})
    return tuple(
        GroupSpec(name=name, model=f"demo/{name}", pools=tuple(pool.name for pool in pools if pool.group == name))
        for name in names
    )


@dataclass(slots=True)
class Records:
    """A journal in memory, through the real codec; a crash may come before or after any append."""

    world: World
    kept: list[bytes] = field(default_factory=list)

    def append(self, record: object) -> None:
        self.world._operation()
        self.kept.append(wire.encode(record))
        self.world._operation()

    def records(self) -> list[object]:
        return [wire.decode(content) for content in self.kept]


class Play:
    """A planner at work in a world."""

    def __init__(self, world: World, config: RoundConfig | None = None) -> None:
        self.world = world
        self.journal = Records(world)
        self.config = config or RoundConfig(
            budget=world.budget, groups=groups(world.specs), pools=tuple(world.specs), policies=POLICIES
        )
        self.operators: Operators | None = None
        self.memory = PlannerMemory()
        self.journal.kept.append(wire.encode(Snapshot(at_s=0.0, memory=self.memory, policies=self.config.policies)))
        self.rounds: list[Round] = []
        self.crashes = 0

    def want(self, **wanted: int | None) -> None:
        """Fresh proposals; None: no report. Underscores stand for dashes in pool names."""
        for name, number in wanted.items():
            pool = name.replace("_", "-")
            if number is None:
                self.world.reports_now.pop(pool, None)
            else:
                self.world.reports_now[pool] = proposal(pool, self.world.now_s, number)

    def round(self, pause_s: float = ROUND_S) -> Round | None:
        """One round and the time until the next; None when it crashed."""
        world = self.world
        world.operation = 0
        ports = Ports(cluster=world, router=world, pools=world, journal=self.journal, clock=world, operators=self.operators)
        done: Round | None = None
        try:
            self.memory, done = finish(run_round(ports, self.memory, self.config, timer=lambda: 0.0))
            self.rounds.append(done)
        except Crash:
            self.crashes += 1
            self.memory = list(memories(self.journal.records()))[-1]
        world.at_operation.clear()
        world.pass_time(pause_s)
        return done

    def until_quiet(self, most: int = 60, pause_s: float = ROUND_S) -> int:
        """Rounds until two in a row plan nothing while nothing is on its way any more."""
        quiet = 0
        for number in range(1, most + 1):
            for report in list(self.world.reports_now.values()):
                self.want(**{report.pool.replace("-", "_"): report.wanted})  # type: ignore[union-attr]
            moving = [pod for pool in self.world.pools.values() for pod in pool.pods if pod.state != "ready"]
            done = self.round(pause_s)
            waiting = [memory for memory in self.memory.rollout.pools.values() if memory.draining or memory.leaving]
            still = done is not None and not done.steps and not moving and not waiting and not self.world.late
            quiet = quiet + 1 if still else 0
            if quiet == 2:
                return number
        raise AssertionError(f"not quiet after {most} rounds: {self.rounds[-1].steps} {self.rounds[-1].conditions}")


def proposal(pool: str, at_s: float, wanted: int) -> Proposal:
    return Proposal(pool=pool, at_s=at_s, expires_at_s=at_s + 35.0, load_rps=1.0, wanted=wanted)
