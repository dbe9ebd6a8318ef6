"""Monotone curves through measured points: TTFT over prompt length, ITL over KV usage and context length. Pure.

Everything that can be computed once is computed in the constructors; a call is a bisection and a cubic, without numpy,
because the engine model asks for every event it simulates and the planner for every candidate number of replicas.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

# Contexts that differ by less than this belong to one measured curve (a sweep asks for one length and gets 1 % around it).
SAME_CONTEXT = 0.02
ALONE = 2.0  # a point with at most this many sequences counts as one that was measured alone
# How much of the bow of a parabola a curve takes between two points; 0 is the straight line. Medians of real engines scatter by
# 3-5 %, so half of what three of them say about curvature is noise. Leaving one point of the measured H200 profile out, the
# error is 3.56 % with 0, 3.40 % with 0.5 and 3.46 % with 1 (ITL), and 3.54 / 3.56 / 3.67 % (TTFT, whose points stand closer).
ITL_BOW, TTFT_BOW = 0.5, 0.0


def isotonic(values: Sequence[float]) -> tuple[float, ...]:
    """The non-decreasing sequence nearest to `values` in least squares (pool adjacent violators).

    >>> isotonic([1.0, 3.0, 2.0, 4.0])
    (1.0, 2.5, 2.5, 4.0)
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] * count > total * pools[-1][1]:
            before, members = pools.pop()
            total, count = total + before, count + members
        pools.append((total, count))
    return tuple(total / count for total, count in pools for _ in range(count))


def _slopes(h: Sequence[float], d: Sequence[float]) -> list[float]:
    """At each of len(h) + 1 points the slope of the parabola through it and its neighbours, limited so that a cubic between two
    points stays monotone (at most 3 x the flatter side: Fritsch and Carlson, 1980), 0 at an extremum."""
    n = len(h) + 1
    if n == 2:
        return [d[0], d[0]]
    slopes = [((2 * h[0] + h[1]) * d[0] - h[0] * d[1]) / (h[0] + h[1])]
    slopes += [(h[i] * d[i - 1] + h[i - 1] * d[i]) / (h[i - 1] + h[i]) for i in range(1, n - 1)]
    slopes.append(((2 * h[-1] + h[-2]) * d[-1] - h[-1] * d[-2]) / (h[-1] + h[-2]))
    for i in range(n):
        before, after = d[max(0, i - 1)], d[min(n - 2, i)]
        if before * after <= 0 or slopes[i] * after <= 0:
            slopes[i] = 0.0
        else:
            most = 3 * min(abs(before), abs(after))
            slopes[i] = min(most, max(-most, slopes[i]))
    return slopes


class Monotone:
    """A curve through points: monotone wherever they are, never outside the range of two neighbours. Between two points it is
    the straight line plus `bow` (0..1) of what a shape-preserving cubic adds to it.

    Outside its points it stays at the value of the nearest; with `before` (or `beyond`), it goes on to the left (right) in a
    straight line with the slope of the two nearest points, never falling to the right, and to the left not below half of the
    first value, because noise in two points must not make anything free.
    """

    __slots__ = ("_cubics", "_head", "_last_x", "_last_y", "_tail", "_xs", "_ys")

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], *, bow: float = ITL_BOW, before: bool = False, beyond: bool = False
    ) -> None:
        """`xs` strictly increasing, same length as `ys`, at least one point."""
        n = len(xs)
        self._xs = tuple(float(x) for x in xs)
        self._ys = tuple(float(y) for y in ys)
        self._last_x, self._last_y = self._xs[-1], self._ys[-1]
        if n == 1:
            self._cubics: tuple[tuple[float, float, float], ...] = ()
            self._head = self._tail = 0.0
            return
        h = [self._xs[i + 1] - self._xs[i] for i in range(n - 1)]
        d = [(self._ys[i + 1] - self._ys[i]) / h[i] for i in range(n - 1)]
        slopes = _slopes(h, d)
        ends = [(d[i] + bow * (slopes[i] - d[i]), d[i] + bow * (slopes[i + 1] - d[i])) for i in range(n - 1)]
        self._cubics = tuple(
            (left, (3 * d[i] - 2 * left - right) / h[i], (left + right - 2 * d[i]) / h[i] ** 2)
            for i, (left, right) in enumerate(ends)
        )
        self._head = max(0.0, d[0]) if before else 0.0
        self._tail = max(0.0, d[-1]) if beyond else 0.0

    def __call__(self, x: float) -> float:
        return self.at(x)

    def at(self, x: float) -> float:
        """The value at `x`, for those who ask very often."""
        if x >= self._last_x:
            return self._last_y + (x - self._last_x) * self._tail
        i = bisect_right(self._xs, x) - 1
        if i < 0:
            return max(self._ys[0] - (self._xs[0] - x) * self._head, self._ys[0] / 2) if self._head else self._ys[0]
        a, b, c = self._cubics[i]
        u = x - self._xs[i]
        return self._ys[i] + u * (a + u * (b + u * c))


