"""A made-up run of the two-model topology: every number follows a formula, so that tests can say what must come out."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from global_planner.compile import budget_of, group_specs, pool_specs
from global_planner.config import Topology
from global_planner.mocker.load_record import LoadProgress, LoadRecord, ModelProgress
from global_planner.replay.workload import WorkloadParameters, daily_rate, generate
from global_planner.types import (
    Allocation,
    GroupGrant,
    Grow,
    Holding,
    PoolGrant,
    PoolSpec,
    Replica,
    Round,
    RoundInputs,
    Shrink,
    Step,
    StepOutcome,
)
from pool_planner.types import Forecast, Observation, PlannerStatus

START_S = 40.0
ROUND_S = 5.0
SPAN_S = 2400.0
PARAMETERS = WorkloadParameters(span_s=SPAN_S)


@cache
def topology() -> Topology:
    """The shape of the two-model example, with numbers of its own."""
    groups = [_group("chat"), _group("code")]
    return Topology.model_validate({"name": "two-models", "budget": {"gpus": {"h100": {"max": 14}}}, "groups": groups})


def _group(name: str) -> dict[str, object]:
    pools = [
        {"name": f"{name}-prefill-short", "role": "prefill", "dgd": f"{name}-main", "isl_max_tokens": 2048},
        {"name": f"{name}-decode", "role": "decode", "dgd": f"{name}-main"},
        {"name": f"{name}-prefill-long", "role": "prefill", "dgd": f"{name}-long"},
    ]
    shared = {"gpu_type": "h100", "min_replicas": 1, "max_replicas": 8, "profile": "not read here"}
    sla = {"ttft_ms": 6000, "itl_ms": 500}
    return {"name": name, "model": f"demo/{name}", "sla": sla, "pools": [{**pool, **shared} for pool in pools]}


def share_of(spec: PoolSpec) -> float:
    return 0.2 if spec.name.endswith("long") else 0.8 if spec.role == "prefill" else 1.0


def rate(spec: PoolSpec, at_s: float) -> float:
    """What arrives at a pool, requests/s."""
    index = [group.name for group in group_specs(topology())].index(spec.group)
    return float(daily_rate(at_s, index, 2, PARAMETERS)) * share_of(spec)


def wanted(spec: PoolSpec, at_s: float) -> int:
    per_replica = 0.35 if spec.role == "decode" else 0.45
    return max(1, math.ceil(rate(spec, at_s + 30.0) / per_replica))


def journal(span_s: float = SPAN_S, *, decide_ms: float = 1.5) -> list[object]:
    """Rounds and statuses: every pool gets what it wants, one round after the other; a replica is ready at once."""
    pools, groups, budget = pool_specs(topology()), group_specs(topology()), budget_of(topology())
    have = {spec.name: 1 for spec in pools}
    records: list[object] = []
    for number in range(int((span_s + START_S) / ROUND_S)):
        at_s = number * ROUND_S
        load_s = max(0.0, at_s - START_S)
        grants, steps, holdings = [], [], []
        for spec in pools:
            now, want = have[spec.name], wanted(spec, load_s)
            replicas = tuple(Replica(id=f"{spec.name}-{n}", state="ready") for n in range(now))
            holdings.append(
                Holding(
                    pool=spec.name, at_s=at_s, spec=now, version="1", replicas=replicas, gpus_per_replica=spec.gpus_per_replica
                )
            )
            reason = f"stays at {now}: {rate(spec, load_s):.2f} req/s needs {want}"
            if want > now:
                reason = f"raised {now} -> {want}: {rate(spec, load_s):.2f} req/s needs {want}"
                steps.append(Grow(pool=spec.name, before=now, after=want, version="1", reason=f"{now} to {want}: {reason}"))
            elif want < now:
                reason = f"lowered {now} -> {want}: {rate(spec, load_s):.2f} req/s needs {want}, for the whole hold"
                steps.append(_shrink(spec.name, now, want, reason))
            grants.append(PoolGrant(pool=spec.name, wanted=want, granted=want, before=now, reason=reason))
            have[spec.name] = want
        inputs = RoundInputs(
            round_no=number + 1, at_s=at_s, budget=budget, groups=groups, pools=pools, holdings=tuple(holdings), reports=()
        )
        served = tuple(GroupGrant(group=group.name, load_rps=1.0, attainment=1.0) for group in groups)
        records.append(
            Round(
                inputs=inputs,
                allocation=Allocation(
                    pools=tuple(grants), groups=served, objective="goodput", value=1.0, gap=0.0, solver="exact"
                ),
                steps=tuple(steps),
                outcomes=tuple(StepOutcome(step=step, applied=True) for step in steps),
                charged_gpus={"h100": sum(len(holding.replicas) for holding in holdings)},
                decide_ms=decide_ms,
            )
        )
        if number % 4 == 3:
            records += [_status(spec, at_s, load_s) for spec in pools]
    return records


def _shrink(pool: str, before: int, after: int, reason: str) -> Step:
    victims = tuple(f"{pool}-{n}" for n in range(after, before))
    return Shrink(
        pool=pool, before=before, after=after, victims=victims, version="1", reason=f"granted {after} of {before}: {reason}"
    )


def _status(spec: PoolSpec, at_s: float, load_s: float) -> PlannerStatus:
    now, later = rate(spec, load_s), rate(spec, load_s + 60.0)
    prefill = spec.role == "prefill"
    seen = Observation(
        pool=spec.name,
        at_s=at_s,
        interval_s=20.0,
        front_door_up=True,
        requests=now * 20.0,
        completed=now * 20.0,
        ttft_ms=900.0 + 400.0 * now if prefill else None,
        itl_ms=None if prefill else 300.0 + 60.0 * now,
    )
    forecast = Forecast(
        at_s=at_s,
        horizon_s=60.0,
        requests_per_s=later * 1.05,
        requests_per_s_high=later * 1.3,
        quantile=0.9,
        isl_tokens=700.0,
        osl_tokens=60.0,
        predictor="kalman",
    )
    return PlannerStatus(pool=spec.name, at_s=at_s, observation=seen, forecast=forecast, last_reason="as forecast")


def records(span_s: float = SPAN_S, *, seed: int = 3) -> list[LoadRecord]:
    """Every request of the built-in workload, answered within its SLA, a few streams slower than theirs."""
    rng = np.random.default_rng(seed)
    made = []
    for index, request in enumerate(generate(("demo/chat", "demo/code"), PARAMETERS, np.random.default_rng(seed))):
        if request.at_s >= span_s:
            break
        ttft_ms = (300.0 + 0.8 * request.isl_tokens) * float(rng.lognormal(0.2, 0.3))
        itl_ms = 330.0 * float(rng.lognormal(0.0, 0.12))
        streamed = bool(rng.uniform() < 0.9)
        duration_ms = ttft_ms + itl_ms * (request.osl_tokens - 1)
        made.append(
            LoadRecord(
                index=index,
                model=request.model,
                at_s=request.at_s,
                isl_tokens=request.isl_tokens,
                osl_tokens=request.osl_tokens,
                priority=0,
                chat=True,
                streamed=streamed,
                sent_s=START_S + request.at_s,
                late_ms=2.0,
                outcome="completed",
                duration_ms=duration_ms,
                ttft_ms=ttft_ms if streamed else None,
                itl_ms=itl_ms if streamed and request.osl_tokens > 1 else None,
                engine_model_ms=duration_ms - 80.0,
                http_status=200,
            )
        )
    return made


def progress(now_s: float, *, lost: int = 0) -> LoadProgress:
    sent = [record for record in records() if record.at_s <= now_s - START_S]
    models = {
        model: ModelProgress(
            sent=sum(record.model == model for record in sent), completed=len(sent) // 2 - 8, ttft_ms=1234.5, itl_ms=612.0
        )
        for model in ("demo/chat", "demo/code")
    }
    return LoadProgress(
        pid=1,
        started_s=START_S,
        now_s=now_s,
        total=len(records()),
        sent=len(sent),
        in_flight=16,
        completed=len(sent) - 16 - lost,
        lost=lost,
        retried=3,
        models=models,
    )
