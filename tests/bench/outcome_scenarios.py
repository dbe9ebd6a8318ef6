"""The judge's scenarios: which real traffic meets which deployment. Pure, but for the traces that it reads.

All use the curves measured on an H200 (Llama-3.1-8B FP8). Where a day or a week is played, engines are those curves slowed down
and the traffic is as much less, which needs the same number of replicas for fewer requests: a larger model. Everything that
decisions are about (the course of the load, cold starts, rhythms) stays in real time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from global_planner.compile import planner_setups_of
from global_planner.config import Topology
from global_planner.replay.arrivals import Arrivals, Workload, merge
from global_planner.replay.needs import PEAK_BIN_S, pool_loads, setups_by_pool, static_replicas
from global_planner.replay.scenario import Scenario
from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve
from pool_planner.performance.profile import Profile, load_profile
from tests.bench.outcome_traces import DATA, azure, copies, drawn, mooncake, servegen, week

HOUR_S, DAY_S = 3600.0, 86_400.0
TIGHT = 0.7  # of the sum of the pools' own peaks: what a tight budget has
REQUEST_TIMEOUT_S = 600.0  # of engines as they were measured
UNBOUNDED = 1000  # GPUs, while it is not known yet what the budget is
H200 = DATA / "profiles/h200_llama31_8b_fp8_tp1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a scenario: its SLA (ms), value, and what stands at the start (prefill, decode)."""

    name: str
    ttft_ms: float = 500.0
    itl_ms: float = 50.0
    priority: int = 0
    weight: float = 1.0
    start: tuple[int, int] = (2, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """What was measured elsewhere for this scenario with a fleet that never moves: `fleet` (prefill, decode; our guess of it,
    known are its GPUs), the share of requests within both targets, and GPU-hours."""

    fleet: tuple[int, int]
    attainment: float
    gpu_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`traffic(span_s)` makes the requests of the first `span_s` seconds. `slow`: engines this many times slower than measured.
    `budget` GPUs; None: `tight` of what all pools need at their own peaks together (see `tight_gpus`). `tick_s`, `round_s`: how
    often planners and arbiter decide. `judged`: which of the targets apply."""

    name: str
    about: str
    models: tuple[Model, ...]
    traffic: Callable[[float], Sequence[Arrivals]]
    span_s: float
    quick_s: float
    budget: int | None
    cold_start_s: float
    slow: float = 1.0
    tick_s: float = 5.0
    round_s: float = 5.0
    tight: float = TIGHT
    judged: Mapping[str, float] | None = None
    anchor: Anchor | None = None

    def scenario(self, *, quick: bool = False, seed: int = 1) -> Scenario:
        span_s = self.quick_s if quick else self.span_s
        workload: Workload = merge(list(self.traffic(span_s)))
        profile = slowed(load_profile(H200), self.slow)
        topology = self._topology(self.budget or UNBOUNDED)
        if self.budget is None:
            topology = self._topology(
                tight_gpus(self, topology, profile, workload if not quick else merge(list(self.traffic(self.span_s))))
            )
        pools = [pool.name for group in topology.groups for pool in group.pools]
        starts = [count for model in self.models for count in model.start]
        return Scenario(
            topology=topology,
            profiles=dict.fromkeys(pools, profile),
            workload=workload,
            seed=seed,
            window_s=span_s,
            start=dict(zip(pools, starts, strict=True)),
        )

    def _topology(self, budget: int) -> Topology:
        return Topology.model_validate({
            "name": self.name,
            "budget": {"gpus": {"h200": {"max": budget, "price_per_hour": 3.5}}},
            "cluster": {"kind": "virtual", "cold_start_s": self.cold_start_s, "termination_s": 5.0},
            "arbiter": {
                "round_interval_s": self.round_s,
                "admission": "sla",
                "start_limit_s": max(300.0, 3 * self.cold_start_s),
            },
            "router": {
                "queue_deadline_s": max(model.ttft_ms for model in self.models) / 1e3,
                "queue_limit": 100_000,
                # An engine that takes longer for everything is also waited for longer: nobody hangs up on an answer in its SLA.
                "request_timeout_s": REQUEST_TIMEOUT_S * self.slow,
            },
            "planner": {
                "throughput_adjustment_interval": int(self.tick_s),
                "load_predictor": "auto",
                "no_correction": False,
            },
            "groups": [self._group(model) for model in self.models],
        })  # fmt: skip

    def _group(self, model: Model) -> dict[str, Any]:
        return {
            "name": model.name,
            "model": model.name,
            "sla": {"ttft_ms": model.ttft_ms, "itl_ms": model.itl_ms},
            "priority": model.priority,
            "weight": model.weight,
            # 64 KiB of KV a token at 50 GB/s: 1.5 ms for 1,200 tokens, and as much again for the handshake and queueing.
            "engine": {"kv_transfer_ms": 5.0 * self.slow, "max_num_seqs": 256},
            "pools": [
                {"name": f"{model.name}-{role}", "role": role, "dgd": model.name, "gpu_type": "h200", "min_replicas": 1,
                 "profile": "h200"}
                for role in ("prefill", "decode")
            ],
        }  # fmt: skip


def tight_gpus(each: Case, topology: Topology, profile: Profile, workload: Workload) -> int:
    """The budget of a scenario of contention: `tight` of the sum of what each pool needs at its own peak, counted as
    `static_peak` counts it. That looks at the busiest PEAK_BIN_S of engines as they were measured, so of engines that are
    slower, and get as much less traffic, at as much more. Nothing here knows what any policy makes of it."""
    setups = setups_by_pool(planner_setups_of(topology, dict.fromkeys(dict(pool_loads(topology, workload)), profile)))
    loads = pool_loads(topology, workload)
    own_peaks = sum(
        static_replicas(setups[pool], load, each.span_s, peak=True, bin_s=PEAK_BIN_S * each.slow)
        for pool, load in loads.items()
    )
    return round(each.tight * own_peaks)


def slowed(profile: Profile, times: float) -> Profile:
    """The curves of an engine that takes `times` as long for everything."""
    prefill, decode = profile.prefill, profile.decode
    assert prefill is not None and decode is not None
    if times == 1.0:
        return profile
    usage, context, itl, thpt = zip(*decode.raw, strict=True)
    return Profile(
        prefill=PrefillCurve(
            isl_tokens=prefill.isl_tokens,
            ttft_ms=[times * ms for ms in prefill.raw_ttft_ms],
            thpt_per_gpu=[rate / times for rate in prefill.raw_thpt_per_gpu],
        ),
        decode=DecodeCurve(
            kv_usage=usage,
            context_tokens=context,
            itl_ms=[times * ms for ms in itl],
            thpt_per_gpu=[rate / times for rate in thpt],
            max_kv_tokens=decode.max_kv_tokens,
        ),
    )


def slow_model(name: str, slow: float, **more: Any) -> Model:
    return Model(name=name, ttft_ms=500.0 * slow, itl_ms=50.0 * slow, **more)


# Static at the peak of 10 s, as reported. 3.34 and 8.67 GPU-hours in 20 minutes are 10 and 26 GPUs, which is what the peak
# divided by the curves' best throughput asks for.
ANCHORS = {
    "conv": Anchor(fleet=(7, 3), attainment=0.921, gpu_hours=3.34),
    "code": Anchor(fleet=(24, 2), attainment=0.867, gpu_hours=8.67),
}


def _anchored(name: str, begin_s: float, cold_start_s: float, judged: Mapping[str, float]) -> Case:
    return Case(
        name=f"{name}-{cold_start_s:.0f}s",
        about=f"20 jittered copies of 20 minutes of Azure {name}, cold starts of {cold_start_s:.0f} s, from 2 + 2 replicas",
        models=(Model(name=name),),
        traffic=lambda span_s: [copies(name, azure(name), begin_s=begin_s, span_s=span_s, times=20, seed=7)],
        span_s=1200.0,
        quick_s=400.0,
        budget=32,
        cold_start_s=cold_start_s,
        judged=judged,
        anchor=ANCHORS[name],
    )


OPPOSITE = 2 / 40  # of the digitised week, on engines 40 times slower: as many replicas as twice the week would need


def _opposite(span_s: float) -> list[Arrivals]:
    """Half a day of the Tuesday, and the same half day turned round: when one peaks the other is at its lowest."""
    begin_s, half = 2 * DAY_S + 2 * HOUR_S, DAY_S / 2
    return [
        drawn("east", week(), begin_s=begin_s, span_s=half, scale=OPPOSITE, seed=1),
        drawn("west", week(), begin_s=begin_s, span_s=half, scale=OPPOSITE, seed=2, turn_s=half / 2),
    ] if span_s >= half else [
        drawn("east", week(), begin_s=begin_s + 3 * HOUR_S, span_s=span_s, scale=OPPOSITE, seed=1),
        drawn("west", week(), begin_s=begin_s + 3 * HOUR_S, span_s=span_s, scale=OPPOSITE, seed=2, turn_s=span_s / 2),
    ]  # fmt: skip


TEN = tuple(
    slow_model(f"m{number}", 10.0, priority=(2, 1, 0)[number % 3], weight=(1.0, 2.0)[number % 2], start=(1, 1))
    for number in range(10)
)


def _ten(span_s: float) -> list[Arrivals]:
    """Ten models: conversation and code by turns, each at its own time of the hour and its own size."""
    parts = []
    for number, model in enumerate(TEN):
        source, size = ("conv", 0.5 + 0.15 * (number % 4)) if number % 2 == 0 else ("code", 0.4 + 0.1 * (number % 3))
        at_s, isl, osl = azure(source)
        turned = (at_s + 350.0 * number) % 3420.0
        order = turned.argsort()
        columns = (turned[order], isl[order], osl[order])
        parts.append(copies(model.name, columns, begin_s=0.0, span_s=span_s, times=size, seed=number, priority=model.priority))
    return parts


TWENTY_SLOW, TWENTY_HASTE = 40.0, 8.0  # engines this many times slower; a day of the series in three hours
TWENTY = tuple(slow_model(f"m{number:02d}", TWENTY_SLOW, start=(2, 1)) for number in range(20))
TWENTY_PEAK_RPS = 4.7  # of a model of mean size: ten GPUs or so of either kind of traffic


def _twenty(span_s: float) -> list[Arrivals]:
    """Twenty models of equal priority, as in the arbiter's benchmark: each has the production series from a day and hour of its
    own, and its own size; with prompts and answers of conversation and code by turns. The budget
    is a share of the peaks at which mediators were measured elsewhere, with five models."""
    rng = np.random.default_rng(20)
    times_s, rates = servegen()
    parts = []
    for number, model in enumerate(TWENTY):
        begin_s, size = rng.uniform(0.0, times_s[-1] - DAY_S), TWENTY_PEAK_RPS * rng.lognormal(-0.125, 0.5)
        within = (times_s >= begin_s) & (times_s <= begin_s + DAY_S)
        parts.append(
            drawn(
                model.name, (times_s / TWENTY_HASTE, rates), begin_s=begin_s / TWENTY_HASTE, span_s=span_s,
                scale=size / float(rates[within].max()), seed=200 + number, lengths=("conv", "code")[number % 2],
            )
        )  # fmt: skip
    return parts


def _week(span_s: float) -> list[Arrivals]:
    return [
        drawn("azure", week(), begin_s=0.0, span_s=span_s, scale=1 / 160, seed=1),
        drawn("servegen", servegen(), begin_s=0.0, span_s=span_s, scale=1 / 900, seed=2),
    ]


CASES: tuple[Case, ...] = (
    Case(
        name="headroom",
        about="one model, one day (Azure 2024, a Tuesday) under a budget that is never short",
        models=(slow_model("chat", 40.0, start=(3, 3)),),
        traffic=lambda span_s: [drawn("chat", week(), begin_s=2 * DAY_S, span_s=span_s, scale=1 / 40, seed=1)],
        span_s=DAY_S,
        quick_s=3 * HOUR_S,
        budget=40,
        cold_start_s=90.0,
        slow=40.0,
        tick_s=30.0,
        round_s=30.0,
        judged={"attainment": 0.96, "saved": 0.25},
    ),
    Case(
        name="bursts",
        about="one model with bursts: an hour of Azure code, ten copies",
        models=(Model(name="code"),),
        traffic=lambda span_s: [copies("code", azure("code"), begin_s=0.0, span_s=span_s, times=10, seed=3)],
        span_s=3420.0,
        quick_s=600.0,
        budget=20,
        cold_start_s=45.0,
    ),
    Case(
        name="long",
        about="long context: most of an hour of Mooncake's conversations, four sets of users, with their prefix cache hits",
        models=(Model(name="long", ttft_ms=4000.0),),
        traffic=lambda span_s: [mooncake("long", span_s=span_s, times=4, seed=4)],
        span_s=3500.0,
        quick_s=600.0,
        budget=24,
        cold_start_s=45.0,
    ),
    Case(
        name="opposite",
        about="two models with opposite peaks, half a day, under 70 % of the sum of their peaks",
        models=(slow_model("east", 40.0), slow_model("west", 40.0)),
        traffic=_opposite,
        span_s=DAY_S / 2,
        quick_s=3 * HOUR_S,
        budget=None,
        cold_start_s=90.0,
        slow=40.0,
        tick_s=30.0,
        round_s=30.0,
        judged={"contention": 2.3},
    ),
    Case(
        name="ten",
        about="ten models of three priorities, conversation and code, under 70 % of the sum of their peaks",
        models=TEN,
        traffic=_ten,
        span_s=3420.0,
        quick_s=900.0,
        budget=None,
        cold_start_s=45.0,
        slow=10.0,
        tick_s=10.0,
        round_s=10.0,
        judged={"contention": 2.3},
    ),
    Case(
        name="twenty",
        about="twenty models, each with a day of its own of ServeGen's m-large in three hours, under 60 % of their peaks",
        models=TWENTY,
        traffic=_twenty,
        span_s=DAY_S / TWENTY_HASTE,
        quick_s=900.0,
        budget=None,
        cold_start_s=90.0,
        slow=TWENTY_SLOW,
        tick_s=45.0,
        round_s=45.0,
        tight=0.6,
        judged={"contention": 2.3},
    ),
    Case(
        name="week",
        about="a week: Azure 2024 as digitised and ServeGen's m-large, with cold starts of 120 s",
        models=(slow_model("azure", 120.0, start=(2, 2)), slow_model("servegen", 120.0, start=(2, 2))),
        traffic=_week,
        span_s=7 * DAY_S,
        quick_s=DAY_S / 2,
        budget=48,
        cold_start_s=120.0,
        slow=120.0,
        tick_s=120.0,
        round_s=120.0,
        judged={"saved": 0.25},
    ),
    _anchored("conv", 960.0, 90.0, {"attainment": 0.92, "gpu_hours": 3.85}),
    _anchored("conv", 960.0, 0.0, {"attainment": 0.95, "gpu_hours": 3.3}),
    _anchored("code", 0.0, 90.0, {"attainment": 0.60, "gpu_hours": 8.0, "frugal_attainment": 0.30, "frugal_gpu_hours": 4.5}),
    _anchored("code", 0.0, 0.0, {"attainment": 0.75, "gpu_hours": 6.0}),
)


def case(name: str) -> Case:
    """By name. Raises KeyError with those there are."""
    for each in CASES:
        if each.name == name:
            return each
    raise KeyError(f"{name!r} is not a scenario (has: {', '.join(each.name for each in CASES)})")
