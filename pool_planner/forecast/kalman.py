"""Local linear trends followed by Kalman filters of several speeds, weighted by what each has lately missed. Pure.

State (level, trend): level' = level + trend, trend' = trend, y = level + noise; `q_level`, `q_trend` and `r` are the
variances of the two process noises and of the measurement (Harvey, "Forecasting, Structural Time Series Models and the
Kalman Filter", 1989, section 2.3). Forecasts damp the trend by `damping` a step (Gardner and McKenzie 1985): on traffic
an undamped trend overshoots each turn, and below zero on each decline.

Only the ratios of the three variances matter to the mean, and no fixed ratio suits both calm and jumpy traffic. So the
configured one is the middle of five: the process noise is scaled by 1/100 … 100 (multiple-model estimation, Magill 1965).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LocalTrend:
    """One filter of two states, in scalars. Before `min_points` values it repeats the last one."""

    q_level: float = 1.0
    q_trend: float = 0.1
    r: float = 10.0
    min_points: int = 5
    damping: float = 0.5
    seen: int = 0
    last: float = 0.0
    level: float = 0.0
    trend: float = 0.0
    p_ll: float = 0.0
    p_lt: float = 0.0
    p_tt: float = 0.0

    def learn(self, value: float | None) -> None:
        if self.seen == 0:
            if value is not None:
                self.seen, self.last, self.level = 1, value, value
                self.p_ll, self.p_lt, self.p_tt = self.r, 0.0, self.q_trend
            return
        self.level += self.trend
        self.p_ll += 2.0 * self.p_lt + self.p_tt + self.q_level
        self.p_lt += self.p_tt
        self.p_tt += self.q_trend
        if value is None:
            self.trend *= self.damping
            return
        gain_level = self.p_ll / (self.p_ll + self.r)
        gain_trend = self.p_lt / (self.p_ll + self.r)
        innovation = value - self.level
        self.level += gain_level * innovation
        self.trend += gain_trend * innovation
        self.p_tt -= gain_trend * self.p_lt
        self.p_lt *= 1.0 - gain_level
        self.p_ll *= 1.0 - gain_level
        self.seen += 1
        self.last = value

    def point(self, steps: int) -> float | None:
        if self.seen == 0:
            return None
        if self.seen < self.min_points:
            return self.last
        reach = self.damping * (1.0 - self.damping**steps) / (1.0 - self.damping) if self.damping < 1.0 else float(steps)
        return self.level + reach * self.trend


SCALES = (0.01, 0.1, 1.0, 10.0, 100.0)
DISCOUNT = 0.97  # half of a weight comes from the last 23 values
SHARPNESS = 20.0  # a filter that misses 10 % more than the best weighs 0.15 of it


@dataclass(slots=True)
class AdaptiveTrend:
    """The weighted mean of filters whose process noise is the configured one times each of `SCALES`."""

    filters: list[LocalTrend]
    losses: list[float]
    scored: int = 0

    @classmethod
    def around(cls, *, q_level: float, q_trend: float, r: float, min_points: int) -> AdaptiveTrend:
        filters = [LocalTrend(q_level=scale * q_level, q_trend=scale * q_trend, r=r, min_points=min_points) for scale in SCALES]
        return cls(filters=filters, losses=[0.0] * len(filters))

    def learn(self, value: float | None) -> None:
        if value is not None and self.filters[0].seen > 1:
            self.scored += 1
            for i, one in enumerate(self.filters):
                missed = abs(value - one.level - one.damping * one.trend)
                self.losses[i] = DISCOUNT * self.losses[i] + missed
        for one in self.filters:
            one.learn(value)

    def point(self, steps: int) -> float | None:
        points = [one.point(steps) for one in self.filters]
        middle, least = points[len(points) // 2], min(self.losses)
        if self.scored < 2 or least <= 0.0:
            return middle
        total = weighted = 0.0
        for loss, point in zip(self.losses, points, strict=True):
            if point is not None:
                weight = (least / loss) ** SHARPNESS
                total += weight
                weighted += weight * point
        return weighted / total
