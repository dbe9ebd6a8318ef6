"""What a workload asks of each pool, counted from the workload itself: for static fleets, fixed shares and the oracle. Pure.

Requests go to the pools as the router's rule for prompt lengths sends them. Replicas follow from the profiles: by the planner
guide's formulas (load over profiled throughput), as people size a fleet by hand, or by the planners' own queueing model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from global_planner.config import GroupConfig, PoolConfig, Topology
from global_planner.demo.attainment import prompts_of
from global_planner.replay.arrivals import Floats, Ints, Workload
from pool_planner.performance.correction import Correction
from pool_planner.performance.demand import Capacity, plain_capacity, queueing_capacity
from pool_planner.performance.lengths import LengthMix
from pool_planner.performance.work import Engine, Shape
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.types import Histogram
from router.metrics import TOKEN_EDGES

PEAK_BIN_S = 10.0
TARGET = 0.97


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLoad:
    """The requests of one pool: arrivals (sorted) and lengths. A prefill pool generates one token of each."""

    at_s: Floats
    isl: Ints
    osl: Ints

    def between(self, since_s: float, until_s: float) -> PoolLoad:
        first, last = np.searchsorted(self.at_s, (since_s, until_s), side="left")
        return PoolLoad(at_s=self.at_s[first:last], isl=self.isl[first:last], osl=self.osl[first:last])

    def shape(self) -> Shape:
        """Lengths as planners see them, in the router's buckets. There must be a request."""
        return Shape(isl=_mix(self.isl), osl=_mix(self.osl))


def pool_loads(topology: Topology, workload: Workload) -> Mapping[str, PoolLoad]:
    """By pool: which requests come to it."""
    return {pool.name: _pool_load(group, pool, workload) for group, pool in topology.placed_pools()}


def _pool_load(group: GroupConfig, pool: PoolConfig, workload: Workload) -> PoolLoad:
    above, up_to = prompts_of(group, pool)
    longest = max((other.isl_max_tokens or math.inf for other in group.pools if other.role == pool.role), default=math.inf)
    mine = workload.of_model(group.model) & (workload.isl > above) & ((workload.isl <= up_to) | (up_to == longest))
    osl = np.ones_like(workload.osl[mine]) if pool.role == "prefill" else workload.osl[mine]
    return PoolLoad(at_s=workload.at_s[mine], isl=workload.isl[mine], osl=osl)


def setups_by_pool(setups: Mapping[str, PlannerSetup]) -> Mapping[str, PoolSetup]:
    return {pool.name: pool for setup in setups.values() for pool in setup.pools}


def static_replicas(
    setup: PoolSetup, load: PoolLoad, span_s: float, *, peak: bool, bin_s: float = PEAK_BIN_S, quantile: float = 1.0
) -> int:
    """A fleet sized by hand: replicas for the highest `bin_s` seconds of tokens (or that `quantile` of them), or for the mean,
    by the guide's formulas. At least the pool's minimum; what the pool may have at most does not count, because nobody shares
    here."""
    engine = setup.engine
    if engine is None or load.at_s.size == 0:
        return setup.min_replicas
    bins = max(1, math.ceil(span_s / bin_s))
    weight = (load.isl if setup.role == "prefill" else load.osl).astype(np.float64)
    tokens = np.bincount(np.minimum((load.at_s / bin_s).astype(np.int64), bins - 1), weights=weight, minlength=bins)
    tokens_per_s = float(np.quantile(tokens, quantile)) / bin_s if peak else float(weight.sum()) / span_s
    isl, osl = float(load.isl.mean()), float(load.osl.mean())
    rate = tokens_per_s / (isl if setup.role == "prefill" else osl)
    one = plain_capacity(engine, isl, osl, ttft_ratio=1.0, itl_ratio=1.0, max_replicas=1).rps[1]
    return max(setup.min_replicas, 1, math.ceil(rate / one - 1e-9))


def capacity_of(engine: Engine, shape: Shape, setup: PoolSetup, *, target: float = TARGET) -> Capacity:
    """What 0, 1, 2 … replicas carry, by the planners' queueing model with what is known before anything was corrected."""
    return queueing_capacity(
        engine, shape, Correction(ttft_offset_ms=setup.ttft_offset_ms), target=target, max_replicas=setup.max_replicas
    )


def _mix(tokens: NDArray[np.int32]) -> LengthMix:
    edges = np.asarray(TOKEN_EDGES)
    counts = np.bincount(np.searchsorted(edges, tokens, side="left"), minlength=edges.size + 1)
    histogram = Histogram(edges=TOKEN_EDGES, counts=tuple(float(count) for count in counts))
    return LengthMix.of_histogram(histogram, float(tokens.mean()))


def shares(wanted: Mapping[str, int], minima: Mapping[str, int], gpus: Mapping[str, int], budget: int) -> Mapping[str, int]:
    """Replicas by pool that fit into `budget` GPUs: each its minimum, and the rest in proportion to what is wanted beyond that
    (`gpus` of one replica), rounded down, then one more each by the largest remainder.

    >>> shares({"a": 6, "b": 3}, {"a": 1, "b": 1}, {"a": 1, "b": 2}, 8)
    {'a': 4, 'b': 2}
    """
    more = {pool: max(0, wanted[pool] - minima[pool]) for pool in wanted}
    room = budget - sum(minima[pool] * gpus[pool] for pool in wanted)
    asked = sum(more[pool] * gpus[pool] for pool in wanted)
    share = 1.0 if asked <= room else max(0.0, room / asked)
    given = {pool: int(more[pool] * share + 1e-9) for pool in wanted}
    left = room - sum(given[pool] * gpus[pool] for pool in wanted)
    for pool in sorted(wanted, key=lambda each: (given[each] - more[each] * share, each)):
        if given[pool] < more[pool] and gpus[pool] <= left:
            given[pool] += 1
            left -= gpus[pool]
    return {pool: minima[pool] + given[pool] for pool in wanted}
