"""How irregularly requests arrive, and whether more arrive right now than was expected. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pool_planner.performance.overload import Served

DECAY = 0.97  # half of the estimate comes from the last 23 intervals
COUNTED = 400.0  # requests whose number chance varies by a twentieth
PRIOR_REQUESTS = 30.0  # weight of the assumption that arrivals are Poisson, in requests
CV2_LIMITS = (0.7, 4.0)  # beyond, the rate itself varies, and that is the forecast's quantile to cover
RECENT = 30
REMEMBERED = 400  # intervals
SMOOTH = 50.0  # requests whose number chance varies by a seventh
SURGE_INTERVALS = 6
SURGE_SIGMAS = 2.5
ENOUGH = 10  # requests that make a rate: their number is known to within a third

GOES_ON = 0.5  # of a rise or fall, until the past tells how much of such goes on
GOES_ON_PRIOR = 1.0  # windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Counts of the newest intervals, (seconds, requests) newest last, and sums for the index of dispersion. `past` goes back
    further, over gaps.

    The dispersion is taken from differences of neighbouring intervals, so that a trend does not count as irregularity.
    """

    recent: tuple[tuple[float, float], ...] = ()
    squares: float = 0.0
    counts: float = 0.0
    past: tuple[tuple[float, float], ...] = ()

    def after(self, interval_s: float, requests: float) -> Arrivals:
        squares, counts = self.squares, self.counts
        if self.recent:
            before_s, before = self.recent[-1]
            if abs(interval_s - before_s) <= 0.25 * before_s:
                scaled = before * interval_s / before_s
                squares = DECAY * squares + (requests - scaled) ** 2 / 2.0
                counts = DECAY * counts + (requests + scaled) / 2.0
        recent = (*self.recent, (interval_s, requests))[-RECENT:]
        past = (*self.past, (interval_s, requests))[-REMEMBERED:]
        return replace(self, recent=recent, squares=squares, counts=counts, past=past)

    def gap(self) -> Arrivals:
        """After an interval that nothing is known of: neighbours before and after it do not compare."""
        return replace(self, recent=())

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation of the times between arrivals, estimated; 1 for Poisson arrivals."""
        low, high = CV2_LIMITS
        return min(high, max(low, (self.squares + PRIOR_REQUESTS) / (self.counts + PRIOR_REQUESTS)))

    def at_least_rps(self, window_s: float = math.inf) -> float:
        """The rate (requests/s) that arrivals of the newest intervals certainly have, whatever chance did: the largest lower
        bound over the newest one, two, three... intervals, as far as they lie within `window_s`."""
        best = seconds = requests = 0.0
        for interval_s, count in reversed(self.recent[-SURGE_INTERVALS:]):
            if seconds > 0.0 and seconds + interval_s > 1.01 * window_s:
                break
            seconds, requests = seconds + interval_s, requests + count
            best = max(best, (requests - SURGE_SIGMAS * math.sqrt(self.cv2 * requests)) / seconds)
        return best

    def mean_rps(self, window_s: float) -> float:
        """Mean rate (requests/s) of the newest intervals that cover `window_s`, or of as many as are known."""
        seconds = requests = 0.0
        for interval_s, count in reversed(self.past):
            seconds, requests = seconds + interval_s, requests + count
            if seconds >= window_s:
                break
        return requests / seconds if seconds else 0.0

    def counted_rps(self) -> float | None:
        """Requests/s of the newest COUNTED requests, or of as many as are remembered; None: of none. Without admission the
        share that is in time falls from all to nothing within a rate and its double, so a rate that chance made tells nothing
        of it."""
        seconds = requests = 0.0
        for interval_s, count in reversed(self.past):
            seconds, requests = seconds + interval_s, requests + count
            if requests >= COUNTED:
                break
        return requests / seconds if requests else None

    def goes_on(self, newest_s: float, window_s: float, *, lead_s: float = 0.0, after_s: float | None = None) -> float:
        """Of how far the newest `newest_s` are above or below the mean of the last `window_s`, the share that is still there in
        the mean of `after_s` (None: `window_s`), `lead_s` from now, as far as the past tells: near 0 for bursts, which come and
        go, near 1 where a rise goes on. By least squares over the past (its windows overlap, so that only every whole one is
        evidence), with GOES_ON assumed for GOES_ON_PRIOR windows; from 0 to 1."""
        if not self.past:
            return GOES_ON
        each_s = sum(interval_s for interval_s, _ in self.past) / len(self.past)
        wide, near = max(1, round(window_s / each_s)), max(1, round(newest_s / each_s))
        lead, then = round(lead_s / each_s), wide if after_s is None else max(1, round(after_s / each_s))
        ends = len(self.past) + 1 - wide - lead - then  # moments with all of this before and after them
        if ends < 1 or near >= wide:
            return GOES_ON
        rates = np.array([count / interval_s for interval_s, count in self.past])
        sums = np.concatenate(([0.0], np.cumsum(rates)))
        at = np.arange(wide, wide + ends)
        before = (sums[at] - sums[at - wide]) / wide
        off = (sums[at] - sums[at - near]) / near - before
        after = (sums[at + lead + then] - sums[at + lead]) / then - before
        spread = float((off * off).sum())  # not a product of vectors: its last digits differ from processor to processor
        if spread <= 0.0:
            return GOES_ON
        evidence = ends / max(wide if after_s is None else then, 1)
        share = min(1.0, max(0.0, float((off * after).sum()) / spread))
        return (evidence * share + GOES_ON_PRIOR * GOES_ON) / (evidence + GOES_ON_PRIOR)

    def reserve_replicas(self, window_s: float, price: float, served: Served, lull_s: float = 0.0) -> int:
        """How many replicas for bursts pay, by the last `window_s`: the last is the one that served so many more in time that,
        at `price` times the replica time which a request takes, they were worth its own time. One more would cost more than the
        requests that it saves (the newsvendor's quantile, 1 - 1/price, of whole replicas). How long a burst goes beyond what
        the others serve does not count, but how much of a replica it takes. What paid over a window that ended less than
        `lull_s` ago is kept: that nothing came since tells little yet. Counts are taken over times in which SMOOTH requests
        come in the mean, so that chance makes no bursts."""
        counted: list[tuple[float, float]] = []
        seconds = requests = 0.0
        for interval_s, count in reversed(self.past):
            if seconds >= window_s + lull_s:
                break
            seconds, requests = seconds + interval_s, requests + count
            counted.append((interval_s, count))
        if requests <= 0.0:
            return 0
        together = max(1, round(SMOOTH * len(counted) / requests))
        bins = [counted[begin : begin + together] for begin in range(0, len(counted), together)]
        spans_s = np.array([sum(each_s for each_s, _ in each) for each in bins])
        rates = np.array([sum(count for _, count in each) for each in bins]) / spans_s
        gained_s = price * np.diff(served.rps(rates), axis=1) * np.array(served.busy_s[1:]) * spans_s[:, None]
        # Sums from the newest bin back; windows are differences of them.
        ago_s = np.concatenate(([0.0], np.cumsum(spans_s)))
        gained_s = np.concatenate((np.zeros((1, gained_s.shape[1])), np.cumsum(gained_s, axis=0)))
        ends = np.flatnonzero(ago_s[:-1] <= lull_s)
        begins = np.minimum(np.searchsorted(ago_s, ago_s[ends] + window_s * (1.0 - 1e-9)), len(bins))
        lasted_s = ago_s[begins] - ago_s[ends]
        pays = gained_s[begins] - gained_s[ends] > lasted_s[:, None] * (1.0 + 1e-9)
        return int(np.minimum.accumulate(pays, axis=1).sum(axis=1).max())

    def sparse_rps(self, interval_s: float) -> float:
        """The rate (requests/s) of the newest ENOUGH requests, where they took longer than `interval_s` to come; else 0.

        Of counts that are mostly 0 the forecast with the least absolute error is 0, and that is no load to plan for.
        """
        seconds = requests = 0.0
        for each_s, count in reversed(self.recent):
            seconds, requests = seconds + each_s, requests + count
            if requests >= ENOUGH:
                break
        return requests / seconds if seconds > interval_s else 0.0
