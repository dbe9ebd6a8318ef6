"""What every objective starts from and fills in: the replicas reserved for each pool, the room that is left, the counts. Pure.

Minima of every class come first, then guarantees as far as their pools want them, from the highest class down. Minima that do
not fit together are named, and then nothing grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.flat import floats_of, ints_of
from global_planner.arbiter.frontier import Bundles, above, bundles_of
from global_planner.arbiter.limits import Limits
from global_planner.arbiter.view import GroupView, View

Array = NDArray[np.float64]
EPS = 1e-9


@dataclass(slots=True, kw_only=True)
class Plan:
    """The decision as it grows, by position of the group: `reserved`, `caps` and `counts` are replicas by pool, `draws[g]`
    what a replica of each pool takes of each limit, and `draws_by_place` (place in the group x limit x group) the same
    with 0 where a group has fewer pools than others; `scales[g]` is the value of attainment 1. `firm`: below it nobody
    of a higher class takes (what is reserved, or more). `aside`: what of each limit is not to be given away now.
    `blocked`: why pools must not grow. `beyond_need`: what everybody needs for sure is decided already. `slacks` by
    class: value that a better choice could at most add. `moved`: groups raised with GPUs of others. `expected`: the
    round at the loads that are expected, where it was decided at them first. `notes` by pool: what happened to it
    beyond plain raising and lowering."""

    view: View
    limits: Limits
    draws: list[Array]
    reserved: list[list[int]]
    firm: list[list[int]]
    caps: list[list[int]]
    counts: list[list[int]]
    blocked: dict[str, str]
    slacks: dict[int, float] = field(default_factory=dict)
    solvers: list[str] = field(default_factory=list)
    moved: set[int] = field(default_factory=set)
    expected: View | None = None
    notes: dict[str, str] = field(default_factory=dict)
    infeasible: tuple[str, ...] = ()
    beyond_need: bool = False
    aside: Array | None = None
    scales: Array
    draws_by_place: Array
    _draws: Array
    _places: list[int]
    _classes: list[tuple[int, list[int]]]
    _growth: dict[int, tuple[list[int], Bundles]] = field(default_factory=dict)

    def at(self, view: View) -> Plan:
        """The same plan for another view of the same pools, with nothing decided yet."""
        scales = np.array([group.scale for group in view.groups], dtype=np.float64)
        return replace(
            self, view=view, scales=scales, counts=[list(row) for row in self.counts], slacks={}, solvers=[], moved=set(),
            notes={}, _growth={},
        )  # fmt: skip

    def everything_fits(self) -> bool:
        """Whether all pools may have all that they can use."""
        return bool((self.usage(self.caps) <= self.limits.capacity + EPS).all())

    @property
    def groups(self) -> tuple[GroupView, ...]:
        return self.view.groups

    def classes(self) -> list[tuple[int, list[int]]]:
        """(priority class, positions of its groups), the highest first."""
        return self._classes

    def kept(self) -> list[list[int]]:
        """What stability leaves every pool of what it has, within what is reserved for it and its cap."""
        counts = []
        for g, group in enumerate(self.view.groups):
            reserved, caps = self.reserved[g], self.caps[g]
            row = []
            for p, pool in enumerate(group.pools):
                low = pool.low if pool.low < caps[p] else caps[p]
                row.append(low if low > reserved[p] else reserved[p])
            counts.append(row)
        return counts

    def growth(self, g: int) -> Bundles:
        """The bundles of group g from its present counts up."""
        known = self._growth.get(g)
        if known is None or known[0] != self.counts[g]:
            bundles = None if known is None else above(self.groups[g], known[1], self.counts[g])
            if bundles is None:
                bundles = bundles_of(self.groups[g], self.counts[g], self.caps[g], self.draws[g])
                self.note_thinned(bundles)
            self._growth[g] = known = (list(self.counts[g]), bundles)
        return known[1]

    def note_thinned(self, bundles: Bundles) -> None:
        if bundles.thinned and "thinned bundles" not in self.solvers:
            self.solvers.append("thinned bundles")

    def usage(self, counts: Sequence[Sequence[int]], members: Sequence[int] | None = None) -> Array:
        """What the groups (all, or `members`) draw of each limit."""
        if members is None or len(members) == len(counts):
            total: Array = floats_of(counts) @ self._draws
        elif members:
            places = [range(self._places[g], self._places[g + 1]) for g in members]
            total = floats_of([counts[g] for g in members]) @ self._draws[ints_of(places)]
        else:
            total = np.zeros(self._draws.shape[1])
        return total

    def any_replica_fits(self) -> bool:
        """Whether there is room for one replica more of any pool that may grow."""
        may = ints_of(self.caps) > ints_of(self.counts)
        fits = np.all(self._draws[may] <= self.room() + EPS, axis=1)
        return bool(np.any(fits))

    def room(self) -> Array:
        """What is left of each limit, but for what is set aside."""
        left: Array = self.limits.capacity - self.usage(self.counts)
        return left if self.aside is None else left - self.aside


def start_plan(view: View, limits: Limits, ceilings: Mapping[str, tuple[int, str]] | None = None) -> Plan:
    """A plan in which every pool has what is reserved for it. `ceilings`: pools that cannot be raised beyond so many replicas,
    and why."""
    flat = limits.draws(pool for group in view.groups for pool in group.pools)
    draws, places = [], [0]
    for group in view.groups:
        place = places[-1] + len(group.pools)
        draws.append(flat[places[-1] : place])
        places.append(place)
    floors = [[pool.floor for pool in group.pools] for group in view.groups]
    blocked = limits.blocked(view.pools.values())
    if blocked:
        caps = [
            [_cap(pool.cap, pool.current, pool.floor, blocked.get(pool.spec.name)) for pool in group.pools]
            for group in view.groups
        ]
    else:
        caps = [[pool.cap for pool in group.pools] for group in view.groups]
    for g, group in enumerate(view.groups) if ceilings else ():
        for p, pool in enumerate(group.pools):
            if pool.spec.name in (ceilings or {}):
                most, blocked[pool.spec.name] = (ceilings or {})[pool.spec.name]
                caps[g][p] = max(pool.floor, min(caps[g][p], max(most, pool.current or 0)))
    plan = Plan(
        view=view,
        limits=limits,
        draws=draws,
        reserved=floors,
        firm=floors,
        caps=caps,
        counts=[list(row) for row in floors],
        blocked=blocked,
        _draws=flat,
        _places=places,
        _classes=_classes_of(view.groups),
        scales=np.array([group.scale for group in view.groups], dtype=np.float64),
        draws_by_place=_by_place([len(group.pools) for group in view.groups], flat),
    )
    room = plan.room()
    if bool((room < -EPS).any()):
        _declare_infeasible(plan, room < -EPS)
        return plan
    _reserve_guarantees(plan, room)
    plan.counts = [list(row) for row in plan.reserved]
    plan.firm = plan.reserved
    return plan


def _by_place(widths: Sequence[int], flat: Array) -> Array:
    """Rows of groups of `widths`, one after another, as place x column x group; 0 beyond a group's width."""
    width, columns = max(widths, default=0), flat.shape[1]
    if len(flat) == width * len(widths):
        return np.ascontiguousarray(flat.reshape(len(widths), width, columns).transpose(1, 2, 0))
    filled = np.zeros((width, columns, len(widths)))
    places = np.concatenate([np.arange(own) for own in widths])
    filled[places, :, np.repeat(np.arange(len(widths)), widths)] = flat
    return filled


