"""The dumb twins of the queueing model: replicas, requests and a dispatcher, event by event."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence


def prefill_ttft(
    *, rate: float, replicas: int, seconds: Callable[[random.Random], float], requests: int, seed: int, knows: float = 1.0
) -> list[float]:
    """TTFT of each request: first come first served on each replica, each request to the one with the least outstanding
    work. `knows`: how well the dispatcher knows the work (1: exactly, 0: it only counts requests)."""
    rng = random.Random(seed)
    now = 0.0
    free_at = [0.0] * replicas  # when the replica's queue is worked off
    queues: list[list[tuple[float, float]]] = [[] for _ in range(replicas)]  # (finish, work as the dispatcher sees it)
    out = []
    for _ in range(requests):
        now += rng.expovariate(rate)
        work = seconds(rng)
        for queue in queues:
            while queue and queue[0][0] <= now:
                queue.pop(0)
        pick = min(range(replicas), key=lambda i: (sum(w for _, w in queues[i]), i))
        begin = max(now, free_at[pick])
        free_at[pick] = begin + work
        queues[pick].append((free_at[pick], knows * work + (1.0 - knows)))
        out.append(free_at[pick] - now)
    return out


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
