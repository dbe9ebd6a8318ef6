"""Bursts come again: what pays for those of the last cold starts is kept through a lull that is shorter than that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import given

from pool_planner.performance.arrivals import SMOOTH, Arrivals
from pool_planner.performance.overload import up_to
from tests.planner.story import Story


def bursts(cold_start_s: float = 90.0, **extensions: Any) -> Story:
    """Two bursts of 90 s, 120 s apart, then two minutes of almost nothing; planned on the mean of the forecast."""
    story = Story(
        have=2,
        throughput_adjustment_interval=10,
        extensions={"forecast_quantile": None, **extensions},
        pool={"cold_start_s": cold_start_s},
    )
    for _ in range(2):
        story.run(90.0, 8.0)
        story.run(120.0, 0.2)
    return story


def test_a_lull_between_bursts_keeps_what_the_bursts_need() -> None:
    story = bursts()
    kept = story.wanted
    assert "what each served besides took more than 1/25 of its time (violation_price 25)" in story.reasons
    story.run(60.0, 8.0)
    assert story.wanted <= kept + 1, "the next burst finds nearly all that it needs"


def test_who_forgets_at_once_begins_every_burst_anew() -> None:
    assert bursts(remember_starts=0.0).wanted < bursts().wanted / 2


def test_after_ten_cold_starts_a_burst_is_forgotten() -> None:
    story = bursts()
    story.run(1000.0, 0.2)
    assert story.wanted == 1


def test_where_starting_takes_no_time_nothing_is_remembered() -> None:
    assert bursts(cold_start_s=0.0).wanted == bursts(cold_start_s=0.0, remember_starts=0.0).wanted


def test_who_pays_little_for_a_late_answer_keeps_less() -> None:
    # Bursts take 180 of the 300 s to the end of the second: not two thirds of them, but more than a tenth. A lull of three
    # starts is forgiven, and the planner's own hold of a minute comes after that.
    wanted = {}
    for price in (1.5, 10.0, 25.0):
        story = bursts(violation_price=price)
        story.run(60.0, 0.2)
        wanted[price] = story.wanted
    assert wanted[1.5] < wanted[10.0] == wanted[25.0]


STEPS = (0.0, 10.0, 30.0, 60.0, 100.0)  # requests/s that 0 to 4 replicas carry


@pytest.mark.parametrize(
    ("counts", "price", "replicas"),
    [
        ([100.0] * 10, 30.0, 1),  # 10 requests/s all the time: one replica
        ([0.0] * 5 + [100.0] * 5, 2.5, 1),  # half of the time is more than 1/2.5 of it
        ([0.0] * 5 + [100.0] * 5, 1.9, 0),
        ([0.0] * 9 + [1000.0], 11.0, 4),
        ([0.0] * 9 + [1000.0], 9.0, 0),
        ([0.0] * 9 + [700.0], 11.0, 3),  # of the fourth it takes a quarter for a tenth of the time
        ([0.0] * 9 + [700.0], 41.0, 4),
        ([100.0, 200.0, 300.0, 400.0], 3.0, 2),
        ([], 30.0, 0),
        ([0.0] * 5, 30.0, 0),
    ],
)
def test_a_reserve_is_what_had_enough_to_do(counts: list[float], price: float, replicas: int) -> None:
    """Counts in intervals of 10 s: the last replica of a reserve was busy for more than 1/price of the time."""
    assert after(counts).reserve_replicas(1000.0, price, up_to(STEPS)) == replicas


@given(
    counts=st.lists(st.integers(50, 2000).map(float) | st.just(0.0), min_size=1, max_size=40).filter(any),
    price=st.floats(1.1, 200.0),
    step=st.floats(1.0, 60.0),
)
def test_no_other_reserve_is_worth_more(counts: list[float], price: float, step: float) -> None:
    """By its price: what it lets in, `price` each, less what it costs to keep, at the busy replica's GPU time a request."""
    hypothesis.assume(sum(counts) >= SMOOTH * len(counts))  # else counts are taken together first
    carried = [step * replicas for replicas in range(9)]

    def worth(replicas: int) -> float:
        return sum(price * min(count / 10.0, carried[replicas]) - carried[replicas] for count in counts)

    reserve = after(counts).reserve_replicas(1e9, price, up_to(carried))
    assert worth(reserve) >= max(map(worth, range(9))) - 1e-6 * price * sum(counts)


def after(counts: Sequence[float]) -> Arrivals:
    arrivals = Arrivals()
    for count in counts:
        arrivals = arrivals.after(10.0, count)
    return arrivals


def test_chance_makes_no_bursts() -> None:
    """Ten requests in the mean, give or take three: over times of 50 requests that is a seventh."""
    assert after((13.0, 7.0, 10.0, 14.0, 6.0) * 6).reserve_replicas(1000.0, 1000.0, up_to((0.0, 1.0, 2.0))) == 1


def test_what_paid_until_a_lull_is_kept_through_it() -> None:
    """A burst in each 100 s, for which three replicas pay; then 200 s of nothing. Over the last 200 s they did not, but over
    the 200 s until the lull began they did."""
    bursts = ([800.0] + [0.0] * 9) * 4
    served = up_to((0.0, 20.0, 40.0, 60.0))
    assert after(bursts).reserve_replicas(200.0, 11.0, served) == 3
    lull = after(bursts + [0.0] * 20)
    assert lull.reserve_replicas(200.0, 11.0, served) == 0
    assert lull.reserve_replicas(200.0, 11.0, served, lull_s=210.0) == 3
    assert lull.reserve_replicas(200.0, 11.0, served, lull_s=90.0) == 0


