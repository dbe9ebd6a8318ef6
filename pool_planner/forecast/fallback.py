"""Any point model with the naive forecast as its floor: where it has lately been losing, it is not used. Pure.

Judged per horizon by discounted absolute errors, out of sample. A model whose parameters are still to be fitted (it answers
None) is the naive forecast until then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pool_planner.forecast.base import FitJob, FitResult, Fittable, PointModel

DISCOUNT = 0.98  # half of the verdict comes from the last 34 bins


@dataclass(slots=True)
class _Duel:
    steps: int
    issued: deque[tuple[float, float] | None] = field(default_factory=deque)
    model_loss: float = 0.0
    naive_loss: float = 0.0

    def score(self, value: float | None) -> None:
        if len(self.issued) < self.steps:
            return
        forecasts = self.issued.popleft()
        if value is not None and forecasts is not None:
            self.model_loss = DISCOUNT * self.model_loss + abs(value - forecasts[0])
            self.naive_loss = DISCOUNT * self.naive_loss + abs(value - forecasts[1])


class NaiveFallback:
    """`model` where it is ahead of the naive forecast, else that. Other horizons than `horizons` follow the next larger one."""

    def __init__(self, model: PointModel, horizons: Sequence[int]) -> None:
        self.model = model
        self._duels = [_Duel(steps) for steps in sorted(set(horizons))]
        self._last: float | None = None

    def learn(self, value: float | None) -> None:
        for duel in self._duels:
            duel.score(value)
        self.model.learn(value)
        if value is not None:
            self._last = value
        for duel in self._duels:
            point = self.model.point(duel.steps)
            duel.issued.append(None if point is None or self._last is None else (max(0.0, point), self._last))

    def point(self, steps: int) -> float | None:
        duel = next((d for d in self._duels if d.steps >= steps), self._duels[-1])
        point = self.model.point(steps) if duel.model_loss <= duel.naive_loss else None
        return self._last if point is None else point


class FittedFallback(NaiveFallback):
    """The same for a model with background fits."""

    def __init__(self, model: PointModel, fits: Fittable, horizons: Sequence[int]) -> None:
        super().__init__(model, horizons)
        self._fits = fits

    def fit_job(self) -> FitJob | None:
        return self._fits.fit_job()

    def fitted(self, result: FitResult) -> None:
        self._fits.fitted(result)
