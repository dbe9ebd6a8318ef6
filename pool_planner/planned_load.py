"""The rate that a pool plans for: what is worth ordering replicas for, and what they are worth keeping for. Pure.

A replica that is ordered now serves after its start. What comes sooner is a reason to keep replicas, never to order them: when
they came it would be over, and they would be held, and paid, for nothing. So replicas are ordered for

- what is forecast for when they serve, and of a rise that is seen now or forecast from it the share that goes on until then, as
  the past tells (`Arrivals.goes_on`);
- a reserve for bursts that are shorter than a start: as many replicas as had enough to do (`Arrivals.reserve_replicas`), by
  what they serve in time behind the door that is there (`overload`),

and those that are there are kept for whatever is expected or seen from now on. Where a start takes no longer than deciding
does, the two are the same, and no replica is ordered that would serve too few more to pay for itself. A reserve is what doubts
about the load are worth, so where there is one the forecast counts with its mean; its upper quantile, which just after a burst
is higher than any burst, is for those who keep no reserve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pool_planner.config import PlannerConfig
from pool_planner.performance.demand import HEADROOM, Capacity
from pool_planner.setup import PoolSetup
from pool_planner.state import PoolState
from pool_planner.types import Forecast, Grant

_DEVIATE = NormalDist()
# A forecast reaches as far as one start, but a GPU that is moved has to pay for this long (s): in that time a load that has
# just risen or fallen is back at its mean of as long before, but for the share of it that goes on by what its past shows.
GOES_BACK_S = 300.0
# Where in the step from n - 1 to n replicas a load is put that is to need n: what replicas carry is worked out anew with
# every change of the lengths, and the number is not to move with that. A reserve stands in the middle; what is kept near the
# upper end, so that it counts as the load that it is.
RESERVED, LEAST, KEPT = 0.5, 0.1, 0.9
LULL = 0.3  # of the time that is remembered may have gone without bursts: what paid until then is kept all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """`load_rps` is planned for, `expected_rps` is what comes in the mean (it may be more); `reasons` say what else than the
    forecast made it."""

    load_rps: float
    expected_rps: float
    reasons: tuple[str, ...]


def planned_load(
    state: PoolState,
    forecasts: Sequence[Forecast],
    grant: Grant | None,
    pool: PoolSetup,
    config: PlannerConfig,
    reach_s: float,
) -> PlannedLoad:
    """`forecasts`: what is expected on the way to `reach_s` from now, the last one there; one at least."""
    extensions, arrivals = config.extensions, state.arrivals
    interval_s = float(config.throughput_adjustment_interval)
    capacity = None if state.capacity is None else state.capacity.capacity
    start_s = _start_s(pool, grant)
    late = extensions.cover_cold_start and start_s > config.tick_s
    usual, share = arrivals.mean_rps(GOES_BACK_S), arrivals.goes_on(reach_s, GOES_BACK_S)
    lasts = arrivals.goes_on(interval_s, GOES_BACK_S, lead_s=reach_s, after_s=reach_s) if late else 1.0

    def lasting(rate: float) -> float:
        """What is left of a rise to `rate` when replicas ordered now serve."""
        return usual + lasts * (rate - usual) if rate > usual else rate

    # Capacity that is given up now is gone now, so what is needed on the way to the horizon counts too.
    nearest = max(each.requests_per_s for each in forecasts)
    kept = max(_planned_rps(each, state, config) for each in forecasts)
    ordered = lasting(_planned_rps(forecasts[-1], state, config)) if late else kept
    mean = usual + share * (nearest - usual)
    reasons: list[str] = []

    reserved = _reserved(state, start_s, pool, config, capacity)
    reserve = _reserve_rps(capacity, reserved) if capacity is not None and reserved else 0.0
    if reserve > 0.0:
        paying = max(lasting(forecasts[-1].requests_per_s) if late else nearest, reserve)
        if ordered > paying:
            reasons.append(
                f"{ordered:.2f} requests/s may come; what is beyond {paying:.2f} comes too seldom to pay for its GPUs"
            )
            ordered = paying
        kept = min(kept, max(nearest, reserve))
    already = 0.0
    if extensions.react_early:
        sparse = arrivals.sparse_rps(interval_s)
        ordered, mean = max(ordered, sparse), max(mean, sparse)
        already = arrivals.at_least_rps(interval_s)  # what came before is the forecast's to judge
        if already > ordered:
            reasons.append(f"{already:.2f} requests/s arrive already, {ordered:.2f} were forecast")
            ordered = max(ordered, lasting(already))
            if late:
                reasons.append(f"{ordered:.2f} of them when what is ordered now serves, {reach_s:.0f} s from now")
        kept = max(kept, already)
    if capacity is not None and reserve > ordered and (capacity.needed(ordered) or 0) < reserved:
        price = extensions.violation_price
        reasons.append(
            f"a reserve of {reserved} replicas, up to {capacity.rps[reserved]:.2f} requests/s, for bursts shorter than a "
            f"start: what each served besides took more than 1/{price:g} of its time (violation_price {price:g}); "
            f"{ordered:.2f} were forecast"
        )
        ordered = reserve
    load = max(ordered, kept)
    likely = load if reserve > 0.0 or not extensions.forecast_quantile else min(load, max(nearest, already))
    have = grant.replicas_spec if late and grant is not None else None
    if capacity is not None and have is not None:
        load = max(ordered, min(kept, _inside(capacity, have, KEPT)))
    if capacity is not None and not late:
        paying, why = _worth_starting(min(likely, load), load, pool, config, capacity)
        if why is not None:
            load = paying
            reasons.append(why)
    return PlannedLoad(load_rps=load, expected_rps=mean, reasons=tuple(reasons))


def _worth_starting(
    likely: float, most: float, pool: PoolSetup, config: PlannerConfig, capacity: Capacity
) -> tuple[float, str | None]:
    """Of `most`, as far as the replicas that it needs pay where starting takes no time: no more comes but for once in
    1/(1 - forecast_quantile) times, else `likely`. The door has to choose; where it does not, each replica that is missing is
    a queue. With the reason where that is less."""
    if not pool.shortest_first or capacity.shortest_first is None or most <= 0.0:
        return most, None
    quantile = config.extensions.forecast_quantile or 1.0
    price = config.extensions.violation_price
    pays = max(1, capacity.shortest_first.worth((likely, most), (quantile, 1.0 - quantile), price))
    needed = capacity.needed(most)
    if needed is not None and needed <= pays:
        return most, None
    why = (
        f"{most:.2f} requests/s would need {'more than there may be' if needed is None else needed} replicas; beyond {pays} "
        f"they serve too few more to pay for their GPUs (violation_price {price:g})"
    )
    return min(most, _reserve_rps(capacity, pays)), why


def _start_s(pool: PoolSetup, grant: Grant | None) -> float:
    measured = grant.cold_start_s if grant is not None else None
    return measured if measured is not None else pool.cold_start_s


def _inside(capacity: Capacity, replicas: int, part: float) -> float:
    """A rate (requests/s) that needs `replicas`: as far as `part` on the way from what one fewer carries."""
    replicas = min(replicas, len(capacity.rps) - 1)
    fewer = capacity.rps[max(0, replicas - 1)]
    return fewer + part * (capacity.rps[replicas] - fewer)


def _reserve_rps(capacity: Capacity, replicas: int) -> float:
    """A rate that needs `replicas`, and no more with headroom where their steps are long enough: a reserve is for doubts."""
    replicas = min(replicas, len(capacity.rps) - 1)
    safe = min(_inside(capacity, replicas, RESERVED), capacity.rps[replicas] / HEADROOM)
    return max(safe, _inside(capacity, replicas, LEAST))


def _reserved(state: PoolState, start_s: float, pool: PoolSetup, config: PlannerConfig, capacity: Capacity | None) -> int:
    """Replicas to have ready for what came lately. Who releases capacity has it back after a cold start, so a burst that is
    shorter finds nothing: what it would need is kept as far as that is worth its GPUs. A start that takes no longer than
    deciding needs no reserve."""
    extensions = config.extensions
    if capacity is None or extensions.remember_starts <= 0.0 or start_s <= config.tick_s:
        return 0
    served, remembered_s = capacity.served(shortest_first=pool.shortest_first), extensions.remember_starts * start_s
    lull_s = LULL * remembered_s
    return state.arrivals.reserve_replicas(remembered_s - lull_s, extensions.violation_price, served, lull_s)


def _planned_rps(forecast: Forecast, state: PoolState, config: PlannerConfig) -> float:
    """The rate to plan for. The forecast's quantile is of counts in an interval, which vary by chance even at a known rate;
    the queueing model covers that part already, so here it is taken out (variances add), and what is left is the doubt about
    the rate itself."""
    quantile = config.extensions.forecast_quantile
    if quantile is None:
        return forecast.requests_per_s
    excess = forecast.requests_per_s_high - forecast.requests_per_s
    if not config.extensions.queueing:
        return forecast.requests_per_s + excess
    interval_s = float(config.throughput_adjustment_interval)
    chance = _DEVIATE.inv_cdf(quantile) * math.sqrt(state.arrivals.cv2 * forecast.requests_per_s / interval_s)
    return forecast.requests_per_s + math.sqrt(max(0.0, excess * excess - chance * chance))
