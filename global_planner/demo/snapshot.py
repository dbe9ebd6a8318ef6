"""What a running system looks like at one moment, for a view to draw. Pure.

`learn` folds the journal's records, as they come, into what is `Known`; `snapshot` joins that with the load's progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from global_planner.charge import account, charge_or_last_known
from global_planner.mocker.load_record import LoadProgress
from global_planner.types import Budget, Cancel, Drain, GroupSpec, Grow, PoolSpec, Round, Shrink, Step
from pool_planner.types import PlannerStatus, Role

EVENTS_KEPT = 50
_NO_CHANGE = ("stays", "held", "short")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was last decided for a pool, in a few words (`what`), and why."""

    at_s: float
    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the journal has told so far. `decisions` by pool: the last change; before there was one, and while the pool is held
    or gets less than it asks for, why it has what it has."""

    rounds: int = 0
    last_round: Round | None = None
    statuses: Mapping[str, PlannerStatus] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    scale_ups: int = 0
    scale_downs: int = 0
    budget_violations: int = 0
    max_charged_gpus: int = 0


def learn(known: Known, record: object) -> Known:
    """What is known after one more record; kinds that a view has no use for change nothing."""
    if isinstance(record, PlannerStatus):
        return replace(known, statuses={**known.statuses, record.pool: record})
    if not isinstance(record, Round):
        return known
    decisions = dict(known.decisions)
    for grant in record.allocation.pools:
        before = decisions.get(grant.pool)
        short = grant.binding is not None
        if before is None or before.what in _NO_CHANGE or grant.held or short:
            state = "held" if grant.held else "short" if short else "stays"
            decisions[grant.pool] = Decision(at_s=record.inputs.at_s, what=state, reason=grant.reason)
    for step in applied(record):
        changed = change(step)
        if changed is not None:
            decisions[step.pool] = Decision(at_s=record.inputs.at_s, what=changed, reason=step.reason)
    return replace(
        known,
        rounds=max(known.rounds, record.inputs.round_no),
        last_round=record,
        decisions=decisions,
        scale_ups=known.scale_ups + sum(map(is_scale_up, applied(record))),
        scale_downs=known.scale_downs + sum(map(is_scale_down, applied(record))),
        budget_violations=known.budget_violations + over_budget(record),
        max_charged_gpus=max(known.max_charged_gpus, sum(record.charged_gpus.values())),
    )


def applied(done: Round) -> tuple[Step, ...]:
    """The steps of a round that were carried out."""
    return tuple(outcome.step for outcome in done.outcomes if outcome.applied)


def is_scale_up(step: Step) -> bool:
    return isinstance(step, Grow) and step.after > step.before


def is_scale_down(step: Step) -> bool:
    """An order for fewer replicas; a cancelled start is not one, it undoes a scale-up."""
    return isinstance(step, Shrink) and step.after < step.before


def over_budget(done: Round) -> bool:
    """Whether any GPU type was charged above its budget when the round observed the cluster."""
    limits = done.inputs.budget.max_gpus
    return any(gpus > limits[gpu_type] for gpu_type, gpus in done.charged_gpus.items() if gpu_type in limits)


def change(step: Step) -> str | None:
    """A step in two or three words; None where it only takes another one back.

    >>> change(Grow(pool="p", before=1, after=3, version=None, reason=""))
    '1 → 3'
    """
    match step:
        case Drain():
            return f"drains {len(step.replicas)}"
        case Cancel():
            return f"cancels {step.before - step.after}"
        case Grow() | Shrink() if step.before != step.after:
            return f"{step.before} → {step.after}"
        case _:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLine:
    """One pool. `latency_ms` is the mean TTFT of a prefill pool, else the mean ITL, over its planner's last interval; None:
    nothing was measured. Counts are None while nothing is known. `leaving` counts draining and terminating replicas."""

    pool: str
    group: str
    role: Role
    wanted: int | None = None
    granted: int | None = None
    ready: int | None = None
    starting: int | None = None
    leaving: int | None = None
    charged_gpus: int | None = None
    latency_ms: float | None = None
    sla_ms: float
    decision: Decision | None = None

    @property
    def metric(self) -> str:
        return "TTFT" if self.role == "prefill" else "ITL"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetLine:
    """One GPU type: what is charged in all and by group, and the limit (None: unlimited)."""

    gpu_type: str
    charged_gpus: int
    max_gpus: int | None
    by_group: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLine:
    """One model: requests sent and completed, and the recent means that its clients saw."""

    model: str
    group: str
    sent: int = 0
    completed: int = 0
    ttft_ms: float | None = None
    itl_ms: float | None = None
    ttft_sla_ms: float
    itl_sla_ms: float
    attainment: float | None = None
    admitted_rps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a view shows. `now_s` and `end_s` are model seconds since the load started and at its planned end;
    `events` (model seconds likewise, text), the newest last. `load` None: it has not started."""

    title: str
    now_s: float
    end_s: float
    speed: float
    pools: tuple[PoolLine, ...]
    budgets: tuple[BudgetLine, ...]
    models: tuple[ModelLine, ...]
    known: Known
    load: LoadProgress | None = None
    events: tuple[tuple[float, str], ...] = ()


