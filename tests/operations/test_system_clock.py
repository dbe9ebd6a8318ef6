"""Model time goes on over restarts: what ends at a time ends at that time, whoever restarts the system and at what speed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from global_planner.system_clock import NoSystem, SystemClock, read_clock, start_clock


def now_s(clock: SystemClock, wall_s: float) -> float:
    return (wall_s - clock.origin) * clock.speed


def test_a_first_start_begins_at_zero_with_the_wall_clock_as_calendar(tmp_path: Path) -> None:
    clock = start_clock(tmp_path, speed=20.0, wall_s=1000.0)
    assert (now_s(clock, 1000.0), now_s(clock, 1001.0), clock.unix_at_zero_s) == (0.0, 20.0, 1000.0)
    assert read_clock(tmp_path) == clock


@pytest.mark.parametrize("speed", [20.0, 1.0, 50.0])
def test_a_restart_goes_on_at_any_speed(tmp_path: Path, speed: float) -> None:
    start_clock(tmp_path, speed=20.0, wall_s=1000.0)
    again = start_clock(tmp_path, speed=speed, wall_s=1100.0)
    assert now_s(again, 1100.0) == pytest.approx(2000.0)
    assert now_s(again, 1101.0) == pytest.approx(2000.0 + speed)


def test_at_the_speed_of_the_wall_clock_the_calendar_is_the_wall_clock_also_after_a_faster_run(tmp_path: Path) -> None:
    start_clock(tmp_path, speed=20.0, wall_s=1000.0)
    again = start_clock(tmp_path, speed=1.0, wall_s=1100.0)
    assert again.calendar(now_s(again, 5000.0)).timestamp() == pytest.approx(5000.0)
    moment = datetime.fromisoformat("2026-07-01T18:00:00+02:00")
    assert again.calendar(again.model_s(moment)) == moment


def test_a_wall_clock_that_was_set_back_does_not_turn_model_time_negative(tmp_path: Path) -> None:
    start_clock(tmp_path, speed=1.0, wall_s=1000.0)
    again = start_clock(tmp_path, speed=2.0, wall_s=900.0)
    assert now_s(again, 900.0) == 0.0


def test_a_calendar_of_ones_own(tmp_path: Path) -> None:
    clock = start_clock(tmp_path, speed=20.0, wall_s=1000.0, calendar_start="2026-07-01T08:50:00+02:00")
    assert clock.calendar(600.0) == datetime.fromisoformat("2026-07-01T09:00:00+02:00")


def test_a_clock_that_is_absent_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSystem, match="no system was started here"):
        read_clock(tmp_path)
    (tmp_path / "clock.json").write_text('{"origin": "yesterday"}')
    for read in (read_clock, lambda folder: start_clock(folder, speed=1.0, wall_s=0.0)):
        with pytest.raises(NoSystem, match=r"clock\.json cannot be read"):
            read(tmp_path)
