"""Which replicas to order with the GPUs that are free now, on the way to the allocation. Pure.

Often not everything that was granted fits at once, because releases are still on their way. Then the stages of a group climb
together: the next replica goes to the stage that has least of what it was granted, and when that one does not fit, its
partner waits, since it could not use more. Minima come first, then higher classes; what the next replica of a higher class
waits for is kept for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from global_planner.charge import charge
from global_planner.types import Holding, PoolSpec


@dataclass(slots=True, kw_only=True)
class Climb:
    """One pool on its way from `now` ordered replicas up to `target`; `charged_gpus` is what it is charged for `now`. A pool
    that does not grow (target == now) only weighs in the balance of its stage."""

    spec: PoolSpec
    holding: Holding
    now: int
    target: int
    charged_gpus: int
    priority_class: int
    marginal_value: float

    def charged_with_next(self) -> int:
        gpus = charge(self.holding, self.spec, ordering=self.now + 1)
        if gpus is None:
            raise ValueError(f"{self.spec.name}: nothing can be ordered on top of an unknown holding")
        return gpus

    def cost_of_next(self) -> int:
        """GPUs that one more replica charges on top of what is charged already."""
        return self.charged_with_next() - self.charged_gpus

    def take_next(self) -> None:
        self.charged_gpus = self.charged_with_next()
        self.now += 1

    @property
    def below_minimum(self) -> bool:
        return self.now < min(self.spec.min_replicas, self.target)


@dataclass(slots=True, kw_only=True)
class _Path:
    """Stages that need each other: prefill and decode of a group; or aggregated pools, which need nobody."""

    name: str
    stages: dict[str, list[Climb]] = field(default_factory=dict)

    def pools(self) -> Iterator[Climb]:
        for stage in self.stages.values():
            yield from stage

    def next_stage(self) -> list[Climb]:
        """The stage with a pool below its minimum, else the one that has least of what it was granted."""

        def key(item: tuple[str, list[Climb]]) -> tuple[bool, float, str]:
            role, stage = item
            return (not any(pool.below_minimum for pool in stage), _share(stage), role)

        return min(self.stages.items(), key=key)[1]

    def rank(self) -> tuple[int, int]:
        first = any(pool.below_minimum for pool in self.pools())
        return (0 if first else 1, -max(pool.priority_class for pool in self.pools()))

    def key(self) -> tuple[tuple[int, int], float, float, str]:
        stage = self.next_stage()
        value = max((pool.marginal_value for pool in stage), default=0.0)
        return (self.rank(), _share(stage), -value, self.name)


def _share(stage: list[Climb]) -> float:
    """Share of its granted GPUs that a stage has ordered; 1 for a stage that was granted none."""
    granted = sum(pool.target * pool.spec.gpus_per_replica for pool in stage)
    return sum(pool.now * pool.spec.gpus_per_replica for pool in stage) / granted if granted else 1.0


def climb(pools: list[Climb], free_gpus: Mapping[str, int | None]) -> Mapping[str, int]:
    """Replicas to order by pool (only pools that grow), never charging more than `free_gpus` (None: unlimited) by type.

    Replica by replica on a heap of paths, so the time is O(replicas ordered x log paths). `pools` are changed.
    """
    paths: dict[str, _Path] = {}
    before = {pool.spec.name: pool.now for pool in pools}
    for pool in pools:
        kind = "agg" if pool.spec.role == "agg" else "split"
        name = f"{pool.spec.group}/{kind}"
        paths.setdefault(name, _Path(name=name)).stages.setdefault(pool.spec.role, []).append(pool)

    free = dict(free_gpus)
    kept: dict[str, int] = {}
    rank: tuple[int, int] | None = None
    heap = [(path.key(), path) for path in paths.values() if any(pool.now < pool.target for pool in path.pools())]
    heapq.heapify(heap)
    while heap:
        key, path = heapq.heappop(heap)
        if key[0] != rank:
            rank = key[0]
            _set_aside(free, kept)
        chosen = _next_replica(path, free, kept)
        if chosen is None:
            continue
        _take(free, chosen.spec.gpu_type, chosen.cost_of_next())
        chosen.take_next()
        if any(pool.now < pool.target for pool in path.pools()):
            heapq.heappush(heap, (path.key(), path))
    return {pool.spec.name: pool.now for pool in pools if pool.now > before[pool.spec.name]}


def _next_replica(path: _Path, free: Mapping[str, int | None], kept: dict[str, int]) -> Climb | None:
    """The pool of the path that gets a replica now, or None: then what its next replica would take is added to `kept`."""
    stage = [pool for pool in path.next_stage() if pool.now < pool.target]
    if not stage:
        return None
    stage.sort(key=lambda pool: (not pool.below_minimum, pool.now / pool.target, pool.spec.name))
    for pool in stage:
        room = free[pool.spec.gpu_type]
        if room is None or (room >= 0 and pool.cost_of_next() <= room):
            return pool
    first = stage[0]
    kept[first.spec.gpu_type] = kept.get(first.spec.gpu_type, 0) + first.cost_of_next()
    return None


def _set_aside(free: dict[str, int | None], kept: dict[str, int]) -> None:
    """A lower class follows: what the classes before it wait for is not its to take."""
    for gpu_type, gpus in kept.items():
        _take(free, gpu_type, gpus)
    kept.clear()


def _take(free: dict[str, int | None], gpu_type: str, gpus: int) -> None:
    room = free[gpu_type]
    if room is not None:
        free[gpu_type] = room - gpus
