"""What each pool can use, from its report and its holding. Pure.

A pool is *open* when there is a proposal in force and its holding is known: then the arbiter chooses its replicas between
`least` and `most`. Otherwise it is *held* at what it is charged for, and nothing is known of what it attains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from global_planner.arbiter.state import ArbiterPolicy, ArbiterState, Need
from global_planner.charge import charge_or_last_known, ordered_replicas
from global_planner.types import Holding, PoolSpec, RoundInputs
from pool_planner.types import Hold, Proposal

FULL = 1.0 - 1e-9
"""Attainment from which on a pool is served completely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDemand:
    """One pool's side of the decision.

    `attainment[n]` for n = 0..most. `need`: the fewest replicas that attain as much as any number does. `keep`: what the
    stability rule holds it at while nobody else needs the GPUs (never above what it has). `wanted`: what its planner asks
    for. `held` says why it is not decided about; `gpus` is its charge then.
    """

    spec: PoolSpec
    before: int | None
    gpus_per_replica: int
    least: int
    most: int
    load_rps: float
    attainment: tuple[float, ...]
    need: int
    wanted: int | None
    keep: int
    ready: int
    capacity_rps: tuple[float, ...] | None
    cold_start_s: float | None
    held: str | None = None
    gpus: int = 0


def demands(state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy) -> tuple[ArbiterState, Mapping[str, PoolDemand]]:
    """Every pool's demand, and the state with this round's needs in it."""
    holdings = {holding.pool: holding for holding in inputs.holdings}
    reports = {report.pool: report for report in inputs.reports}
    found: dict[str, PoolDemand] = {}
    needs: dict[str, tuple[Need, ...]] = {}
    since: dict[str, float] = {}
    for spec in inputs.pools:
        holding = holdings.get(spec.name)
        report = reports.get(spec.name)
        before = ordered_replicas(holding) if holding is not None else None
        why = _why_held(holding, report, before)
        if why is not None or holding is None or before is None or not isinstance(report, Proposal):
            found[spec.name] = _held(spec, holding, before, report, why or "")
            continue
        attainment = _curve(spec, report, inputs)
        need_now = _first(report.attainment_headroom, attainment, report.wanted)
        kept = _sliding(state.needs.get(spec.name, ()), Need(at_s=inputs.at_s, replicas=need_now), inputs.at_s - policy.hold_s)
        needs[spec.name] = kept
        since[spec.name] = state.since_s.get(spec.name, inputs.at_s)
        watched = inputs.at_s - since[spec.name] >= policy.hold_s
        keep = min(before, kept[0].replicas) if watched else before
        most = len(attainment) - 1
        found[spec.name] = PoolDemand(
            spec=spec,
            before=before,
            gpus_per_replica=holding.gpus_per_replica or spec.gpus_per_replica,
            least=min(spec.min_replicas, most),
            most=most,
            load_rps=report.load_rps,
            attainment=attainment,
            need=_first(None, attainment, 0),
            wanted=min(max(report.wanted, spec.min_replicas), most),
            keep=min(keep, most),
            ready=sum(1 for replica in holding.replicas if replica.state == "ready"),
            capacity_rps=report.curve.capacity_rps if report.curve is not None else None,
            cold_start_s=holding.cold_start_s,
        )
    return ArbiterState(needs=needs, since_s=since, turns=state.turns), found


def _why_held(holding: Holding | None, report: object, before: int | None) -> str | None:
    if holding is None:
        return "what it has is unknown"
    if holding.unknown is not None or before is None or holding.gpus_per_replica is None:
        return f"what it has is unknown: {holding.unknown or 'its replicas or their GPUs cannot be read'}"
    if holding.updating:
        return "a rolling update is under way"
    if report is None:
        return "no report from its planner is in force"
    if isinstance(report, Hold):
        return report.reason
    return None


def _held(spec: PoolSpec, holding: Holding | None, before: int | None, report: object, why: str) -> PoolDemand:
    gpus = charge_or_last_known(holding, spec) if holding is not None else None
    count = before if before is not None else 0
    return PoolDemand(
        spec=spec,
        before=before,
        gpus_per_replica=(holding.gpus_per_replica if holding is not None else None) or spec.gpus_per_replica,
        least=count,
        most=count,
        load_rps=0.0,
        attainment=(1.0,) * (count + 1),
        need=count,
        wanted=None,
        keep=count,
        ready=sum(1 for replica in holding.replicas if replica.state == "ready") if holding is not None else 0,
        capacity_rps=None,
        cold_start_s=holding.cold_start_s if holding is not None else None,
        held=why,
        gpus=gpus or 0,
    )


def _curve(spec: PoolSpec, report: Proposal, inputs: RoundInputs) -> tuple[float, ...]:
    """Attainment by replicas, as far as the pool may grow. Without a curve: min(1, n / wanted)."""
    if report.curve is not None:
        curve = report.curve.attainment
    else:
        last = max(report.wanted, spec.min_replicas, 1)
        curve = tuple(min(1.0, n / report.wanted) if report.wanted else 1.0 for n in range(last + 1))
    most = spec.max_replicas
    budget = inputs.budget.max_gpus.get(spec.gpu_type)
    if budget is not None:
        fits = budget // spec.gpus_per_replica
        most = fits if most is None else min(most, fits)
    if most is None:
        most = max(len(curve) - 1, spec.min_replicas)
    return tuple(curve[min(n, len(curve) - 1)] for n in range(most + 1))


def _first(headroom: tuple[float, ...] | None, attainment: tuple[float, ...], wanted: int) -> int:
    """The fewest replicas that attain as much as any number can, but at least `wanted`."""
    curve = headroom if headroom else attainment
    best = curve[-1] * FULL
    return max(min(wanted, len(attainment) - 1), next(n for n, value in enumerate(curve) if value >= best))


def _sliding(kept: tuple[Need, ...], new: Need, from_s: float) -> tuple[Need, ...]:
    """The sliding maximum: needs of the window that a later, larger one has not made irrelevant."""
    larger = tuple(need for need in kept if need.replicas > new.replicas and need.at_s >= from_s)
    return (*larger, new)
