"""Recursive least squares with forgetting, many regressions at once. Pure.

Ljung and Soderstrom, "Theory and Practice of Recursive Identification", 1983, section 2.6, made safe for traffic: errors are
clipped and the covariance is bounded, so that neither a burst nor a long calm blows it up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
SLOWEST = 0.02  # the running means that centre and scale what is regressed forget no slower than this
LARGEST_EXPONENT = 50.0
CLIP = 4.0  # errors, in mean absolute deviations


class StackedLeastSquares:
    """K regressions of up to n features: each minimises its discounted sum of (target - w.x)^2, drawn towards its `weights`
    (K, n) with strength `ridge`. `features` (K, n): False for those that a regression does not have (their x must be 0)."""

    __slots__ = ("covariance", "forgetting", "limit", "weights")

    def __init__(self, weights: Vector, *, ridge: float, forgetting: float, features: NDArray[np.bool_] | None = None) -> None:
        present = np.ones(weights.shape, dtype=bool) if features is None else features
        self.weights = weights
        self.covariance: Vector = np.eye(weights.shape[1]) * present[:, :, None] / ridge
        self.forgetting = forgetting
        self.limit: Vector = max(1e2, 10.0 / ridge) * present.sum(axis=1)

    def learn(self, x: Vector, target: Vector, rows: NDArray[Any] | None = None) -> None:
        """One sample for each of the regressions `rows` (None: all): x (K, n), target (K,) of those."""
        some = slice(None) if rows is None else rows
        weights, covariance, limit = self.weights[some], self.covariance[some], self.limit[some]
        error = np.minimum(CLIP, np.maximum(-CLIP, target - np.vecdot(weights, x)))
        reach = np.einsum("kij,kj->ki", covariance, x)
        gain = reach / (self.forgetting + np.vecdot(x, reach))[:, None]
        covariance = (covariance - gain[:, :, None] * reach[:, None, :]) / self.forgetting
        size = np.einsum("kii->k", covariance)
        if (size > limit).any():
            covariance *= np.minimum(1.0, limit / size)[:, None, None]
        self.weights[some] = weights + gain * error[:, None]
        self.covariance[some] = covariance
