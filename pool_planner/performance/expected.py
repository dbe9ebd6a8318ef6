"""The latencies that the model expects of a pool right now, to be compared with those observed. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pool_planner.performance import queueing
from pool_planner.performance.correction import Correction
from pool_planner.performance.work import DecodeWork, Engine, PrefillWork, Shape, busy_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Means over requests, ms; None where the role has no such latency or the pool cannot keep up. `utilisation`: share of
    what the replicas can do at most (prefill time, decode tokens), the larger of the two."""

    ttft_ms: float | None
    itl_ms: float | None
    utilisation: float


def expected(engine: Engine, shape: Shape, correction: Correction, *, rate_rps: float, ready: int) -> Expected:
    """What `ready` >= 1 replicas should show at `rate_rps`, the correction included."""
    n, rate = np.array([float(ready)]), np.array([rate_rps])
    busy = np.zeros(1)
    utilisation = 0.0
    ttft_s = itl_s = step_s = None
    prefill = PrefillWork(engine, shape, correction, []) if engine.role != "decode" else None
    if prefill is not None:
        utilisation = float(rate[0] * prefill.mix.work / n[0])
        busy = busy_share(rate, n, prefill.mix)
    if engine.role != "prefill":
        decode = DecodeWork(engine, shape, correction, [])
        crowd = decode.crowd(rate, n, shape, None if prefill is None else prefill.mix)
        pace = rate_rps / ready * shape.osl.mean / (1.0 - float(busy[0]))
        utilisation = max(utilisation, pace / float(decode.batching.pace[-1]))
        if np.isfinite(crowd[0]):
            step_s = float(decode.step_s(np.maximum(crowd, 1.0))[0])
            itl_s = step_s / (1.0 - float(busy[0]))
    if prefill is not None:
        computed = float(queueing.mean_ttft_s(rate, n, prefill.mix, shape.arrival_cv2)[0])
        ttft_s = computed + prefill.offset_s + (step_s or 0.0) if math.isfinite(computed) else None
    return Expected(
        ttft_ms=None if ttft_s is None else 1e3 * ttft_s,
        itl_ms=None if itl_s is None else 1e3 * itl_s,
        utilisation=utilisation,
    )
