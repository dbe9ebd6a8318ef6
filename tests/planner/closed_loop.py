"""A pool in a closed loop with its planner: requests, replicas with a cold start, observations, plans; all in virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import start
from pool_planner.types import Grant, Histogram, Observation, Proposal, WorkerLoad

EDGES = tuple(float(base << shift) for shift in range(4, 17) for base in (2, 3))


@dataclass(slots=True)
class Replica:
    ready_s: float
    free_at: float = 0.0
    pending: list[tuple[float, float]] = field(default_factory=list)
    running: list[list[float]] = field(default_factory=list)  # [arrived, tokens left, tokens, seconds]
    draining: bool = False
    name: str = ""
    last_isl: float | None = None
    last_ttft: float | None = None
    last_itl: float | None = None


@dataclass(slots=True)
class Outcome:
    """`met`: share of requests within the SLA; `replica_hours`; `most`: peak of replicas; `moves`: changes of the number."""

    met: float
    replica_hours: float
    most: int
    moves: int
    requests: int
    wanted: list[int]


def run(
    setup: PlannerSetup,
    arrivals: Sequence[tuple[float, int, int]],
    *,
    cold_start_s: float,
    until_s: float,
    service: Callable[[int], float] | None = None,
    itl: Callable[[int], float] | None = None,
    begin: int = 1,
    step_s: float = 0.5,
    overhead_s: float = 0.0,
) -> Outcome:
    """`arrivals` are (time, isl, osl); `service(isl)` makes it a prefill pool, `itl(batch)` a decode pool. Releases drain."""
    pool = setup.pools[0]
    replicas = [Replica(ready_s=0.0, name=f"w{i}") for i in range(begin)]
    made = begin
    state, wanted_over_time = start(setup), []
    done: list[tuple[float, float]] = []  # (finished, latency s)
    seen: dict[str, list[float]] = {"isl": [], "osl": [], "ttft": [], "itl": []}
    tick_s = setup.tick_s
    now, index, arrived, used, most, moves, next_tick = 0.0, 0, 0, 0.0, begin, 0, tick_s
    while now < until_s:
        now += step_s
        used += step_s * len(replicas)
        while index < len(arrivals) and arrivals[index][0] <= now:
            at, isl, osl = arrivals[index]
            index, arrived = index + 1, arrived + 1
            seen["isl"].append(isl)
            ready = [r for r in replicas if r.ready_s <= now and not r.draining] or [r for r in replicas if not r.draining]
            if service is not None:
                for r in ready:
                    r.pending = [p for p in r.pending if p[0] > at]
                pick = min(ready, key=lambda r: sum(work for _, work in r.pending))
                begin_s = max(at, pick.free_at, pick.ready_s)
                pick.free_at = begin_s + service(isl)
                pick.pending.append((pick.free_at, isl))
                pick.last_isl, pick.last_ttft = float(isl), pick.free_at - at + overhead_s
                done.append((pick.free_at, pick.free_at - at + overhead_s))
            else:
                pick = min(ready, key=lambda r: len(r.running))
                pick.running.append([at, float(osl), float(osl), 0.0])
        if itl is not None:
            _decode(replicas, now, step_s, itl, done, seen)
        replicas = [r for r in replicas if not (r.draining and not r.running and r.free_at <= now)]
        if now + 1e-9 >= next_tick:
            next_tick += tick_s
            if service is not None:
                seen["ttft"] += [latency for finished, latency in done if now - tick_s < finished <= now]
            finished = sum(now - tick_s < each[0] <= now for each in done)
            told = replace(_observe(pool.name, now, tick_s, arrived, finished, seen), workers=_gauges(replicas, now))
            active = [r for r in replicas if not r.draining]
            ready_now = sum(r.ready_s <= now for r in active)
            grant = Grant(
                pool=pool.name,
                at_s=now,
                replicas_spec=len(active),
                replicas_ready=ready_now,
                replicas_starting=len(active) - ready_now,
                cold_start_s=cold_start_s,
            )
            state, (report,) = plan(state, {pool.name: told}, {pool.name: grant}, now, setup)
            arrived, seen = 0, {key: [] for key in seen}
            if isinstance(report, Proposal):
                wanted_over_time.append(report.wanted)
                moves += report.wanted != len(active)
                for _ in range(report.wanted - len(active)):
                    replicas.append(Replica(ready_s=now + cold_start_s, name=f"w{made}"))
                    made += 1
                for r in sorted(active, key=lambda r: (len(r.running), r.free_at))[: max(0, len(active) - report.wanted)]:
                    r.draining = True
                most = max(most, len(replicas))
    limit = (pool.ttft_ms if service is not None else pool.itl_ms) / 1e3
    kept = [latency for finished, latency in done if finished <= until_s]
    return Outcome(
        met=sum(latency <= limit for latency in kept) / len(kept),
        replica_hours=used / 3600.0,
        most=most,
        moves=moves,
        requests=len(kept),
        wanted=wanted_over_time,
    )


def _decode(
    replicas: list[Replica],
    now: float,
    step_s: float,
    itl: Callable[[int], float],
    done: list[tuple[float, float]],
    seen: Mapping[str, list[float]],
) -> None:
    for replica in replicas:
        if not replica.running or replica.ready_s > now:
            continue
        pace = step_s / itl(len(replica.running))
        for one in replica.running:
            one[1] -= pace
            one[3] += step_s
        for one in [one for one in replica.running if one[1] <= 0.0]:
            replica.running.remove(one)
            done.append((now, one[3] / one[2]))
            replica.last_itl = one[3] / one[2]
            seen["itl"].append(one[3] / one[2])
            seen["osl"].append(one[2])


def _gauges(replicas: Sequence[Replica], now: float) -> tuple[WorkerLoad, ...]:
    return tuple(
        WorkerLoad(
            worker_id=r.name,
            active_prefill_tokens=sum(tokens for finished, tokens in r.pending if finished > now),
            active_decode_blocks=float(len(r.running)),
            last_isl_tokens=r.last_isl,
            last_ttft_ms=None if r.last_ttft is None else 1e3 * r.last_ttft,
            last_itl_ms=None if r.last_itl is None else 1e3 * r.last_itl,
        )
        for r in replicas
        if not r.draining and r.ready_s <= now
    )


def _observe(name: str, now: float, tick_s: float, arrived: int, finished: int, seen: Mapping[str, list[float]]) -> Observation:
    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    ttft, itl = mean(seen["ttft"]), mean(seen["itl"])
    return Observation(
        pool=name,
        at_s=now,
        interval_s=tick_s,
        front_door_up=True,
        requests=float(arrived),
        completed=float(finished),
        isl_tokens=mean(seen["isl"]),
        osl_tokens=mean(seen["osl"]),
        ttft_ms=None if ttft is None else 1e3 * ttft,
        itl_ms=None if itl is None else 1e3 * itl,
        isl_histogram=_histogram(seen["isl"]),
        osl_histogram=_histogram(seen["osl"]),
    )


def _histogram(values: Sequence[float]) -> Histogram | None:
    if not values:
        return None
    bounds = (-math.inf, *EDGES, math.inf)
    counts = tuple(float(sum(low < value <= high for value in values)) for low, high in pairwise(bounds))
    return Histogram(edges=EDGES, counts=counts)
