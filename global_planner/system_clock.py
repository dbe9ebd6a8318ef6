"""[I/O: one file] The clock of a system's folder: written when the system starts, read by everybody who sets times for it.

Model time goes on where an earlier run in the same folder left it, whatever its speed was: what is remembered there (holds,
back-offs, overrides with their expiry) would otherwise mean another time after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pool_planner.clock import SpeedClock

FILE = "clock.json"


class NoSystem(ValueError):
    """No system was ever started in the folder, or its clock cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemClock:
    """`origin` and `speed`: see SpeedClock. `unix_at_zero_s`: the calendar of schedules at model time 0, as Unix time; it runs
    in model time, so at speed 1 it is the wall clock."""

    origin: float
    speed: float
    unix_at_zero_s: float

    @property
    def clock(self) -> SpeedClock:
        return SpeedClock(origin=self.origin, speed=self.speed)

    def calendar(self, at_s: float) -> datetime:
        """What the calendar says at a model time, in the zone of this machine."""
        return datetime.fromtimestamp(self.unix_at_zero_s + at_s).astimezone()

    def model_s(self, moment: datetime) -> float:
        """The model time of a moment of the calendar; without a zone it is in that of this machine."""
        return moment.timestamp() - self.unix_at_zero_s


_CODEC: TypeAdapter[SystemClock] = TypeAdapter(SystemClock)


REAL_TIME = SystemClock(origin=0.0, speed=1.0, unix_at_zero_s=0.0)
"""The clock of a deployment in a real cluster: model time is Unix time, so that whoever decides next, and whoever gives orders
from elsewhere, means the same moments."""


def start_clock(
    folder: Path, *, speed: float, wall_s: float, calendar_start: str | None = None, real: bool = False
) -> SystemClock:
    """The clock of a system that starts now (`wall_s`, Unix time) in `folder`, written down there. `calendar_start`: what the
    calendar is to say at model time 0 (None: the wall clock, as if it had always run at this speed). `real`: it is in a real
    cluster, where there is no other time than REAL_TIME.

    Raises NoSystem when an earlier clock cannot be read, or when a real cluster was to run at another speed.
    """
    if real:
        if speed != 1.0:
            raise NoSystem(f"a real cluster runs at speed 1, not {speed:g}")
        (folder / FILE).write_bytes(_CODEC.dump_json(REAL_TIME, indent=1) + b"\n")
        return REAL_TIME
    before = read_clock(folder) if (folder / FILE).exists() else None
    model_s = 0.0 if before is None else max(0.0, (wall_s - before.origin) * before.speed)
    origin = before.origin if before is not None and before.speed == speed else wall_s - model_s / speed
    begin_s = origin if calendar_start is None else datetime.fromisoformat(calendar_start).timestamp()
    started = SystemClock(origin=origin, speed=speed, unix_at_zero_s=begin_s)
    (folder / FILE).write_bytes(_CODEC.dump_json(started, indent=1) + b"\n")
    return started


def read_clock(folder: Path) -> SystemClock:
    """Raises NoSystem with what to do."""
    path = folder / FILE
    try:
        return _CODEC.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise NoSystem(f"{folder}: no system was started here (name its folder with --folder; `run` prints it)") from None
    except (OSError, ValidationError) as error:
        raise NoSystem(f"{path} cannot be read: {error}") from error
