"""When a latency was measured often enough: the median, its confidence interval, and what lies outside. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Two-sided 95 % quantiles of Student's t by degrees of freedom 1..30; beyond, the normal one.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
MAD_TO_SD = 1.4826  # of normal data
MEDIAN_EFFICIENCY = 1.2533  # sqrt(pi / 2): how much wider a median scatters than a mean
OUTLIER_SDS = 3.5
OUTLIER_SHARE = 0.1  # and at least this far from the median: where nothing scatters, everything is "far"
LEAST = 3  # values before anything is said about their scatter


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`half_width`: of the 95 % confidence interval of the median; infinite below LEAST values. `outliers`: those values."""

    median: float
    half_width: float
    outliers: tuple[float, ...]
    count: int

    def is_tight(self, share: float) -> bool:
        """Whether the interval reaches at most `share` of the median to each side."""
        return self.half_width <= share * self.median


def summarise(values: Sequence[float]) -> Summary:
    """Of at least one value. The scatter is taken from the median absolute deviation, which outliers do not move.

    >>> summarise([10.0, 10.1, 9.9, 10.0, 50.0]).outliers
    (50.0,)
    """
    middle = median(values)
    deviation = MAD_TO_SD * median(abs(value - middle) for value in values)
    if len(values) < LEAST:
        return Summary(median=middle, half_width=math.inf, outliers=(), count=len(values))
    far = max(OUTLIER_SDS * deviation, OUTLIER_SHARE * middle)
    outliers = tuple(value for value in values if abs(value - middle) > far)
    kept = len(values) - len(outliers)
    t = _T95[kept - 2] if 2 <= kept <= len(_T95) + 1 else 12.706 if kept < 2 else 1.96
    half = t * MEDIAN_EFFICIENCY * deviation / math.sqrt(kept)
    return Summary(median=middle, half_width=half, outliers=outliers, count=len(values))
