"""Instances of the arbiter's benchmark: many models with their own demand, one budget that their peaks exceed.

A model has one prefill and one decode pool, of 1, 2, 4 or 8 GPUs a replica. Its demand follows a production series (ServeGen
m-large, 10-minute windows over 14 days) from a day and hour of its own; where that file is not there, a seeded generator with
a daily wave, a weekly wave and bursts. Need is load over a replica's rate, a real number, and a stage attains
min(1, replicas / need): the curve that all figures here are about. Budgets are a share of the sum of all peaks.
"""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from global_planner.types import Budget, GroupSpec, Holding, PoolSpec, RoundInputs
from pool_planner.types import DemandCurve, Proposal

Floats = NDArray[np.float64]
SERIES = Path(__file__).parents[3] / "shared/data/traces/servegen_m-large_10min.csv.gz"
ROUND_S = 180.0
SIZES = (1, 2, 4, 8)
TYPES = ("h100", "h200", "l40s")
ROUNDS = 240
QUANTILE = 1.15
"""What the upper quantile of a forecast is above its mean, in the instances whose planners doubt."""
MEAN_PEAK_GPUS = 25.0
"""GPUs that an average pool needs at its peak."""


def base_series() -> tuple[Floats, str]:
    """Requests/s every `ROUND_S` over some days, relative to their mean, and where they come from."""
    if SERIES.exists():
        with gzip.open(SERIES, "rt") as file:
            rows = [(float(row["t_s"]), float(row["rate_rps_sum"])) for row in csv.DictReader(file)]
        times, rates = np.array(rows).T
        series = np.interp(np.arange(times[0], times[-1], ROUND_S), times, rates)
        return series / series.mean(), SERIES.name
    rng = np.random.default_rng(3)
    days = np.arange(14 * 86400 / ROUND_S) * ROUND_S / 86400
    wave = 1.0 + 0.45 * np.sin(2 * np.pi * days) + 0.12 * np.sin(2 * np.pi * days / 7)
    series = wave * np.exp(np.convolve(rng.normal(0, 0.25, len(days)), np.ones(8) / 8, "same"))
    return series / series.mean(), "generator"