def _classes_of(groups: Sequence[GroupView]) -> list[tuple[int, list[int]]]:
    members: dict[int, list[int]] = {}
    for g, group in enumerate(groups):
        members.setdefault(group.priority_class, []).append(g)
    return sorted(members.items(), reverse=True)


def _cap(cap: int, current: int | None, floor: int, blocked: str | None) -> int:
    """A pool that must not grow is capped at what it has."""
    if blocked is None or current is None:
        return cap
    return max(floor, min(cap, current))


def _declare_infeasible(plan: Plan, over: NDArray[np.bool_]) -> None:
    """The floors exceed a limit: name the pools that they are of; keep what is there, and release what is above a floor where
    a limit is exceeded even so."""
    plan.infeasible = tuple(
        sorted(
            pool.spec.name
            for g, group in enumerate(plan.groups)
            for p, pool in enumerate(group.pools)
            if pool.fixed_gpus is None and pool.floor > 0 and bool((plan.draws[g][p, over] > 0).any())
        )
    )
    present = [[pool.floor if pool.current is None else pool.current for pool in group.pools] for group in plan.groups]
    exceeded = plan.usage(present) > plan.limits.capacity + EPS
    for g, group in enumerate(plan.groups):
        for p, pool in enumerate(group.pools):
            lower = bool((plan.draws[g][p, exceeded] > 0).any())
            keeps = min(present[g][p], pool.floor) if lower else present[g][p]
            most = present[g][p] if pool.rules.maximum is None else max(pool.rules.maximum, pool.floor)
            plan.counts[g][p] = present[g][p] if pool.fixed_gpus is not None else min(keeps, most)


def _reserve_guarantees(plan: Plan, room: Array) -> None:
    for _, members in plan.classes():
        for g in members:
            for p, pool in enumerate(plan.groups[g].pools):
                if pool.reserved <= plan.reserved[g][p]:
                    continue
                wanted = min(pool.reserved, plan.caps[g][p])
                while plan.reserved[g][p] < wanted and bool((plan.draws[g][p] <= room + EPS).all()):
                    plan.reserved[g][p] += 1
                    room -= plan.draws[g][p]
                if plan.reserved[g][p] < wanted:
                    plan.notes[pool.spec.name] = f"its guarantee of {pool.rules.guarantee} does not fit beside those before it"
