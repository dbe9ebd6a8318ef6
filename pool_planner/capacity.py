"""What a pool's replicas carry, worked out once a forecast interval and whenever what they are asked for has changed. Pure.

Load-based scaling plans every few seconds, and what a replica can do does not change that fast: lengths of requests do in
minutes, and the load itself is no part of the capacity. Working it out is most of what a plan costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from pool_planner.config import PlannerConfig
from pool_planner.performance.correction import Correction
from pool_planner.performance.demand import Capacity, plain_capacity, queueing_capacity
from pool_planner.performance.work import Engine, Shape

DRIFT = 0.03  # relative change of a mean length that makes the capacity another
SPREAD_DRIFT = 0.1  # the same for how much lengths and times between arrivals vary


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCapacity:
    """A capacity, and what it was worked out for at `at_s`."""

    capacity: Capacity
    at_s: float
    engine: Engine
    shape: Shape
    correction: Correction

    def serves(self, engine: Engine, shape: Shape, correction: Correction, *, now: float, config: PlannerConfig) -> bool:
        """Whether it is still the capacity at `now`: of this forecast interval, and for requests like these."""
        age_s = now - self.at_s
        if not 0.0 <= age_s < config.throughput_adjustment_interval - 0.5 * config.tick_s:
            return False
        return engine == self.engine and correction == self.correction and alike(shape, self.shape)


def capacity_for(
    known: KnownCapacity | None,
    engine: Engine,
    shape: Shape,
    correction: Correction,
    *,
    max_replicas: int,
    now: float,
    config: PlannerConfig,
) -> KnownCapacity:
    """The capacity for requests of this shape: `known` where it serves, else worked out anew."""
    if known is not None and known.serves(engine, shape, correction, now=now, config=config):
        return known
    if config.extensions.queueing:
        target = config.extensions.attainment_target
        capacity = queueing_capacity(engine, shape, correction, target=target, max_replicas=max_replicas)
    else:
        capacity = plain_capacity(
            engine,
            shape.isl.mean,
            shape.osl.mean,
            computed_tokens=shape.computed.mean,
            ttft_ratio=correction.ttft_ratio,
            itl_ratio=correction.itl_ratio,
            max_replicas=max_replicas,
        )
    return KnownCapacity(capacity=capacity, at_s=now, engine=engine, shape=shape, correction=correction)


def alike(one: Shape, other: Shape) -> bool:
    """Whether requests of both shapes ask the same of a replica, as far as planning can tell."""
    return (
        _near(one.isl.mean, other.isl.mean, DRIFT)
        and _near(one.osl.mean, other.osl.mean, DRIFT)
        and _near(one.isl.second_moment, other.isl.second_moment, SPREAD_DRIFT)
        and _near(one.osl.second_moment, other.osl.second_moment, SPREAD_DRIFT)
        and _near(1.0 - one.cached, 1.0 - other.cached, DRIFT)
        and _near(one.arrival_cv2, other.arrival_cv2, SPREAD_DRIFT)
    )


def _near(one: float, other: float, within: float) -> bool:
    return abs(one - other) <= within * other
