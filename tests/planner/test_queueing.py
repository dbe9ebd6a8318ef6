"""The queueing model against event-by-event simulation, and what must hold of any demand curve."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from global_planner.replay.engine_spec import EngineSpec
from pool_planner.performance.correction import Correction
from pool_planner.performance.demand import Capacity, plain_capacity, queueing_capacity
from pool_planner.performance.door import share_served
from pool_planner.performance.expected import expected
from pool_planner.performance.lengths import ENOUGH, LengthHistory, LengthMix
from pool_planner.performance.profile import Profile, load_profile
from pool_planner.performance.work import Engine, Shape
from pool_planner.types import Histogram, Role
from tests.planner import simulate

DEMO = load_profile(Path(__file__).parents[2] / "examples/two-models/profile")
TARGET = 0.97
EQUAL = LengthMix.of_mean(1000.0)
ANSWERS = LengthMix(tokens=(30.0, 400.0), share=(0.7, 0.3))
MIXED = LengthMix(tokens=(300.0, 3000.0), share=(0.8, 0.2))


def engine(role: str, profile: Profile = DEMO, *, ttft_ms: float = 3000.0, itl_ms: float = 500.0) -> Engine:
    return Engine(
        role=role,  # type: ignore[arg-type]
        gpus=1,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms,
        prefill=profile.prefill,
        decode=profile.decode,
    )


def capacity(role: str, isl: LengthMix = EQUAL, osl: LengthMix | None = None, *, cv2: float = 1.0, most: int = 8) -> Capacity:
    shape = Shape(isl=isl, osl=osl or LengthMix.of_mean(150.0), arrival_cv2=cv2)
    return queueing_capacity(engine(role), shape, Correction(), target=TARGET, max_replicas=most)


@pytest.mark.parametrize("isl", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_prefill_capacity_is_what_engines_carry(replicas: int, isl: LengthMix) -> None:
    """At the capacity the target is met within noise; well above it, it is not."""
    rps = capacity("prefill", isl).rps[replicas]

    def met(rate: float) -> float:
        ttft = simulate.prefill_ttft(
            spec=EngineSpec(role="prefill", profile=DEMO),
            rate=rate,
            replicas=replicas,
            tokens=lambda rng: rng.choices(isl.tokens, isl.share)[0],
            requests=3500,
            seed=5,
        )
        return simulate.share(ttft, 3.0)

    assert met(rps) >= TARGET - 0.02
    assert met(1.7 * rps) < TARGET


def test_short_prompts_share_the_start_of_a_step() -> None:
    """200 ms of every demo prompt are paid once a step: a pool carries more than one prompt after the other would."""
    short = LengthMix.of_mean(450.0)
    assert DEMO.prefill is not None
    one_by_one = 4 / (DEMO.prefill.ttft_ms(450.0) / 1e3)
    assert capacity("prefill", short).rps[4] > one_by_one


@pytest.mark.parametrize(
    "osl", [LengthMix.of_mean(150.0), LengthMix(tokens=(30.0, 400.0), share=(0.7, 0.3))], ids=["equal", "mixed"]
)
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_decode_capacity_is_what_a_simulated_pool_carries(replicas: int, osl: LengthMix) -> None:
    curve = DEMO.decode
    assert curve is not None
    context = Shape(isl=EQUAL, osl=osl).context_tokens
    rps = capacity("decode", EQUAL, osl).rps[replicas]

    def met(rate: float) -> float:
        itl = simulate.decode_itl(
            rate=rate,
            replicas=replicas,
            tokens=lambda rng: rng.choices(osl.tokens, osl.share)[0],
            itl=lambda batch: curve.itl_ms(batch * context / curve.max_kv_tokens, context) / 1e3,
            requests=2000,
            seed=5,
        )
        return simulate.share(itl, 0.5, skip=300)

    assert met(rps) >= TARGET - 0.04
    assert met(1.3 * rps) < TARGET


def _scattered(mean: float) -> LengthMix:
    """Even from half the mean to one and a half times it, in ten classes."""
    return LengthMix(tokens=tuple(mean * (0.55 + 0.1 * each) for each in range(10)), share=(0.1,) * 10)


@pytest.mark.parametrize(
    ("isl", "osl"),
    [
        pytest.param(LengthMix.of_mean(700.0), LengthMix.of_mean(60.0), id="equal"),
        pytest.param(_scattered(700.0), _scattered(120.0), id="scattered"),
        pytest.param(LengthMix.of_mean(2000.0), LengthMix.of_mean(30.0), id="long prompts, short answers"),
        pytest.param(_scattered(2000.0), _scattered(30.0), id="scattered long prompts, short answers"),
    ],
)
@pytest.mark.parametrize("replicas", [2, 4])
def test_aggregated_capacity_is_what_engines_carry(replicas: int, isl: LengthMix, osl: LengthMix) -> None:
    """A short answer among long prompts meets many of them or none: where only the mean of their work counted, 74-87 % of the
    requests met at the capacity what 97 % were to meet."""
    shape, pool = Shape(isl=isl, osl=osl), engine("agg", ttft_ms=6000.0)
    rps = queueing_capacity(pool, shape, Correction(), target=TARGET, max_replicas=4).rps[replicas]

    def met(rate: float) -> float:
        return simulate.aggregated_met(
            spec=EngineSpec(role="agg", profile=DEMO),
            rate=rate,
            replicas=replicas,
            isl=lambda rng: rng.choices(isl.tokens, isl.share)[0],
            osl=lambda rng: rng.choices(osl.tokens, osl.share)[0],
            ttft_s=6.0,
            itl_s=0.5,
            requests=2400,
            seed=3,
        )

    assert met(rps) >= TARGET - 0.04
    assert met(1.3 * rps) < TARGET


def test_irregular_arrivals_cost_capacity() -> None:
    for role in ("prefill", "decode", "agg"):
        regular, irregular = capacity(role), capacity(role, cv2=4.0)
        assert all(a > b for a, b in zip(regular.rps[1:], irregular.rps[1:], strict=True)), role


def test_an_sla_out_of_reach_is_said_and_the_load_still_carried() -> None:
    shape = Shape(isl=EQUAL, osl=LengthMix.of_mean(150.0))
    for role, ttft_ms, itl_ms in (("prefill", 100.0, 500.0), ("decode", 3000.0, 50.0)):
        found = queueing_capacity(
            engine(role, ttft_ms=ttft_ms, itl_ms=itl_ms), shape, Correction(), target=TARGET, max_replicas=4
        )
        assert found.rps[4] > 0.0
        assert "out of reach" in found.notes[0]


def test_prompts_that_are_too_long_do_not_ask_for_idle_replicas() -> None:
    hopeless = LengthMix(tokens=(500.0, 20_000.0), share=(0.9, 0.1))
    found = capacity("prefill", hopeless)
    assert "10% of the prompts are too long" in found.notes[0]
    assert found.rps[8] > 0.4 * 8 / (0.9 * 0.56 + 0.1 * 15.4)
    assert found.share_met(found.rps[4])[4] < 0.91


def test_overload_without_admission_is_a_cliff() -> None:
    found = capacity("prefill")
    curve = found.curve(1.5 * found.rps[4])
    # The door keeps the replicas full, which are planned with room for chance, and lets the short prompts in first.
    assert 1 / 1.5 < curve.attainment[4] < 0.9
    assert curve.attainment_open is not None
    assert curve.attainment_open[4] < 0.1


@given(st.floats(0.01, 50.0), st.floats(1.0, 3.0), st.lists(st.floats(0.01, 500.0), min_size=2, max_size=6))
def test_what_a_door_serves_falls_from_all_to_what_full_replicas_carry(planned: float, more: float, loads: list[float]) -> None:
    full = planned * more
    shares = [share_served(load, planned, full) for load in sorted(loads)]
    assert all(before >= after - 1e-9 for before, after in pairwise(shares))
    for load, share in zip(sorted(loads), shares, strict=True):
        assert share == 1.0 if load <= planned else planned / load - 1e-9 <= share <= min(1.0, full / load) + 1e-9
    assert share_served(20.0 * full, planned, full) == pytest.approx(0.05, rel=1e-3)
    assert share_served(1e12, planned, full) == pytest.approx(full / 1e12)


@given(*[st.floats(0.0, allow_nan=False, allow_infinity=False)] * 3)
@example(load=1e300, planned=1e-200, full=1e200)
def test_of_any_rates_a_share_is_served(load: float, planned: float, full: float) -> None:
    assert 0.0 <= share_served(load, planned, full) <= 1.0


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_replicas_that_are_kept_full_carry_more_than_what_is_planned(role: Role) -> None:
    """One keeps the largest room for chance; of aggregated ones nobody knows."""
    found = capacity(role)
    assert found.full_rps is not None and len(found.full_rps) == len(found.rps) and found.full_rps[0] == 0.0
    more = [full / planned for full, planned in zip(found.full_rps[1:], found.rps[1:], strict=True)]
    assert min(more) >= 1.0 and 1.1 < more[0] < 2.5 and more[0] > more[7]
    assert capacity("agg").full_rps is None


@pytest.mark.parametrize(
    ("replicas", "shortest", "answers"),
    [
        pytest.param(1, 4000, 150, id="one, with long contexts: five where six would be on the edge"),
        pytest.param(2, 1500, 100, id="two"),
        pytest.param(4, 4000, 150, id="four, with long contexts"),
        pytest.param(4, 350, 10, id="four, with short answers"),
    ],
)
def test_decode_is_kept_as_full_as_serves_most(replicas: int, shortest: int, answers: int) -> None:
    """Lengths scatter evenly, from `shortest` to four times as much. Engines that hold what the planner says serve what it says
    within the SLA, and a few more or fewer would hardly be better."""

    def scattered(least: int) -> LengthMix:
        edges = tuple(least * (1.0 + 0.3 * step) for step in range(11))
        return LengthMix.of_histogram(Histogram(edges=edges, counts=(0.0, *(1.0,) * 10, 0.0)), 2.5 * least)

    found = capacity("decode", scattered(shortest), scattered(answers), most=replicas)
    assert found.in_flight is not None and found.full_rps is not None
    held = round(found.in_flight[replicas])
    assert held == found.in_flight[replicas]

    def served(sequences: int) -> float:
        return simulate.kept_full_rps(
            spec=EngineSpec(role="decode", profile=DEMO),
            held=sequences,
            replicas=replicas,
            isl=lambda rng: rng.uniform(shortest, 4 * shortest),
            osl=lambda rng: rng.uniform(answers, 4 * answers),
            itl_s=0.5,
            requests=600,
            seed=1,
        )

    assert served(held) == pytest.approx(found.full_rps[replicas], rel=0.05)
    assert served(held) > 0.95 * max(served(held + each) for each in (-2, -1, 1, 2))


def test_plain_formulas_of_the_guide() -> None:
    """Prefill: load / (throughput per GPU x GPUs); decode: throughput at the highest KV usage within the ITL."""
    assert DEMO.prefill is not None and DEMO.decode is not None
    prefill = plain_capacity(engine("prefill"), 1000.0, 150.0, ttft_ratio=1.0, itl_ratio=1.0, max_replicas=4)
    assert prefill.rps[3] == pytest.approx(3 * DEMO.prefill.thpt_per_gpu(1000.0) / 1000.0)
    assert plain_capacity(engine("prefill"), 1000.0, 150.0, ttft_ratio=0.5, itl_ratio=1.0, max_replicas=4).rps[
        3
    ] == pytest.approx(2 * prefill.rps[3]), "min(1, c_p) scales the load"
    assert plain_capacity(engine("prefill"), 1000.0, 150.0, ttft_ratio=3.0, itl_ratio=1.0, max_replicas=4).rps == prefill.rps
    usage = DEMO.decode.max_kv_usage(500.0 / 1.25, 1075.0)
    decode = plain_capacity(engine("decode"), 1000.0, 150.0, ttft_ratio=1.0, itl_ratio=1.25, max_replicas=4)
    assert decode.rps[2] == pytest.approx(2 * DEMO.decode.thpt_per_gpu(usage, 1075.0) / 150.0)


@settings(max_examples=40, deadline=None)
@given(
    role=st.sampled_from(["prefill", "decode", "agg"]),
    isl=st.floats(1.0, 100_000.0),
    osl=st.floats(1.0, 4000.0),
    load=st.floats(0.0, 500.0),
    cv2=st.floats(0.7, 4.0),
    ttft_ms=st.floats(10.0, 60_000.0),
    itl_ms=st.floats(10.0, 5000.0),
    offset=st.floats(-300.0, 5000.0),
    factor=st.floats(0.5, 2.0),
)
def test_curves_rise_from_0_to_1(
    role: str,
    isl: float,
    osl: float,
    load: float,
    cv2: float,
    ttft_ms: float,
    itl_ms: float,
    offset: float,
    factor: float,
) -> None:
    shape = Shape(isl=LengthMix.of_mean(isl), osl=LengthMix.of_mean(osl), arrival_cv2=cv2)
    correction = Correction(ttft_offset_ms=offset, itl_factor=factor)
    found = queueing_capacity(engine(role, ttft_ms=ttft_ms, itl_ms=itl_ms), shape, correction, target=TARGET, max_replicas=12)
    curve = found.curve(load)
    assert curve.attainment_open is not None
    for values in (curve.attainment, curve.attainment_open):
        assert len(values) == 13
        assert all(0.0 <= value <= 1.0 + 1e-9 for value in values)
        assert all(a <= b + 1e-9 for a, b in pairwise(values))
    assert found.rps[0] == 0.0
    assert all(a <= b + 1e-9 for a, b in pairwise(found.rps))
    per_replica = [rps / n for n, rps in enumerate(found.rps) if n]
    assert all(a <= b * (1 + 1e-3) + 1e-9 for a, b in pairwise(per_replica)), "sharing helps"


def test_expected_latencies_are_those_of_a_simulated_pool() -> None:
    shape = Shape(isl=MIXED, osl=LengthMix.of_mean(1.0))
    for rate in (0.5, 2.0, 3.2):
        model = expected(engine("prefill"), shape, Correction(), rate_rps=rate, ready=3)
        ttft = simulate.prefill_ttft(
            spec=EngineSpec(role="prefill", profile=DEMO),
            rate=rate,
            replicas=3,
            tokens=lambda rng: rng.choices(MIXED.tokens, MIXED.share)[0],
            requests=4000,
            seed=1,
        )
        assert model.ttft_ms == pytest.approx(1e3 * sum(ttft) / len(ttft), rel=0.15 if rate < 3.0 else 0.3), rate
    decode = expected(engine("decode"), Shape(isl=EQUAL, osl=LengthMix.of_mean(150.0)), Correction(), rate_rps=0.3, ready=3)
    assert DEMO.decode is not None
    itl = simulate.decode_itl(
        rate=0.3,
        replicas=3,
        tokens=lambda rng: 150.0,
        itl=lambda batch: DEMO.decode.itl_ms(batch * 1075.0 / DEMO.decode.max_kv_tokens, 1075.0) / 1e3,  # type: ignore[union-attr]
        requests=1500,
        seed=2,
    )
    assert decode.itl_ms == pytest.approx(1e3 * sum(itl) / len(itl), rel=0.08)


def test_lengths_keep_the_mean_and_forget_slowly() -> None:
    edges = (128.0, 1024.0, 8192.0)
    mix = LengthMix.of_histogram(Histogram(edges=edges, counts=(50.0, 0.0, 50.0, 0.0)), 1500.0)
    assert mix.mean == pytest.approx(1500.0)
    assert len(mix.tokens) == 2
    assert mix.resident_half > 1500.0 / 2
    history = LengthHistory(half_life_s=100.0)
    history = history.learn(Histogram(edges=edges, counts=(100.0, 0.0, 0.0, 0.0)), 0.0)
    history = history.learn(Histogram(edges=edges, counts=(0.0, 0.0, 50.0, 0.0)), 100.0)
    assert history.histogram is not None
    assert history.histogram.counts == (50.0, 0.0, 50.0, 0.0)
    assert history.learn(Histogram(edges=edges, counts=(float("nan"),) * 4), 200.0) == history
    assert history.learn(None, 200.0) == history
    other = Histogram(edges=(1.0,), counts=(1.0, 2.0))
    assert history.learn(other, 200.0).histogram == other


def test_a_mean_of_few_lengths_is_told_by_those_before_as_well() -> None:
    """One request an interval, of 100 or of 500 tokens: the newest alone is no mean. Where many tell the forecast it counts as
    it is, and other lengths are followed within as many requests as make a mean."""
    edges, history, rng = (128.0, 1024.0), LengthHistory(), random.Random(1)
    assert history.steadied(500.0, 1.0) == 500.0
    for at in range(200):
        tokens = rng.choice((100.0, 500.0))
        counts = (1.0, 0.0, 0.0) if tokens == 100.0 else (0.0, 1.0, 0.0)
        history = history.learn(Histogram(edges=edges, counts=counts), 10.0 * at, tokens)
    assert 220.0 < history.steadied(100.0, 1.0) < 380.0 and 220.0 < history.steadied(500.0, 1.0) < 380.0
    assert history.steadied(500.0, ENOUGH / 2.0) == pytest.approx((500.0 + history.steadied(500.0, 0.0)) / 2.0)
    assert history.steadied(500.0, ENOUGH) == 500.0
    history = history.learn(Histogram(edges=edges, counts=(0.0, 0.0, 60.0)), 3000.0, 2000.0)
    assert history.steadied(2000.0, 1.0) > 1700.0


def test_what_lies_beyond_the_profile_is_said_to_be_extrapolated() -> None:
    for role, isl, said in (
        ("prefill", 700.0, ()),
        ("prefill", 200_000.0, ("extrapolated: prompts of 200000 tokens, the profile has 32 to 131072",)),
        ("decode", 200_000.0, ("extrapolated: contexts of 200050 tokens, the profile has 64 to 131072",)),
    ):
        shape = Shape(isl=LengthMix.of_mean(isl), osl=LengthMix.of_mean(100.0))
        pool = engine(role, ttft_ms=3e5, itl_ms=1e3)  # type: ignore[arg-type]
        notes = queueing_capacity(pool, shape, Correction(), target=TARGET, max_replicas=4).notes
        assert tuple(note for note in notes if note.startswith("extrapolated")) == said


def test_the_correction_learns_a_cost_a_step_where_the_loads_differ() -> None:
    """Each step really costs 3 ms more than profiled: twice the ITL of an idle engine, a tenth more of a busy one."""
    correction = Correction()
    loads = (6.0, 10.0, 18.0, 30.0, 8.0, 24.0, 12.0, 20.0, 15.0, 28.0)
    for profiled in loads:
        correction = correction.with_itl(observed_ms=profiled + 3.0, expected_ms=correction.itl_ms(profiled))
    assert correction.itl_slope < -0.05
    error = [correction.itl_ms(profiled) / (profiled + 3.0) - 1.0 for profiled in loads]
    without = [profiled / (profiled + 3.0) - 1.0 for profiled in loads]
    assert sum(map(abs, error)) < 0.4 * sum(map(abs, without))
    assert [correction.itl_ms(ms) for ms in (1.0, 5.0, 50.0)] == sorted(correction.itl_ms(ms) for ms in (1.0, 5.0, 50.0))
    assert correction.profiled_itl_ms(correction.itl_ms(17.0)) == pytest.approx(17.0)


def test_without_a_difference_in_load_only_the_level_is_learnt() -> None:
    correction = Correction()
    for _ in range(20):
        correction = correction.with_itl(observed_ms=33.0, expected_ms=correction.itl_ms(30.0))
    assert abs(correction.itl_slope) < 1e-12
    assert correction.itl_ms(60.0) == pytest.approx(66.0, rel=0.01)


def test_noise_in_the_load_teaches_no_slope() -> None:
    """The load is told 5 % wrong each time, and latencies follow the true one: a month of that is not a flat engine."""
    rng = random.Random(5)
    correction = Correction()
    for _ in range(4000):
        told = 30.0 * rng.uniform(0.95, 1.05)
        correction = correction.with_itl(observed_ms=33.0 * rng.uniform(0.95, 1.05), expected_ms=correction.itl_ms(told))
    assert abs(correction.itl_slope) < 0.01
    assert correction.itl_ms(60.0) == pytest.approx(66.0, rel=0.03)


def test_no_single_sample_moves_the_correction_far() -> None:
    correction = Correction()
    for _ in range(50):
        correction = correction.with_ttft(observed_ms=1400.0, expected_ms=1000.0 + correction.ttft_offset_ms, sla_ms=3000.0)
        correction = correction.with_itl(observed_ms=330.0, expected_ms=300.0 * correction.itl_factor)
    assert correction.ttft_offset_ms == pytest.approx(400.0, rel=0.01)
    assert correction.itl_factor == pytest.approx(1.1, rel=0.01)
    for wild in (0.001, 1e9, float("nan"), float("inf"), -5.0, None):
        hit = correction.with_ttft(observed_ms=wild, expected_ms=1400.0, sla_ms=3000.0)
        assert abs(hit.ttft_offset_ms - correction.ttft_offset_ms) <= 300.0 + 1e-9
        hit = correction.with_itl(observed_ms=wild, expected_ms=330.0)
        assert 1 / 1.1 - 1e-9 <= hit.itl_factor / correction.itl_factor <= 1.1 + 1e-9
    for _ in range(500):
        correction = correction.with_ttft(observed_ms=1e9, expected_ms=1000.0, sla_ms=3000.0)
        correction = correction.with_itl(observed_ms=1e9, expected_ms=300.0)
    assert correction.ttft_offset_ms == 1500.0
    assert correction.itl_factor == 2.0


def test_arrivals_tell_poisson_from_bursts_and_see_a_surge() -> None:
    from pool_planner.performance.arrivals import Arrivals

    rng = random.Random(3)
    poisson = bursty = Arrivals()
    for _ in range(400):
        poisson = poisson.after(10.0, sum(rng.expovariate(1.0) < 0.5 for _ in range(130)))
        bursty = bursty.after(10.0, 5.0 * sum(rng.random() < 0.1 for _ in range(100)))
    assert 0.7 <= poisson.cv2 <= 1.4
    assert bursty.cv2 > 3.0
    calm = Arrivals()
    for _ in range(10):
        calm = calm.after(10.0, 100.0)
    assert calm.at_least_rps() < 10.0
    assert calm.after(10.0, 300.0).at_least_rps() > 20.0
    assert calm.gap().at_least_rps() == 0.0
    falling = calm.after(10.0, 10.0)
    assert falling.at_least_rps() > 5.0, "of the last minute"
    assert falling.at_least_rps(10.0) < 1.0, "of the last ten seconds"
