"""[I/O] What a planner decides and what happens to it, a JSON line each on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pool_planner.types import Grant, Proposal, Report


def say(event: str, **fields: object) -> None:
    """One JSON line on standard error."""
    line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()


def say_decisions(reports: Sequence[Report], grants: Mapping[str, Grant], now_s: float) -> None:
    for report in reports:
        say("decision", **decision_fields(report, grants.get(report.pool)))


def decision_fields(report: Report, grant: Grant | None) -> dict[str, object]:
    """What a line about one pool's plan carries; None: unknown."""
    have = {"ordered": grant.replicas_spec, "ready": grant.replicas_ready} if grant is not None else {}
    fields: dict[str, object] = {"pool": report.pool, "ordered": None, "ready": None, **have}
    if not isinstance(report, Proposal):
        return {**fields, "outcome": "hold", "wanted": None, "reasons": [report.reason]}
    return {
        **fields,
        "outcome": "proposal",
        "wanted": report.wanted,
        "load_rps": round(report.load_rps, 4),
        "reasons": list(report.reasons),
    }
