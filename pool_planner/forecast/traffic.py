"""The series of a pool (requests, ISL, OSL) in bins of one width, and the forecast the planner reads. Pure.

Requests are counted per bin; ISL and OSL are means over the bin's requests. A bin about which too little was observed is a
gap, never a zero. An observation with zero requests is a zero of the first series and says nothing about the lengths.

Where prefix caches are told of, the prompt tokens that were not found there are a series of their own, from the first time
on: with long prompts, which are found more, the two means move apart. On Mooncake's conversations (bins of 30 and 60 s, caches
of 20,000 blocks and without end) requests times this forecast miss the uncached tokens to come by 4 to 11 % less than requests
times ISL times the share missed now or of late, whichever is larger; by 2 to 5 % less three bins ahead than with the share of
late alone, and as much as that one bin ahead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from pool_planner.forecast.base import Accuracy, FitJob
from pool_planner.forecast.registry import PredictorOptions, make_predictor
from pool_planner.types import Forecast

Series = Literal["requests", "isl", "osl", "uncached"]
SERIES: tuple[Series, ...] = ("requests", "isl", "osl", "uncached")
ALWAYS: tuple[Series, ...] = ("requests", "isl", "osl")
LENGTHS: tuple[Series, ...] = ("isl", "osl", "uncached")
WHOLE = 0.75  # an observation at least this share of a bin long stands for a bin
ENOUGH = 0.5  # a bin counts as observed when at least this share of it was


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficForecastConfig:
    """`interval_s` is the width of a bin: usually the interval at which the planner observes.

    `predictor` is a name known to `make_predictor`; `options` shape it (their `step_s` is replaced by `interval_s`).
    A length (ISL, OSL) that was never observed is forecast as its fallback; without one the forecast is None as soon as
    there are requests. A prefill pool that never sees output lengths sets `osl_fallback_tokens=1.0`.
    """

    interval_s: float
    predictor: str = "auto"
    options: PredictorOptions = field(default_factory=PredictorOptions)
    isl_fallback_tokens: float | None = None
    osl_fallback_tokens: float | None = None


@dataclass(slots=True)
class _Bin:
    """What is known so far of the bin that is being filled."""

    covered_s: float = 0.0
    requests: float = 0.0
    sums: dict[Series, float] = field(default_factory=lambda: dict.fromkeys(LENGTHS, 0.0))
    weights: dict[Series, float] = field(default_factory=lambda: dict.fromkeys(LENGTHS, 0.0))


class TrafficForecaster:
    """Learns observations of one pool and forecasts its traffic.

    The object is the state: keep it in the planner's state, pickle or deepcopy it at will. It reads no clock.
    """

    def __init__(self, config: TrafficForecastConfig) -> None:
        if not config.interval_s > 0.0:
            raise ValueError(f"interval_s: {config.interval_s!r} must be above 0")
        options = {name: getattr(config.options, name) for name in PredictorOptions.__dataclass_fields__ if name != "step_s"}
        per_bin = PredictorOptions(**options, step_s=config.interval_s)
        self.config = config
        self._options = per_bin
        self._predictors = {series: make_predictor(config.predictor, per_bin) for series in ALWAYS}
        self._open = _Bin()
        self._last_s: float | None = None  # the end of the newest bin that is closed
        self._known: set[Series] = set()
        self._busy = False

    def learn(
        self,
        requests: float | None,
        isl: float | None,
        osl: float | None,
        *,
        at_s: float,
        interval_s: float,
        uncached: float | None = None,
    ) -> None:
        """Take what was observed over (at_s - interval_s, at_s]: a number of requests and their mean lengths in tokens
        (`uncached`: of prompts, what was not found in prefix caches).

        Anything None, NaN, infinite or negative is unknown. Shorter intervals than a bin are gathered until the bin is full;
        a longer one counts as one bin at its mean rate after bins of unknown value. Times must grow; a late one is ignored.
        """
        width = self.config.interval_s
        if not (math.isfinite(at_s) and interval_s > 0.0 and math.isfinite(interval_s)):
            return
        if self._last_s is not None and at_s <= self._last_s:
            return
        if interval_s >= WHOLE * width:  # an observation is a bin; the predictors see from its time what is missing before it
            self._open = _Bin()
            self._gather(requests, {"isl": isl, "osl": osl, "uncached": uncached}, interval_s)
            self._close(at_s)
            return
        slack_s = 0.25 * interval_s
        end_s = at_s - interval_s + width if self._last_s is None else self._last_s + width
        if at_s > end_s + slack_s:  # it belongs to a later bin: what is gathered is all that the open one will get
            self._close(end_s)
            end_s += width * math.ceil((at_s - slack_s - end_s) / width)
        self._gather(requests, {"isl": isl, "osl": osl, "uncached": uncached}, interval_s)
        if at_s >= end_s - slack_s:
            self._close(end_s)
        elif self._last_s is None:
            self._last_s = end_s - width

    def _gather(self, requests: float | None, lengths: Mapping[Series, float | None], interval_s: float) -> None:
        if not _known(requests):
            return
        share = min(1.0, self.config.interval_s / interval_s)  # a longer interval counts at its mean rate
        self._open.covered_s += min(interval_s, self.config.interval_s)
        self._open.requests += requests * share
        for series, length in lengths.items():
            if _known(length) and (length > 0.0 or series == "uncached"):
                weight = max(requests, 1.0)  # lengths are of completed requests, arrivals of the bin may be none
                self._open.sums[series] += weight * length
                self._open.weights[series] += weight

    def _close(self, at_s: float) -> None:
        """Give the open bin to the predictors, scaled up where a part of it was not observed, and open the next."""
        bin_, self._open, self._last_s = self._open, _Bin(), at_s
        share = bin_.covered_s / self.config.interval_s
        requests = bin_.requests / share if share >= ENOUGH else None
        if requests is not None:
            self._known.add("requests")
            self._busy = self._busy or requests > 0.0
        self._predictors["requests"].learn(requests, at_s)
        for series in LENGTHS:
            weight = bin_.weights[series]
            if weight > 0.0:
                self._known.add(series)
                if series not in self._predictors:
                    self._predictors[series] = make_predictor(self.config.predictor, self._options)
            if series in self._predictors:
                self._predictors[series].learn(bin_.sums[series] / weight if weight > 0.0 else None, at_s)

    def forecast(self, *, at_s: float, horizon_s: float, quantile: float = 0.8) -> Forecast | None:
        """What to expect of one bin that ends `horizon_s` after `at_s` (at least the next bin).

        None while nothing is known about requests, or about a length without a fallback once there were requests (until
        then the lengths of no requests are 0). `age_s` is the age of the newest observation behind it.
        """
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile: {quantile!r} must lie between 0 and 1")
        steps = self._steps(at_s, horizon_s)
        requests = self._predictors["requests"].forecast(steps, (quantile,))
        isl = self._length("isl", steps, self.config.isl_fallback_tokens)
        osl = self._length("osl", steps, self.config.osl_fallback_tokens)
        if requests is None or isl is None or osl is None:
            return None
        per_second = 1.0 / self.config.interval_s
        return Forecast(
            at_s=at_s,
            horizon_s=horizon_s,
            requests_per_s=requests.mean * per_second,
            requests_per_s_high=max(requests.mean, requests.quantile(quantile)) * per_second,
            quantile=quantile,
            isl_tokens=isl,
            osl_tokens=osl,
            predictor=self._predictors["requests"].name,
            age_s=max(0.0, at_s - requests.known_at_s),
        )

    def uncached_tokens(self, *, at_s: float, horizon_s: float) -> float | None:
        """Mean prompt tokens that no prefix cache will have, as `forecast`; None where nobody tells of caches."""
        predictor = self._predictors.get("uncached")
        prediction = None if predictor is None else predictor.forecast(self._steps(at_s, horizon_s), ())
        return None if prediction is None else prediction.mean

    def _steps(self, at_s: float, horizon_s: float) -> int:
        last_s = self._last_s if self._last_s is not None else at_s
        return max(1, math.ceil((at_s + horizon_s - last_s) / self.config.interval_s - 1e-6))

    def _length(self, series: Series, steps: int, fallback: float | None) -> float | None:
        prediction = self._predictors[series].forecast(steps, ())
        if prediction is not None:
            return prediction.mean
        if fallback is not None:
            return fallback
        return None if self._busy else 0.0

    def accuracy(self) -> dict[Series, tuple[Accuracy, ...]]:
        """Recent accuracy of each series at each scored horizon."""
        return {series: predictor.accuracy() for series, predictor in self._predictors.items()}

    def fit_jobs(self) -> tuple[tuple[Series, FitJob], ...]:
        """Fits worth running now, each with the series that its result belongs to. Run them off the loop."""
        jobs = ((series, predictor.fit_job()) for series, predictor in self._predictors.items())
        return tuple((series, job) for series, job in jobs if job is not None)

    def fitted(self, series: Series, result: Any, *, at_s: float) -> None:
        """Take the result of a fit."""
        self._predictors[series].fitted(result, at_s)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value >= 0.0
