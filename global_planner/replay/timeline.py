"""What a replay keeps of its rounds and of the planners' words: numbers by time, in compact columns. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from math import nan

from global_planner.charge import charge_or_last_known
from global_planner.types import Round
from pool_planner.types import PlannerStatus, Proposal

# Of each pool at each round. `wanted`, `open` (attainment without admission) and `closed` (with) are NaN where nothing says it;
# `closed`, `open` are what the pool's proposal says of the replicas that are ready: `closed` of `load_rps`, the load that it is
# about, and by `rps` and `full_rps` of any other (`pool_planner.performance.door`).
POOL_COLUMNS = (
    "spec", "ready", "starting", "draining", "ending", "wanted", "granted", "charged_gpus", "load_rps", "closed", "open",
    "rps", "full_rps",
)  # fmt: skip
GROUP_COLUMNS = ("load_rps", "attainment", "admitted_rps")
EXPECTED_COLUMNS = ("at_s", "requests_per_s", "about_s", "mean_rps", "high_rps")


class Timeline:
    """Columns by pool and by group, a row a round (`at_s`); and what each pool's planner saw and expected, a row a tick."""

    def __init__(self, pools: Sequence[str], groups: Sequence[str]) -> None:
        self.at_s = array("d")
        self.pools = {pool: {name: array("d") for name in POOL_COLUMNS} for pool in pools}
        self.groups = {group: {name: array("d") for name in GROUP_COLUMNS} for group in groups}
        self.expected = {pool: {name: array("d") for name in EXPECTED_COLUMNS} for pool in pools}

    def round(self, done: Round) -> None:
        self.at_s.append(done.inputs.at_s)
        specs = {spec.name: spec for spec in done.inputs.pools}
        grants = {grant.pool: grant for grant in done.allocation.pools}
        reports = {report.pool: report for report in done.inputs.reports}
        for holding in done.inputs.holdings:
            grant, report = grants.get(holding.pool), reports.get(holding.pool)
            states = [replica.state for replica in holding.replicas]
            ready = states.count("ready")
            curve = report.curve if isinstance(report, Proposal) else None
            values = {
                "spec": holding.spec,
                "ready": ready,
                "starting": states.count("starting"),
                "draining": states.count("draining"),
                "ending": states.count("terminating"),
                "wanted": None if grant is None else grant.wanted,
                "granted": None if grant is None else grant.granted,
                "charged_gpus": charge_or_last_known(holding, specs[holding.pool]),
                "load_rps": None if curve is None or not isinstance(report, Proposal) else report.load_rps,
                "closed": None if curve is None else _at(curve.attainment, ready),
                "open": None if curve is None or curve.attainment_open is None else _at(curve.attainment_open, ready),
                "rps": None if curve is None or curve.capacity_rps is None else _at(curve.capacity_rps, ready),
                "full_rps": None if curve is None or curve.full_rps is None else _at(curve.full_rps, ready),
            }
            self._append(self.pools[holding.pool], values)
        for group in done.allocation.groups:
            self._append(
                self.groups[group.group],
                {"load_rps": group.load_rps, "attainment": group.attainment, "admitted_rps": group.admitted_rps},
            )

    def status(self, status: PlannerStatus) -> None:
        seen, forecast = status.observation, status.forecast
        known = seen is not None and seen.requests is not None
        values = {
            "at_s": status.at_s,
            "requests_per_s": seen.requests / seen.interval_s
            if known and seen is not None and seen.requests is not None
            else None,
            "about_s": None if forecast is None else forecast.at_s + forecast.horizon_s,
            "mean_rps": None if forecast is None else forecast.requests_per_s,
            "high_rps": None if forecast is None else forecast.requests_per_s_high,
        }
        self._append(self.expected[status.pool], values)

    @staticmethod
    def _append(columns: Mapping[str, array[float]], values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            columns[name].append(nan if value is None else value)


def _at(curve: Sequence[float], replicas: int) -> float:
    return curve[min(replicas, len(curve) - 1)]
