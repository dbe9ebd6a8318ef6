"""What live latencies correct in the profile: slowly, within bounds, and no single sample far. Pure.

A deployment differs from its profile by what every request pays on its way (hand-off, network, tokenizer), an offset of
TTFT, and by how fast its engines really are, a factor of ITL. Both are learned from the difference to what the corrected
model expected at the observed load, so they settle when the model is right, and only while the pool is not overloaded:
what a queue adds is the load's doing, not the engine's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

GAIN = 0.2  # weight of a sample once enough were seen; the first ones weigh 1, 1/2, 1/3...
OFFSET_STEP = 0.1  # of the SLA: the most that one sample moves the TTFT offset
OFFSET_LIMITS = (-0.1, 0.5)  # of the SLA: a profile is trusted to be no slower than this, and no more wrong than this
FACTOR_STEP = 0.1  # the most that one sample moves the ITL factor, relatively
FACTOR_LIMITS = (0.5, 2.0)
RATIO_LIMITS = (0.1, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """`ttft_offset_ms` is added to modelled TTFT, `itl_factor` multiplies modelled ITL. `ttft_ratio` and `itl_ratio` are the
    guide's factors (observed over profiled, as last seen); they are used by the plain formulas only."""

    ttft_offset_ms: float = 0.0
    itl_factor: float = 1.0
    ttft_ratio: float = 1.0
    itl_ratio: float = 1.0
    ttft_samples: int = 0
    itl_samples: int = 0

    def with_ttft(self, *, observed_ms: float | None, expected_ms: float | None, sla_ms: float) -> Correction:
        """After a mean TTFT of `observed_ms` where the corrected model expected `expected_ms`."""
        if not _usable(observed_ms, expected_ms):
            return self
        assert observed_ms is not None and expected_ms is not None
        samples = self.ttft_samples + 1
        step = max(GAIN, 1.0 / samples) * (observed_ms - expected_ms)
        bound = OFFSET_STEP * sla_ms
        low, high = (limit * sla_ms for limit in OFFSET_LIMITS)
        offset = min(high, max(low, self.ttft_offset_ms + min(bound, max(-bound, step))))
        return replace(self, ttft_offset_ms=offset, ttft_samples=samples)

    def with_itl(self, *, observed_ms: float | None, expected_ms: float | None) -> Correction:
        """After a mean ITL of `observed_ms` where the corrected model expected `expected_ms`."""
        if not _usable(observed_ms, expected_ms):
            return self
        assert observed_ms is not None and expected_ms is not None
        samples = self.itl_samples + 1
        step = max(GAIN, 1.0 / samples) * math.log(observed_ms / expected_ms)
        bound = math.log1p(FACTOR_STEP)
        low, high = FACTOR_LIMITS
        factor = min(high, max(low, self.itl_factor * math.exp(min(bound, max(-bound, step)))))
        return replace(self, itl_factor=factor, itl_samples=samples)

    def with_ratios(
        self, *, ttft_ms: float | None, profiled_ttft_ms: float | None, itl_ms: float | None, profiled_itl_ms: float | None
    ) -> Correction:
        """The guide's factors of this interval; a side that is unknown keeps its last."""
        low, high = RATIO_LIMITS
        changed = self
        if _usable(ttft_ms, profiled_ttft_ms):
            assert ttft_ms is not None and profiled_ttft_ms is not None
            changed = replace(changed, ttft_ratio=min(high, max(low, ttft_ms / profiled_ttft_ms)))
        if _usable(itl_ms, profiled_itl_ms):
            assert itl_ms is not None and profiled_itl_ms is not None
            changed = replace(changed, itl_ratio=min(high, max(low, itl_ms / profiled_itl_ms)))
        return changed


def _usable(observed: float | None, expected: float | None) -> bool:
    return all(value is not None and math.isfinite(value) and value > 0.0 for value in (observed, expected))
