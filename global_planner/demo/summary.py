"""What a run amounts to: the numbers of summary.json. Pure. Times are model time unless named `wall`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from global_planner.charge import charge_or_last_known
from global_planner.compile import budget_of, pool_specs
from global_planner.config import GroupConfig, PoolConfig, Topology
from global_planner.demo.attainment import itl_attainment, prompts_of, ttft_attainment
from global_planner.demo.snapshot import applied, is_scale_down, is_scale_up, over_budget
from global_planner.mocker.load_record import LoadRecord
from global_planner.types import Holding, PoolSpec, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParameters:
    """What was run. `wall_s` is what the whole demo took; `trace` None: the built-in workload, drawn from `seed`. `stopped`:
    it ended before its workload did. `peak_held_gpus`: the most GPUs of each type that the cluster itself counted at once.
    """

    topology: Topology
    speed: float
    wall_s: float
    minutes: float
    scale: float = 1.0
    seed: int = 1
    trace: str | None = None
    stopped: bool = False
    peak_held_gpus: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSummary:
    """One model as its clients saw it. Attainments None: no request that they could be about."""

    requests: int
    completed: int
    lost: int
    rejected: int
    abandoned: int
    retried: int
    ttft_attainment: float | None
    itl_attainment: float | None
    ttft_sla_ms: float
    itl_sla_ms: float
    ttft_ms_p50: float | None
    ttft_ms_p95: float | None
    itl_ms_p50: float | None
    itl_ms_p95: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSummary:
    """One pool. `requests` and `attainment` are of the requests whose prompt length belongs to the pool by configuration:
    TTFT for a prefill pool, ITL for a decode pool, both for an aggregated one. `gpu_hours_static_peak`: what holding
    `max_wanted` replicas all the time would have charged. Steps count within the load's time here, in the whole run above."""

    model: str
    role: str
    requests: int
    attainment: float | None
    max_wanted: int
    max_granted: int
    max_ready: int
    gpu_hours: float
    gpu_hours_static_peak: float
    scale_ups: int
    scale_downs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The whole run. GPU-hours are charged GPUs over model hours from the load's start to its last answer.

    `gpu_hours_static_peak` is every pool held at the largest number that it wanted, all the time: what a fleet that is sized
    for each pool's own peak costs; `gpu_hours_whole_budget` is the whole budget held all the time. `budget_gpus` None: some
    type is unlimited. `budget_violations` are rounds that found a GPU type charged above its budget, and GPU types of which
    the cluster by its own count ever held more (`max_held_gpus`; None: it did not tell).

    `overhead_ms_p50` is what a completed request took beyond what its engines account for: the stack's own work, hand-offs,
    and waiting at the router; `overhead_ms_p05`, of the quickest, is the work alone. At a high speed that is wall time
    magnified (`overhead_wall_ms_*` is the same in wall time). `generator_late_ms_p99` is the load's own lateness.
    """

    requests: int
    completed: int
    lost: int
    rejected: int
    abandoned: int
    retried: int
    ttft_attainment: float | None
    itl_attainment: float | None
    gpu_hours: float
    gpu_hours_static_peak: float
    gpu_hours_whole_budget: float | None
    budget_gpus: int | None
    max_charged_gpus: int
    max_held_gpus: int | None
    budget_violations: int
    rounds: int
    scale_ups: int
    scale_downs: int
    decisions_p99_ms: float | None
    wall_s: float
    speed: float
    overhead_ms_p50: float | None
    overhead_ms_p05: float | None
    overhead_wall_ms_p50: float | None
    overhead_wall_ms_p05: float | None
    generator_late_ms_p99: float | None
    span_s: float
    minutes: float
    scale: float
    seed: int
    trace: str | None
    stopped: bool
    topology: str
    gpu_types: Mapping[str, Mapping[str, int | None]]
    lost_reasons: Mapping[str, int]
    models: Mapping[str, ModelSummary]
    pools: Mapping[str, PoolSummary]

    @property
    def good(self) -> bool:
        """Whether the promises held: nothing lost, the budget never exceeded."""
        return self.lost == 0 and self.budget_violations == 0

    def as_json(self) -> dict[str, object]:
        """The content of summary.json."""
        return asdict(self)


def summarise(records: Sequence[LoadRecord], journal: Iterable[object], parameters: RunParameters) -> Summary:
    """Sum up a run from the load's records and the journal's."""
    topology = parameters.topology
    rounds = [record for record in journal if isinstance(record, Round)]
    start_s, end_s = load_window(records, rounds)
    during = in_force(rounds, start_s, end_s)
    budget, specs = budget_of(topology), pool_specs(topology)
    groups = {group.model: group for group in topology.groups}
    answered = [record for record in records if record.outcome == "completed" and record.engine_model_ms is not None]
    overheads = [record.duration_ms - (record.engine_model_ms or 0.0) for record in answered]
    wall_overheads = [overhead / parameters.speed for overhead in overheads]
    all_pools = {
        pool.name: _pool_summary(group, pool, spec, records, during)
        for group in topology.groups
        for pool in group.pools
        for spec in specs
        if spec.name == pool.name
    }
    limits = budget.max_gpus
    types = {gpu_type for done, _ in during for gpu_type in done.charged_gpus} | set(limits)
    reasons: dict[str, int] = {}
    for record in records:
        if record.outcome == "lost":
            reasons[record.reason or "unknown"] = reasons.get(record.reason or "unknown", 0) + 1
    return Summary(
        **_counts(records),
        ttft_attainment=ttft_attainment(records, groups),
        itl_attainment=itl_attainment(records, groups),
        gpu_hours=sum(sum(done.charged_gpus.values()) * hours for done, hours in during),
        gpu_hours_static_peak=sum(pool.gpu_hours_static_peak for pool in all_pools.values()),
        gpu_hours_whole_budget=sum(limits.values()) * (end_s - start_s) / 3600.0 if types <= set(limits) else None,
        budget_gpus=sum(limits.values()) if types <= set(limits) else None,
        max_charged_gpus=max((sum(done.charged_gpus.values()) for done in rounds), default=0),
        max_held_gpus=sum(parameters.peak_held_gpus.values()) if parameters.peak_held_gpus else None,
        budget_violations=sum(map(over_budget, rounds))
        + sum(gpus > limits.get(gpu_type, gpus) for gpu_type, gpus in parameters.peak_held_gpus.items()),
        rounds=len(rounds),
        scale_ups=sum(is_scale_up(step) for done in rounds for step in applied(done)),
        scale_downs=sum(is_scale_down(step) for done in rounds for step in applied(done)),
        decisions_p99_ms=percentile([done.decide_ms for done in rounds], 99),
        wall_s=parameters.wall_s,
        speed=parameters.speed,
        overhead_ms_p50=percentile(overheads, 50),
        overhead_ms_p05=percentile(overheads, 5),
        overhead_wall_ms_p50=percentile(wall_overheads, 50),
        overhead_wall_ms_p05=percentile(wall_overheads, 5),
        generator_late_ms_p99=percentile([record.late_ms for record in records], 99),
        span_s=end_s - start_s,
        minutes=parameters.minutes,
        scale=parameters.scale,
        seed=parameters.seed,
        trace=parameters.trace,
        stopped=parameters.stopped,
        topology=topology.name,
        gpu_types={
            gpu_type: {
                "budget": limits.get(gpu_type),
                "max_charged": max((done.charged_gpus.get(gpu_type, 0) for done in rounds), default=0),
            }
            for gpu_type in sorted(types)
        },
        lost_reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])[:10]),
        models={model: _model_summary(group, records) for model, group in groups.items()},
        pools=all_pools,
    )


# ---- requests ------------------------------------------------------------------------------------------------------


def _counts(records: Sequence[LoadRecord]) -> dict[str, int]:
    outcomes = [record.outcome for record in records]
    return {
        "requests": len(records),
        "completed": outcomes.count("completed"),
        "lost": outcomes.count("lost"),
        "rejected": outcomes.count("rejected"),
        "abandoned": outcomes.count("abandoned"),
        "retried": sum(record.retries for record in records),
    }


def _model_summary(group: GroupConfig, records: Sequence[LoadRecord]) -> ModelSummary:
    mine = [record for record in records if record.model == group.model]
    ttft = [record.ttft_ms for record in mine if record.ttft_ms is not None]
    itl = [record.itl_ms for record in mine if record.itl_ms is not None]
    return ModelSummary(
        **_counts(mine),
        ttft_attainment=ttft_attainment(mine, {group.model: group}),
        itl_attainment=itl_attainment(mine, {group.model: group}),
        ttft_sla_ms=group.sla.ttft_ms,
        itl_sla_ms=group.sla.itl_ms,
        ttft_ms_p50=percentile(ttft, 50),
        ttft_ms_p95=percentile(ttft, 95),
        itl_ms_p50=percentile(itl, 50),
        itl_ms_p95=percentile(itl, 95),
    )


# ---- pools ---------------------------------------------------------------------------------------------------------


def _pool_summary(
    group: GroupConfig,
    pool: PoolConfig,
    spec: PoolSpec,
    records: Sequence[LoadRecord],
    during: Sequence[tuple[Round, float]],
) -> PoolSummary:
    above, up_to = prompts_of(group, pool)
    mine = [record for record in records if record.model == group.model and above < record.isl_tokens <= up_to]
    by_model = {group.model: group}
    shares = [
        share
        for share, counts in (
            (ttft_attainment(mine, by_model), pool.role != "decode"),
            (itl_attainment(mine, by_model), pool.role != "prefill"),
        )
        if counts and share is not None
    ]
    grants = [grant for done, _ in during for grant in done.allocation.pools if grant.pool == pool.name]
    holdings = [holding for done, _ in during for holding in done.inputs.holdings if holding.pool == pool.name]
    wanted = max((grant.wanted for grant in grants if grant.wanted is not None), default=0)
    steps = [step for done, _ in during for step in applied(done) if step.pool == pool.name]
    return PoolSummary(
        model=group.model,
        role=pool.role,
        requests=len(mine),
        attainment=min(shares, default=None),
        max_wanted=wanted,
        max_granted=max((grant.granted for grant in grants), default=0),
        max_ready=max((ready_replicas(holding) for holding in holdings), default=0),
        gpu_hours=sum(charged_gpus(done, spec) * hours for done, hours in during),
        gpu_hours_static_peak=max(wanted, spec.min_replicas) * spec.gpus_per_replica * sum(hours for _, hours in during),
        scale_ups=sum(map(is_scale_up, steps)),
        scale_downs=sum(map(is_scale_down, steps)),
    )


def ready_replicas(holding: Holding) -> int:
    return sum(replica.state == "ready" for replica in holding.replicas)


def charged_gpus(done: Round, spec: PoolSpec) -> int:
    """GPUs charged to one pool; 0 where nothing was ever known of it."""
    holding = next((each for each in done.inputs.holdings if each.pool == spec.name), None)
    return (charge_or_last_known(holding, spec) or 0) if holding is not None else 0


# ---- time ----------------------------------------------------------------------------------------------------------


def load_window(records: Sequence[LoadRecord], rounds: Sequence[Round]) -> tuple[float, float]:
    """Model time from the load's second 0 to its last answer; without a request, the time of the rounds."""
    if records:
        start_s = min(record.sent_s - record.late_ms / 1e3 - record.at_s for record in records)
        return start_s, max(record.sent_s + record.duration_ms / 1e3 for record in records)
    if rounds:
        return rounds[0].inputs.at_s, rounds[-1].inputs.at_s
    return 0.0, 0.0


def in_force(rounds: Sequence[Round], start_s: float, end_s: float) -> list[tuple[Round, float]]:
    """(round, model hours) of a window: what a round saw counts until the next one looked; the first counts from the start."""
    inside = [done for done in rounds if done.inputs.at_s <= end_s]
    inside = [done for done in inside if done.inputs.at_s <= start_s][-1:] + [
        done for done in inside if done.inputs.at_s > start_s
    ]
    starts = [start_s, *(done.inputs.at_s for done in inside[1:]), end_s]
    return [(done, (until - since) / 3600.0) for done, since, until in zip(inside, starts, starts[1:], strict=False)]


def percentile(values: Sequence[float], rank: float) -> float | None:
    return float(np.percentile(values, rank)) if values else None
