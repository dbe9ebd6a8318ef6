"""A pool in a closed loop with its planner: requests, engines with a cold start, observations, plans; all in virtual time."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineRequest, EngineSpec
from pool_planner.planner import plan
from pool_planner.setup import PlannerSetup
from pool_planner.state import start
from pool_planner.types import Grant, Histogram, Observation, Proposal, WorkerLoad

EDGES = tuple(float(base << shift) for shift in range(4, 17) for base in (2, 3))


@dataclass(slots=True)
class Engine:
    """One replica of the pool, and what the router knows of it."""

    name: str
    replica: Replica
    tokens: int = 0
    sequences: int = 0
    draining: bool = False
    last_isl: float | None = None
    last_ttft_s: float | None = None
    last_itl_s: float | None = None


@dataclass(slots=True)
class Flight:
    arrived_s: float
    isl: int
    osl: int
    first_s: float = math.nan


@dataclass(slots=True)
class Outcome:
    """`met`: share of requests within the SLA; `replica_hours`; `most`: peak of replicas; `moves`: changes of the number."""

    met: float
    replica_hours: float
    most: int
    moves: int
    requests: int
    wanted: list[int]


@dataclass(slots=True)
class Interval:
    """What was seen since the last observation."""

    arrived: int = 0
    finished: int = 0
    isl: list[float] = field(default_factory=list)
    osl: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)


def run(
    setup: PlannerSetup,
    spec: EngineSpec,
    arrivals: Sequence[tuple[float, int, int]],
    *,
    cold_start_s: float,
    until_s: float,
    begin: int = 1,
    overhead_s: float = 0.0,
) -> Outcome:
    """`arrivals` are (time, isl, osl). Requests of a decode pool come with their blocks; releases drain. The cluster follows
    every proposal. `overhead_s` is paid by every request before its first token is seen."""
    pool = setup.pools[0]
    engines = [Engine(name=f"w{i}", replica=Replica(spec)) for i in range(begin)]
    made = begin
    flights: dict[str, Flight] = {}
    seen = Interval()
    late: list[bool] = []
    state, wanted = start(setup), []
    used, most, moves, before = 0.0, begin, 0, 0.0

    def collect(now: float) -> None:
        for engine in engines:
            for event in engine.replica.advance(now):
                flight = flights[event.id]
                if event.kind == "first_token":
                    flight.first_s = event.at_s
                if event.kind != "finished":
                    continue
                del flights[event.id]
                engine.tokens, engine.sequences = engine.tokens - flight.isl, engine.sequences - 1
                seen.finished += 1
                ttft = (flight.first_s if flight.osl > 1 else event.at_s) - flight.arrived_s + overhead_s
                ok = True
                if pool.role != "decode":
                    seen.ttft.append(ttft)
                    engine.last_ttft_s, engine.last_isl = ttft, float(flight.isl)
                    ok = ttft <= pool.ttft_ms / 1e3
                if pool.role == "prefill":
                    engine.replica.pull(now, event.id)
                else:
                    seen.osl.append(float(flight.osl))
                    if flight.osl > 1:
                        itl = (event.at_s - flight.first_s) / (flight.osl - 1)
                        seen.itl.append(itl)
                        engine.last_itl_s = itl
                        ok = ok and itl <= pool.itl_ms / 1e3
                late.append(not ok)

    moments = sorted(
        [(at, 0, index) for index, (at, _, _) in enumerate(arrivals) if at < until_s]
        + [(setup.tick_s * k, 1, k) for k in range(1, int(until_s / setup.tick_s) + 1)]
    )
    for now, what, index in moments:
        used += (now - before) * len(engines)
        before = now
        collect(now)
        engines = [engine for engine in engines if not (engine.draining and engine.sequences == 0)]
        if what == 0:
            _, isl, osl = arrivals[index]
            osl = 1 if pool.role == "prefill" else osl
            able = [e for e in engines if not e.draining and e.replica.ready_at_s <= now]
            least = "tokens" if pool.role == "prefill" else "sequences"
            engine = min(able, key=lambda e: (getattr(e, least), e.name))
            request = EngineRequest(id=str(index), isl=isl, osl=osl, kv_transferred=pool.role == "decode")
            assert engine.replica.submit(now, request) is None
            flights[request.id] = Flight(arrived_s=now, isl=isl, osl=osl)
            engine.tokens, engine.sequences = engine.tokens + isl, engine.sequences + 1
            seen.arrived += 1
            seen.isl.append(float(isl))
            continue
        active = [engine for engine in engines if not engine.draining]
        ready = sum(engine.replica.ready_at_s <= now for engine in active)
        told = observe(pool.name, now, setup.tick_s, seen, active)
        grant = Grant(
            pool=pool.name,
            at_s=now,
            replicas_spec=len(active),
            replicas_ready=ready,
            replicas_starting=len(active) - ready,
            cold_start_s=cold_start_s,
        )
        state, (report,) = plan(state, {pool.name: told}, {pool.name: grant}, now, setup)
        seen = Interval()
        if isinstance(report, Proposal):
            wanted.append(report.wanted)
            moves += report.wanted != len(active)
            for _ in range(report.wanted - len(active)):
                engines.append(Engine(name=f"w{made}", replica=Replica(spec, ready_at_s=now + cold_start_s)))
                made += 1
            # Those that are still starting go first, then those with the least to do; one that is ready always stays.
            leaving = sorted(active, key=lambda e: (e.replica.ready_at_s <= now, e.sequences, e.name))
            for engine in leaving[: max(0, min(len(active) - report.wanted, len(active) - 1))]:
                engine.draining = True
            most = max(most, len(engines))
    return Outcome(
        met=1.0 - sum(late) / len(late),
        replica_hours=used / 3600.0,
        most=most,
        moves=moves,
        requests=len(late),
        wanted=wanted,
    )


def observe(name: str, now: float, tick_s: float, seen: Interval, active: Sequence[Engine]) -> Observation:
    def mean(values: Sequence[float], scale: float = 1.0) -> float | None:
        return scale * sum(values) / len(values) if values else None

    return Observation(
        pool=name,
        at_s=now,
        interval_s=tick_s,
        front_door_up=True,
        requests=float(seen.arrived),
        completed=float(seen.finished),
        isl_tokens=mean(seen.isl),
        osl_tokens=mean(seen.osl),
        ttft_ms=mean(seen.ttft, 1e3),
        itl_ms=mean(seen.itl, 1e3),
        isl_histogram=histogram(seen.isl),
        osl_histogram=histogram(seen.osl),
        workers=tuple(gauges(engine) for engine in active if engine.replica.ready_at_s <= now),
    )


def gauges(engine: Engine) -> WorkerLoad:
    return WorkerLoad(
        worker_id=engine.name,
        active_prefill_tokens=float(engine.tokens),
        active_decode_blocks=float(engine.sequences),
        last_isl_tokens=engine.last_isl,
        last_ttft_ms=None if engine.last_ttft_s is None else 1e3 * engine.last_ttft_s,
        last_itl_ms=None if engine.last_itl_s is None else 1e3 * engine.last_itl_s,
    )


def histogram(values: Sequence[float]) -> Histogram | None:
    counts = [0.0] * (len(EDGES) + 1)
    for value in values:
        counts[bisect_left(EDGES, value)] += 1.0
    return Histogram(edges=EDGES, counts=tuple(counts)) if values else None
