"""The dumb twins of the queueing model: replicas, requests and a dispatcher, event by event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence

from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineRequest, EngineSpec


def prefill_ttft(
    *, spec: EngineSpec, rate: float, replicas: int, tokens: Callable[[random.Random], float], requests: int, seed: int
) -> list[float]:
    """TTFT of each request that finished, on engines of the project's model; each request goes to the engine with the fewest
    outstanding prompt tokens."""
    rng = random.Random(seed)
    engines = [Replica(spec) for _ in range(replicas)]
    outstanding = [0] * replicas
    born: dict[str, tuple[float, int]] = {}
    now, out = 0.0, []
    for index in range(requests):
        now += rng.expovariate(rate)
        for i, engine in enumerate(engines):
            for event in engine.advance(now):
                if event.id in born:
                    at, isl = born.pop(event.id)
                    out.append(event.at_s - at)
                    outstanding[i] -= isl
                    engine.pull(now, event.id)
        isl = int(tokens(rng))
        pick = min(range(replicas), key=lambda i: (outstanding[i], i))
        assert engines[pick].submit(now, EngineRequest(id=str(index), isl=isl, osl=1)) is None
        born[str(index)] = (now, isl)
        outstanding[pick] += isl
    return out


def aggregated_met(
    *,
    spec: EngineSpec,
    rate: float,
    replicas: int,
    isl: Callable[[random.Random], float],
    osl: Callable[[random.Random], float],
    ttft_s: float,
    itl_s: float,
    requests: int,
    seed: int,
) -> float:
    """Share of requests that meet both SLAs, on aggregated engines of the project's model; each request goes to the engine
    with the fewest outstanding tokens."""
    rng = random.Random(seed)
    engines = [Replica(spec) for _ in range(replicas)]
    outstanding = [0] * replicas
    born: dict[str, tuple[float, int, int]] = {}
    first: dict[str, float] = {}
    now, met = 0.0, {}
    for index in range(requests):
        now += rng.expovariate(rate)
        for i, engine in enumerate(engines):
            for event in engine.advance(now):
                if event.kind == "first_token":
                    first[event.id] = event.at_s
                elif event.kind == "finished":
                    at, prompt, answer = born.pop(event.id)
                    outstanding[i] -= prompt + answer
                    began = first.pop(event.id)
                    met[int(event.id)] = began - at <= ttft_s and event.at_s - began <= itl_s * (answer - 1)
        prompt, answer = int(isl(rng)), int(osl(rng))
        pick = min(range(replicas), key=lambda i: (outstanding[i], i))
        assert engines[pick].submit(now, EngineRequest(id=str(index), isl=prompt, osl=answer)) is None
        born[str(index)] = (now, prompt, answer)
        outstanding[pick] += prompt + answer
    # Those that came last are left out, long before the answers that are still under way: these are the slow ones.
    kept = [ok for index, ok in met.items() if requests // 6 <= index < 5 * requests // 6]
    return sum(kept) / len(kept)


def kept_full_rps(
    *,
    spec: EngineSpec,
    held: int,
    replicas: int,
    isl: Callable[[random.Random], float],
    osl: Callable[[random.Random], float],
    itl_s: float,
    requests: int,
    seed: int,
) -> float:
    """Requests/s within the ITL on decode engines of the project's model that hold `held` sequences all the time: who ends is
    replaced at once, on the engine with the fewest outstanding tokens. Nobody knows the length of an answer beforehand."""
    rng = random.Random(seed)
    engines = [Replica(spec) for _ in range(replicas)]
    outstanding = [0.0] * replicas
    born: dict[str, tuple[int, int]] = {}
    began: dict[str, float] = {}
    usual = sum(osl(random.Random(each)) for each in range(200)) / 200.0

    def come(now: float, number: int) -> None:
        prompt, answer = int(isl(rng)), int(osl(rng))
        pick = min(range(replicas), key=lambda i: (outstanding[i], i))
        request = EngineRequest(id=str(number), isl=prompt, osl=answer, kv_transferred=True)
        assert engines[pick].submit(now, request) is None
        born[request.id] = (prompt, answer)
        outstanding[pick] += prompt + usual

    for number in range(held):
        come(0.0, number)
    ends: list[tuple[float, bool]] = []
    while len(ends) < requests:
        now, i = min((engine.next_event_at(), i) for i, engine in enumerate(engines))
        for event in engines[i].advance(now):
            if event.kind == "first_token":
                began[event.id] = event.at_s
            elif event.kind == "finished":
                prompt, answer = born.pop(event.id)
                outstanding[i] -= prompt + usual
                ends.append((event.at_s, event.at_s - began.pop(event.id) <= itl_s * (answer - 1)))
                come(now, held + len(ends))
    kept = ends[2 * held :]
    return sum(met for _, met in kept) / (kept[-1][0] - ends[2 * held - 1][0])


def decode_itl(
    *,
    rate: float,
    replicas: int,
    tokens: Callable[[random.Random], float],
    itl: Callable[[int], float],
    requests: int,
    seed: int,
) -> list[float]:
    """Mean ITL of each request: all sequences of a replica advance together, one token each `itl(batch)` seconds; each
    request goes to the replica with the fewest sequences."""
    rng = random.Random(seed)
    now, arrived = 0.0, 0
    # Of each replica: tokens that a sequence has been given since the start, when that was true, and the sequences by the
    # token count at which they end.
    progress, at = [0.0] * replicas, [0.0] * replicas
    running: list[list[tuple[float, int]]] = [[] for _ in range(replicas)]
    begun: dict[int, tuple[float, float]] = {}
    out: list[float] = []
    next_arrival = rng.expovariate(rate)

    def advance(i: int, to: float) -> None:
        if running[i]:
            progress[i] += (to - at[i]) / itl(len(running[i]))
        at[i] = to

    while len(out) < requests:
        ends = [(at[i] + (running[i][0][0] - progress[i]) * itl(len(running[i])), i) for i in range(replicas) if running[i]]
        soonest = min(ends, default=(float("inf"), -1))
        if arrived < 2 * requests and next_arrival <= soonest[0]:
            now = next_arrival
            pick = min(range(replicas), key=lambda i: (len(running[i]), i))
            advance(pick, now)
            length = tokens(rng)
            heapq.heappush(running[pick], (progress[pick] + length, arrived))
            begun[arrived] = (now, length)
            arrived += 1
            next_arrival = now + rng.expovariate(rate)
        else:
            now, i = soonest
            advance(i, now)
            _, request = heapq.heappop(running[i])
            start, length = begun.pop(request)
            out.append((now - start) / length)
    return out


def share(values: Sequence[float], limit: float, *, skip: int = 200) -> float:
    kept = values[skip:]
    return sum(value <= limit for value in kept) / len(kept)
