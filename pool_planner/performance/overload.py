"""What n replicas serve in time of more than they can serve, where somebody at the door chooses whom. Pure.

A capacity says at which rate nearly everybody is in time when all come in. Beyond it a door decides. One that knows nothing of
requests lets in as many as the capacity says. One that lets in the shortest prompts first, and no more than an engine begins in
time (`admission: sla`), fills the engines with those: the count is what fits into their time from the short end of the mix,
which is the most that anybody could serve (a fractional knapsack of equal values). The longer a mix reaches, the less the next
replica adds. Over an hour of Azure's code trace, ten copies, the second to sixth replica that always stands adds, of 86,230
requests, 14,706, 6,764, 3,398, 1,848 and 894 by this, and 14,790, 7,130, 3,594, 1,932 and 1,028 in the replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pool_planner.performance.queueing import MAX_UTILISATION, Array, ServiceMix

POINTS = ((-math.sqrt(3.0), 1.0 / 6.0), (0.0, 2.0 / 3.0), (math.sqrt(3.0), 1.0 / 6.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """`rps(rates)[i, n]`: requests/s that n replicas serve in time of `rates[i]`, n = 0..max. `busy_s[n]`: replica time (s)
    that a request takes of the n-th of them (of the 0th: 0)."""

    rps: Callable[[Array], Array]
    busy_s: tuple[float, ...]

    def worth(self, rates: Sequence[float], weights: Sequence[float], price: float) -> int:
        """How many replicas pay where these rates come with these probabilities: the last serves so many more in time that, at
        `price` times the replica time which a request takes, they are worth its own."""
        gained = np.asarray(weights) @ np.diff(self.rps(np.asarray(rates, dtype=np.float64)), axis=1)
        pays = price * gained * np.array(self.busy_s[1:]) > 1.0 + 1e-9
        return len(pays) if pays.all() else int(pays.argmin())


def up_to(carried_rps: Sequence[float]) -> Served:
    """Who is let in does not depend on what it asks: n replicas serve up to `carried_rps[n]`."""
    carried = np.asarray(carried_rps, dtype=np.float64)
    steps = np.diff(carried)
    each = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps > 0.0)
    return Served(rps=lambda rates: np.minimum(rates[:, None], carried[None, :]), busy_s=(0.0, *each.tolist()))


def shortest_first(mix: ServiceMix, max_replicas: int, *, arrival_cv2: float, patience_s: float) -> Served:
    """Prompts come in by length, as far as the engines have time for them (steps that are always full hardly pay a start). Who
    comes has `patience_s` to be begun; over such times chance makes more and less of a rate, and more is what a replica that
    has nothing to do in the mean is there for (three points of a normal variate: exact to its fifth moment)."""
    order = np.argsort(mix.seconds, kind="stable")
    share = mix.share[order]
    work = np.concatenate(([0.0], np.cumsum((mix.seconds[order] - mix.start_s) * share)))  # s for a request of all that come
    count = np.concatenate(([0.0], np.cumsum(share)))
    n = np.arange(max_replicas + 1, dtype=np.float64)

    def rps(rates: Array) -> Array:
        total: Array = np.zeros((rates.size, n.size))
        for deviates, weight in POINTS:
            near = np.maximum(rates + deviates * np.sqrt(arrival_cv2 * rates / patience_s), 1e-9)[:, None]
            total += weight * near * np.interp(MAX_UTILISATION * n[None, :] / near, work, count)
        return total

    return Served(rps=rps, busy_s=(0.0, *(mix.work,) * max_replicas))
