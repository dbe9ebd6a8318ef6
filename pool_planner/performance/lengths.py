"""The distribution of prompt and answer lengths, from histogram buckets or, without them, from a mean. Pure.

Averages hide bimodal traffic: a prompt of 200 tokens and one of 12,000 have little to do with two of 6,100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pool_planner.types import Histogram

ENOUGH = 20.0  # requests: of lengths that vary by half, their mean is known to a ninth
LAST_BUCKET = 1.5  # length in the bucket without an upper edge, as a multiple of its lower edge


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthMix:
    """Classes of requests: `tokens[i]` with share `share[i]` (shares sum to 1).

    >>> LengthMix.of_mean(1000.0)
    LengthMix(tokens=(1000.0,), share=(1.0,))
    """

    tokens: tuple[float, ...]
    share: tuple[float, ...]

    @classmethod
    def of_mean(cls, mean_tokens: float) -> LengthMix:
        return cls(tokens=(max(1.0, mean_tokens),), share=(1.0,))

    @classmethod
    def of_histogram(cls, histogram: Histogram, mean_tokens: float) -> LengthMix:
        """Buckets stand at the geometric middle of their edges, all scaled alike so that the mean is `mean_tokens`, which
        is known more exactly than the buckets say. Buckets without requests are left out."""
        total = sum(histogram.counts)
        if total <= 0.0:
            return cls.of_mean(mean_tokens)
        pairs = [
            (_middle(histogram.edges, i), count / total) for i, count in enumerate(histogram.counts) if count / total > 1e-4
        ]
        whole = sum(share for _, share in pairs)
        raw = sum(tokens * share for tokens, share in pairs) / whole
        scale = mean_tokens / raw
        return cls(
            tokens=tuple(max(1.0, tokens * scale) for tokens, _ in pairs), share=tuple(share / whole for _, share in pairs)
        )

    def scaled(self, factor: float) -> LengthMix:
        """Every class at `factor` times its length, at least a token."""
        return LengthMix(tokens=tuple(max(1.0, tokens * factor) for tokens in self.tokens), share=self.share)

    @property
    def mean(self) -> float:
        return sum(t * s for t, s in zip(self.tokens, self.share, strict=True))

    @property
    def second_moment(self) -> float:
        return sum(t * t * s for t, s in zip(self.tokens, self.share, strict=True))

    @property
    def resident_half(self) -> float:
        """Tokens that a sequence seen at a random moment has generated so far: E[L^2] / 2 E[L], because long answers are
        seen more often. Equal lengths give L / 2."""
        return self.second_moment / (2.0 * self.mean)

    @property
    def resident_second_moment(self) -> float:
        """Second moment of that number of tokens: E[L^3] / 3 E[L]."""
        return sum(t**3 * s for t, s in zip(self.tokens, self.share, strict=True)) / (3.0 * self.mean)


def _middle(edges: tuple[float, ...], index: int) -> float:
    if not edges:
        return 1.0
    if index >= len(edges):
        return LAST_BUCKET * edges[-1]
    upper = edges[index]
    lower = edges[index - 1] if index > 0 else 0.0
    return math.sqrt(max(lower, upper / 4.0, 1.0) * max(upper, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthHistory:
    """Bucket counts over time, older ones counting less (half after `half_life_s`), and the mean of the newest: of each request
    1 / ENOUGH is forgotten with every later one."""

    half_life_s: float = 600.0
    at_s: float | None = None
    histogram: Histogram | None = None
    newest: float = 0.0
    newest_tokens: float = 0.0

    def learn(self, histogram: Histogram | None, at_s: float, mean_tokens: float | None = None) -> LengthHistory:
        """The history after one more interval, in which the mean was `mean_tokens`. Other edges than before start anew: the
        source was reconfigured."""
        if histogram is None or not _sane(histogram):
            return self
        counted, requests = self._counted(histogram, at_s), sum(histogram.counts)
        if mean_tokens is None or requests <= 0.0:
            return counted
        kept = math.exp(-requests / ENOUGH)
        newest, tokens = self.newest * kept + requests, self.newest_tokens * kept + requests * mean_tokens
        return replace(counted, newest=newest, newest_tokens=tokens)

    def steadied(self, forecast_tokens: float, requests: float) -> float:
        """A forecast of the mean length that `requests` told: where they are fewer than ENOUGH, for the rest those before."""
        if self.newest <= 0.0 or requests >= ENOUGH:
            return forecast_tokens
        return forecast_tokens + (self.newest_tokens / self.newest - forecast_tokens) * (1.0 - requests / ENOUGH)

    def _counted(self, histogram: Histogram, at_s: float) -> LengthHistory:
        if self.histogram is None or self.at_s is None or self.histogram.edges != histogram.edges:
            return replace(self, at_s=at_s, histogram=histogram)
        keep = 0.5 ** (max(0.0, at_s - self.at_s) / self.half_life_s)
        counts = tuple(keep * old + new for old, new in zip(self.histogram.counts, histogram.counts, strict=True))
        return replace(self, at_s=at_s, histogram=Histogram(edges=histogram.edges, counts=counts))

    def mix(self, mean_tokens: float) -> LengthMix:
        if self.histogram is None:
            return LengthMix.of_mean(mean_tokens)
        return LengthMix.of_histogram(self.histogram, mean_tokens)


def _sane(histogram: Histogram) -> bool:
    return len(histogram.counts) == len(histogram.edges) + 1 and all(
        math.isfinite(count) and count >= 0.0 for count in histogram.counts
    )
