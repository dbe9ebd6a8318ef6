"""The newest report of every pool, whoever it came from, and what was woken (port Pools). Pure but for a lock: no I/O, no
clock.

A report can come at any time and from another thread: from planners in this Ray cluster, from planners outside, and from
requests of the central scaling contract. A planner's word on its pool goes over such a request while it is in force.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from global_planner.woken import Woken
from pool_planner.types import PlannerStatus, Proposal, Report, ReportBatch

MOST_VALID_S = 3600.0
"""The longest that a report from outside may claim to be in force: nobody plans an hour ahead without looking again."""


class Inbox:
    """`pids` by DGD: the process of the planner that reported last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._requested: dict[str, Report] = {}
        self._statuses: dict[str, PlannerStatus] = {}
        self._woken = Woken()
        self._now = 0.0
        self.pids: dict[str, int] = {}

    def at(self, now_s: float, at_zero: frozenset[str]) -> None:
        """A round begins now; `at_zero`: pools that are known to have no replica."""
        self._now = now_s
        self._woken.at(now_s, at_zero)

    def reports(self) -> Mapping[str, Report]:
        with self._lock:
            found = {**self._requested}
            for pool, report in self._reports.items():
                if report.expires_at_s > self._now or pool not in found:
                    found[pool] = report
            return {**found, **self._woken.raised(found)}

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
            self._woken.wake(pools, until_s)


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
