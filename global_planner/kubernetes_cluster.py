"""[I/O] The Cluster port over DGDs in Kubernetes. Every failure becomes ClusterUnavailable or Conflict.

Observing reads what is watched and makes no call. Orders for several components of one DGD go out together.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from global_planner.kubernetes_holding import holding_of
from global_planner.types import Cancel, Grow, Holding, PoolSpec, Shrink
from pool_planner.connectors.component_state import ComponentState, Target
from pool_planner.connectors.kubernetes import Deployments, Order
from pool_planner.connectors.writers import Writer
from pool_planner.types import Conflict, WorldError

AT_ONCE = 8
"""DGDs that are written at the same time, between two looks at whether somebody has frozen everything."""


def target_of(pool: PoolSpec) -> Target:
    return Target(namespace=pool.namespace, dgd=pool.dgd, role=pool.role, component=pool.component)


class KubernetesCluster:
    """The pools of `pools` as `deployments` has them. `model_s` turns Unix seconds into model seconds. `may_write_s`: seconds
    for which writing is certainly still ours (0: it is not). `routed`: a router of ours sends to the replicas."""

    def __init__(
        self,
        deployments: Deployments,
        pools: Sequence[PoolSpec],
        *,
        now: Callable[[], float],
        model_s: Callable[[float], float],
        may_write_s: Callable[[], float] = lambda: math.inf,
        routed: bool = True,
    ) -> None:
        self._routed = routed
        self._deployments, self._now, self._model_s, self._may_write_s = deployments, now, model_s, may_write_s
        self._targets = {pool.name: target_of(pool) for pool in pools}
        self._known: dict[str, tuple[ComponentState, Writer | None, Holding]] = {}

    async def observe(self) -> tuple[Holding, ...]:
        """The holdings of our pools; one that cannot be read is unknown, never empty. Raises ClusterUnavailable."""
        self._deployments.check()
        at_s = self._now()
        return tuple(replace(self._holding(pool, target), at_s=at_s) for pool, target in self._targets.items())

    def _holding(self, pool: str, target: Target) -> Holding:
        """As of its last change: most pools of a large fleet stay as they are from round to round."""
        state = self._deployments.state(target)
        foreign = self._deployments.foreign(state)
        known = self._known.get(pool)
        if known is not None and known[0] is state and known[1] == foreign:
            return known[2]
        holding = holding_of(pool, state, foreign, at_s=0.0, model_s=self._model_s, routed=self._routed)
        self._known[pool] = (state, foreign, holding)
        return holding

    def state(self, pool: str) -> ComponentState:
        return self._deployments.state(self._targets[pool])

    async def apply(self, step: Shrink | Grow | Cancel) -> None:
        """One order. Raises Conflict (nothing was written) or ClusterUnavailable (it may have been)."""
        error = (await self.apply_together([step]))[0]
        if error is not None:
            raise error

    def batches(self, steps: Sequence[Shrink | Grow | Cancel]) -> list[list[Shrink | Grow | Cancel]]:
        """The steps in groups that may be applied at once: those of one DGD are never apart, and DGDs that only give back come
        first."""
        by_dgd: dict[tuple[str, str], list[Shrink | Grow | Cancel]] = {}
        for step in steps:
            target = self._targets[step.pool]
            by_dgd.setdefault((target.namespace, target.dgd), []).append(step)
        ordered = sorted(by_dgd.values(), key=lambda group: any(isinstance(step, Grow) for step in group))
        return [
            [step for group in ordered[start : start + AT_ONCE] for step in group] for start in range(0, len(ordered), AT_ONCE)
        ]

    async def apply_together(self, steps: Sequence[Shrink | Grow | Cancel]) -> list[WorldError | None]:
        """Orders of one batch; what became of each, None where it is done."""
        left_s = self._may_write_s()
        if left_s <= 0.0:
            return [Conflict("the lease is not ours any more: nothing was written") for _ in steps]
        orders = [
            Order(
                target=self._targets[step.pool],
                before=step.before,
                replicas=step.after,
                version=step.version,
                victims=() if isinstance(step, Grow) else step.victims,
            )
            for step in steps
        ]
        return await asyncio.to_thread(self._deployments.set_replicas, orders, within_s=left_s)