def test_what_is_left_of_a_burst_when_a_replica_serves_is_learned_for_that_moment() -> None:
    """Bursts of 60 s every five minutes: of their first tick nearly all is left at once, and nothing after 100 s."""
    bursts = series(lambda at_s: 8.0 if at_s % 300.0 < 60.0 else 1.0, 60.0)
    assert bursts.goes_on(10.0, 300.0, lead_s=0.0, after_s=10.0) > 0.7
    assert bursts.goes_on(10.0, 300.0, lead_s=100.0, after_s=100.0) < 0.1
    step = series(lambda at_s: 5.0 if at_s < 1500.0 else 10.0, 60.0)
    assert step.goes_on(10.0, 300.0, lead_s=100.0, after_s=100.0) > 0.8


def test_who_waits_inside_full_engines_is_seen() -> None:
    """64 places, and 8 requests/s whose answers take 100 tokens of 80 ms: all places are taken. ITL is far within its SLA and
    the router has no queue, but a duration of 30 s means 240 under way, so 176 wait inside. With a slow prefill instead
    (answers of 20 tokens) the places are free, and nothing is wrong here."""
    seen = {}
    for osl in (100.0, 20.0):
        story = Story(have=1, role="decode", follow=False, pool={"max_num_seqs": 64})
        story.run(300.0, 8.0, osl=osl, itl_ms=80.0, duration_s=30.0)
        seen[osl] = story.reasons
    assert "176 requests wait in engines that are full" in seen[100.0]
    assert "wait in engines" not in seen[20.0]


def test_the_mean_rate_covers_a_stay_and_goes_over_gaps() -> None:
    """Latencies tell of everybody who came during a stay: one interval of it says little when few come in each."""
    seen = Arrivals()
    assert seen.mean_rps(30.0) == 0.0  # nothing is known
    for count in (40.0, 2.0, 3.0, 1.0):
        seen = seen.after(10.0, count)
    assert seen.mean_rps(5.0) == pytest.approx(0.1)  # never less than the newest interval
    assert seen.mean_rps(30.0) == pytest.approx(0.2)
    assert seen.mean_rps(31.0) == pytest.approx(46.0 / 40.0)  # whole intervals
    assert seen.gap().after(10.0, 5.0).mean_rps(20.0) == pytest.approx(0.3)


def series(rate: Callable[[float], float], minutes: float) -> Arrivals:
    seen = Arrivals()
    for tick in range(round(minutes * 6.0)):
        seen = seen.after(10.0, 10.0 * rate(10.0 * tick))
    return seen


def test_how_much_of_a_rise_goes_on_is_learned_from_the_past() -> None:
    """Looking five minutes ahead, an hour of it: of bursts of 20 s that come every minute or two nothing is left, a wave that
    takes an hour goes on, and so does a load that doubled and stayed."""
    bursts = series(lambda at_s: 8.0 if at_s % 130.0 < 20.0 else 1.0, 60.0)
    assert bursts.goes_on(50.0, 300.0) < 0.1
    wave = series(lambda at_s: 10.0 + 5.0 * math.sin(math.tau * at_s / 3600.0), 60.0)
    assert wave.goes_on(50.0, 300.0) > 0.9
    step = series(lambda at_s: 5.0 if at_s < 1500.0 else 10.0, 60.0)
    assert step.goes_on(50.0, 300.0) > 0.8


def test_until_the_past_tells_it_half_of_a_rise_is_thought_to_go_on() -> None:
    """Two windows of five minutes are the least that tells anything; then every window is as much evidence as what was assumed
    before. A load that never changes tells nothing about changes."""
    assert Arrivals().goes_on(50.0, 300.0) == 0.5

    def bursts(minutes: float) -> float:
        return series(lambda at_s: 8.0 if at_s % 130.0 < 20.0 else 1.0, minutes).goes_on(50.0, 300.0)

    assert bursts(9.0) == 0.5
    assert bursts(15.0) == pytest.approx(0.25, abs=0.05)
    assert series(lambda _: 4.0, 60.0).goes_on(50.0, 300.0) == 0.5
    assert series(lambda at_s: at_s, 60.0).goes_on(400.0, 300.0) == 0.5  # what is newest is longer than the window


def burst_after_others(cold_start_s: float, *, stood: int | None = None) -> Story:
    """Eight bursts of ten seconds, two minutes apart, tell how long bursts are here; no reserve is kept. Then another begins,
    larger than those before; `stood`: replicas that somebody has put there just before."""
    story = Story(
        have=2,
        throughput_adjustment_interval=10,
        load_predictor="auto",
        extensions={"forecast_quantile": None, "remember_starts": 0.0},
        pool={"cold_start_s": cold_start_s},
    )
    for _ in range(8):
        story.run(10.0, 8.0)
        story.run(110.0, 0.5)
    story.have = story.have if stood is None else stood
    story.step(12.0)
    return story


def test_what_comes_before_a_replica_could_serve_is_no_reason_to_order_it() -> None:
    """A start of 90 s and bursts that are over after 10: what they would order comes when nothing of them is left. Where a
    start takes no time, a burst is followed at once."""
    slow, quick = burst_after_others(90.0), burst_after_others(0.0)
    assert slow.wanted < 0.6 * quick.wanted
    assert "6.52 requests/s arrive already" in slow.reasons  # of the 12, give or take what chance does
    assert "of them when what is ordered now serves, 100 s from now" in slow.reasons
    slow.run(300.0, 12.0)
    assert slow.wanted > quick.wanted, "this one goes on, so it is followed after all"


def test_what_stands_already_is_kept_for_what_comes_before_a_replica_could_serve() -> None:
    kept = burst_after_others(90.0, stood=12)
    assert kept.wanted == burst_after_others(0.0).wanted
