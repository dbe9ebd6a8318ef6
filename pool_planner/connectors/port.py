"""What a live planner needs of whoever carries its decisions out, as a narrow protocol. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pool_planner.types import Grant, PlannerStatus, Report


class Connector(Protocol):
    """Both methods raise only ClusterUnavailable or Conflict; the loop says so and goes on."""

    async def grants(self, now_s: float) -> Mapping[str, Grant]:
        """What the pools have now, by name; a pool that is missing is unknown, never empty."""
        ...

    async def carry_out(self, reports: Sequence[Report], statuses: Sequence[PlannerStatus], now_s: float) -> None:
        """Act on the reports of one plan: a Hold asks for nothing."""
        ...

    async def close(self) -> None: ...
