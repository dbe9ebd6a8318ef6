"""Waiting and crowding in a pool of n replicas: what share of requests meets its SLA at a given rate. Pure.

Prefill at low load is a queue with n servers (M/G/n with the arrival variability of the data). P(wait) and the mean wait are
Sakasegawa's closed form with Allen and Cunneen's variability factor; the wait of those who wait is taken as exponential,
which is exact for exponential service and the heavy-traffic limit otherwise (Kingman 1962; Whitt, "Approximations for the
GI/G/m queue", 1993). The router sends each request to the replica with the least outstanding work, which is the same
queue (least work left = one central queue) as far as it knows the work: DISPATCH_LOSS is what it loses for not knowing it.

Prefill at high load is a gated queue: an engine computes everything that waits in one step, which pays its start once, and
what comes meanwhile is the next step (as a polling system with one queue and a switch-over time; Takagi 1986). Steps grow
with their own batches, so their length varies; an arrival meets a long one more often, waits out the rest of it, and ends
with its own. Either view is pessimistic where the other is right, so the better one counts.

Decode is a station that serves everybody at once, the slower the more there are. The crowd moves around its mean like a
birth-death process: its variance is that of Poisson over the elasticity of the departure rate (who slows others down makes
them stay), and it relaxes over a stay over the same elasticity. A request meets its SLA when the crowd that it sees, averaged
over its own stay, is small enough.

In an aggregated replica prefill work interrupts decode. L decode steps of d seconds then take a delay busy period: the mean is
L d / (1 - rho), the variance rate E[S^2] L d / (1 - rho)^3, for prompts that come at `rate` and take S, rho = rate E[S] (Gaver
1962; Avi-Itzhak and Naor 1963). So the ITL of a short answer among long prompts varies though the crowd does not.

All functions are vectorised over n: arrays of shape (N,) for n = 1..N, rates in requests/s for the whole pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Mean wait under least-outstanding-work dispatch over that of one central queue. Simulated with measured H200 service
# times: 1.02-1.3 for 2 and 4 replicas from 60 % utilisation on; more (1.4 at 75 %) for 8, where hardly anybody waits at all.
DISPATCH_LOSS = 1.15
MIN_ELASTICITY = 0.05
MAX_UTILISATION = 0.92  # planned prefill utilisation at most: a profile that is a few per cent wrong is over the cliff beyond
BISECTIONS = 10  # halvings of the ceiling before a rate is interpolated


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceMix:
    """Service times of the classes of requests: `seconds[i]` with share `share[i]` (shares sum to 1). `start_s`: the part of
    each that a step pays once, however many requests it serves. `tokens[i]`: prompt tokens, `step_tokens`: of one step."""

    seconds: Array
    share: Array
    start_s: float = 0.0
    tokens: Array | None = None
    step_tokens: float = math.inf

    @property
    def work(self) -> float:
        """Mean seconds without the start."""
        return self.mean - self.start_s

    @property
    def mean(self) -> float:
        return float(self.seconds @ self.share)

    def square(self, arrival_cv2: float | Array) -> float | Array:
        """Second moment (s^2) of the work that one arrival brings, without the start; irregular arrivals count like irregular
        work."""
        square = float(self.seconds**2 @ self.share) - 2.0 * self.start_s * self.mean + self.start_s**2
        return square + (arrival_cv2 - 1.0) * self.work**2

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""
        mean = self.mean
        return float(self.seconds**2 @ self.share) / mean**2 - 1.0 if mean > 0.0 else 0.0


def wait_probability(rho: Array, servers: Array) -> Array:
    """P(an arrival has to wait), 0..1, at utilisation `rho` < 1 (Sakasegawa 1977; exact for one server)."""
    return np.power(rho, np.sqrt(2.0 * (servers + 1.0)) - 1.0)


def conditional_wait_s(rho: Array, servers: Array, mix: ServiceMix, arrival_cv2: float) -> Array:
    """Mean wait (s) of those who have to wait."""
    variability = (arrival_cv2 + mix.cv2) / 2.0
    return DISPATCH_LOSS * mix.mean * variability / (servers * (1.0 - rho))


def mean_ttft_s(rate: Array, servers: Array, mix: ServiceMix, arrival_cv2: float) -> Array:
    """Mean time (s) from arrival to the end of prefill; infinite where the pool cannot keep up."""
    rho = rate * mix.mean / servers
    safe = np.minimum(rho, 1.0 - 1e-9)
    wait = wait_probability(safe, servers) * conditional_wait_s(safe, servers, mix, arrival_cv2)
    alone = np.where(rho < 1.0, mix.mean + wait, np.inf)
    if mix.start_s <= 0.0:
        return alone
    steps = _steps(rate, servers, mix, arrival_cv2)
    return np.minimum(alone, np.where(steps.keeps_up, steps.mean_s + mix.mean, np.inf))


@dataclass(frozen=True, slots=True)
class _Steps:
    """Back-to-back prefill steps of a replica: what an arrival waits besides its own computation (mean and variance, s) is
    the rest of the step that it meets, and the others of its own step."""

    mean_s: Array
    variance: Array
    keeps_up: NDArray[np.bool_]


def _steps(rate: Array, servers: Array, mix: ServiceMix, arrival_cv2: float) -> _Steps:
    each = rate / servers
    load = np.minimum(each * mix.work, 1.0 - 1e-6)
    length = mix.start_s / (1.0 - load)
    square = mix.square(arrival_cv2)
    # Length of the next step = start + work of what came during this one; its stationary variance. The router evens out
    # what the replicas get, so that of each is that of the total over n.
    variance = each * length * square / (1.0 - load**2) / servers
    ratio = variance / length**2
    met = length * (1.0 + ratio)  # the step that an arrival meets, a gamma variate counted by its length
    part = 1.0 / 3.0 + load + load**2  # E[(U + load)^2], U the share of that step that is left
    mean_s = met * (0.5 + load)
    spread = length**2 * (1.0 + ratio) * (1.0 + 2.0 * ratio) * part - mean_s**2 + each * met * square / servers
    tokens = 0.0 if mix.tokens is None else float(mix.tokens @ mix.share)
    keeps_up = (each * mix.work < 1.0) & (each * length * tokens <= mix.step_tokens)
    return _Steps(mean_s, np.maximum(spread, 1e-12), keeps_up)


def share_in_time(
    rate: Array,
    servers: Array,
    mix: ServiceMix,
    slack_s: Array,
    arrival_cv2: float,
    weight: Array,
    later_s: Array | float = 0.0,
) -> Array:
    """Share of requests (classes counted by `weight`, which sums to 1) whose wait is within their slack; 0 where the pool
    cannot keep up. `slack_s[i]`: what the SLA leaves class i for waiting; below 0 it misses always. `later_s`: a number or
    one for every n, taken from all slacks."""
    rho = rate * mix.mean / servers
    safe = np.minimum(rho, 1.0 - 1e-9)
    waits = wait_probability(safe, servers)[:, None]
    scale = np.maximum(conditional_wait_s(safe, servers, mix, arrival_cv2), 1e-12)[:, None]
    left = slack_s[None, :] - np.reshape(later_s, (-1, 1))
    late = np.where(left >= 0.0, waits * np.exp(-np.maximum(left, 0.0) / scale), 1.0)
    alone: Array = np.where(rho < 1.0, 1.0 - late @ weight, 0.0)
    if mix.start_s <= 0.0:
        return alone
    steps = _steps(rate, servers, mix, arrival_cv2)
    met = gamma_cdf(left, steps.mean_s[:, None], steps.variance[:, None]) @ weight
    return np.maximum(alone, np.where(steps.keeps_up, met, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Decode of one replica as its batch grows: `sequences` increasing, `itl_s` at each, `pace` = sequences / itl_s
    (tokens/s) made non-decreasing."""

    sequences: Array
    itl_s: Array
    pace: Array

    def crowd(self, tokens_per_s: Array) -> Array:
        """Sequences that run in the mean when a replica is asked for this pace; infinite above what it can do."""
        crowd: Array = np.interp(tokens_per_s, self.pace, self.sequences)
        return np.where(tokens_per_s <= self.pace[-1], crowd, np.inf)

    def elasticity(self, sequences: Array) -> Array:
        """Relative growth of the pace over that of the crowd, 0..1: 1 where nobody slows anybody down."""
        finite = np.where(np.isfinite(sequences), np.maximum(sequences, 1e-3), 1.0)
        wider = 1.1 * finite
        slower = np.log(self.itl_at(wider) / self.itl_at(finite)) / np.log(1.1)
        elasticity: Array = np.clip(1.0 - slower, MIN_ELASTICITY, 1.0)
        return elasticity

    def itl_at(self, sequences: Array) -> Array:
        itl: Array = np.interp(sequences, self.sequences, self.itl_s)
        return itl

    def slope(self, one: Array, other: Array) -> Array:
        """Seconds of a step for each sequence more, between two crowds."""
        low, high = np.minimum(one, other) - 0.5, np.maximum(one, other) + 0.5
        slope: Array = (self.itl_at(high) - self.itl_at(low)) / (high - low)
        return slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The prefill work beside which replicas decode: `free[n]` is the share of their time that it leaves, `bursts_s[n]` the
    variance (s^2) of the work that comes to one of them in a second. `tokens[i]`: of the answers of class i; `sla_s`: of
    their ITL."""

    batching: Batching
    free: Array
    bursts_s: Array
    tokens: Array
    sla_s: float


def share_within(
    crowd: Array,
    elasticity: Array,
    servers: Array,
    limit: Array,
    arrival_cv2: float,
    stays: Array,
    share: Array,
    beside: Beside | None = None,
) -> Array:
    """Share of requests that see at most `limit` sequences on their replica, in the mean over their stay, when `crowd` run
    there in the mean. `stays[i]`: the stay of class i over the mean stay of those present, `share[i]` its share of requests.
    The router balances: the total fluctuates, and each replica carries an equal part of it, as far as whole sequences of
    unequal length divide (one more on the newcomer's replica when alone; 1/sqrt(n) fits the simulated balance). `beside`: what
    prefill work takes of a request's own time must be small enough as well."""
    finite = np.where(np.isfinite(crowd), crowd, 1.0)
    stretch = (elasticity[:, None] * stays[None, :]).clip(1e-3, 50.0)
    averaging = 2.0 * (stretch - 1.0 + np.exp(-stretch)) / stretch**2
    variance = (arrival_cv2 * finite / servers / elasticity)[:, None] * averaging
    room = (limit - finite - 1.0 / np.sqrt(servers))[:, None]
    deviates = room / np.sqrt(np.maximum(variance, 1e-12))
    if beside is not None:
        nearby = finite + 1.0 / np.sqrt(servers)
        slope = beside.batching.slope(nearby, limit)[:, None]
        left = (beside.sla_s * beside.free - beside.batching.itl_at(nearby))[:, None]
        jitter = (beside.bursts_s / beside.free * beside.batching.itl_at(nearby))[:, None] / beside.tokens[None, :]
        deviates = np.minimum(deviates, left / np.sqrt(np.maximum(variance * slope**2 + jitter, 1e-18)))
    met: Array = normal_cdf(deviates) @ share
    return np.where(np.isfinite(crowd), met, 0.0)


def normal_cdf(z: Array) -> Array:
    """Standard normal distribution function, to 3e-4 (Page 1977), without scipy: the planner calls it in each bisection."""
    z = np.clip(z, -8.0, 8.0)
    cdf: Array = 0.5 * (1.0 + np.tanh(0.7978845608 * (z + 0.044715 * z**3)))
    return cdf


def gamma_cdf(x: Array, mean: Array, variance: Array) -> Array:
    """Distribution function of the gamma variate with this mean and variance (Wilson and Hilferty 1931); 0 below 0."""
    shape = mean**2 / variance
    root = np.cbrt(np.maximum(x, 0.0) / mean)
    cdf = normal_cdf((root - (1.0 - 1.0 / (9.0 * shape))) * 3.0 * np.sqrt(shape))
    return np.where(x > 0.0, cdf, 0.0)