def snapshot(
    *,
    title: str,
    groups: Sequence[GroupSpec],
    pools: Sequence[PoolSpec],
    budget: Budget,
    known: Known,
    load: LoadProgress | None,
    notes: Sequence[tuple[float, str]],
    at_s: float,
    span_s: float,
    speed: float,
) -> Snapshot:
    """The system at model time `at_s`, with a load that plays for `span_s`; `notes` are (model time, text)."""
    start_s = at_s if load is None else load.started_s
    by_name = {group.name: group for group in groups}
    return Snapshot(
        title=title,
        now_s=at_s - start_s,
        end_s=span_s,
        speed=speed,
        pools=tuple(_pool_line(spec, by_name[spec.group], known) for spec in pools),
        budgets=_budget_lines(budget, pools, known),
        models=tuple(_model_line(group, known, load) for group in groups),
        known=known,
        load=load,
        events=tuple((noted_s - start_s, text) for noted_s, text in sorted(notes)[-EVENTS_KEPT:]),
    )


def _pool_line(spec: PoolSpec, group: GroupSpec, known: Known) -> PoolLine:
    prefill = spec.role == "prefill"
    status = known.statuses.get(spec.name)
    seen = status.observation if status is not None else None
    line = PoolLine(
        pool=spec.name,
        group=spec.group,
        role=spec.role,
        sla_ms=group.ttft_ms if prefill else group.itl_ms,
        latency_ms=None if seen is None else seen.ttft_ms if prefill else seen.itl_ms,
        decision=known.decisions.get(spec.name),
    )
    if known.last_round is None:
        return line
    grant = next((each for each in known.last_round.allocation.pools if each.pool == spec.name), None)
    holding = next((each for each in known.last_round.inputs.holdings if each.pool == spec.name), None)
    if grant is not None:
        line = replace(line, wanted=grant.wanted, granted=grant.granted)
    if holding is not None and holding.spec is not None:
        states = [replica.state for replica in holding.replicas]
        line = replace(
            line,
            ready=states.count("ready"),
            # Ordered and not even created yet is on its way as well.
            starting=states.count("starting") + max(0, holding.spec - len(states) + states.count("terminating")),
            leaving=states.count("draining") + states.count("terminating") + holding.lingering,
            charged_gpus=charge_or_last_known(holding, spec),
        )
    return line


def _budget_lines(budget: Budget, pools: Sequence[PoolSpec], known: Known) -> tuple[BudgetLine, ...]:
    holdings = known.last_round.inputs.holdings if known.last_round is not None else ()
    by_pool = {holding.pool: holding for holding in holdings}
    lines = []
    for gpu_type, entry in account(budget, pools, holdings).items():
        by_group: dict[str, int] = {}
        for spec in pools:
            holding = by_pool.get(spec.name)
            if spec.gpu_type == gpu_type and holding is not None:
                by_group[spec.group] = by_group.get(spec.group, 0) + (charge_or_last_known(holding, spec) or 0)
        lines.append(
            BudgetLine(
                gpu_type=gpu_type, charged_gpus=entry.charged_gpus, max_gpus=budget.max_gpus.get(gpu_type), by_group=by_group
            )
        )
    return tuple(lines)


def _model_line(group: GroupSpec, known: Known, load: LoadProgress | None) -> ModelLine:
    line = ModelLine(model=group.model, group=group.name, ttft_sla_ms=group.ttft_ms, itl_sla_ms=group.itl_ms)
    progress = load.models.get(group.model) if load is not None else None
    if progress is not None:
        line = replace(line, sent=progress.sent, completed=progress.completed, ttft_ms=progress.ttft_ms, itl_ms=progress.itl_ms)
    if known.last_round is not None:
        grant = next((each for each in known.last_round.allocation.groups if each.group == group.name), None)
        if grant is not None:
            line = replace(line, attainment=grant.attainment, admitted_rps=grant.admitted_rps)
    return line
