"""The built-in workload: the same seed, the daily shape, the bursts and the lengths that its docstring promises."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from global_planner.replay.workload import Request, WorkloadParameters, daily_rate, generate

MODELS = ("demo/chat", "demo/code")
DEMO = WorkloadParameters()
# Enough requests that shares are known to a per cent or so.
LONG = replace(DEMO, span_s=30_000.0)


@cache
def many(**changes: float) -> tuple[Request, ...]:
    return generate(MODELS, replace(LONG, **changes), np.random.default_rng(5))


def test_one_seed_is_one_workload() -> None:
    first, again, other = (generate(MODELS, DEMO, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_requests_are_sorted_within_the_span_and_whole() -> None:
    requests = generate(MODELS, DEMO, np.random.default_rng(7))
    times = [request.at_s for request in requests]
    assert times == sorted(times)
    assert times[0] >= 0.0 and times[-1] < DEMO.span_s
    assert {request.model for request in requests} == set(MODELS)
    assert all(1 <= request.isl_tokens <= DEMO.isl_max_tokens for request in requests)
    assert all(1 <= request.osl_tokens <= DEMO.osl_max_tokens for request in requests)


def test_the_rate_is_what_was_asked_for() -> None:
    assert len(many(ramp_share=0.0)) == pytest.approx(2 * LONG.mean_rps * LONG.span_s, rel=0.04)


def test_the_day_begins_with_a_ramp() -> None:
    """The area of a triangle is missing: half of what the flat rate would have brought in the first fifth."""
    flat = many(peak_to_trough=1.0, ramp_share=0.2, burst_cv=0.0)
    fifth = LONG.span_s / 5
    first, second = (sum(start <= request.at_s < start + fifth for request in flat) for start in (0.0, fifth))
    assert first / second == pytest.approx(0.5, abs=0.03)
    tenth = sum(request.at_s < fifth / 2 for request in flat)
    assert tenth / first == pytest.approx(0.25, abs=0.03)


def test_models_peak_at_opposite_times_with_the_ratio() -> None:
    chat, code = (daily_rate(np.array([600.0, 1800.0]), index, 2, DEMO) for index in (0, 1))
    assert chat[0] / chat[1] == pytest.approx(DEMO.peak_to_trough)
    assert code[1] / code[0] == pytest.approx(DEMO.peak_to_trough)
    requests = many()
    quarter = LONG.span_s / 4
    near_peak = [request.model for request in requests if abs(request.at_s - quarter) < quarter / 4]
    assert near_peak.count("demo/chat") / near_peak.count("demo/code") == pytest.approx(3.0, rel=0.15)


@pytest.mark.parametrize("cv", [0.0, 0.24, 1.0])
def test_bursts_add_what_they_say_to_poisson(cv: float) -> None:
    """Var(count) = mean + (cv x mean)^2 in a window, so the excess gives cv back."""
    requests = many(burst_cv=cv, peak_to_trough=1.0, mean_rps=2.0, ramp_share=0.0)
    times = np.array([request.at_s for request in requests if request.model == "demo/chat"])
    counts = np.bincount((times // LONG.burst_window_s).astype(int))
    excess = counts.var() - counts.mean()
    assert np.sqrt(max(0.0, excess)) / counts.mean() == pytest.approx(cv, abs=0.05, rel=0.1)


def test_prompts_are_short_and_long_with_a_tail() -> None:
    lengths = np.array([request.isl_tokens for request in many()])
    assert np.median(lengths[lengths < 1500]) == pytest.approx(DEMO.isl_short_median_tokens, rel=0.05)
    assert (lengths > 1500).mean() == pytest.approx(0.2, abs=0.02)
    assert 0.8 < np.log(lengths).std() < 1.0
    # Without a cut the longest of 45,000 prompts is far beyond what the log-normal alone would give (about 10,000).
    assert max(request.isl_tokens for request in many(isl_max_tokens=10**9)) > 20_000
    assert max(request.isl_tokens for request in many(isl_max_tokens=10**9, tail_share=0.0)) < 15_000


def test_answers_have_the_mean_and_spread() -> None:
    lengths = np.array([request.osl_tokens for request in many()])
    assert lengths.mean() == pytest.approx(DEMO.osl_mean_tokens, rel=0.03)
    assert lengths.std() / lengths.mean() == pytest.approx(0.78, abs=0.05)


def test_no_rate_no_requests() -> None:
    assert generate(MODELS, replace(DEMO, mean_rps=0.0), np.random.default_rng(1)) == ()


def test_refusals_name_every_problem() -> None:
    with pytest.raises(ValueError, match=r"mean_rps is -1.*peak_to_trough is 0.5.*osl_max_tokens is 0"):
        WorkloadParameters(mean_rps=-1.0, peak_to_trough=0.5, osl_max_tokens=0)
    with pytest.raises(ValueError, match="span_s is nan"):
        WorkloadParameters(span_s=float("nan"))
    with pytest.raises(ValueError, match="no model"):
        generate((), DEMO, np.random.default_rng(1))
