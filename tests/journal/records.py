"""Journals of a small planner at work, made once and shared by the tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from global_planner.journal import Journal
from global_planner.memory import Orders, PlannerMemory
from global_planner.round import Ports, RoundConfig, run_round
from global_planner.types import Allocation, Budget, PoolGrant, PoolSpec, Round, RoundInputs
from pool_planner.types import DemandCurve, Proposal
from tests.rollout.play import POLICIES, finish, groups, proposal
from tests.rollout.world import World, specs


class AtWork:
    """A planner with a real journal in a virtual world; every `rounds` wants something else."""

    def __init__(self, directory: Path, **options: float) -> None:
        self.world = World(specs=specs(), budget=Budget(max_gpus={"h100": 14}))
        self.config = RoundConfig(
            budget=self.world.budget, groups=groups(self.world.specs), pools=tuple(self.world.specs), policies=POLICIES
        )
        self.directory = directory
        self.options = options
        self.start()

    def start(self) -> None:
        self.journal = Journal.open(self.directory, at_s=self.world.now_s, policies=POLICIES, **self.options)
        self.memory = self.journal.memory

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def rounds(self, *wanted: tuple[int, ...]) -> None:
        ports = Ports(cluster=self.world, router=self.world, pools=self.world, journal=self.journal, clock=self.world)
        for numbers in wanted:
            for spec, number in zip(self.world.specs, numbers, strict=True):
                self.world.reports_now[spec.name] = with_priorities(proposal(spec.name, self.world.now_s, number))
            self.memory, _ = finish(run_round(ports, self.memory, self.config, timer=lambda: 0.0))
            self.world.pass_time(10.0)


def with_priorities(report: Proposal) -> Proposal:
    """The same demand with what each number of replicas carries, a quarter of it of a higher priority."""
    most = report.wanted or 1
    capacity = tuple(report.load_rps * n / most for n in range(most + 1))
    return replace(
        report,
        curve=DemandCurve(attainment=tuple(min(1.0, n / most) for n in range(most + 1)), capacity_rps=capacity),
        load_by_priority={"0": 0.75 * report.load_rps, "9": 0.25 * report.load_rps},
    )


def orders(number: int) -> Orders:
    memory = replace(PlannerMemory(), round_no=number)
    return Orders(round_no=number, at_s=10.0 * number, memory=memory, steps=())


def round_record(number: int, padding: int = 0) -> Round:
    """A round of which nothing matters but its number and its size."""
    inputs = RoundInputs(
        round_no=number,
        at_s=10.0 * number,
        budget=Budget(max_gpus={"h100": 8}),
        groups=(),
        pools=(PoolSpec(**{**SPEC, "component": "x" * (padding or 1)}),),  # type: ignore[arg-type]
        holdings=(),
        reports=(),
    )
    grants = (PoolGrant(pool="chat-decode", wanted=2, granted=1, before=1, reason="as wanted"),)
    allocation = Allocation(pools=grants, groups=(), objective="goodput", value=1.5, gap=0.0, solver="none")
    return Round(inputs=inputs, allocation=allocation, steps=(), outcomes=(), charged_gpus={"h100": 2})


SPEC: dict[str, object] = {
    "name": "chat-decode",
    "group": "chat",
    "role": "decode",
    "gpu_type": "h100",
    "gpus_per_replica": 2,
    "dgd": "chat-main",
    "component": "decode",
    "namespace": "test",
}
