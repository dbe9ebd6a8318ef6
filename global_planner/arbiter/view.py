"""One round as the arbiter sees it: pools with their demand as plain lists, grouped into stages and paths. Pure.

What is doubtful in it was settled before (see `settle`): what follows only calculates. Pools and groups are plain classes with
a constructor that can be compiled; the one that a dataclass writes cannot, and makes hundreds of them slower than all sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from global_planner.arbiter.effective import PoolRules
from global_planner.arbiter.state import DemandHistory
from global_planner.types import GroupSpec, Holding, PoolSpec

HEADROOM = 1.1
"""A smaller number of replicas is safe only where it carries this many times the load."""
Curve = tuple[float, ...]
_NO_HISTORY = DemandHistory()


class PoolView:
    """One pool. `now[n]` and `hi[n]`: attainment with n replicas at the load, and at 1.1 x the load; beyond the end the last
    value holds; empty: unknown. It may be set to `floor`..`cap` replicas, and is not lowered below `low` for its own sake.

    `current`: replicas in force (our last order included), None: unknown. `reserved`: minimum and used guarantee.
    `fixed_gpus`: GPUs that a held pool takes whatever is decided; None: it is not held. `unknown_charge`: nobody knows what it
    holds, so nothing of its GPU type grows. `need`: replicas that 1.1 x the load needs, None: unknown. `expected`: the part of
    `load` that comes in the mean (None: all of it). `remembered`: its demand is what it last said. `by_priority`: its load by
    request priority, in any unit; empty or None: not known. `hit_rate`: the share of its prompt tokens that its replicas have
    in their caches, None: not known. `hold_s`: how long fewer must have sufficed. `kept_for`: the partner for whose hold it
    keeps more than for its own. `promised`: what an earlier move grants it and has not taken effect yet, None: nothing.
    """

    def __init__(
        self,
        *,
        spec: PoolSpec,
        rules: PoolRules,
        holding: Holding | None,
        gpus: int,
        current: int | None,
        before: int | None,
        history: DemandHistory = _NO_HISTORY,
    ) -> None:
        self.spec = spec
        self.rules = rules
        self.holding = holding
        self.gpus = gpus
        self.current = current
        self.before = before
        self.history = history
        self.load: float = 0.0
        self.expected: float | None = None
        self.wanted: int | None = None
        self.now: Curve = ()
        self.hi: Curve = ()
        self.capacity: Curve | None = None
        self.in_flight: Curve | None = None
        self.full: Curve | None = None
        self.need: int | None = None
        self.floor: int = 0
        self.reserved: int = 0
        self.low: int = 0
        self.cap: int = 0
        self.held: str | None = None
        self.fixed_gpus: int | None = None
        self.unknown_charge: bool = False
        self.remembered: bool = False
        self.by_priority: Mapping[str, float] | None = None
        self.hit_rate: float | None = None
        self.hold_s: float = 0.0
        self.kept_for: str | None = None
        self.promised: int | None = None

    def at_load(self, load: float, now: Curve, hi: Curve) -> PoolView:
        """The same pool, with its demand at another load."""
        other = PoolView(
            spec=self.spec, rules=self.rules, holding=self.holding, gpus=self.gpus, current=self.current, before=self.before,
            history=self.history,
        )  # fmt: skip
        other.load, other.now, other.hi = load, now, hi
        other.expected, other.wanted, other.need = self.expected, self.wanted, self.need
        other.capacity, other.in_flight, other.full = self.capacity, self.in_flight, self.full
        other.floor, other.reserved, other.low, other.cap = self.floor, self.reserved, self.low, self.cap
        other.held, other.fixed_gpus, other.kept_for = self.held, self.fixed_gpus, self.kept_for
        other.hold_s, other.promised = self.hold_s, self.promised
        other.unknown_charge, other.remembered = self.unknown_charge, self.remembered
        other.by_priority, other.hit_rate = self.by_priority, self.hit_rate
        return other


class GroupView:
    """One group. `paths` name positions in `pools`: a path is a tuple of stages, a stage a tuple of pools. `load`: requests/s
    over all paths; `path_loads` by path; `shares` by pool within its stage. `ceilings` by path: what its unknown stages let
    through (1 where all is known). `rules` name the selectors in force for it."""

    def __init__(
        self,
        *,
        spec: GroupSpec,
        priority_class: int,
        weight: float,
        pools: list[PoolView],
        paths: tuple[tuple[tuple[int, ...], ...], ...],
        load: float,
        path_loads: tuple[float, ...],
        shares: tuple[float, ...],
        ceilings: tuple[float, ...],
        rules: tuple[str, ...] = (),
    ) -> None:
        self.spec = spec
        self.priority_class = priority_class
        self.weight = weight
        self.pools = pools
        self.paths = paths
        self.load = load
        self.path_loads = path_loads
        self.shares = shares
        self.ceilings = ceilings
        self.rules = rules

    def with_pools(self, pools: list[PoolView], path_loads: tuple[float, ...]) -> GroupView:
        """The same group, with its pools at other loads."""
        return GroupView(
            spec=self.spec, priority_class=self.priority_class, weight=self.weight, pools=pools, paths=self.paths,
            load=sum(path_loads), path_loads=path_loads, shares=self.shares, ceilings=self.ceilings, rules=self.rules,
        )  # fmt: skip

    @property
    def in_step(self) -> bool:
        """Whether it has one path with one pool a stage, so that each of its bundles is larger than the one before in no less
        than all pools."""
        return len(self.paths) == 1 and max([len(stage) for stage in self.paths[0]]) == 1

    @property
    def scale(self) -> float:
        """Value of attainment 1."""
        return self.weight * self.load

    def attainment(self, counts: Sequence[int], *, hi: bool = False) -> float:
        """Share of the group's load that meets its SLA with `counts` replicas, at the load or at 1.1 x the load."""
        if len(self.paths) == 1:
            return self._path_attainment(0, counts, hi=hi)
        total = 0.0
        for number, share in enumerate(self.path_shares()):
            total += share * self._path_attainment(number, counts, hi=hi)
        return total

    def _path_attainment(self, number: int, counts: Sequence[int], *, hi: bool) -> float:
        level = self.ceilings[number]
        for stage in self.paths[number]:
            reached = self.stage_attainment(stage, counts, hi=hi)
            if reached is not None and reached < level:
                level = reached
        return level

    def path_shares(self) -> tuple[float, ...]:
        if self.load > 0:
            return tuple(load / self.load for load in self.path_loads)
        return tuple(1.0 / len(self.paths) for _ in self.paths)

    def stage_attainment(self, stage: Sequence[int], counts: Sequence[int], *, hi: bool = False) -> float | None:
        """Load-weighted mean of the pools of which anything is known; None: of none."""
        if len(stage) == 1:
            pool = self.pools[stage[0]]
            curve = pool.hi if hi else pool.now
            if not curve or self.shares[stage[0]] <= 0.0:
                return None
            count = counts[stage[0]]
            return curve[count] if count < len(curve) else curve[-1]
        total = share = 0.0
        for place in stage:
            pool = self.pools[place]
            curve = pool.hi if hi else pool.now
            if curve:
                count = counts[place]
                total += self.shares[place] * (curve[count] if count < len(curve) else curve[-1])
                share += self.shares[place]
        return total / share if share > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`groups` in the order of their names; `pools` by name."""

    groups: tuple[GroupView, ...]
    pools: Mapping[str, PoolView]
    at_s: float
