"""A planner on a virtual clock: each `step` is one tick with the traffic that the story tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pool_planner.compatibility import read_config
from pool_planner.performance.profile import Profile, load_profile
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.state import PlannerState, start
from pool_planner.types import Grant, Hold, Observation, Proposal, Report, WorkerLoad

DEMO_PROFILE = Path(__file__).parents[2] / "examples/two-models/profile"
PROFILE: Profile = load_profile(DEMO_PROFILE)

BASE: dict[str, Any] = {
    "throughput_adjustment_interval": 30,
    "load_predictor": "constant",
    "ttft": 3000.0,
    "itl": 500.0,
}


def config(**changes: Any) -> Any:
    return read_config({**BASE, **changes}, origin="story").config


def pool(role: str = "prefill", **changes: Any) -> PoolSetup:
    values: dict[str, Any] = {
        "name": role,
        "role": role,
        "ttft_ms": 3000.0,
        "itl_ms": 500.0,
        "profile": PROFILE,
        "max_replicas": 16,
        "cold_start_s": 45.0,
    }
    return PoolSetup(**{**values, **changes})


class Story:
    """One pool. The cluster follows every proposal at once unless the story says otherwise (`follow=False`)."""

    def __init__(self, *, have: int | None = 1, follow: bool = True, setup: PlannerSetup | None = None, **changes: Any) -> None:
        role = changes.pop("role", "prefill")
        pool_changes = changes.pop("pool", {})
        self.setup = setup or PlannerSetup(config=config(**changes), pools=(pool(role, **pool_changes),))
        self.state: PlannerState = start(self.setup)
        self.now = 0.0
        self.have = have
        self.starting = 0
        self.follow = follow
        self.report: Report | None = None
        self.cold_start_s: float | None = None

    @property
    def tick_s(self) -> float:
        return self.setup.tick_s

    def step(self, rps: float | None, *, isl: float | None = 1000.0, osl: float | None = 150.0, **changes: Any) -> Report:
        """One tick at `rps` requests/s (None: unknown)."""
        self.now += self.tick_s
        observation = Observation(
            pool=self.setup.pools[0].name,
            at_s=self.now,
            interval_s=self.tick_s,
            front_door_up=True,
            requests=None if rps is None else rps * self.tick_s,
            completed=None if rps is None else rps * self.tick_s,
            isl_tokens=isl if rps else None,
            osl_tokens=osl if rps else None,
        )
        return self.tell(replace(observation, **changes))

    def tell(self, observation: Observation | None) -> Report:
        name = self.setup.pools[0].name
        grants = {}
        if self.have is not None:
            grants[name] = Grant(
                pool=name,
                at_s=self.now,
                replicas_spec=self.have + self.starting,
                replicas_ready=self.have,
                replicas_starting=self.starting,
                cold_start_s=self.cold_start_s,
            )
        observations = {} if observation is None else {name: observation}
        self.state, reports = plan(self.state, observations, grants, self.now, self.setup)
        self.report = reports[0]
        if self.follow and isinstance(self.report, Proposal):
            self.have = self.report.wanted
        return self.report

    def run(self, seconds: float, rps: float | None, **changes: Any) -> Report:
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.step(rps, **changes)
        assert self.report is not None
        return self.report

    @property
    def wanted(self) -> int:
        assert isinstance(self.report, Proposal), self.report
        return self.report.wanted

    @property
    def held(self) -> str:
        assert isinstance(self.report, Hold), self.report
        return self.report.reason

    @property
    def reasons(self) -> str:
        assert isinstance(self.report, Proposal), self.report
        return "; ".join(self.report.reasons)


def worker(name: str, **gauges: float) -> WorkerLoad:
    return WorkerLoad(worker_id=name, **gauges)
