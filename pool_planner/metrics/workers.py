"""Per-worker load from the routers' gauges: summed over routers, averaged over the samples of an interval. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from pool_planner.metrics import names
from pool_planner.metrics.exposition import Families
from pool_planner.metrics.names import PoolSeries
from pool_planner.metrics.observe import Pair, gauge, mean
from pool_planner.types import WorkerLoad

Gauges = Mapping[str, float]
_SUMMED = ("active_prefill_tokens", "active_decode_blocks")


def sample(instances: Iterable[Families], pool: PoolSeries) -> Mapping[str, Gauges]:
    """By worker: its gauges at one moment. What routers send to a worker adds up; its last latencies are averaged over
    routers, and everything over the ranks of a data-parallel worker."""
    ranks: dict[str, dict[str, dict[str, list[float]]]] = {}
    for families in instances:
        for kind, name in names.WORKER_GAUGES.items():
            for series in families.get(name, {}).values():
                worker = series.labels.get("worker_id")
                if worker is None or not pool.my_worker(series.labels) or not math.isfinite(series.value):
                    continue
                rank = ranks.setdefault(worker, {}).setdefault(series.labels.get("dp_rank", "0"), {})
                rank.setdefault(kind, []).append(series.value)
    return {worker: _over_ranks(list(of_worker.values())) for worker, of_worker in ranks.items()}


def pending(instances: Iterable[Families], pool: PoolSeries) -> tuple[float | None, float | None]:
    """(requests, prompt tokens) that wait in the scheduler of Dynamo's own router for workers of the pool's kind, summed over
    routers and policies; None where no router tells."""
    families = list(instances)
    return _pending(families, names.PENDING_REQUESTS, pool), _pending(families, names.PENDING_TOKENS, pool)


def _pending(instances: Sequence[Families], name: str, pool: PoolSeries) -> float | None:
    found = [
        series.value
        for families in instances
        for series in families.get(name, {}).values()
        if pool.my_worker(series.labels) and math.isfinite(series.value)
    ]
    return sum(found) if found else None


def _over_ranks(ranks: Sequence[Mapping[str, list[float]]]) -> Gauges:
    gauges: dict[str, float] = {}
    for kind in names.WORKER_GAUGES:
        per_rank = [sum(rank[kind]) / (1 if kind in _SUMMED else len(rank[kind])) for rank in ranks if kind in rank]
        if per_rank:
            gauges[kind] = sum(per_rank) / len(per_rank)
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


def of_vllm(pairs: Sequence[Pair], pool: PoolSeries) -> tuple[WorkerLoad, ...]:
    """vLLM engines as workers: KV usage (%) stands for decode blocks, waiting prompts for prefill tokens, and means of the
    interval for last latencies. A regression does not mind the units."""
    found = []
    for pair in pairs:
        own, now = [pair], [pair.after]
        usage = gauge(now, names.VLLM_KV_USAGE, pool)
        isl = mean(own, pool.names.isl, pool)
        waiting = None if pool.names.waiting is None else gauge(now, pool.names.waiting, pool)
        ttft, itl = mean(own, pool.names.ttft, pool), mean(own, pool.names.itl, pool)
        if usage is None and waiting is None:
            continue
        found.append(
            WorkerLoad(
                worker_id=pair.after.instance,
                active_prefill_tokens=None if waiting is None or isl is None else waiting * isl,
                active_decode_blocks=None if usage is None else 100.0 * usage,
                last_ttft_ms=None if ttft is None else 1e3 * ttft,
                last_isl_tokens=isl,
                last_itl_ms=None if itl is None else 1e3 * itl,
            )
        )
    return tuple(sorted(found, key=lambda worker: worker.worker_id))
