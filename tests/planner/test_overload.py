"""What is served of more than there is time for, where the shortest prompts come in first; and what that makes worth having."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pool_planner.metrics.exposition import parse
from pool_planner.metrics.names import PoolSeries, wanted
from pool_planner.metrics.observe import Pair, Snapshot, observation
from pool_planner.performance.overload import Served, shortest_first, up_to
from pool_planner.performance.queueing import MAX_UTILISATION, ServiceMix
from pool_planner.types import Histogram
from router.metrics import PoolGauges, PoolMetrics, Scrape, render
from tests.planner.story import Story

SHORT_AND_LONG = ServiceMix(seconds=np.array([0.01, 0.19]), share=np.array([0.5, 0.5]))


def steady(mix: ServiceMix, most: int = 12) -> Served:
    """Without chance: requests come as regularly as they can."""
    return shortest_first(mix, most, arrival_cv2=0.0, patience_s=0.25)


@pytest.mark.parametrize(
    ("rate", "replicas", "served"),
    [
        (4.0, 1, 4.0),  # 0.4 s of work a second
        (20.0, 0, 0.0),
        (20.0, 1, 10.0 + (0.92 - 0.1) / 0.19),  # all the short ones, and as many long ones as there is time for
        (20.0, 2, 10.0 + (1.84 - 0.1) / 0.19),
        (20.0, 3, 20.0),
        (400.0, 1, 0.92 / 0.01),  # not even all the short ones
    ],
)
def test_the_shortest_come_in_first(rate: float, replicas: int, served: float) -> None:
    assert steady(SHORT_AND_LONG).rps(np.array([rate]))[0, replicas] == pytest.approx(served)


@given(
    parts=st.lists(st.tuples(st.floats(0.005, 0.5), st.integers(1, 9)), min_size=1, max_size=6),
    rate=st.floats(0.1, 500.0),
    replicas=st.integers(0, 12),
)
def test_nobody_serves_more_than_a_full_engine_of_short_prompts(
    parts: list[tuple[float, int]], rate: float, replicas: int
) -> None:
    """Against a twin that takes a thousandth of the requests at a time, the shortest first, while there is time."""
    whole = sum(count for _, count in parts)
    mix = ServiceMix(seconds=np.array([s for s, _ in parts]), share=np.array([count / whole for _, count in parts]))
    left, taken = MAX_UTILISATION * replicas, 0.0
    for seconds, count in sorted(parts):
        step = rate * count / whole / 1000.0
        fit = min(1000, int(left / (step * seconds) + 1e-9))
        taken, left = taken + fit * step, left - fit * step * seconds
        if fit < 1000:
            break
    assert steady(mix).rps(np.array([rate]))[0, replicas] == pytest.approx(taken, abs=rate * 0.0011)


@given(rate=st.floats(0.0, 500.0), cv2=st.floats(0.0, 4.0))
def test_more_replicas_serve_more_and_each_one_less_than_the_one_before(rate: float, cv2: float) -> None:
    served = shortest_first(SHORT_AND_LONG, 12, arrival_cv2=cv2, patience_s=0.25).rps(np.array([rate]))[0]
    gained = np.diff(served)
    assert (gained >= -1e-9).all()
    assert (np.diff(gained) <= 1e-6 * max(1.0, rate)).all()


def test_chance_gives_a_replica_work_that_has_none_in_the_mean() -> None:
    """Ten requests/s of 50 ms are half a replica. Over the quarter of a second that one can wait it is now none, now nine."""
    mix = ServiceMix(seconds=np.array([0.05]), share=np.array([1.0]))
    for cv2, second in ((0.0, False), (4.0, True)):
        served = shortest_first(mix, 3, arrival_cv2=cv2, patience_s=0.25).rps(np.array([10.0]))[0]
        assert bool(served[2] - served[1] > 0.5) == second


def test_what_pays_is_what_is_served_more_at_its_price_and_probability() -> None:
    served = up_to((0.0, 10.0, 20.0, 30.0))
    assert served.worth((20.0,), (1.0,), 1.5) == 2
    assert served.worth((0.0, 30.0), (0.8, 0.2), 6.0) == 3  # a fifth of the time is more than a sixth
    assert served.worth((0.0, 30.0), (0.8, 0.2), 4.0) == 0
    assert served.worth((0.0, 14.0), (0.8, 0.2), 6.0) == 1  # of the second it takes less than half


def after_bursts(**pool: bool) -> Story:
    """Bursts of 20 s every two minutes, of prompts of which one in five is ten times as long."""
    story = Story(
        have=2, throughput_adjustment_interval=10, extensions={"forecast_quantile": None}, pool={"cold_start_s": 90.0, **pool}
    )
    lengths = Histogram(edges=(400.0, 600.0, 4000.0, 6000.0), counts=(0.0, 80.0, 0.0, 20.0, 0.0))
    for _ in range(5):
        story.run(20.0, 12.0, isl=1400.0, isl_histogram=lengths)
        story.run(100.0, 0.3, isl=1400.0, isl_histogram=lengths)
    return story


def test_behind_a_door_that_lets_the_shortest_in_fewer_are_kept_for_bursts() -> None:
    """There an overloaded replica serves more than its capacity, so the last ones of a reserve have less to add."""
    behind, open_to_all = after_bursts(shortest_first=True), after_bursts()
    assert 1 < behind.wanted < open_to_all.wanted


def test_lengths_are_of_all_who_came_not_of_those_who_were_let_in() -> None:
    """Ten short prompts were answered and ten long ones turned away: what a pool is asked for is not what got through."""
    metrics = PoolMetrics(model="m", pool="p", role="prefill", namespace="ns")
    gauges = PoolGauges(queued_requests=0, queued_tokens=0.0, endpoints={})

    def shown() -> Snapshot:
        scrape = Scrape(
            pools=[(metrics, gauges)], frontends=(), outcomes=(), waiting={}, workers=(), discovery=(), duplicates=(),
            tenants=(), queue_requests=0, queue_isl_tokens=0.0, code="python", scalars={},
        )  # fmt: skip
        return Snapshot(at_s=0.0, families=parse(render(scrape).decode(), wanted))

    series, before = PoolSeries(pool="p", role="prefill", match={"pool": "p"}), shown()
    for tokens in (100.0, 3900.0):
        for _ in range(10):
            metrics.arrived(0, tokens)
    for _ in range(10):
        metrics.observe(0.1, None, 100.0, None, 0.2)
    metrics.completed, metrics.shed = 10, 10
    seen = observation(series, [Pair(before=before, after=shown())], at_s=10.0, interval_s=10.0, complete=True, workers=None)
    assert seen.isl_tokens == 2000.0
    assert seen.isl_histogram is not None and sum(seen.isl_histogram.counts) == 20.0
