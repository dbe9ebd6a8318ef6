"""How forecasts are judged: out-of-sample errors at rolling origins, in the units that capacity planning feels. Pure.

An origin is a bin after which forecasts are issued; those of the first `warm_up` bins, and those for bins of unknown value,
are not judged. Every predictor is judged on the same origins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

HORIZONS = (1, 3)
PLAN_LEVEL = 0.8  # the quantile that minimises 4 x under + 1 x over: 4 / (4 + 1)
UNDER, OVER = 4.0, 1.0

Values = Sequence[float | None]


JUDGED_FROM = 1.0 / 3.0
"""Share of a series before the first judged origin, which every predictor may learn from first. Where AutoTheta and the Kalman
filter of ai-dynamo have the published .83 and .94 (here .83 and .95; from a fifth on they have .85 and .96)."""
EARLY = 1.0 / 5.0  # the same, reported beside it: what a planner that has just started is worth


def warm_up(series: Values, judged_from: float = JUDGED_FROM) -> int:
    """Bins before the first judged origin."""
    return int(len(series) * judged_from)


@dataclass(slots=True)
class Issued:
    """What one predictor forecast at one horizon: `mean[t]`, `q80[t]`, `q90[t]` issued after bin t."""

    mean: list[float] = field(default_factory=list)
    q80: list[float] = field(default_factory=list)
    q90: list[float] = field(default_factory=list)


def judged(series: Values, steps: int, judged_from: float = JUDGED_FROM) -> list[int]:
    """Origins t whose bin t + steps is known."""
    return [t for t in range(warm_up(series, judged_from), len(series) - steps) if series[t + steps] is not None]


def naive_forecasts(series: Values) -> list[float]:
    """The last known value after each bin (0 before any)."""
    last, out = 0.0, []
    for value in series:
        last = last if value is None else value
        out.append(last)
    return out


def scores(series: Values, issued: dict[int, Issued], judged_from: float = JUDGED_FROM) -> dict[str, float]:
    """The measures of one predictor on one series. Those without a horizon in the name are means over the horizons."""
    known = np.array([v for v in series if v is not None])
    one_step = float(np.mean(np.abs(np.diff(known))))
    naive = naive_forecasts(series)
    by_steps: dict[int, dict[str, float]] = {}
    for steps, forecast in issued.items():
        origins = judged(series, steps, judged_from)
        actual = np.array([series[t + steps] for t in origins], dtype=float)
        mean, q80, q90 = (np.array([line[t] for t in origins]) for line in (forecast.mean, forecast.q80, forecast.q90))
        error = float(np.mean(np.abs(actual - mean)))
        volume = float(np.mean(actual))
        under, over = np.maximum(actual - q80, 0.0), np.maximum(q80 - actual, 0.0)
        by_steps[steps] = {
            "rmae": _ratio(error, float(np.mean(np.abs(actual - np.array([naive[t] for t in origins]))))),
            "mase": _ratio(error, one_step),
            "wape": error / volume,
            "pinball_q80": pinball(actual, q80, 0.8) / volume,
            "pinball_q90": pinball(actual, q90, 0.9) / volume,
            "coverage_q90": float(np.mean(actual <= q90)),
            "bias": float(np.mean(mean - actual)) / volume,
            "asym_cost": float(np.mean(UNDER * under + OVER * over)) / volume,
        }
    out = {f"rmae_h{steps}": measures["rmae"] for steps, measures in by_steps.items()}
    for key in ("mase", "wape", "pinball_q80", "pinball_q90", "coverage_q90", "bias", "asym_cost"):
        out[key] = float(np.mean([measures[key] for measures in by_steps.values()]))
        for steps, measures in by_steps.items():
            out[f"{key}_h{steps}"] = measures[key]
    return out


def _ratio(error: float, reference: float) -> float:
    """Of a series that never moves the naive forecast is exact: equal to it is 1, anything else infinitely worse."""
    if reference > 0.0:
        return error / reference
    return 1.0 if error == 0.0 else math.inf


def pinball(actual: np.ndarray, quantile: np.ndarray, level: float) -> float:
    return float(np.mean(np.maximum(level * (actual - quantile), (level - 1.0) * (actual - quantile))))


def worse_than_naive(series: Values, mean: Sequence[float], steps: int) -> float:
    """One-sided p value of the Diebold-Mariano test (absolute errors) that the naive forecast is better.

    With the small-sample factor and t distribution of Harvey, Leybourne and Newbold 1997; the variance takes the
    autocovariances up to lag steps - 1, which overlapping forecasts have, with Bartlett weights so that it stays positive.
    """
    naive = naive_forecasts(series)
    origins = judged(series, steps)
    actual = np.array([series[t + steps] for t in origins], dtype=float)
    gap = np.abs(actual - np.array([mean[t] for t in origins])) - np.abs(actual - np.array([naive[t] for t in origins]))
    n = len(gap)
    centred = gap - gap.mean()
    variance = float(centred @ centred) / n
    for lag in range(1, steps):
        variance += 2.0 * (1.0 - lag / steps) * float(centred[lag:] @ centred[:-lag]) / n
    if variance <= 0.0:
        return 1.0 if gap.mean() <= 0.0 else 0.0
    factor = math.sqrt((n + 1.0 - 2.0 * steps + steps * (steps - 1.0) / n) / n)
    return float(stats.t.sf(factor * gap.mean() / math.sqrt(variance / n), df=n - 1))


def holm_rejections(p_values: dict[str, float], alpha: float = 0.05) -> list[str]:
    """The hypotheses that Holm's step-down procedure rejects at family-wise level `alpha`."""
    rejected: list[str] = []
    for rank, name in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        if p_values[name] > alpha / (len(p_values) - rank):
            break
        rejected.append(name)
    return rejected


def totals(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Over series: geometric means of what is a ratio or a cost, arithmetic means of coverage and bias.

    `asym_cost_mean` is the arithmetic mean of the asymmetric cost, which the burstiest series dominate.
    """
    out: dict[str, float] = {"asym_cost_mean": float(np.mean([row["asym_cost"] for row in rows]))}
    for key in rows[0]:
        column = [row[key] for row in rows]
        if key.startswith(("coverage", "bias")) or min(column) <= 0.0:
            out[key] = float(np.mean(column))
        else:
            out[key] = float(np.exp(np.mean(np.log(column))))
    return out
