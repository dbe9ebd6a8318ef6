"""The decision of a pool planner, on one page. Pure: no I/O, no clock, no randomness; the same history gives the same plans.

    observation ─► learn ─► expectation (forecast, horizon, backlog) ─► capacity by replicas ─► throughput need ─┐
         └───────► workers' load ─────────────────────────────────────────────────────────────► load need ──────┤
                                                                            proposal ◄─ settle ◄─ combine ◄──────┘

A pool that cannot be known is held, with the reason. Pools of one planner are independent except for its GPU limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pool_planner.capacity import capacity_for
from pool_planner.config import PlannerConfig
from pool_planner.expectation import Expectation, expect
from pool_planner.learning import clean, correct, is_new, learn, why_unknown
from pool_planner.performance.demand import Capacity
from pool_planner.report import advice, hold, numbers, proposal, verdicts, within_gpus
from pool_planner.scaling.combine import Combined, combine
from pool_planner.scaling.load import LoadLimits, LoadNeed, load_need, signals
from pool_planner.scaling.settle import Rhythm, settle
from pool_planner.scaling.throughput import throughput_need
from pool_planner.setup import PlannerSetup, PoolSetup
from pool_planner.state import PlannerState, PoolState
from pool_planner.types import Grant, Hold, Observation, Report


def plan(
    state: PlannerState,
    observations: Mapping[str, Observation],
    grants: Mapping[str, Grant],
    now: float,
    setup: PlannerSetup,
) -> tuple[PlannerState, tuple[Report, ...]]:
    """One report for each pool of `setup`, in its order, and the state for the next plan.

    `observations` and `grants` by pool name; what is missing is unknown. `state` is taken over: use the returned one.
    """
    pools: dict[str, PoolState] = {}
    reports: list[Report] = []
    for pool in setup.pools:
        planned, report = plan_pool(
            state.pools[pool.name], observations.get(pool.name), grants.get(pool.name), now, pool, setup.config
        )
        pools[pool.name] = planned
        reports.append(report)
    reports = within_gpus(reports, setup)
    if setup.config.no_operation:
        reports = [advice(report) for report in reports]
    for report in reports:
        reason = report.reason if isinstance(report, Hold) else "; ".join(report.reasons)
        pools[report.pool] = replace(pools[report.pool], last_reason=reason)
    return PlannerState(pools=pools), tuple(reports)


def plan_pool(
    state: PoolState, observation: Observation | None, grant: Grant | None, now: float, pool: PoolSetup, config: PlannerConfig
) -> tuple[PoolState, Report]:
    """What one pool needs."""
    observation = clean(observation) if observation is not None else None
    unknown = why_unknown(observation, now=now, config=config)
    if unknown is not None or observation is None:
        return replace(state, arrivals=state.arrivals.gap()), hold(pool, config, now, unknown or "no observation")
    if config.extensions.start_from_provisioned and (grant is None or grant.replicas_spec is None):
        return learn(state, observation, pool, config), hold(pool, config, now, "what the pool has is not known yet")
    new = is_new(state, observation)
    state = learn(state, observation, pool, config)
    expectation = expect(state, observation, grant, pool, config, now)

    capacity = throughput = None
    if config.enable_throughput_scaling and pool.engine is not None:
        if expectation is None:
            return state, hold(pool, config, now, "no traffic is known that could be forecast")
        if new:
            state = correct(state, observation, grant, pool.engine, expectation.shape, config)
        known = capacity_for(
            state.capacity,
            pool.engine,
            expectation.shape,
            state.correction,
            max_replicas=pool.max_replicas,
            now=now,
            config=config,
        )
        state, capacity = replace(state, capacity=known), known.capacity
        throughput = throughput_need(capacity, expectation.load_rps, least=pool.min_replicas, most=pool.max_replicas)
    load = _load(state, observation, grant, pool, config, capacity) if config.enable_load_scaling else None
    needed = combine(throughput, load, least=pool.min_replicas, most=pool.max_replicas)
    idle = config.extensions.idle_to_min and is_idle(observation)
    if needed is None and idle:
        have = grant.replicas_spec if grant is not None and grant.replicas_spec is not None else pool.min_replicas
        needed = Combined(replicas=have, safe=have, reasons=("no request",))
    if needed is None:
        return state, hold(pool, config, now, load.reason if load is not None else "no scaling mode can decide")

    provisioned = grant.replicas_spec if grant is not None and config.extensions.start_from_provisioned else None
    if observation.front_door_up is not True:
        return _partial(state, needed, capacity, expectation, provisioned, now, pool, config)
    before = state.memory.wanted
    memory, wanted, settled = settle(
        state.memory,
        needed=needed.replicas,
        safe=needed.safe,
        idle=idle,
        provisioned=provisioned,
        least=pool.min_replicas,
        now=now,
        rhythm=_rhythm(config),
    )
    state = replace(state, memory=memory, forecast=expectation.forecast if expectation is not None else None)
    reasons = (*((settled,) if settled else ()), *needed.reasons, *(expectation.reasons if expectation is not None else ()))
    report = proposal(
        pool,
        config,
        now,
        wanted=min(wanted, pool.max_replicas),
        observed_rps=(observation.requests or 0.0) / observation.interval_s,
        idle=memory.resting,
        capacity=capacity,
        expectation=expectation,
        lately_rps=state.arrivals.counted_rps(),
        throughput=throughput,
        load=load,
        reasons=(*reasons, *(capacity.notes if capacity is not None else ())),
        priorities=state.priorities,
        prefix_hit_rate=state.prefix_hit_rate,
    )
    said = verdicts(pool, before, report.wanted, throughput, load)
    return replace(state, numbers=numbers(pool, state, grant, capacity, report), verdicts=said), report


def _partial(
    state: PoolState,
    needed: Combined,
    capacity: Capacity | None,
    expectation: Expectation | None,
    provisioned: int | None,
    now: float,
    pool: PoolSetup,
    config: PlannerConfig,
) -> tuple[PoolState, Report]:
    """A part of the front door does not answer: what the rest saw is a lower bound, enough to raise on and not to lower on."""
    if needed.replicas <= max(provisioned or 0, state.memory.wanted or 0):
        return state, hold(pool, config, now, "a part of the front door does not answer: what it serves is unknown")
    reason = f"a part of the front door does not answer, and already the rest needs {needed.replicas}"
    report = proposal(
        pool,
        config,
        now,
        wanted=needed.replicas,
        capacity=capacity,
        expectation=expectation,
        lately_rps=state.arrivals.counted_rps(),
        reasons=(reason, *needed.reasons),
        priorities=state.priorities,
        prefix_hit_rate=state.prefix_hit_rate,
    )
    return replace(state, memory=replace(state.memory, wanted=needed.replicas)), report


def is_idle(observation: Observation) -> bool:
    """Known to have had no request and to have none waiting, through a front door that is up."""
    return observation.front_door_up is True and observation.requests == 0.0 and not observation.queued_requests


def _load(
    state: PoolState,
    observation: Observation,
    grant: Grant | None,
    pool: PoolSetup,
    config: PlannerConfig,
    capacity: Capacity | None,
) -> LoadNeed:
    """What the workers' live load asks for."""
    if grant is None or grant.replicas_ready is None:
        return LoadNeed(verdict="unknown", replicas=None, reason="the number of ready replicas is not known")
    if observation.workers is None:
        return LoadNeed(verdict="unknown", replicas=None, reason="the workers' load is unknown")
    found, missing = signals(
        pool.role,
        observation.workers,
        state.ttft,
        state.itl,
        ttft_ms=pool.ttft_ms,
        itl_ms=pool.itl_ms,
        least=config.load_min_observations,
        target=config.extensions.load_target,
    )
    extensions = config.extensions
    limits = LoadLimits(
        sensitivity=config.load_scaling_down_sensitivity / 100.0,
        max_step=extensions.max_load_step,
        check_survivors=extensions.check_survivors,
    )
    need = load_need(found, missing, ready=grant.replicas_ready, starting=grant.replicas_starting or 0, limits=limits)
    if need.verdict == "down" and need.replicas is not None and capacity is not None and extensions.check_survivors:
        rate = (observation.requests or 0.0) / observation.interval_s
        if capacity.rps[min(need.replicas, pool.max_replicas)] < rate:
            reason = f"{need.replicas} replicas would not carry the {rate:.2f} requests/s that arrive now"
            return LoadNeed(verdict="stay", replicas=need.replicas + 1, reason=reason)
    return need


def _rhythm(config: PlannerConfig) -> Rhythm:
    """Knowledge of two forecast intervals comes before the first reduction, of a planner that has just started or was blind."""
    extensions = config.extensions
    learning_s = 2.0 * config.throughput_adjustment_interval if extensions.start_from_provisioned else 0.0
    return Rhythm(
        hold_s=config.hold_s,
        known_s=max(config.hold_s, learning_s),
        idle_hold_s=extensions.idle_hold_s if extensions.idle_to_min else None,
        gap_s=2.0 * config.tick_s,
    )
