"""The parts that `auto` is made of, each against what it must know or a dumb twin, and the choice between them."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_planner.forecast.auto import RecentBest
from pool_planner.forecast.autoregression import Autoregressions
from pool_planner.forecast.contest import Contest
from pool_planner.forecast.daily import DailyLag, LaggedHistory, bins_per_day
from pool_planner.forecast.direct import DirectCorrections
from pool_planner.forecast.fallback import NaiveFallback
from pool_planner.forecast.smoothing import AdaptiveLog, Bank, DampedHolt, Ewma, Theta
from pool_planner.forecast.windows import WindowMeans, WindowMedians

floats = st.floats(0.0, 1e6)


@given(values=st.lists(st.one_of(st.none(), floats), min_size=1, max_size=60))
def test_windows_equal_slices_of_what_is_known(values: list[float | None]) -> None:
    means, medians = WindowMeans((3, 5, 20)), WindowMedians((3, 5, 20))
    for value in values:
        means.learn(value)
        medians.learn(value)
    known = [value for value in values if value is not None]
    if not known:
        assert all(math.isnan(point) for bank in (means, medians) for point in bank.points(1))
        return
    assert list(means.points(1)) == pytest.approx([statistics.fmean(known[-n:]) for n in (3, 5, 20)])
    assert list(medians.points(4)) == pytest.approx([statistics.median(known[-n:]) for n in (3, 5, 20)])


@given(values=st.lists(floats, min_size=1, max_size=40))
def test_smoothing_starts_as_the_mean_and_then_forgets_at_its_rate(values: list[float]) -> None:
    bank, level = Ewma((0.1, 0.5)), 0.0
    for count, value in enumerate(values, start=1):
        bank.learn(value)
        level += max(0.1, 1.0 / count) * (value - level)
    assert bank.points(1)[0] == pytest.approx(level, rel=1e-6, abs=1e-6)


BANKS: dict[str, Bank] = {
    "ewma": Ewma((0.2,)),
    "adaptive_log": AdaptiveLog(),
    "holt": DampedHolt(),
    "theta": Theta(),
    "ar": Autoregressions([(2, False), (1, False), (2, True)]),
    "direct": DirectCorrections(horizons=(1, 3), day_bins=None),
    "direct_daily": DirectCorrections(horizons=(1, 3), day_bins=24.0),
}


@pytest.mark.parametrize("name", BANKS)
def test_every_bank_is_unknown_at_first_and_exact_on_a_constant(name: str) -> None:
    bank = BANKS[name]
    assert len(bank.points(1)) == len(bank.names)
    assert all(math.isnan(point) for point in bank.points(1))
    for _ in range(60):
        bank.learn(50.0)
    for steps in (1, 3):
        assert list(bank.points(steps)) == pytest.approx([50.0] * len(bank.names))


def test_autoregression_finds_an_alternation_and_steps_it_to_the_horizon() -> None:
    """y = 200 + 60 cos(pi t / 3) is an exact AR(2); three bins ahead it is mirrored about its mean."""
    bank = Autoregressions([(2, False)])
    for index in range(400):
        bank.learn(200.0 + 60.0 * math.cos(math.pi * index / 3.0))
    assert bank.points(3)[0] == pytest.approx(200.0 - 60.0 * math.cos(math.pi * 399 / 3.0), abs=6.0)


def test_the_direct_correction_pulls_noise_back_to_its_level() -> None:
    rng = random.Random(3)
    bank = DirectCorrections(horizons=(1,), day_bins=None)
    for _ in range(400):
        bank.learn(rng.gauss(100.0, 10.0))
    bank.learn(140.0)
    assert list(bank.points(1)) == pytest.approx([103.0, 103.0], abs=8.0)
    assert math.isnan(bank.points(2)[0]), "a horizon that is not learned is unknown"


@given(day_bins=st.floats(4.0, 30.0), count=st.integers(1, 90), ahead=st.integers(0, 3))
def test_a_day_ago_is_read_between_the_bins(day_bins: float, count: int, ahead: int) -> None:
    history = LaggedHistory(day_bins, 3)
    values = [float((index * 37) % 101) for index in range(count)]
    for value in values:
        history.add(value)
    position = count - 1 + ahead - day_bins
    told = history.day_ago(ahead)
    if position < 0 or day_bins - ahead < 1.0:
        assert told is None
        return
    low = math.floor(position)
    share = position - low
    expected = values[low] + (share * (values[low + 1] - values[low]) if share else 0.0)
    assert told == pytest.approx(expected, abs=1e-6)


def test_daily_candidates_agree_when_today_repeats_yesterday_and_differ_when_it_is_twice_as_busy() -> None:
    day = [100.0 + 50.0 * math.sin(2.0 * math.pi * index / 24.0) for index in range(24)]
    bank = DailyLag(24.0, 3)
    for value in day * 2:
        bank.learn(value)
    assert list(bank.points(2)) == pytest.approx([day[1]] * 4)
    for value in day:
        bank.learn(2.0 * value)
    as_it_was, in_proportion, _, _ = bank.points(2)
    assert as_it_was == pytest.approx(2.0 * day[1])
    assert in_proportion == pytest.approx(3.0 * day[1], rel=0.5) and in_proportion > as_it_was


@pytest.mark.parametrize(
    ("step_s", "bins"), [(None, None), (30.0, None), (60.0, 1440.0), (432.96, 199.556), (21600.0, 4.0), (43200.0, None)]
)
def test_a_day_is_looked_back_upon_where_it_has_a_fitting_number_of_bins(step_s: float | None, bins: float | None) -> None:
    assert bins_per_day(step_s) == (None if bins is None else pytest.approx(bins, rel=1e-4))


def test_where_nothing_beats_the_naive_forecast_auto_is_the_naive_forecast() -> None:
    """A level that jumps now and then and is otherwise still: whoever averages is behind after each jump."""
    rng = random.Random(9)
    auto, level = RecentBest(step_s=None, horizons=(1, 3)), 100.0
    for index in range(300):
        if index % 10 == 0:
            level = rng.uniform(50.0, 500.0)
        auto.learn(level)
    assert auto.point(1) == pytest.approx(level)
    assert "naive" in auto.chosen(1)
    assert not any(name.startswith(("ewma", "mean")) for name in auto.chosen(1))


def test_auto_names_the_few_that_it_averages() -> None:
    rng = random.Random(10)
    auto = RecentBest(step_s=None, horizons=(1, 3))
    assert auto.chosen(1) == ("naive",)
    for _ in range(200):
        auto.learn(max(0.0, rng.gauss(100.0, 10.0)))
    assert 1 <= len(auto.chosen(1)) <= Contest().best
    assert "naive" not in auto.chosen(1)
    assert auto.chosen(2) == auto.chosen(3) == auto.chosen(50)


@dataclass(slots=True)
class Scripted:
    """A model that is `factor` times the last value."""

    factor: float
    last: float | None = None

    def learn(self, value: float | None) -> None:
        self.last = self.last if value is None else value

    def point(self, steps: int) -> float | None:
        return None if self.last is None else self.factor * self.last


def test_a_losing_model_is_replaced_and_comes_back_when_it_wins_again() -> None:
    model = Scripted(2.0)
    guarded = NaiveFallback(model, (1,))
    for _ in range(20):
        guarded.learn(10.0)
    assert guarded.point(1) == 10.0, "it said 20 and lost each time"

    value = 10.0
    for _ in range(12):  # now it doubles each bin
        value *= 2.0
        guarded.learn(value)
    assert guarded.point(1) == 2.0 * value


def test_a_model_that_does_not_know_yet_is_the_naive_forecast() -> None:
    class Silent(Scripted):
        def point(self, steps: int) -> float | None:
            return None

    guarded = NaiveFallback(Silent(1.0), (1, 3))
    assert guarded.point(1) is None
    guarded.learn(7.0)
    guarded.learn(None)
    assert guarded.point(3) == 7.0
