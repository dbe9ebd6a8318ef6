"""The records that pool planners, the arbiter and the router exchange. Pure: no I/O, no clock, no randomness.

Every record is frozen, slotted and keyword-only. Units are in the names. `None` means *unknown* (or *unlimited* where
the docstring says so); 0 and -1 never do. All times are model seconds on the one clock of the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["prefill", "decode", "agg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoad:
    """Live load of one replica (one engine endpoint), as the router last saw it."""

    worker_id: str
    active_prefill_tokens: float | None = None
    active_decode_blocks: float | None = None
    last_ttft_ms: float | None = None
    last_isl_tokens: float | None = None
    last_itl_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of observations by bucket over one interval: `counts[i]` in (edges[i-1], edges[i]]; the last count is above
    the last edge, so len(counts) == len(edges) + 1."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was measured for one pool over (at_s - interval_s, at_s]. Any field may be unknown (None).

    `requests` counts arrivals that the router assigned to the pool in the interval (offered load: with those queued and
    shed, a retried request once); `completed` counts answers. Latencies are means over completed requests, in model ms.
    `queued_requests` / `queued_tokens` wait at the router right now. `front_door_up` tells idle (zero requests through a
    living router) from silence. `requests_by_priority`: arrivals by request priority, where the source tells it ("other": those
    of priorities beyond the ones that it tells apart). `prefix_hit_rate`: the share of prompt tokens that were found in the
    prefix caches of the pool's replicas.
    """

    pool: str
    at_s: float
    interval_s: float
    front_door_up: bool | None = None
    requests: float | None = None
    completed: float | None = None
    shed: float | None = None
    queued_requests: float | None = None
    queued_tokens: float | None = None
    isl_tokens: float | None = None
    osl_tokens: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    duration_s: float | None = None
    isl_histogram: Histogram | None = None
    osl_histogram: Histogram | None = None
    workers: tuple[WorkerLoad, ...] | None = None
    requests_by_priority: Mapping[str, float] | None = None
    prefix_hit_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the arbiter tells a pool's planner in answer to a proposal: what the pool has, and what it may have.

    `cold_start_s` is the measured time from order to ready (None until one was measured).
    """

    pool: str
    at_s: float
    round_no: int | None = None
    replicas_spec: int | None = None
    replicas_ready: int | None = None
    replicas_starting: int | None = None
    replicas_draining: int | None = None
    granted: int | None = None
    cold_start_s: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a pool expects over one interval that ends `horizon_s` from `at_s`.

    `requests_per_s` is the mean; `requests_per_s_high` the upper quantile `quantile` (equal to the mean where the series is
    calm enough or no quantile is known). ISL and OSL are mean tokens a request.
    """

    at_s: float
    horizon_s: float
    requests_per_s: float
    requests_per_s_high: float
    quantile: float
    isl_tokens: float
    osl_tokens: float
    predictor: str
    age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandCurve:
    """`attainment[n]`: the largest share of the offered load that can be *admitted* to n replicas with its SLA met;
    non-decreasing, 0..1, index 0..max_replicas. `attainment_open[n]` is the share that meets its SLA when everything is
    admitted: overload is a cliff there, so it is about `open_rps`, the rate (requests/s) that came lately, with no reserve on
    top. `capacity_rps[n]` is the highest admitted rate (requests/s) with the SLA met,
    which is what the router may admit to n ready replicas. `in_flight[n]` is how many requests may be with n replicas at
    once: those that are there at that rate, and for decoding as many as still meet the SLA. A rate alone does not bring down a
    crowd that is too large already, because decoding gets hardly faster with it. `full_rps[n]` is what n replicas carry when
    they are kept as full as the SLA allows all the time, which is what overload behind the router's door comes to (None:
    `capacity_rps`).
    """

    attainment: tuple[float, ...]
    attainment_open: tuple[float, ...] | None = None
    open_rps: float | None = None
    capacity_rps: tuple[float, ...] | None = None
    in_flight: tuple[float, ...] | None = None
    full_rps: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a pool planner reports for one pool. Valid until `expires_at_s`.

    `load_rps` is the offered load that the curve is about (requests/s). `wanted` is the smallest number of replicas that the
    planner would run if the budget were its own. `predicted_replicas` is what throughput scaling asks for, or None.
    A proposal without a curve counts as attainment[n] = min(1, n / wanted).
    `attainment_headroom` is the same curve at 1.1 x the load: a lower number is safe only where that still fits.
    `expected_rps` is the part of `load_rps` that comes in the mean (None: all of it); the rest is doubt, which comes after what
    others need for sure where GPUs are short.
    `load_by_priority` is `load_rps` by request priority, as requests of late were (None: not known). `prefix_hit_rate`: the
    share of prompt tokens of late that replicas found in their caches, which is what is lost with a replica (None: not known).
    """

    pool: str
    at_s: float
    expires_at_s: float
    load_rps: float
    wanted: int
    curve: DemandCurve | None = None
    attainment_headroom: tuple[float, ...] | None = None
    predicted_replicas: int | None = None
    load_replicas: int | None = None
    forecast: Forecast | None = None
    reasons: tuple[str, ...] = ()
    load_by_priority: Mapping[str, float] | None = None
    prefix_hit_rate: float | None = None
    expected_rps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A pool planner that cannot know: keep what the pool has, charge it, grow nothing. `reason` is told to people."""

    pool: str
    at_s: float
    reason: str
    expires_at_s: float


Report = Proposal | Hold


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerStatus:
    """What a planner shows of itself for one pool, beside its proposals: for views, reports and metrics."""

    pool: str
    at_s: float
    observation: Observation | None = None
    forecast: Forecast | None = None
    last_reason: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBatch:
    """What the planner of one DGD sends to the arbiter: a report and a status for each of its pools. `pid` and `started_at_s`
    tell a restarted planner from one that goes on."""

    dgd: str
    pid: int
    started_at_s: float
    reports: tuple[Report, ...]
    statuses: tuple[PlannerStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantBatch:
    """The arbiter's answer: the newest grant of each pool that was reported on."""

    grants: tuple[Grant, ...]


# Failures of the world. An adapter turns whatever went wrong into one of these three; nothing else is caught broadly.
#   WorldError
#    +-- MetricsUnavailable   no observation can be made: hold
#    +-- ClusterUnavailable   the cluster cannot be read or written: try again next round
#    +-- Conflict             the object changed since it was observed: observe again


class WorldError(Exception):
    """Base of everything that an adapter may raise about the outside world."""


class MetricsUnavailable(WorldError):
    """No trustworthy observation: down, slow, empty, malformed or partial. The text says which and where."""


class ClusterUnavailable(WorldError):
    """The cluster (or the router's admin listener) cannot be read or written now."""


class Conflict(WorldError):
    """The object's version has moved on since it was observed; nothing was written."""
