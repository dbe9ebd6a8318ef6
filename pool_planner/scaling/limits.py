"""The GPU limits of a planner that stands alone: what its pools want together, fitted between floor and ceiling. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What one pool wants, and may have."""

    pool: str
    replicas: int
    gpus_per_replica: int
    least: int
    most: int


def fit_to_gpus(wants: Sequence[Want], *, most: int | None, least: int | None) -> tuple[Mapping[str, int], str | None]:
    """Replicas by pool whose GPUs lie within the limits, and a sentence when that changed anything.

    Above the ceiling all pools give up the same share, because prefill without decode serves nobody; what is left over goes
    one by one to the pool that is furthest from what it wants. Minima are kept even where they exceed the ceiling.
    """
    total = sum(want.replicas * want.gpus_per_replica for want in wants)
    if most is not None and total > most:
        share = most / total
        given = {want.pool: max(want.least, int(want.replicas * share)) for want in wants}
        _fill(given, wants, most, {want.pool: want.replicas for want in wants})
        used = _gpus(given, wants)
        if used > most:
            _shed(given, wants, most)
        return given, f"{total} GPUs wanted, {most} allowed (max_gpu_budget)"
    if least is not None and total < least:
        given = {want.pool: want.replicas for want in wants}
        while _gpus(given, wants) < least:
            able = [want for want in wants if given[want.pool] < want.most]
            able = [w for w in able if most is None or _gpus(given, wants) + w.gpus_per_replica <= most]
            if not able:
                break
            pick = min(able, key=lambda want: (given[want.pool] / max(1, want.replicas), want.pool))
            given[pick.pool] += 1
        return given, f"{total} GPUs wanted, {least} are the floor (min_gpu_budget)"
    return {want.pool: want.replicas for want in wants}, None


def _gpus(given: Mapping[str, int], wants: Sequence[Want]) -> int:
    return sum(given[want.pool] * want.gpus_per_replica for want in wants)


def _fill(given: dict[str, int], wants: Sequence[Want], most: int, targets: Mapping[str, int]) -> None:
    while True:
        room = most - _gpus(given, wants)
        able = [want for want in wants if given[want.pool] < targets[want.pool] and want.gpus_per_replica <= room]
        if not able:
            return
        given[min(able, key=lambda want: (given[want.pool] / want.replicas, want.pool)).pool] += 1


def _shed(given: dict[str, int], wants: Sequence[Want], most: int) -> None:
    """Minima pushed the sum above the ceiling: the others give, furthest above their minimum first."""
    while _gpus(given, wants) > most:
        able = [want for want in wants if given[want.pool] > want.least]
        if not able:
            return
        given[max(able, key=lambda want: (given[want.pool] - want.least, want.pool)).pool] -= 1
