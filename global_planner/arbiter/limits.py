"""What is limited: GPUs by type, quotas of namespaces, cost per hour, all as linear rows over replicas. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from global_planner.arbiter.flat import floats_of
from global_planner.arbiter.state import ArbiterPolicy, Limit
from global_planner.arbiter.view import PoolView
from global_planner.types import Budget

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`names[r]`, `capacity[r]` (held pools' charges already taken off), `frozen[r]`: nothing that draws on it may grow,
    because nobody knows what a pool of it holds. `spent[r]` is told to people."""

    names: tuple[str, ...]
    capacity: Array
    total: Array
    spent: tuple[str, ...]
    frozen: tuple[bool, ...]
    _rows: tuple[_Row, ...]

    def draws(self, pools: Iterable[PoolView]) -> Array:
        """What one replica of each pool takes of each limit (pools x limits); nothing where it is held: its charge is off the
        capacity."""
        nothing = [0.0] * len(self._rows)
        kinds: dict[tuple[str, str], list[float]] = {}
        taken = []
        for pool in pools:
            if pool.fixed_gpus is not None:
                taken.append(nothing)
                continue
            kind = (pool.spec.gpu_type, pool.spec.namespace)
            per_gpu = kinds.get(kind)
            if per_gpu is None:
                per_gpu = kinds[kind] = [row.per_gpu(pool) for row in self._rows]
            gpus = pool.gpus
            taken.append([each * gpus for each in per_gpu])
        return floats_of(taken).reshape(len(taken), len(self._rows))

    def blocked(self, pools: Iterable[PoolView]) -> dict[str, str]:
        """By pool that must not grow at all, why."""
        severe = [
            (name, frozen, row)
            for name, frozen, row in zip(self.names, self.frozen, self._rows, strict=True)
            if frozen or row.prices is not None
        ]
        found = {}
        for pool in pools:
            if severe or (pool.holding is not None and pool.holding.replicas):
                why = _blocks(pool, severe)
                if why is not None:
                    found[pool.spec.name] = why
        return found


def _blocks(pool: PoolView, severe: Sequence[tuple[str, bool, _Row]]) -> str | None:
    for name, frozen, row in severe:
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
        spent=tuple(f"{row.name} of {row.limit:g} {row.unit} is spent" for row in rows),
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