class PrefillCurve:
    """TTFT of a prompt alone on an engine, and prefill throughput, over the prompt's length.

    Non-decreasing in ISL (measurements that dip are pooled). Below the measured lengths the shortest one's TTFT holds; above
    them TTFT goes on at the last measured cost a token, because a clamp would make long prompts free. `covers` tells.
    """

    __slots__ = ("_thpt", "_ttft", "isl_tokens", "raw_thpt_per_gpu", "raw_ttft_ms")

    def __init__(self, *, isl_tokens: Sequence[float], ttft_ms: Sequence[float], thpt_per_gpu: Sequence[float]) -> None:
        """Points in increasing ISL (tokens); TTFT in ms; throughput in prompt tokens/s/GPU. Values are taken as valid:
        `profile` refuses what is not."""
        self.isl_tokens = tuple(float(v) for v in isl_tokens)
        self.raw_ttft_ms = tuple(float(v) for v in ttft_ms)
        self.raw_thpt_per_gpu = tuple(float(v) for v in thpt_per_gpu)
        lengths, times = self.isl_tokens, isotonic(self.raw_ttft_ms)
        if len(lengths) == 1:  # one measurement: in proportion from there on
            lengths, times = (lengths[0], 2 * lengths[0]), (times[0], 2 * times[0])
        self._ttft = Monotone(lengths, times, bow=TTFT_BOW, beyond=True)
        self._thpt = Monotone(self.isl_tokens, self.raw_thpt_per_gpu)

    def ttft_ms(self, isl: float) -> float:
        """Milliseconds to the first token of a prompt of `isl` tokens that is alone on the engine."""
        return self._ttft.at(isl)

    def thpt_per_gpu(self, isl: float) -> float:
        """Prompt tokens/s/GPU with prompts of `isl` tokens one after the other; clamped to the measured lengths."""
        return self._thpt(isl)

    def covers(self, isl: float) -> bool:
        """Whether `isl` lies within the measured lengths: outside, values are extrapolated."""
        return self.isl_tokens[0] <= isl <= self.isl_tokens[-1]


