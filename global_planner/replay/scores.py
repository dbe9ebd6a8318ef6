"""What became of the requests, summed up as they end: counts, attainment, distributions, all over time. Pure.

Memory does not grow with the requests: each is kept for a moment, and thousands at once are counted into arrays. What a
request met is told as in `demo.attainment`: over all offered ones, so one that was shed or failed misses everything. The ITL
of a request is the mean over its tokens; requests of one token have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from global_planner.replay.arrivals import Floats

Counts = NDArray[np.int64]
FLUSH = 8192
# Edges of the latency distributions: 0.1 ms, and 2 % more each time, up to a day.
RATIO = 1.02


def _edges() -> Floats:
    edges = [1e-4]
    while edges[-1] < 86_400.0:
        edges.append(edges[-1] * RATIO)  # by multiplication: the same on every machine, which a power is not
    return np.asarray(edges)


EDGES_S = _edges()
BINS = EDGES_S.size + 1

# How a request is kept until it is counted: model, priority, arrival, TTFT s, ITL s (NaN: it has none), how it ended, osl > 1
_Kept = tuple[int, int, float, float, float, int, bool]
COMPLETED, SHED, FAILED = 0, 1, 2


@dataclass(slots=True)
class Score:
    """Sums over requests. `streams`: requests of two tokens and more, which ITL is about."""

    requests: int = 0
    completed: int = 0
    shed: int = 0
    failed: int = 0
    retried: int = 0
    streams: int = 0
    ttft_met: int = 0
    itl_met: int = 0
    met: int = 0

    @property
    def violations(self) -> int:
        """Requests that missed TTFT or ITL, or were not answered."""
        return self.requests - self.met

    @property
    def ttft_attainment(self) -> float | None:
        return self.ttft_met / self.requests if self.requests else None

    @property
    def itl_attainment(self) -> float | None:
        return self.itl_met / self.streams if self.streams else None

    @property
    def attainment(self) -> float | None:
        """The share that met both."""
        return self.met / self.requests if self.requests else None

    def plus(self, other: Score) -> Score:
        return Score(*(getattr(self, name) + getattr(other, name) for name in Score.__dataclass_fields__))


@dataclass(frozen=True, slots=True, kw_only=True)
class OverTime:
    """One model in bins of `width_s` by time of arrival: counts, and the distributions of TTFT and ITL (bins x `BINS`)."""

    width_s: float
    requests: Counts
    met: Counts
    ttft_met: Counts
    itl_met: Counts
    streams: Counts
    shed: Counts
    ttft: Counts
    itl: Counts


def quantile_s(counts: Sequence[int] | Counts, share: float) -> float | None:
    """A quantile of a distribution over `EDGES_S` (s), to 2 %; None without any."""
    sums = np.cumsum(np.asarray(counts))
    if not sums.size or sums[-1] == 0:
        return None
    place = int(np.searchsorted(sums, share * sums[-1], side="left"))
    if place == 0:
        return float(EDGES_S[0])
    if place >= EDGES_S.size:
        return float(EDGES_S[-1])
    return float((EDGES_S[place - 1] + EDGES_S[place]) / 2.0)


class Scores:
    """Counts requests by model and priority. `sla_s`: of each model (TTFT, ITL) in seconds. `width_s`: of the bins over time,
    `span_s` the time they cover (later arrivals count into the last). `each`: told of every request (model, priority, arrival,
    TTFT, ITL or NaN, outcome) for whoever wants single ones."""

    def __init__(
        self,
        sla_s: Sequence[tuple[float, float]],
        *,
        width_s: float,
        span_s: float,
        each: Callable[[int, int, float, float, float, int], None] | None = None,
    ) -> None:
        models = len(sla_s)
        self.width_s = width_s
        self.bins = max(1, int(np.ceil(span_s / width_s)))
        self.ended = 0
        self._ttft_s = np.array([ttft for ttft, _ in sla_s])
        self._itl_s = np.array([itl for _, itl in sla_s])
        self._each = each
        self._kept: list[_Kept] = []
        self._retried: dict[tuple[int, int], int] = {}
        self._by: dict[tuple[int, int], Score] = {}
        self._time = {name: np.zeros((models, self.bins), np.int64) for name in _COUNTED}
        self._ttft = np.zeros((models, self.bins, BINS), np.int32)
        self._itl = np.zeros((models, self.bins, BINS), np.int32)

    def completed(self, model: int, priority: int, at_s: float, ttft_s: float, itl_s: float) -> None:
        self._kept.append((model, priority, at_s, ttft_s, itl_s, COMPLETED, itl_s == itl_s))
        if len(self._kept) >= FLUSH:
            self.flush()

    def missed(self, model: int, priority: int, at_s: float, how: int, osl: int) -> None:
        """A request that was shed or failed."""
        self._kept.append((model, priority, at_s, nan, nan, how, osl > 1))
        if len(self._kept) >= FLUSH:
            self.flush()

    def retried(self, model: int, priority: int) -> None:
        key = (model, priority)
        self._retried[key] = self._retried.get(key, 0) + 1

    def flush(self) -> None:
        """Count what is kept."""
        if not self._kept:
            return
        if self._each is not None:
            for model_no, priority_no, at, ttft, itl, outcome, _ in self._kept:
                self._each(model_no, priority_no, at, ttft, itl, outcome)
        columns = [np.array(column) for column in zip(*self._kept, strict=True)]
        self.ended += len(self._kept)
        self._kept.clear()
        model, priority, at_s, ttft_s, itl_s, how, streams = columns
        done = how == COMPLETED
        with np.errstate(invalid="ignore"):  # NaN compares as not met, which is right
            ttft_met = done & (ttft_s <= self._ttft_s[model])
            itl_met = done & streams & (itl_s <= self._itl_s[model])
        met = ttft_met & (itl_met | ~streams)
        bins = np.minimum((at_s / self.width_s).astype(np.int64), self.bins - 1)
        flags = {
            "requests": np.ones_like(done),
            "met": met,
            "ttft_met": ttft_met,
            "itl_met": itl_met,
            "streams": streams,
            "shed": how == SHED,
        }
        for name, flag in flags.items():
            np.add.at(self._time[name], (model[flag], bins[flag]), 1)
        for target, value, flag in ((self._ttft, ttft_s, done), (self._itl, itl_s, done & streams)):
            np.add.at(target, (model[flag], bins[flag], np.searchsorted(EDGES_S, value[flag], side="left")), 1)
        for key in sorted(set(zip(model.tolist(), priority.tolist(), strict=True))):
            mine = (model == key[0]) & (priority == key[1])
            score = Score(
                requests=int(mine.sum()),
                completed=int((mine & done).sum()),
                shed=int((mine & (how == SHED)).sum()),
                failed=int((mine & (how == FAILED)).sum()),
                streams=int((mine & streams).sum()),
                ttft_met=int((mine & ttft_met).sum()),
                itl_met=int((mine & itl_met).sum()),
                met=int((mine & met).sum()),
            )
            self._by[key] = self._by.get(key, Score()).plus(score)

    # ---- what came out -------------------------------------------------------------------------------------------------

    def of(self, model: int) -> dict[int, Score]:
        """By priority."""
        self.flush()
        out = {priority: score for (index, priority), score in sorted(self._by.items()) if index == model}
        for (index, priority), times in self._retried.items():
            if index == model and priority in out:
                out[priority].retried = times
        return out

    def over_time(self, model: int) -> OverTime:
        self.flush()
        return OverTime(
            width_s=self.width_s,
            ttft=self._ttft[model],
            itl=self._itl[model],
            **{name: self._time[name][model] for name in _COUNTED},
        )


_COUNTED = ("requests", "met", "ttft_met", "itl_met", "streams", "shed")
