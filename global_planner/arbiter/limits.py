"""What is limited: GPUs by type, quotas of namespaces, cost per hour, all as linear rows over replicas. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.state import ArbiterPolicy, Limit
from global_planner.arbiter.view import PoolView
from global_planner.types import Budget

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`names[r]`, `capacity[r]` (held pools' charges already taken off), `frozen[r]`: nothing that draws on it may grow,
    because nobody knows what a pool of it holds. `units[r]` are told to people."""

    names: tuple[str, ...]
    capacity: Array
    total: Array
    units: tuple[str, ...]
    frozen: tuple[bool, ...]
    _rows: tuple[_Row, ...]

    def draws(self, pool: PoolView) -> list[float]:
        """What one replica of a pool takes of each limit; nothing where it is held: its charge is off the capacity."""
        if pool.fixed_gpus is not None:
            return [0.0] * len(self._rows)
        return [row.per_gpu(pool) * pool.gpus for row in self._rows]

    def blocks(self, pool: PoolView) -> str | None:
        """Why a pool must not grow at all, or None."""
        for name, frozen, row in zip(self.names, self.frozen, self._rows, strict=True):
            if frozen and row.per_gpu(pool) > 0:
                return f"nobody knows what a pool on {name} holds"
            if row.prices is not None and row.covers(pool) and pool.spec.gpu_type not in row.prices:
                return f"{name} counts cost, and {pool.spec.gpu_type} has no price"
        for replica in () if pool.holding is None else pool.holding.replicas:
            if replica.state == "starting" and replica.unschedulable is not None:
                return f"a replica cannot be placed: {replica.unschedulable}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    name: str
    unit: str
    limit: float
    gpu_type: str | None
    namespace: str | None
    prices: dict[str, float] | None

    def per_gpu(self, pool: PoolView) -> float:
        if not self.covers(pool):
            return 0.0
        return 1.0 if self.prices is None else self.prices.get(pool.spec.gpu_type, 0.0)

    def covers(self, pool: PoolView) -> bool:
        """Whether the limit is about this pool."""
        spec = pool.spec
        if self.gpu_type is not None and spec.gpu_type != self.gpu_type:
            return False
        return self.namespace is None or fnmatchcase(spec.namespace, self.namespace)


def limits_of(budget: Budget, policy: ArbiterPolicy, pools: Sequence[PoolView]) -> Limits:
    """The limits of a round over its pools."""
    rows = [
        _Row(name=f"budget {gpu_type}", unit="GPUs", limit=float(most), gpu_type=gpu_type, namespace=None, prices=None)
        for gpu_type, most in sorted(budget.max_gpus.items())
    ]
    rows += [_of(limit, policy) for limit in policy.limits]
    capacity = np.array([row.limit for row in rows], dtype=np.float64)
    frozen = [False] * len(rows)
    for pool in pools:
        if pool.fixed_gpus is None:
            continue
        for place, row in enumerate(rows):
            draw = row.per_gpu(pool)
            capacity[place] -= draw * pool.fixed_gpus
            frozen[place] = frozen[place] or (pool.unknown_charge and draw > 0)
    np.maximum(capacity, 0.0, out=capacity)  # where held pools alone exceed a limit, nothing is left of it
    return Limits(
        names=tuple(row.name for row in rows),
        capacity=capacity,
        total=np.array([row.limit for row in rows], dtype=np.float64),
        units=tuple(row.unit for row in rows),
        frozen=tuple(frozen),
        _rows=tuple(rows),
    )


def _of(limit: Limit, policy: ArbiterPolicy) -> _Row:
    if limit.max_gpus is not None:
        unit, most, prices = "GPUs", float(limit.max_gpus), None
    else:
        unit, most, prices = "per hour", float(limit.max_cost_per_hour or 0.0), dict(policy.prices)
    name = f"limit {limit.name}"
    return _Row(name=name, unit=unit, limit=most, gpu_type=limit.gpu_type, namespace=limit.namespace, prices=prices)