class DecodeCurve:
    """ITL and decode throughput over KV usage (0..1) and mean context length (tokens), from scattered measurements.

    Points are grouped by context into curves that do not decrease in KV usage. Between two contexts, values are interpolated
    linearly in 1/context: a decode step costs a + b*sequences + c*tokens in KV, and at one KV usage the number of sequences
    is proportional to 1/context. For the same reason a context below the shortest measured one is read at equal batch size
    (KV usage x shortest / context); above the longest one, the longest holds. Outside the KV usages of a curve ITL goes on at
    its slope there, and less than one sequence has the ITL of one. A curve that does not begin at one sequence begins at the
    ITL of one that other contexts show, linear in context (a + b + c x context), where any was measured alone.

    Throughput follows from ITL by Little's law, sequences / ITL, times what was measured of that ideal (the share that is
    lost between steps, over the GPUs of an engine), which varies little between contexts where throughput varies 100-fold.
    """

    __slots__ = ("_contexts", "_first", "_inverses", "_itl", "_last", "_tops", "_yields", "max_kv_tokens", "raw")

    def __init__(
        self,
        *,
        kv_usage: Sequence[float],
        context_tokens: Sequence[float],
        itl_ms: Sequence[float],
        thpt_per_gpu: Sequence[float],
        max_kv_tokens: int,
    ) -> None:
        """Four columns of equal length, in any order, and what the KV cache of one engine holds (tokens). Throughput in
        output tokens/s/GPU. Values are taken as valid: `profile` refuses what is not."""
        self.max_kv_tokens = max_kv_tokens
        self.raw = tuple(
            (float(x), float(y), float(z), float(t))
            for x, y, z, t in zip(kv_usage, context_tokens, itl_ms, thpt_per_gpu, strict=True)
        )
        contexts: list[float] = []
        itl: list[Monotone] = []
        yields: list[Monotone | None] = []
        tops: list[float] = []
        groups = [(sum(point[1] for point in members) / len(members), _merged(members)) for members in _by_context(self.raw)]
        alone = _alone(groups, max_kv_tokens)
        for context, points in groups:
            xs = [point[0] for point in points]
            contexts.append(context)
            one, values = context / max_kv_tokens, [point[1] for point in points]
            if alone is not None and xs[0] > ALONE * one:
                curve = Monotone([one, *xs], isotonic([min(alone(context), values[0]), *values]), before=True, beyond=True)
            else:
                curve = Monotone(xs, isotonic(values), before=True, beyond=True)
            itl.append(curve)
            ideal = [1e3 * x * max_kv_tokens / contexts[-1] / curve(x) for x in xs]
            ratios = [(x, point[2] / rate) for x, point, rate in zip(xs, points, ideal, strict=True) if rate > 0]
            yields.append(Monotone(*zip(*ratios, strict=True)) if ratios else None)
            tops.append(xs[-1])
        known = next(curve for curve in yields if curve is not None)
        self._contexts, self._itl, self._tops = tuple(contexts), tuple(itl), tuple(tops)
        self._yields = tuple(known if curve is None else curve for curve in yields)
        self._inverses = tuple(1.0 / context for context in contexts)
        self._first, self._last = contexts[0], contexts[-1]

    def itl_ms(self, kv_usage: float, context: float) -> float:
        """Milliseconds between two tokens of a sequence; non-decreasing in `kv_usage`."""
        one = context / self.max_kv_tokens
        return self._read(self._itl, kv_usage if kv_usage > one else one, context)

    def thpt_per_gpu(self, kv_usage: float, context: float) -> float:
        """Output tokens/s/GPU of all running sequences together."""
        sequences = kv_usage * self.max_kv_tokens / max(context, 1.0)
        return 1e3 * sequences / self.itl_ms(kv_usage, context) * self._read(self._yields, kv_usage, context)

    def max_kv_usage(self, itl_ms: float, context: float) -> float:
        """The highest KV usage (0..1) at which ITL is at most `itl_ms`; 0 when not even one sequence is that fast."""
        if self.itl_ms(1.0, context) <= itl_ms:
            return 1.0
        low, high = 0.0, 1.0
        if self.itl_ms(low, context) > itl_ms:
            return 0.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            if self.itl_ms(middle, context) <= itl_ms:
                low = middle
            else:
                high = middle
        return low

    def covers(self, kv_usage: float, context: float) -> bool:
        """Whether the point lies within the measurements: outside, values are extrapolated."""
        if not self._first <= context <= self._last:
            return False
        i = max(0, bisect_right(self._contexts, context) - 1)
        if self._contexts[i] == context:
            return kv_usage <= self._tops[i]
        return kv_usage <= min(self._tops[i], self._tops[i + 1])

    @property
    def context_range(self) -> tuple[float, float]:
        """The shortest and the longest measured context (tokens)."""
        return self._first, self._last

    def _read(self, curves: tuple[Monotone, ...], kv_usage: float, context: float) -> float:
        if context >= self._last:
            return curves[-1].at(kv_usage)
        if context <= self._first:
            return curves[0].at(kv_usage * self._first / max(context, 1.0))
        i = bisect_right(self._contexts, context)
        before, after = self._inverses[i - 1], self._inverses[i]
        share = (before - 1.0 / context) / (before - after)
        return (1.0 - share) * curves[i - 1].at(kv_usage) + share * curves[i].at(kv_usage)


_Point = tuple[float, float, float, float]
_Group = tuple[float, list[tuple[float, float, float]]]


def _alone(groups: Sequence[_Group], max_kv_tokens: int) -> Monotone | None:
    """ITL of one sequence over its context, from the groups whose first point is one (at most ALONE); None without any."""
    known = [(context, points[0][1]) for context, points in groups if points[0][0] <= ALONE * context / max_kv_tokens]
    if not known:
        return None
    return Monotone([context for context, _ in known], isotonic([itl for _, itl in known]), bow=0.0)


def _by_context(points: Sequence[_Point]) -> list[list[_Point]]:
    """Points in increasing context, contexts within SAME_CONTEXT of the first of a group together."""
    groups: list[list[_Point]] = []
    for point in sorted(points, key=lambda p: (p[1], p[0])):
        if groups and point[1] <= groups[-1][0][1] * (1 + SAME_CONTEXT):
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _merged(members: Sequence[_Point]) -> list[tuple[float, float, float]]:
    """(KV usage, mean ITL, mean throughput) in strictly increasing KV usage: repeated measurements are averaged."""
    by_usage: dict[float, list[_Point]] = {}
    for member in members:
        by_usage.setdefault(member[0], []).append(member)
    return [
        (usage, sum(p[2] for p in same) / len(same), sum(p[3] for p in same) / len(same))
        for usage, same in sorted(by_usage.items())
    ]
