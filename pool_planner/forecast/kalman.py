"""A local linear trend followed by a Kalman filter, with a trend that fades over the horizon. Pure.

State (level, trend): level' = level + trend, trend' = trend, y = level + noise; `q_level`, `q_trend` and `r` are the
variances of the two process noises and of the measurement (Harvey, "Forecasting, Structural Time Series Models and the
Kalman Filter", 1989, section 2.3). Forecasts damp the trend by `damping` a step (Gardner and McKenzie 1985): on traffic
an undamped trend overshoots each turn, and below zero on each decline.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LocalTrend:
    """Two-state filter in scalars. Before `min_points` values it repeats the last one."""

    q_level: float = 1.0
    q_trend: float = 0.1
    r: float = 10.0
    min_points: int = 5
    damping: float = 0.8
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
