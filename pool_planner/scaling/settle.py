"""From what is needed now to what is wanted: raise at once, lower after a hold, idle to the minimum in steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """`hold_s`: lower only to what would have sufficed for this long. `known_s`: and only when the pool has been known for
    this long, at least the hold. `idle_hold_s`: seconds without requests before a pool is idle, None: never. `gap_s`:
    knowledge interrupted for longer begins anew."""

    hold_s: float
    known_s: float
    idle_hold_s: float | None
    gap_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What settling remembers. `needs`: (time, replicas that were safe then) over the hold; `since_s`: knowledge without a
    gap since; `idle_since_s`: no request since; `resting`: idle for long enough to go to the minimum."""

    wanted: int | None = None
    needs: tuple[tuple[float, int], ...] = ()
    since_s: float | None = None
    last_s: float | None = None
    idle_since_s: float | None = None
    stepped_s: float | None = None
    resting: bool = False


def settle(
    memory: Memory, *, needed: int, safe: int, idle: bool, provisioned: int | None, least: int, now: float, rhythm: Rhythm
) -> tuple[Memory, int, str | None]:
    """The replicas wanted, and a sentence when that is not simply what is needed.

    `provisioned`: where a planner without memory begins (None: at what is needed). `idle`: known to have no requests now.
    """
    memory = _observed(memory, safe, idle, now, rhythm)
    before = memory.wanted if memory.wanted is not None else max(least, provisioned if provisioned is not None else needed)
    assert memory.since_s is not None
    known_s = now - memory.since_s
    if idle and memory.idle_since_s is not None and rhythm.idle_hold_s is not None:
        idle_s = now - memory.idle_since_s
        if idle_s >= rhythm.idle_hold_s and known_s >= rhythm.known_s:
            return _step_down(replace(memory, resting=True), before, idle_s, least, now, rhythm)
    if needed >= before:
        return replace(memory, wanted=needed), needed, None
    if known_s < rhythm.known_s:
        reason = (
            f"kept at {before}: {needed} would do, known for {known_s:.0f} of the {rhythm.known_s:.0f} s that a reduction takes"
        )
        return replace(memory, wanted=before), before, reason
    held = max(need for _, need in memory.needs)
    if held >= before:
        when = f"during all of the last {rhythm.hold_s:.0f} s" if rhythm.hold_s > 0.0 else "with headroom"
        reason = f"kept at {before}: {needed} would do now, but not {when}"
        return replace(memory, wanted=before), before, reason
    wanted = max(held, needed)
    since = f" for {rhythm.hold_s:.0f} s" if rhythm.hold_s > 0.0 else ""
    reason = f"lowered from {before}: {wanted} sufficed, with headroom{since}"
    return replace(memory, wanted=wanted), wanted, reason


def _observed(memory: Memory, safe: int, idle: bool, now: float, rhythm: Rhythm) -> Memory:
    fresh = memory.last_s is None or now - memory.last_s > rhythm.gap_s
    needs = () if fresh else tuple(need for need in memory.needs if need[0] > now - rhythm.hold_s)
    idle_since = (now if fresh or memory.idle_since_s is None else memory.idle_since_s) if idle else None
    return replace(
        memory,
        needs=(*needs, (now, safe)),
        since_s=now if fresh or memory.since_s is None else memory.since_s,
        last_s=now,
        idle_since_s=idle_since,
        stepped_s=memory.stepped_s if idle else None,
        resting=False,
    )


def _step_down(
    memory: Memory, before: int, idle_s: float, least: int, now: float, rhythm: Rhythm
) -> tuple[Memory, int, str | None]:
    """Half of what is there, each hold, until the minimum: who was idle for minutes may still be called."""
    if before <= least:
        return replace(memory, wanted=least), least, f"idle for {idle_s:.0f} s: at the minimum"
    if memory.stepped_s is not None and now - memory.stepped_s < rhythm.hold_s:
        return replace(memory, wanted=before), before, f"idle for {idle_s:.0f} s: on the way to the minimum of {least}"
    wanted = max(least, before // 2)
    return (
        replace(memory, wanted=wanted, stepped_s=now),
        wanted,
        f"idle for {idle_s:.0f} s: lowered from {before}",
    )
