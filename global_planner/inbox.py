"""The newest report of every pool, whoever it came from, and what was woken (port Pools). Pure but for a lock: no I/O, no
clock.

A report can come at any time and from another thread: from planners in this Ray cluster, from planners outside, and from
requests of the central scaling contract. A planner's word on its pool goes over such a request while it is in force.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pool_planner.types import PlannerStatus, Proposal, Report, ReportBatch

MOST_VALID_S = 3600.0
"""The longest that a report from outside may claim to be in force: nobody plans an hour ahead without looking again."""

WAKE_RPS = 1e-3
"""What a woken pool is taken to be asked for at least, while its planner has not seen the request."""


class Inbox:
    """`pids` by DGD: the process of the planner that reported last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._requested: dict[str, Report] = {}
        self._statuses: dict[str, PlannerStatus] = {}
        self._woken: dict[str, float] = {}
        self._now = 0.0
        self._at_zero: frozenset[str] = frozenset()
        self.pids: dict[str, int] = {}

    def at(self, now_s: float, at_zero: frozenset[str]) -> None:
        """A round begins now; `at_zero`: pools that are known to have no replica."""
        self._now, self._at_zero = now_s, at_zero

    def reports(self) -> Mapping[str, Report]:
        with self._lock:
            found = {**self._requested}
            for pool, report in self._reports.items():
                if report.expires_at_s > self._now or pool not in found:
                    found[pool] = report
            return {**found, **self._awake(found)}

    def _awake(self, found: Mapping[str, Report]) -> dict[str, Report]:
        """Reports of woken pools at zero that would leave them there, raised to one replica."""
        raised: dict[str, Report] = {}
        for pool, until_s in self._woken.items():
            report = found.get(pool)
            asks = isinstance(report, Proposal) and report.wanted > 0
            if until_s <= self._now or pool not in self._at_zero or asks:
                continue
            # Without a curve the first replica is worth the whole load, which is what it is to whoever waits.
            raised[pool] = Proposal(
                pool=pool,
                at_s=self._now,
                expires_at_s=until_s,
                load_rps=max(report.load_rps, WAKE_RPS) if isinstance(report, Proposal) else WAKE_RPS,
                wanted=1,
                reasons=("a request met the pool at zero",),
            )
        return raised

    def statuses(self) -> tuple[PlannerStatus, ...]:
        with self._lock:
            return tuple(self._statuses[pool] for pool in sorted(self._statuses))

    def status(self, pool: str) -> PlannerStatus | None:
        with self._lock:
            return self._statuses.get(pool)

    def planned(self, pool: str, now_s: float) -> bool:
        """Whether a planner's own word on the pool is in force."""
        with self._lock:
            report = self._reports.get(pool)
            return report is not None and report.expires_at_s > now_s

    def put(self, batch: ReportBatch, pools: frozenset[str]) -> None:
        """Take a planner's reports for the pools it may speak for."""
        with self._lock:
            for report in batch.reports:
                known = self._reports.get(report.pool)
                if report.pool in pools and (known is None or known.at_s <= report.at_s):
                    self._reports[report.pool] = report
            for status in batch.statuses:
                if status.pool in pools:
                    self._statuses[status.pool] = status
            self.pids[batch.dgd] = batch.pid

    def request(self, reports: Sequence[Report]) -> None:
        """Take requests for replicas."""
        with self._lock:
            for report in reports:
                self._requested[report.pool] = report

    def wake(self, pools: Sequence[str], until_s: float) -> None:
        """These want a replica at least, until then; reported or not."""
        with self._lock:
            for pool in pools:
                self._woken[pool] = max(until_s, self._woken.get(pool, 0.0))


def on_our_clock(batch: ReportBatch, now_s: float) -> ReportBatch:
    """A batch from a process with another clock, as if it had been made now: its newest time is taken for the time of sending.
    What it claims to be valid is bounded."""
    times = [report.at_s for report in batch.reports] + [status.at_s for status in batch.statuses]
    ahead_s = now_s - max(times, default=now_s)

    def moved(report: Report) -> Report:
        at_s = report.at_s + ahead_s
        expires_s = min(report.expires_at_s + ahead_s, now_s + MOST_VALID_S)
        if isinstance(report, Proposal) and report.forecast is not None:
            forecast = replace(report.forecast, at_s=report.forecast.at_s + ahead_s)
            return replace(report, at_s=at_s, expires_at_s=expires_s, forecast=forecast)
        return replace(report, at_s=at_s, expires_at_s=expires_s)

    def seen(status: PlannerStatus) -> PlannerStatus:
        observation, forecast = status.observation, status.forecast
        return replace(
            status,
            at_s=status.at_s + ahead_s,
            observation=None if observation is None else replace(observation, at_s=observation.at_s + ahead_s),
            forecast=None if forecast is None else replace(forecast, at_s=forecast.at_s + ahead_s),
        )

    return replace(
        batch,
        started_at_s=batch.started_at_s + ahead_s,
        reports=tuple(moved(report) for report in batch.reports),
        statuses=tuple(seen(status) for status in batch.statuses),
    )
