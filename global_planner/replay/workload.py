"""A workload is a sorted tuple of requests; this makes one that looks like production traffic, from a seeded generator. Pure.

What is modelled, and where the shape and the numbers come from:

- *Daily shape*: a cosine with a settable ratio of peak to trough; the models of a deployment peak evenly apart in the day
  (two models: at opposite times). Published weeks of conversation traffic swing by a factor of 3 to 4 between night and
  day (Azure LLM inference trace 2024: 20 to 86 requests/s). The first `ramp_share` of the day rises from nothing, as when a
  service is opened: a system that starts at its minima would otherwise meet an hour's growth in its first second.
- *Bursts*: the rate of every window is multiplied by a gamma variate of mean 1, so arrivals are a doubly stochastic (Cox)
  process, over-dispersed at every scale above the window. The gamma family is what BurstGPT (arXiv 2401.17644) and ServeGen
  (arXiv 2505.09999) fit to production arrivals. Counts of the Azure conversation trace (2023) in windows of 10 to 60 s have a
  coefficient of variation of 0.23 to 0.24 beyond Poisson noise, which is the default here.
- *Prompt lengths*: a mixture of short and long prompts, each log-normal, with a Pareto tail: ServeGen finds a mixture of
  log-normal and Pareto for prompts. The log standard deviation of Azure's prompts is 0.99 overall (conversation) and 1.36
  (code), bimodal rather than one bell; the mixture's is about 0.9 with the defaults.
- *Answer lengths*: log-normal with coefficient of variation about 0.8, as in Azure's conversation trace (0.77); ServeGen's
  exponential has 1. Answers are short by default, because the engines of the demo are slow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One arrival: `at_s` model seconds after the start of the workload, prompt and answer length in tokens (both >= 1)."""

    at_s: float
    model: str
    isl_tokens: int
    osl_tokens: int
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadParameters:
    """What `generate` draws from; the defaults suit the demo (engines that take 0.25 to 0.5 s a token).

    `span_s` is one whole day of the daily shape. `mean_rps` is requests/s of one model over the day; at its peak the rate is
    `peak_to_trough` times that of its trough, and over the first `ramp_share` of the day it rises from 0. `burst_cv` is the
    coefficient of variation of the gamma that multiplies the rate in each window of `burst_window_s` (0: plain Poisson). A
    share `long_share` of prompts comes from the long mode, and `tail_share` of prompts are stretched by a Pareto variate of
    shape `tail_alpha`; lengths are cut at `isl_max_tokens` and `osl_max_tokens`. Sigmas are standard deviations of the
    logarithm.
    """

    span_s: float = 2400.0
    mean_rps: float = 0.75
    peak_to_trough: float = 3.0
    ramp_share: float = 0.05
    burst_cv: float = 0.24
    burst_window_s: float = 30.0
    isl_short_median_tokens: float = 450.0
    isl_short_sigma: float = 0.45
    isl_long_median_tokens: float = 2800.0
    isl_long_sigma: float = 0.3
    long_share: float = 0.2
    tail_share: float = 0.02
    tail_alpha: float = 1.5
    isl_max_tokens: int = 6144
    osl_mean_tokens: float = 60.0
    osl_sigma: float = 0.7
    osl_max_tokens: int = 400

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be {bound}"
            for name, value, bound, good in (
                ("span_s", self.span_s, "> 0", self.span_s > 0),
                ("mean_rps", self.mean_rps, ">= 0", self.mean_rps >= 0),
                ("peak_to_trough", self.peak_to_trough, ">= 1", self.peak_to_trough >= 1),
                ("ramp_share", self.ramp_share, "0..1", 0 <= self.ramp_share <= 1),
                ("burst_cv", self.burst_cv, ">= 0", self.burst_cv >= 0),
                ("burst_window_s", self.burst_window_s, "> 0", self.burst_window_s > 0),
                ("isl_short_median_tokens", self.isl_short_median_tokens, "> 0", self.isl_short_median_tokens > 0),
                ("isl_short_sigma", self.isl_short_sigma, ">= 0", self.isl_short_sigma >= 0),
                ("isl_long_median_tokens", self.isl_long_median_tokens, "> 0", self.isl_long_median_tokens > 0),
                ("isl_long_sigma", self.isl_long_sigma, ">= 0", self.isl_long_sigma >= 0),
                ("long_share", self.long_share, "0..1", 0 <= self.long_share <= 1),
                ("tail_share", self.tail_share, "0..1", 0 <= self.tail_share <= 1),
                ("tail_alpha", self.tail_alpha, "> 1", self.tail_alpha > 1),
                ("isl_max_tokens", self.isl_max_tokens, ">= 1", self.isl_max_tokens >= 1),
                ("osl_mean_tokens", self.osl_mean_tokens, ">= 1", self.osl_mean_tokens >= 1),
                ("osl_sigma", self.osl_sigma, ">= 0", self.osl_sigma >= 0),
                ("osl_max_tokens", self.osl_max_tokens, ">= 1", self.osl_max_tokens >= 1),
            )
            if not (good and math.isfinite(value))
        ]
        if problems:
            raise ValueError("workload: " + "; ".join(problems))


