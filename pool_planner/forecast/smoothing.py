"""Exponential smoothing in several dresses, each as a bank of a few settings. Pure.

A bank is one idea at several settings; `points(steps)` has one forecast for each, NaN while too little is known.
Sources: Brown 1959 and Holt 1957 (simple and trend smoothing), Gardner and McKenzie 1985 (damped trend), Trigg and Leach 1967
(a rate that follows the tracking signal), Assimakopoulos and Nikolopoulos 2000 in the form of Hyndman and Billah 2003 (theta:
simple smoothing with half of the drift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

UNKNOWN = math.nan


class Bank(Protocol):
    """Some cheap forecasts that share what they remember. `points` always has `len(names)` entries."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def learn(self, value: float | None) -> None: ...

    def points(self, steps: int) -> Sequence[float]: ...


@dataclass(slots=True)
class LastValue:
    """The naive forecast as a bank."""

    names: tuple[str, ...] = ("naive",)
    last: float = UNKNOWN

    def learn(self, value: float | None) -> None:
        if value is not None:
            self.last = value

    def points(self, steps: int) -> Sequence[float]:
        return (self.last,)


@dataclass(slots=True)
class Ewma:
    """Simple smoothing at several rates; until a rate's memory has filled, the plain mean of what there is."""

    rates: tuple[float, ...]
    seen: int = 0
    levels: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.levels = [UNKNOWN] * len(self.rates)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"ewma_{rate:g}" for rate in self.rates)

    def learn(self, value: float | None) -> None:
        if value is None:
            return
        self.seen += 1
        if self.seen == 1:
            self.levels = [value] * len(self.rates)
            return
        start = 1.0 / self.seen
        self.levels = [
            level + (rate if rate > start else start) * (value - level)
            for rate, level in zip(self.rates, self.levels, strict=True)
        ]

    def points(self, steps: int) -> Sequence[float]:
        return self.levels


@dataclass(slots=True)
class AdaptiveLog:
    """Smoothing of log(1 + value) at the rate |mean error| / mean |error|: slow in noise, quick after a shift.

    `forgetting` is the rate at which the two means follow; one setting each.
    """

    forgetting: tuple[float, ...] = (0.2, 0.1)
    slowest: float = 0.05
    quickest: float = 0.9
    levels: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"adaptive_log_{rate:g}" for rate in self.forgetting)

    def learn(self, value: float | None) -> None:
        if value is None:
            return
        seen = math.log1p(value)
        if not self.levels:
            self.levels = [seen] * len(self.forgetting)
            self.errors = [0.0] * len(self.forgetting)
            self.sizes = [0.0] * len(self.forgetting)
            return
        for i, gamma in enumerate(self.forgetting):
            error = seen - self.levels[i]
            self.errors[i] += gamma * (error - self.errors[i])
            self.sizes[i] += gamma * (abs(error) - self.sizes[i])
            signal = abs(self.errors[i]) / self.sizes[i] if self.sizes[i] > 0.0 else 0.0
            self.levels[i] += min(self.quickest, max(self.slowest, signal)) * error

    def points(self, steps: int) -> Sequence[float]:
        return [math.expm1(level) for level in self.levels] if self.levels else [UNKNOWN] * len(self.forgetting)


@dataclass(slots=True)
class DampedHolt:
    """Level and a trend that fades: settings are (level rate, trend rate, damping)."""

    settings: tuple[tuple[float, float, float], ...] = ((0.5, 0.1, 0.9), (0.8, 0.2, 0.8), (0.3, 0.1, 0.9))
    levels: list[float] = field(default_factory=list)
    trends: list[float] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"holt_{level:g}_{trend:g}_{damping:g}" for level, trend, damping in self.settings)

    def learn(self, value: float | None) -> None:
        if not self.levels:
            if value is not None:
                self.levels = [value] * len(self.settings)
                self.trends = [0.0] * len(self.settings)
            return
        for i, (alpha, beta, damping) in enumerate(self.settings):
            trend = damping * self.trends[i]
            expected = self.levels[i] + trend
            error = 0.0 if value is None else value - expected
            self.levels[i] = expected + alpha * error
            self.trends[i] = trend + alpha * beta * error

    def points(self, steps: int) -> Sequence[float]:
        if not self.levels:
            return [UNKNOWN] * len(self.settings)
        return [
            level + damping * (1.0 - damping**steps) / (1.0 - damping) * trend
            for level, trend, (_, _, damping) in zip(self.levels, self.trends, self.settings, strict=True)
        ]


@dataclass(slots=True)
class Theta:
    """Simple smoothing plus half of the mean drift, which is followed at `drift_rate`."""

    rates: tuple[float, ...] = (0.2, 0.5)
    drift_rate: float = 0.02
    seen: int = 0
    last: float = 0.0
    drift: float = 0.0
    levels: list[float] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"theta_{rate:g}" for rate in self.rates)

    def learn(self, value: float | None) -> None:
        if value is None:
            return
        self.seen += 1
        if self.seen == 1:
            self.levels = [value] * len(self.rates)
        else:
            self.drift += max(self.drift_rate, 1.0 / self.seen) * (value - self.last - self.drift)
            self.levels = [level + rate * (value - level) for rate, level in zip(self.rates, self.levels, strict=True)]
        self.last = value

    def points(self, steps: int) -> Sequence[float]:
        if not self.levels:
            return [UNKNOWN] * len(self.rates)
        return [
            level + 0.5 * self.drift * (steps - 1.0 + 1.0 / rate) for rate, level in zip(self.rates, self.levels, strict=True)
        ]
