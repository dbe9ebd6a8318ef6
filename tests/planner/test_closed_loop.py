"""The planner in charge of a simulated pool for forty minutes of bursty traffic: what users would see, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from global_planner.replay.engine_spec import EngineSpec
from pool_planner.performance.profile import Profile, profile_from_raw, raw_profile
from pool_planner.setup import PlannerSetup
from tests.planner.closed_loop import Outcome, run
from tests.planner.story import PROFILE, config, pool

SECONDS, COLD_START_S = 2400.0, 30.0


def traffic(mean_rps: float, seed: int = 3) -> list[tuple[float, int, int]]:
    """A day in forty minutes: a swing of 3 : 1, gamma bursts of 30 s, log-normal lengths."""
    rng = np.random.default_rng(seed)
    bursts = rng.gamma(16.0, 1 / 16.0, int(SECONDS / 30) + 1)
    times = np.sort(rng.uniform(0, SECONDS, rng.poisson(4 * mean_rps * SECONDS)))
    rate = (1 + 0.5 * np.cos(2 * np.pi * (times / SECONDS - 0.25))) * bursts[(times / 30).astype(int)] / 4
    times = times[rng.uniform(size=times.size) < rate]
    isl = np.clip(rng.lognormal(6.2, 0.7, times.size), 16, 6000).astype(int)
    osl = np.clip(rng.lognormal(3.9, 0.6, times.size), 2, 400).astype(int)
    return list(zip(times.tolist(), isl.tolist(), osl.tolist(), strict=True))


def slower_profile(factor: float) -> Profile:
    """The profile of an engine whose every decode step takes `factor` times as long."""
    raw = raw_profile(PROFILE)
    decode = raw["decode"]
    assert decode is not None
    itl, thpt = decode["z_itl"], decode["z_thpt_per_gpu"]
    assert isinstance(itl, list) and isinstance(thpt, list)
    changed = {**decode, "z_itl": [factor * v for v in itl], "z_thpt_per_gpu": [v / factor for v in thpt]}
    return profile_from_raw({**raw, "decode": changed}, source="slower")


def play(role: str, mean_rps: float, *, begin: int, overhead_s: float = 0.0, slower: float = 1.0, **changes: Any) -> Outcome:
    settings = {"throughput_adjustment_interval": 20, "ttft": 6000.0, "load_predictor": "auto", **changes}
    pools = (pool(role, ttft_ms=6000.0, max_replicas=30, cold_start_s=COLD_START_S),)
    spec = EngineSpec(role=role, profile=slower_profile(slower))  # type: ignore[arg-type]
    return run(
        PlannerSetup(config=config(**settings), pools=pools),
        spec,
        traffic(mean_rps),
        cold_start_s=COLD_START_S,
        until_s=SECONDS,
        begin=begin,
        overhead_s=overhead_s,
    )


@pytest.mark.parametrize(("role", "rps", "begin"), [("prefill", 4.0, 6), ("decode", 1.0, 5)])
def test_the_sla_holds_with_less_than_the_peak_all_day(role: str, rps: float, begin: int) -> None:
    ours, plain = play(role, rps, begin=begin), play(role, rps, begin=begin, extensions={"plain": True})
    assert ours.met >= 0.95
    assert ours.replica_hours < 0.85 * ours.most * SECONDS / 3600, "less than its own peak all day"
    assert plain.met < ours.met, "the guide's plain behaviour plans for the mean of what was completed"
    if role == "decode":
        assert plain.met < ours.met - 0.1


def test_what_requests_pay_on_their_way_is_learned() -> None:
    """Three seconds of every TTFT are spent outside the engine: without correction they are planned as if they were free."""
    learned = play("prefill", 4.0, begin=6, overhead_s=3.0, no_correction=False)
    ignored = play("prefill", 4.0, begin=6, overhead_s=3.0)
    assert learned.met >= 0.95
    assert learned.met > ignored.met or learned.replica_hours > ignored.replica_hours


def test_engines_slower_than_their_profile_are_noticed() -> None:
    learned = play("decode", 2.0, begin=9, slower=1.25, no_correction=False)
    ignored = play("decode", 2.0, begin=9, slower=1.25)
    assert learned.met >= 0.95
    assert learned.met > ignored.met
