"""One clock for all processes of a system: model time is wall time since the origin, times the speed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_planner.clock import ENV_ORIGIN, ENV_SPEED, SpeedClock, clock_from_environment


def test_model_time_runs_speed_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: wall)
    clock = SpeedClock(origin=wall, speed=20.0)
    assert clock.now() == 0.0
    wall += 3.0
    assert clock.now() == pytest.approx(60.0)
    assert clock.wall(60.0) == pytest.approx(3.0)


def test_at_speed_one_model_time_is_wall_time() -> None:
    assert SpeedClock(origin=0.0).now() == pytest.approx(time.time(), abs=1.0)


async def test_sleep_is_in_model_seconds() -> None:
    clock = SpeedClock(origin=time.time(), speed=100.0)
    begun, wall = clock.now(), time.perf_counter()
    await clock.sleep(5.0)
    assert time.perf_counter() - wall >= 0.045
    assert clock.now() - begun >= 4.9


async def test_what_is_already_late_does_not_wait() -> None:
    wall = time.perf_counter()
    await SpeedClock(origin=0.0, speed=0.001).sleep(-5.0)
    assert time.perf_counter() - wall < 1.0


@given(st.floats(0, 4e9), st.floats(0.001, 1e4))
def test_the_environment_carries_it_exactly(origin: float, speed: float) -> None:
    clock = SpeedClock(origin=origin, speed=speed)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clock.environment().items():
            patch.setenv(name, value)
        assert clock_from_environment() == clock


def test_without_an_environment_time_is_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_SPEED, raising=False)
    monkeypatch.delenv(ENV_ORIGIN, raising=False)
    assert clock_from_environment() == SpeedClock(origin=0.0, speed=1.0)


def test_a_child_process_has_the_same_time() -> None:
    clock = SpeedClock(origin=time.time() - 10.0, speed=7.0)
    code = "from pool_planner.clock import clock_from_environment as c; print(repr(c().now()))"
    before = clock.now()
    out = subprocess.run([sys.executable, "-c", code], env=clock.environment(), capture_output=True, check=True, text=True)
    assert before <= float(out.stdout) <= clock.now()
