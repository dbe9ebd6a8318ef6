"""Small words for tests of the arbiter: pools, groups, holdings, proposals, and rounds in which all that is granted happens."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from global_planner.arbiter import ArbiterPolicy, ArbiterState, arbitrate
from global_planner.types import Allocation, Budget, GroupSpec, Holding, Override, PoolGrant, PoolSpec, Replica, RoundInputs
from pool_planner.types import DemandCurve, Hold, Proposal, Report, Role

EXAMPLES = {"nightly": 20_000, "ci": 500, "quick": 50}.get(os.environ.get("HYPOTHESIS_PROFILE", ""), 120)
"""How many examples a property is tried on; HYPOTHESIS_PROFILE=nightly asks for more."""

AT_ONCE = ArbiterPolicy(stability=False)


def pool(
    name: str,
    role: Role = "agg",
    *,
    group: str | None = None,
    gpus: int = 1,
    gpu_type: str = "h100",
    namespace: str = "demo",
    least: int = 0,
    most: int | None = None,
    guarantee: int = 0,
) -> PoolSpec:
    """`group` is what comes before the first "-" of the name, unless said."""
    return PoolSpec(
        name=name,
        group=group or name.split("-")[0],
        role=role,
        gpu_type=gpu_type,
        gpus_per_replica=gpus,
        dgd=name,
        component=role,
        namespace=namespace,
        min_replicas=least,
        max_replicas=most,
        guarantee_replicas=guarantee,
    )


def group(name: str, *, priority: int = 0, weight: float = 1.0) -> GroupSpec:
    return GroupSpec(name=name, model=f"demo/{name}", priority_class=priority, weight=weight)


def holding(spec: PoolSpec, replicas: int, *, ready: int | None = None, at_s: float = 0.0, cold_s: float = 60.0) -> Holding:
    """`replicas` in spec, all of them ready unless said."""
    up = replicas if ready is None else ready
    return Holding(
        pool=spec.name,
        at_s=at_s,
        spec=replicas,
        gpus_per_replica=spec.gpus_per_replica,
        replicas=tuple(Replica(id=f"{spec.name}-{n}", state="ready" if n < up else "starting") for n in range(replicas)),
        cold_start_s=cold_s,
    )


def proposal(
    name: str, load: float, per_replica: float, *, wanted: int | None = None, at_s: float = 0.0, top: int = 60
) -> Proposal:
    """A pool of which every replica carries `per_replica` requests/s."""
    capacity = tuple(per_replica * n for n in range(top + 1))
    share = lambda rate: tuple(min(1.0, c / rate) if rate > 0 else 1.0 for c in capacity)  # noqa: E731
    return Proposal(
        pool=name,
        at_s=at_s,
        expires_at_s=at_s + 30.0,
        load_rps=load,
        wanted=math.ceil(load / per_replica - 1e-9) if wanted is None else wanted,
        curve=DemandCurve(attainment=share(load), capacity_rps=capacity),
        attainment_headroom=share(load * 1.1),
    )


def steps(name: str, load: float, attainment: Sequence[float], *, at_s: float = 0.0) -> Proposal:
    """A pool with any attainment curve; it wants the first number that attains the most."""
    return Proposal(
        pool=name,
        at_s=at_s,
        expires_at_s=at_s + 30.0,
        load_rps=load,
        wanted=list(attainment).index(attainment[-1]),
        curve=DemandCurve(attainment=tuple(attainment)),
    )


def inputs(
    pools: Iterable[PoolSpec],
    reports: Iterable[Report],
    *,
    budget: Mapping[str, int],
    have: Mapping[str, int] | None = None,
    groups: Iterable[GroupSpec] | None = None,
    floor: Mapping[str, int] | None = None,
    overrides: tuple[Override, ...] = (),
    at_s: float = 0.0,
) -> RoundInputs:
    """One round; a pool has its minimum where `have` does not say otherwise."""
    specs = tuple(pools)
    present = have or {}
    return RoundInputs(
        round_no=1,
        at_s=at_s,
        budget=Budget(max_gpus=dict(budget), min_total_gpus=dict(floor or {})),
        groups=tuple(groups) if groups is not None else tuple(group(name) for name in dict.fromkeys(s.group for s in specs)),
        pools=specs,
        holdings=tuple(holding(spec, present.get(spec.name, spec.min_replicas), at_s=at_s) for spec in specs),
        reports=tuple(reports),
        overrides=overrides,
    )


def decide(round_inputs: RoundInputs, policy: ArbiterPolicy = AT_ONCE) -> Allocation:
    return arbitrate(ArbiterState(), round_inputs, policy)[1]


def granted(allocation: Allocation) -> dict[str, int]:
    return {grant.pool: grant.granted for grant in allocation.pools}


def line(allocation: Allocation, name: str) -> PoolGrant:
    return next(grant for grant in allocation.pools if grant.pool == name)


@dataclass
class Fleet:
    """Rounds on a virtual clock: what is granted is there and ready in the next round. With `drains` a pool is lowered only
    once it was to be lowered in more than so many rounds in a row, and another grows only into GPUs that are free then."""

    pools: Sequence[PoolSpec]
    groups: Sequence[GroupSpec]
    budget: dict[str, int]
    policy: ArbiterPolicy
    per_replica: Mapping[str, float]
    interval_s: float = 10.0
    cold_start_s: float = 60.0
    drains: int = 0
    at_s: float = 0.0
    draining: dict[str, int] = field(default_factory=dict)
    have: dict[str, int] = field(default_factory=dict)
    state: ArbiterState = field(default_factory=ArbiterState)
    overrides: tuple[Override, ...] = ()
    last: Allocation | None = None

    def __post_init__(self) -> None:
        for spec in self.pools:
            self.have.setdefault(spec.name, spec.min_replicas)

    def proposals(self, loads: Mapping[str, float]) -> list[Report]:
        """Loads by group or by pool; a pool without one says that it cannot know."""
        reports: list[Report] = []
        for spec in self.pools:
            load = loads.get(spec.name, loads.get(spec.group))
            if load is None:
                reports.append(Hold(pool=spec.name, at_s=self.at_s, reason="no metrics", expires_at_s=self.at_s + 30.0))
            else:
                reports.append(proposal(spec.name, load, self.per_replica[spec.name], at_s=self.at_s))
        return reports

    def round(self, loads: Mapping[str, float], *, without: Iterable[str] = ()) -> dict[str, int]:
        """One round at these loads; the changes that it made, by pool. Pools in `without` do not report."""
        silent = set(without)
        reports = [report for report in self.proposals(loads) if report.pool not in silent]
        told = replace(
            inputs(self.pools, reports, budget=self.budget, have=self.have, groups=self.groups, at_s=self.at_s),
            overrides=self.overrides,
        )
        told = replace(told, holdings=tuple(replace(each, cold_start_s=self.cold_start_s) for each in told.holdings))
        self.state, self.last = arbitrate(self.state, told, self.policy)
        after = granted(self.last)
        changes = {name: n - self.have[name] for name, n in after.items() if n != self.have[name]}
        self._carry_out(after)
        self.at_s += self.interval_s
        return changes

    def _carry_out(self, after: Mapping[str, int]) -> None:
        if not self.drains:
            self.have = dict(after)
            return
        for spec in self.pools:
            goes = after[spec.name] < self.have[spec.name]
            self.draining[spec.name] = self.draining.get(spec.name, 0) + 1 if goes else 0
            if self.draining[spec.name] > self.drains:
                self.have[spec.name], self.draining[spec.name] = after[spec.name], 0
        free = dict(self.budget)
        for spec in self.pools:
            free[spec.gpu_type] -= self.have[spec.name] * spec.gpus_per_replica
        for spec in self.pools:
            grows = min(after[spec.name] - self.have[spec.name], free[spec.gpu_type] // spec.gpus_per_replica)
            if grows > 0:
                self.have[spec.name] += grows
                free[spec.gpu_type] -= grows * spec.gpus_per_replica
