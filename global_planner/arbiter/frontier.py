"""The bundles of a group: what it can attain with which GPUs, none of them dominated. Pure.

A stage (the pools of one role) attains the load-weighted mean of its pools; a prefill/decode path attains the minimum of its
stages; aggregated pools are another path of the same group, and admitted loads of paths add. A bundle is one value and the
cheapest replicas that reach it: no stage is given what the other cannot use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from global_planner.arbiter.demand import PoolDemand

Vector = tuple[int, ...]
EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """`gpus` by type, in the order that `types` gave; `served_rps`: admitted load; `replicas` by pool."""

    gpus: Vector
    served_rps: float
    replicas: Mapping[str, int]


def group_bundles(pools: Sequence[PoolDemand], types: Sequence[str]) -> tuple[Bundle, ...]:
    """The Pareto-minimal bundles of one group, cheapest first; the first is its floors. Held pools are fixed and free here
    (their charge is taken off the budget before)."""
    stages = {
        role: _stage([pool for pool in pools if pool.spec.role == role and pool.held is None], types)
        for role in ("prefill", "decode", "agg")
    }
    loads = {
        role: sum(pool.load_rps for pool in pools if pool.spec.role == role and pool.held is None)
        for role in ("prefill", "decode", "agg")
    }
    path = _path(stages["prefill"], loads["prefill"], stages["decode"], loads["decode"])
    return _pareto(_sum(first, second) for first in path for second in stages["agg"])


def _stage(pools: Sequence[PoolDemand], types: Sequence[str]) -> tuple[Bundle, ...]:
    """All useful combinations of the pools of one stage; `served_rps` is Σ load x attainment."""
    points: tuple[Bundle, ...] = (Bundle(gpus=(0,) * len(types), served_rps=0.0, replicas={}),)
    for pool in pools:
        own = _pareto(_point(pool, count, types) for count in range(pool.least, max(pool.least, pool.need) + 1))
        points = _pareto(_sum(first, second) for first in points for second in own)
    return points


def _point(pool: PoolDemand, count: int, types: Sequence[str]) -> Bundle:
    gpus = tuple(count * pool.gpus_per_replica if name == pool.spec.gpu_type else 0 for name in types)
    return Bundle(gpus=gpus, served_rps=pool.load_rps * pool.attainment[count], replicas={pool.spec.name: count})


def _path(prefill: Sequence[Bundle], prefill_rps: float, decode: Sequence[Bundle], decode_rps: float) -> tuple[Bundle, ...]:
    """Prefill and decode together: the load is the larger of what both saw (a request passes both), the attainment the
    smaller. A stage of which nothing is known (all its pools held) does not limit."""
    load = max(prefill_rps, decode_rps)
    return _pareto(
        Bundle(
            gpus=tuple(a + b for a, b in zip(first.gpus, second.gpus, strict=True)),
            served_rps=load * min(_share(first, prefill_rps), _share(second, decode_rps)),
            replicas={**first.replicas, **second.replicas},
        )
        for first in prefill
        for second in decode
    )


def _share(bundle: Bundle, load_rps: float) -> float:
    return min(1.0, bundle.served_rps / load_rps) if load_rps > 0.0 else 1.0


def _sum(first: Bundle, second: Bundle) -> Bundle:
    return Bundle(
        gpus=tuple(a + b for a, b in zip(first.gpus, second.gpus, strict=True)),
        served_rps=first.served_rps + second.served_rps,
        replicas={**first.replicas, **second.replicas},
    )


def _pareto(bundles: Iterable[Bundle]) -> tuple[Bundle, ...]:
    """Without those that cost at least as much as another and serve no more; cheapest first, ties by replica counts so that
    the order in which pools came does not matter."""
    ordered = sorted(bundles, key=lambda item: (sum(item.gpus), item.gpus, -item.served_rps, sorted(item.replicas.items())))
    kept: list[Bundle] = []
    for bundle in ordered:
        if len(bundle.gpus) == 1:
            dominated = bool(kept) and kept[-1].served_rps >= bundle.served_rps - EPSILON
        else:
            dominated = any(
                other.served_rps >= bundle.served_rps - EPSILON
                and all(a <= b for a, b in zip(other.gpus, bundle.gpus, strict=True))
                for other in kept
            )
        if not dominated:
            kept.append(bundle)
    return tuple(kept)
