"""Per-worker load from the routers' gauges: summed over routers, averaged over the samples of an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pool_planner.metrics import names
from pool_planner.metrics.exposition import Families
from pool_planner.metrics.names import PoolSeries
from pool_planner.types import WorkerLoad

Gauges = Mapping[str, float]
_SUMMED = ("active_prefill_tokens", "active_decode_blocks")


def sample(instances: Iterable[Families], pool: PoolSeries) -> Mapping[str, Gauges]:
    """By worker: its gauges at one moment. What routers send to a worker adds up; its last latencies are averaged over
    routers, and everything over the ranks of a data-parallel worker."""
    ranks: dict[str, dict[str, dict[str, list[float]]]] = {}
    for families in instances:
        for gauge, name in names.WORKER_GAUGES.items():
            for series in families.get(name, {}).values():
                worker = series.labels.get("worker_id")
                if worker is None or not pool.my_worker(series.labels) or not math.isfinite(series.value):
                    continue
                rank = ranks.setdefault(worker, {}).setdefault(series.labels.get("dp_rank", "0"), {})
                rank.setdefault(gauge, []).append(series.value)
    return {worker: _over_ranks(list(of_worker.values())) for worker, of_worker in ranks.items()}


def _over_ranks(ranks: Sequence[Mapping[str, list[float]]]) -> Gauges:
    gauges: dict[str, float] = {}
    for gauge in names.WORKER_GAUGES:
        per_rank = [sum(rank[gauge]) / (1 if gauge in _SUMMED else len(rank[gauge])) for rank in ranks if gauge in rank]
        if per_rank:
            gauges[gauge] = sum(per_rank) / len(per_rank)
    return gauges


def average(samples: Sequence[Mapping[str, Gauges]]) -> tuple[WorkerLoad, ...]:
    """The workers of the newest sample, each with its means over the samples that have it; last latencies are the newest."""
    if not samples:
        return ()
    workers = []
    for worker, newest in sorted(samples[-1].items()):

        def over_time(gauge: str, worker: str = worker) -> float | None:
            values = [each[worker][gauge] for each in samples if worker in each and gauge in each[worker]]
            return sum(values) / len(values) if values else None

        def last(gauge: str, scale: float, newest: Gauges = newest) -> float | None:
            return newest[gauge] * scale if gauge in newest else None

        workers.append(
            WorkerLoad(
                worker_id=worker,
                active_prefill_tokens=over_time("active_prefill_tokens"),
                active_decode_blocks=over_time("active_decode_blocks"),
                last_ttft_ms=last("last_ttft_s", 1e3),
                last_isl_tokens=last("last_isl_tokens", 1.0),
                last_itl_ms=last("last_itl_s", 1e3),
            )
        )
    return tuple(workers)
