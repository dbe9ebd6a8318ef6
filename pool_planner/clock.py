"""[I/O] The one clock of a running system: model seconds = wall seconds since the origin x SPEED.

Every process of a system is started with the same origin and speed, so that their model times agree. Nothing else in the
packages reads the wall clock for a decision.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

ENV_SPEED = "PLANNER_SPEED"
ENV_ORIGIN = "PLANNER_ORIGIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedClock:
    """`origin` is wall time (Unix seconds) at model time 0; `speed` divides every duration of the system.

    >>> SpeedClock(origin=0.0, speed=20.0).wall(60.0)
    3.0
    """

    origin: float
    speed: float = 1.0

    def now(self) -> float:
        return (time.time() - self.origin) * self.speed

    def wall(self, duration_s: float) -> float:
        """Wall seconds that a duration in model seconds takes."""
        return duration_s / self.speed

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(max(0.0, duration_s / self.speed))

    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to share this clock."""
        return {ENV_SPEED: repr(self.speed), ENV_ORIGIN: repr(self.origin)}


def clock_from_environment() -> SpeedClock:
    """The clock that the parent process handed down, else real time (speed 1, origin at the Unix epoch)."""
    return SpeedClock(origin=float(os.environ.get(ENV_ORIGIN, "0")), speed=float(os.environ.get(ENV_SPEED, "1")))