def daily_rate(at_s: float | Floats, index: int, models: int, parameters: WorkloadParameters) -> Floats:
    """Requests/s of model `index` of `models` at a time of day, before ramp and bursts. Model 0 peaks at a quarter of it."""
    ratio = parameters.peak_to_trough
    swing = (ratio - 1.0) / (ratio + 1.0)
    phase = np.asarray(at_s) / parameters.span_s - 0.25 - index / models
    return np.asarray(parameters.mean_rps * (1.0 + swing * np.cos(2.0 * np.pi * phase)), dtype=np.float64)


def generate(models: Sequence[str], parameters: WorkloadParameters, rng: np.random.Generator) -> tuple[Request, ...]:
    """The requests of one day for all models, sorted by time. The same seed gives the same workload."""
    if not models:
        raise ValueError("workload: no model to send requests to")
    requests: list[Request] = []
    for index, model in enumerate(models):
        times = _arrivals(index, len(models), parameters, rng)
        prompts = _prompt_lengths(times.size, parameters, rng)
        answers = _answer_lengths(times.size, parameters, rng)
        requests.extend(
            Request(at_s=float(at_s), model=model, isl_tokens=int(isl), osl_tokens=int(osl))
            for at_s, isl, osl in zip(times, prompts, answers, strict=True)
        )
    return tuple(sorted(requests, key=lambda request: request.at_s))


def _arrivals(index: int, models: int, parameters: WorkloadParameters, rng: np.random.Generator) -> Floats:
    """Sorted arrival times: candidates at the highest rate of the day, each kept with the share of it that its moment has."""
    windows = math.ceil(parameters.span_s / parameters.burst_window_s)
    bursts = np.ones(windows)
    if parameters.burst_cv > 0:
        shape = 1.0 / parameters.burst_cv**2
        bursts = rng.gamma(shape, 1.0 / shape, windows)
    highest = float(2.0 * parameters.mean_rps * bursts.max())  # the cosine never exceeds twice its mean
    candidates = np.sort(rng.uniform(0.0, parameters.span_s, rng.poisson(highest * parameters.span_s)))
    if candidates.size == 0:
        return candidates
    window = np.minimum((candidates / parameters.burst_window_s).astype(int), windows - 1)
    rate = daily_rate(candidates, index, models, parameters) * bursts[window]
    if parameters.ramp_share > 0:
        rate *= np.minimum(1.0, candidates / (parameters.ramp_share * parameters.span_s))
    return np.asarray(candidates[rng.uniform(0.0, highest, candidates.size) < rate])


def _prompt_lengths(count: int, parameters: WorkloadParameters, rng: np.random.Generator) -> NDArray[np.int64]:
    long = rng.uniform(size=count) < parameters.long_share
    short_tokens = rng.lognormal(math.log(parameters.isl_short_median_tokens), parameters.isl_short_sigma, count)
    long_tokens = rng.lognormal(math.log(parameters.isl_long_median_tokens), parameters.isl_long_sigma, count)
    stretched = rng.uniform(size=count) < parameters.tail_share
    stretch = np.where(stretched, 1.0 + rng.pareto(parameters.tail_alpha, count), 1.0)
    return _whole_tokens(np.where(long, long_tokens, short_tokens) * stretch, parameters.isl_max_tokens)


def _answer_lengths(count: int, parameters: WorkloadParameters, rng: np.random.Generator) -> NDArray[np.int64]:
    mu = math.log(parameters.osl_mean_tokens) - parameters.osl_sigma**2 / 2.0  # the mean of a log-normal is exp(mu + s^2/2)
    return _whole_tokens(rng.lognormal(mu, parameters.osl_sigma, count), parameters.osl_max_tokens)


def _whole_tokens(lengths: Floats, most: int) -> NDArray[np.int64]:
    return np.clip(np.rint(lengths), 1, most).astype(np.int64)
