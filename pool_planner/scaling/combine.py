"""One number from two modes: throughput-based scaling is the floor, load-based scaling acts above it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from pool_planner.scaling.load import LoadNeed
from pool_planner.scaling.throughput import Need


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """`replicas` that the modes together ask for now; `safe` as many as are needed before fewer may be run."""

    replicas: int
    safe: int
    reasons: tuple[str, ...]


def combine(throughput: Need | None, load: LoadNeed | None, *, least: int, most: int) -> Combined | None:
    """None when no mode knows anything. A mode that knows nothing leaves the decision to the other, and says so."""
    if throughput is None and (load is None or load.replicas is None):
        return None
    reasons: list[str] = []
    replicas = safe = least
    if throughput is not None:
        replicas, safe = throughput.replicas, throughput.with_headroom
        reasons.append(throughput.reason)
    if load is not None and load.replicas is not None:
        if throughput is not None and load.replicas < throughput.replicas:
            reasons.append(f"load: {load.reason}; the forecast keeps {throughput.replicas}")
        else:
            reasons.append(f"load: {load.reason}")
        replicas, safe = max(replicas, load.replicas), max(safe, load.replicas)
    elif load is not None:
        reasons.append(f"load unknown: {load.reason}")
    return Combined(replicas=min(most, max(least, replicas)), safe=min(most, max(least, safe)), reasons=tuple(reasons))
