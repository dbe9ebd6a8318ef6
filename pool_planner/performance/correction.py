"""What live latencies correct in the profile: slowly, within bounds, and no single sample far. Pure.

A deployment differs from its profile by what every request pays on its way (hand-off, network, tokenizer), an offset of
TTFT, and by how fast its engines really are, a factor of ITL. Both are learned from the difference to what the corrected
model expected at the observed load, so they settle when the model is right, and only while the pool is not overloaded:
what a queue adds is the load's doing, not the engine's.

The factor of ITL is a power law of the profiled ITL: what a profile misses is often a cost a step (large where steps are
short) or a cost a sequence (large where they are long). Level and slope are a Kalman filter over log(observed / profiled);
a slope is believed only once observations at different loads show one. Loads that differ by less than what an interval's
arrivals vary by chance count as one load (`SAME_LOAD`): latencies do not follow that part of the difference, which would look
like a slope of -1 and add up over days; where 70 requests in bursts are all that tells the load, chance is a sixth, and a slope
learned from it had two replicas do the work of three. On 981 measured points of 43 deployments this halves the error of
simulated curves after ten observations, where a factor alone leaves 62 % of it (tests/bench/curves.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

GAIN = 0.2  # weight of a sample once enough were seen; the first ones weigh 1, 1/2, 1/3...
OFFSET_STEP = 0.1  # of the SLA: the most that one sample moves the TTFT offset
OFFSET_LIMITS = (-0.1, 0.5)  # of the SLA: a profile is trusted to be no slower than this, and no more wrong than this
FACTOR_STEP = 0.1  # the most that one sample moves the ITL factor where it was taken, relatively
FACTOR_LIMITS = (0.5, 2.0)
SLOPE_LIMITS = (-0.5, 0.5)  # corrected ITL must still rise with profiled ITL
REACH = math.log(4.0)  # the slope holds up to 4 x the ITL of the first observation, and down to a quarter
SAME_LOAD = 0.1  # profiled ITLs closer than this (log) to that of the last load count as the same
SAME_LOAD_SDS = 2.0  # and those closer than this many standard deviations of the load, where few requests tell it
# Standard deviations of log factors: of the level and the slope before any observation, of one observation, and of how far the
# level drifts from one to the next (a steady gain of a quarter).
LEVEL_SD, SLOPE_SD, SAMPLE_SD, DRIFT_SD = 0.3, 0.15, 0.1, 0.03
RATIO_LIMITS = (0.1, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """`ttft_offset_ms` is added to modelled TTFT. ITL is multiplied by `itl_factor` where it is profiled as `itl_reference_ms`
    (that of the first observation), elsewhere by that times (profiled / reference) ** `itl_slope`. `itl_distance`: log distance
    from the reference of the load that the last observation was at. `itl_covariance`: how uncertain log factor and slope are
    (variance of the one, of the other, covariance). `ttft_ratio` and `itl_ratio` are the guide's factors (observed over
    profiled, as last seen); they are used by the plain formulas only."""

    ttft_offset_ms: float = 0.0
    itl_factor: float = 1.0
    itl_slope: float = 0.0
    itl_reference_ms: float | None = None
    itl_distance: float = 0.0
    itl_covariance: tuple[float, float, float] = (LEVEL_SD**2, SLOPE_SD**2, 0.0)
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

    def itl_ms(self, profiled_ms: float) -> float:
        """Corrected ITL where the profile says `profiled_ms`; non-decreasing in it."""
        low, high = FACTOR_LIMITS
        return profiled_ms * min(high, max(low, self.itl_factor * math.exp(self.itl_slope * self._distance(profiled_ms))))

    def profiled_itl_ms(self, corrected_ms: float) -> float:
        """What the profile says where the corrected ITL is `corrected_ms`: the inverse of `itl_ms`."""
        low, high = (corrected_ms / limit for limit in reversed(FACTOR_LIMITS))
        for _ in range(50):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.itl_ms(middle) < corrected_ms else (low, middle)
        return math.sqrt(low * high)

    def _distance(self, profiled_ms: float) -> float:
        """From the reference, in log ITL, as far as the slope reaches."""
        if self.itl_reference_ms is None:
            return 0.0
        return min(REACH, max(-REACH, math.log(profiled_ms / self.itl_reference_ms)))

    def with_itl(self, *, observed_ms: float | None, expected_ms: float | None, load_noise: float = 0.0) -> Correction:
        """After a mean ITL of `observed_ms` where the corrected model expected `expected_ms`, at a load that is known to within
        `load_noise` (relative standard deviation)."""
        if not _usable(observed_ms, expected_ms):
            return self
        assert observed_ms is not None and expected_ms is not None
        profiled_ms = self.profiled_itl_ms(expected_ms)
        known = self if self.itl_reference_ms is not None else replace(self, itl_reference_ms=profiled_ms)
        distance = known._distance(profiled_ms)
        if abs(distance - known.itl_distance) < max(SAME_LOAD, SAME_LOAD_SDS * load_noise):
            distance = known.itl_distance
        level, slope, both = known.itl_covariance
        level = min(LEVEL_SD**2, level + DRIFT_SD**2)
        at_level, at_slope = level + distance * both, both + distance * slope
        total = at_level + distance * at_slope + SAMPLE_SD**2 + load_noise**2
        surprise = math.log(observed_ms / expected_ms) / total
        # Where the sample was taken the factor moves by this much; all of it is scaled down where that is too much.
        move = abs(surprise * (at_level + distance * at_slope))
        scale = surprise * min(1.0, math.log1p(FACTOR_STEP) / move) if move > 0.0 else 0.0
        low, high = FACTOR_LIMITS
        least, most = SLOPE_LIMITS
        return replace(
            known,
            itl_factor=min(high, max(low, known.itl_factor * math.exp(scale * at_level))),
            itl_slope=min(most, max(least, known.itl_slope + scale * at_slope)),
            itl_covariance=(
                level - at_level**2 / total,
                slope - at_slope**2 / total,
                both - at_level * at_slope / total,
            ),
            itl_distance=distance,
            itl_samples=known.itl_samples + 1,
        )

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
