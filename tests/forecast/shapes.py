"""Series of named shapes that traffic takes, made by a seeded generator: what every predictor has to survive."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Values = list[float | None]
BINS = 100


def _noise(seed: int) -> Callable[[], float]:
    rng = random.Random(seed)
    return lambda: rng.gauss(0.0, 1.0)


def constant() -> Values:
    return [120.0] * BINS


def zeros() -> Values:
    return [0.0] * BINS


def noise() -> Values:
    draw = _noise(1)
    return [max(0.0, 100.0 + 15.0 * draw()) for _ in range(BINS)]


def gaps() -> Values:
    return [None if i % 7 == 3 or 60 <= i < 80 else value for i, value in enumerate(noise())]


def spikes() -> Values:
    return [4000.0 if i % 37 == 20 else 40.0 + i % 5 for i in range(BINS)]


def level_shift() -> Values:
    draw = _noise(2)
    return [max(0.0, (50.0 if i < BINS // 2 else 400.0) + 5.0 * draw()) for i in range(BINS)]


def decline_to_zero() -> Values:
    return [max(0.0, 300.0 - 3.0 * i) for i in range(BINS)]


def poison() -> Values:
    bad = {20: math.nan, 45: math.inf, 46: -math.inf, 80: -5.0, 81: None}
    return [bad.get(i, value) for i, value in enumerate(noise())]


def intermittent() -> Values:
    rng = random.Random(3)
    return [float(rng.randint(50, 300)) if rng.random() < 0.4 else 0.0 for _ in range(BINS)]


def huge_and_tiny() -> Values:
    return [1e12 if i % 2 else 1e-9 for i in range(BINS)]


def exponential_rise() -> Values:
    return [1.15**i for i in range(BINS)]


def daily_wave() -> Values:
    return [200.0 + 150.0 * math.sin(2.0 * math.pi * i / 48.0) for i in range(3 * 48)]


SHAPES: dict[str, Callable[[], Values]] = {
    shape.__name__: shape
    for shape in (
        constant,
        zeros,
        noise,
        gaps,
        spikes,
        level_shift,
        decline_to_zero,
        poison,
        intermittent,
        huge_and_tiny,
        exponential_rise,
        daily_wave,
    )
}