@dataclass(frozen=True)
class Instance:
    """`load[r, m]` requests/s of model m in round r; `rate[p]` requests/s that a replica of pool p carries. Pool 2m is model
    m's prefill, 2m + 1 its decode."""

    load: Floats
    rate: Floats
    groups: tuple[GroupSpec, ...]
    pools: tuple[PoolSpec, ...]
    budget: Budget
    source: str

    @property
    def gpus(self) -> NDArray[np.int64]:
        return np.array([spec.gpus_per_replica for spec in self.pools])

    def need(self, number: int) -> Floats:
        """Replicas that each pool needs in a round, as real numbers."""
        return np.repeat(self.load[number], 2) / self.rate

    def attainment(self, number: int, counts: NDArray[np.int64]) -> Floats:
        """Of each model, with these replicas by pool."""
        stages = np.minimum(1.0, counts / self.need(number)).reshape(-1, 2)
        result: Floats = stages.min(axis=1)
        return result

    def goodput(self, number: int, counts: NDArray[np.int64], priority: int | None = None) -> float:
        """Share of all requests of the round that meet their SLA; or of those to models of one priority class."""
        load = self.load[number]
        if priority is not None:
            load = load * (np.array([group.priority_class for group in self.groups]) == priority)
        return float(load @ self.attainment(number, counts) / load.sum())

    def half_granted_gpus(self, counts: NDArray[np.int64]) -> int:
        """GPUs beyond its minimum that a stage holds though its partner cannot use them, whatever the load: replicas beyond the
        first number that carries all that the partner's carry."""
        passed = np.repeat((counts * self.rate).reshape(-1, 2).min(axis=1), 2)
        useful = np.ceil(passed / self.rate - 1e-9)
        return int(np.maximum(counts - np.maximum(useful, 1), 0) @ self.gpus)

    def idle_gpus(self, number: int, counts: NDArray[np.int64]) -> int:
        """GPUs beyond its minimum that a stage does not need for what its group attains at the load of the round: half-granted
        ones, and those of both stages that a hold keeps for a load that may come back."""
        useful = np.ceil(np.repeat(self.attainment(number, counts), 2) * self.need(number) - 1e-9)
        return int(np.maximum(counts - np.maximum(useful, 1), 0) @ self.gpus)

    def asked(self, number: int) -> Floats:
        """Requests/s that planners with doubts ask for, by model: the largest load of this round and the two before, and the
        upper quantile of a forecast beyond it. What they expect in the mean is the load of the round."""
        lately: Floats = self.load[max(0, number - 2) : number + 1].max(axis=0) * QUANTILE
        return lately

    def inputs(self, number: int, counts: NDArray[np.int64], *, doubts: bool = False) -> RoundInputs:
        """The round as the arbiter is given it, when pools have `counts` replicas. With `doubts`, planners ask for what `asked`
        tells, and expect the load; else they ask for the load."""
        at_s = number * ROUND_S
        load = np.repeat(self.asked(number) if doubts else self.load[number], 2)
        expected = np.repeat(self.load[number], 2)
        need = load / self.rate
        reports, holdings = [], []
        asked = at_s - np.random.default_rng(number).uniform(0.0, ROUND_S, len(self.pools))  # for whoever asks first
        for place, (spec, replicas) in enumerate(zip(self.pools, counts.tolist(), strict=True)):
            wanted = max(1, math.ceil(need[place] - 1e-9))
            range_ = np.arange(max(wanted, replicas) + 4)
            capacity = range_ * self.rate[place]
            reports.append(
                Proposal(
                    pool=spec.name,
                    at_s=float(asked[place]),
                    expires_at_s=at_s + 2 * ROUND_S,
                    load_rps=float(load[place]),
                    wanted=wanted,
                    curve=DemandCurve(
                        attainment=tuple(np.minimum(1.0, range_ / need[place]).tolist()), capacity_rps=tuple(capacity.tolist())
                    ),
                    attainment_headroom=tuple(np.minimum(1.0, range_ / (1.1 * need[place])).tolist()),
                    expected_rps=float(expected[place]) if doubts else None,
                )
            )
            holdings.append(
                Holding(
                    pool=spec.name, at_s=at_s, spec=replicas, gpus_per_replica=spec.gpus_per_replica, cold_start_s=COLD_START_S
                )
            )
        return RoundInputs(
            round_no=number + 1,
            at_s=at_s,
            budget=self.budget,
            groups=self.groups,
            pools=self.pools,
            holdings=tuple(holdings),
            reports=tuple(reports),
        )


COLD_START_S = 60.0


def make(pools: int, types: int, share: float, rounds: int, *, seed: int = 1, classes: int = 1) -> Instance:
    """An instance with a budget of `share` of the sum of the peaks of each GPU type."""
    rng = np.random.default_rng([seed, pools, types])
    models = pools // 2
    series, source = base_series()
    starts = rng.integers(0, len(series), models)
    window = np.arange(max(ROUNDS, rounds))
    load = np.stack([series[(start + window) % len(series)] for start in starts], axis=1) * rng.lognormal(1.0, 1.0, models)
    gpus = rng.choice(SIZES, pools)
    peak_gpus = np.maximum(rng.lognormal(0.0, 0.7, pools) * MEAN_PEAK_GPUS / math.exp(0.245), gpus)
    rate = np.repeat(load.max(axis=0), 2) / (peak_gpus / gpus)
    kinds = [TYPES[kind] for kind in rng.integers(0, types, pools)]
    specs = tuple(
        PoolSpec(
            name=f"m{place // 2:04d}-{'decode' if place % 2 else 'prefill'}",
            group=f"m{place // 2:04d}",
            role="decode" if place % 2 else "prefill",
            gpu_type=kinds[place],
            gpus_per_replica=int(gpus[place]),
            dgd=f"m{place // 2:04d}",
            component="decode" if place % 2 else "prefill",
            namespace="bench",
            min_replicas=1,
        )
        for place in range(pools)
    )
    groups = tuple(
        GroupSpec(name=f"m{m:04d}", model=f"bench/m{m:04d}", priority_class=int(rng.integers(0, classes)))
        for m in range(models)
    )
    peaks = np.ceil(peak_gpus / gpus) * gpus
    most = {kind: int(share * peaks[np.array(kinds) == kind].sum()) for kind in sorted(set(kinds))}
    return Instance(load=load[:rounds], rate=rate, groups=groups, pools=specs, budget=Budget(max_gpus=most), source=source)
