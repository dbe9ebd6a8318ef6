"""What users of other planners report, told on a virtual clock."""

from __future__ import annotations

import math

import pytest

from pool_planner.forecast.arima_fit import ArimaFit
from pool_planner.state import fit_jobs, fitted, start
from pool_planner.types import Hold, Proposal
from tests.planner.story import Story, worker


def test_traffic_falls_to_zero_and_the_pool_goes_to_its_minimum_in_steps() -> None:
    story = Story(have=1)
    story.run(300, 5.0)
    busy = story.wanted
    assert busy >= 5
    story.run(90, 0.0)
    assert story.wanted >= busy // 2, "idle is not acted on before its hold"
    seen = set()
    for _ in range(20):
        story.step(0.0)
        seen.add(story.wanted)
    assert story.wanted == 1
    assert len(seen) > 2, "down in steps, not at once"
    assert "idle for" in story.reasons


def test_silence_is_not_idleness() -> None:
    story = Story(have=7)
    story.run(60, 5.0)
    story.run(600, 0.0, front_door_up=None)
    assert "not known to be up" in story.held


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"requests": None}, "number of requests is unknown"),
        ({"requests": math.nan}, "number of requests is unknown"),
        ({"requests": math.inf}, "number of requests is unknown"),
        ({"requests": -3.0}, "number of requests is unknown"),
        ({"interval_s": 0.0}, "interval is 0.0 s"),
        ({"at_s": -500.0}, "s old"),
    ],
)
def test_what_is_unknown_is_held_with_the_reason(changes: dict[str, float], reason: str) -> None:
    story = Story(have=3)
    story.run(120, 2.0)
    story.step(2.0, **changes)
    assert reason in story.held


def test_no_observation_and_nothing_provisioned_known() -> None:
    story = Story(have=3)
    story.now += story.tick_s
    story.tell(None)
    assert story.held == "no observation"
    story.have = None
    story.step(2.0)
    assert "what the pool has is not known" in story.held


def test_one_poisoned_sample_leaves_the_next_plan_sane() -> None:
    story = Story(have=1, load_predictor="kalman")
    story.run(300, 2.0)
    before = story.wanted
    for poison in (math.nan, math.inf, None):
        story.step(2.0, requests=poison)
        story.step(2.0, isl_tokens=math.nan, osl_tokens=math.inf)
        story.step(2.0)
        assert story.wanted == before
    assert isinstance(story.report, Proposal)
    assert story.report.forecast is not None
    assert math.isfinite(story.report.forecast.requests_per_s_high)


@pytest.mark.parametrize("predictor", ["constant", "kalman", "arima", "auto"])
def test_declining_and_constant_traffic_never_plan_for_nothing(predictor: str) -> None:
    story = Story(have=1, load_predictor=predictor)
    for minute in range(20):
        story.step(max(0.2, 6.0 - 0.3 * minute))
        assert isinstance(story.report, Proposal)
        assert story.report.load_rps >= 0.0
    story.run(1200, 2.0)
    assert isinstance(story.report, Proposal)
    assert 1.8 <= story.report.load_rps <= 2.8, "a quantile may remember the decline, nothing else"


def test_low_n_does_not_flap_under_constant_load() -> None:
    """Load that fills two of two halfway overloads one: the survivors' load is looked at first."""
    story = Story(have=2, role="prefill", enable_load_scaling=True, load_adjustment_interval=10)
    seen = []
    for _ in range(60):
        story.step(
            0.62,
            workers=tuple(
                worker(f"w{i}", active_prefill_tokens=1500.0 / story.have, last_isl_tokens=1000.0, last_ttft_ms=1000.0 + i)
                for i in range(story.have or 0)
            ),
        )
        seen.append(story.wanted)
    assert len(set(seen[10:])) == 1


def test_replicas_that_are_starting_count() -> None:
    story = Story(have=2, follow=False, enable_throughput_scaling=False, enable_load_scaling=True)
    hot = tuple(worker(f"w{i}", active_prefill_tokens=9000.0, last_isl_tokens=1000.0, last_ttft_ms=7000.0) for i in range(2))
    cool = tuple(worker(f"w{i}", active_prefill_tokens=100.0, last_isl_tokens=1000.0, last_ttft_ms=1000.0) for i in range(2))
    for k in range(10):
        story.step(
            2.0,
            workers=tuple(
                worker(w.worker_id, active_prefill_tokens=100.0 + k, last_isl_tokens=1000.0, last_ttft_ms=1000.0 + k)
                for w in cool
            ),
        )
    story.step(2.0, workers=hot)
    first = story.wanted
    assert first > 2
    story.starting = first - 2
    for k in range(5):
        story.step(
            2.0,
            workers=tuple(
                worker(w.worker_id, active_prefill_tokens=9000.0 + k, last_isl_tokens=1000.0, last_ttft_ms=7000.0 + k)
                for w in hot
            ),
        )
        assert story.wanted <= first + 4
    assert "starting" in story.reasons or story.wanted == first


def test_the_cluster_is_believed_not_the_memory() -> None:
    """Somebody edits replicas by hand: the next plan says what is needed, and a new planner begins from what is there."""
    story = Story(have=1)
    story.run(300, 3.0)
    needed = story.wanted
    story.have = 9
    story.run(60, 3.0)
    assert story.wanted == needed
    again = Story(have=9, follow=False)
    again.step(3.0)
    assert again.wanted == 9, "a planner that has just started does not lower"
    again.run(120, 3.0)
    assert again.wanted == needed


@pytest.mark.parametrize("rps", [0.0, 0.3])
def test_empty_engines_at_the_start_are_unknown_and_not_idle(rps: float) -> None:
    """Two forecast intervals pass before a planner that has just started, or was blind, takes anything away; also where the
    arbiter holds and the planner need not."""
    story = Story(have=6, throughput_adjustment_interval=180, environment="global-planner")
    story.step(rps)
    story.step(rps)
    assert story.wanted == 6
    story.step(rps)
    assert story.wanted < 6
    story.now += 3 * story.tick_s
    story.have = story.setup.pools[0].max_replicas
    story.state = start(story.setup, now=story.now)
    story.step(rps)
    assert story.wanted == story.have


def test_need_is_raised_on_the_first_interval_that_shows_it() -> None:
    story = Story(have=1)
    story.step(6.0)
    assert story.wanted >= 6


def test_a_surge_inside_a_forecast_interval_is_not_waited_out() -> None:
    story = Story(have=1, throughput_adjustment_interval=180, enable_load_scaling=True, load_adjustment_interval=10)
    story.run(720, 1.0)
    before = story.wanted
    story.step(8.0)
    story.step(8.0)
    assert story.wanted >= before + 3
    assert "arrive already" in story.reasons


def test_what_no_longer_arrives_does_not_arrive_already() -> None:
    """An interval of three minutes at a sixth of the load: what came before it is the forecast's to judge."""
    story = Story(have=1, throughput_adjustment_interval=180, extensions={"remember_starts": 0.0})
    story.run(1800, 6.0)
    before = story.wanted
    story.step(1.0)
    assert "arrive already" not in story.reasons
    story.step(1.0)
    assert story.wanted < 0.5 * before


def test_partial_front_door_may_raise_but_not_lower() -> None:
    story = Story(have=1)
    story.run(300, 3.0)
    needed = story.wanted
    story.run(300, 1.0, front_door_up=False)
    assert "does not answer" in story.held
    story.step(12.0, front_door_up=False)
    assert story.wanted > needed
    assert "already the rest needs" in story.reasons


def test_one_failed_source_does_not_stop_the_other() -> None:
    story = Story(have=1, enable_load_scaling=True, load_adjustment_interval=10)
    story.run(300, 4.0, workers=None)
    assert story.wanted >= 4
    assert "load unknown" in story.reasons


def test_bimodal_prompts_need_more_than_their_mean_says() -> None:
    from pool_planner.types import Histogram

    edges = (256.0, 512.0, 1024.0, 2048.0, 4096.0)
    bimodal = Histogram(edges=edges, counts=(0.0, 80.0, 0.0, 0.0, 20.0, 0.0))
    plain, seen = Story(have=1), Story(have=1)
    plain.run(300, 3.0, isl=1000.0)
    seen.run(300, 3.0, isl=1000.0, isl_histogram=bimodal)
    assert seen.wanted > plain.wanted


def test_queueing_adds_replicas_before_the_sla_is_lost() -> None:
    """At 90 % of the profiled throughput of n replicas the division by throughput is content, a queue is not."""
    modelled, divided = Story(have=1), Story(have=1, extensions={"queueing": False})
    rate = 0.9 * 4 / 0.922
    modelled.run(300, rate)
    divided.run(300, rate)
    assert divided.wanted == 4
    assert modelled.wanted > 4


def test_a_backlog_at_the_router_is_worked_off() -> None:
    story = Story(have=1)
    story.run(300, 2.0)
    before = story.wanted
    story.step(2.0, queued_requests=120.0)
    assert story.wanted > before
    assert "requests wait" in story.reasons


def test_a_few_long_prompts_that_wait_are_as_much_work_as_many_short_ones() -> None:
    """Twenty wait: of 8,000 tokens each, of 250, and of 8,000 where only the requests are counted."""
    long, short, counted = Story(have=1), Story(have=1), Story(have=1, extensions={"pending_tokens": False})
    for story, tokens in ((long, 160_000.0), (short, 5_000.0), (counted, 160_000.0)):
        story.run(300, 2.0)
        story.step(2.0, queued_requests=20.0, queued_tokens=tokens)
    assert long.wanted > counted.wanted == short.wanted
    assert "20 requests wait, with 160000 prompt tokens" in long.reasons
    assert "20 requests wait" in counted.reasons and "prompt tokens" not in counted.reasons
    assert "wait" not in short.reasons, "they are through before any of them is late"


def test_a_queue_leaves_its_own_prefill_to_whoever_joins_it() -> None:
    """Of three seconds one is prefill: a wait of two and a half is too long, though it is below the target."""
    modelled, divided = Story(have=1), Story(have=1, extensions={"queueing": False})
    for story in (modelled, divided):
        story.run(300, 6.0)
        story.step(6.0, queued_requests=2.5 * 6.0)
    assert "requests wait" in modelled.reasons
    assert "requests wait" not in divided.reasons


def test_decode_counts_who_waits_and_not_their_prompts() -> None:
    told, counted = Story(have=1, role="decode"), Story(have=1, role="decode")
    for story, tokens in ((told, 900_000.0), (counted, None)):
        story.run(300, 2.0)
        story.step(2.0, queued_requests=40.0, queued_tokens=tokens)
    assert told.wanted == counted.wanted


def test_the_horizon_covers_the_measured_cold_start() -> None:
    story = Story(have=1)
    story.run(120, 2.0)
    assert isinstance(story.report, Proposal) and story.report.forecast is not None
    assert story.report.forecast.horizon_s == 45.0 + 30.0
    story.cold_start_s = 240.0
    story.step(2.0)
    assert isinstance(story.report, Proposal) and story.report.forecast is not None
    assert story.report.forecast.horizon_s == 240.0 + 30.0


def test_no_operation_says_what_it_would_do() -> None:
    story = Story(have=1, no_operation=True)
    story.run(90, 6.0)
    assert isinstance(story.report, Hold)
    assert "would run" in story.held


def test_load_alone_needs_no_traffic_where_the_workers_are_known() -> None:
    story = Story(have=2, enable_throughput_scaling=False, enable_load_scaling=True)
    for k in range(8):
        workers = tuple(
            worker(f"w{i}", active_prefill_tokens=500.0 * k, last_isl_tokens=1000.0, last_ttft_ms=900.0 + 350.0 * k)
            for i in range(story.have or 0)
        )
        story.step(None, workers=workers)
    assert story.wanted > 2
    story.step(None, workers=None)
    assert "number of requests is unknown" in story.held


def test_the_same_observation_twice_teaches_nothing() -> None:
    """A Prometheus that was not scraped anew gives the last observation again."""
    once, again = Story(have=1, no_correction=False), Story(have=1, no_correction=False)
    for _ in range(10):
        once.step(2.0, ttft_ms=2500.0)
        again.step(2.0, ttft_ms=2500.0)
        state = again.state.pools["prefill"]
        assert state.observation is not None
        again.tell(state.observation)
    assert once.state.pools["prefill"].correction == again.state.pools["prefill"].correction
    assert once.wanted == again.wanted


def test_a_pool_for_short_prompts_does_not_begin_with_long_ones_in_mind() -> None:
    short, all_ = Story(have=1, pool={"isl_max_tokens": 512}), Story(have=1)
    short.step(2.0, isl_tokens=None)
    all_.step(2.0, isl_tokens=None)
    assert short.wanted < all_.wanted


def test_prompt_tokens_found_in_prefix_caches_are_not_planned_for() -> None:
    """Half of the tokens need no prefill: fewer replicas, until the caches are lost, which is planned for at once."""
    cached, all_, off = Story(have=1), Story(have=1), Story(have=1, extensions={"uncached_tokens": False})
    cached.run(900, 3.0, prefix_hit_rate=0.5)
    all_.run(900, 3.0)
    off.run(900, 3.0, prefix_hit_rate=0.5)
    assert cached.wanted < 0.75 * all_.wanted
    assert "50% of the prompt tokens are found in prefix caches" in cached.reasons
    assert off.wanted == all_.wanted
    cached.step(3.0, prefix_hit_rate=0.0)
    assert cached.wanted == all_.wanted, "a replica that took its cache with it is missed in the interval that shows it"


def test_conversations_that_grow_longer_are_not_more_prefill_where_the_history_is_cached() -> None:
    """Each prompt is the whole conversation so far; new in it are 500 tokens, always."""
    grown, followed = Story(have=1, load_predictor="kalman"), Story(have=1, load_predictor="kalman")
    for minute in range(30):
        isl = 1000.0 + 150.0 * minute
        grown.step(3.0, isl=isl, prefix_hit_rate=1.0 - 500.0 / isl)
        followed.step(3.0, isl=isl, prefix_hit_rate=0.5)
    assert grown.wanted < 0.5 * followed.wanted
    assert "91% of the prompt tokens" in grown.reasons


def test_a_cache_that_is_less_lucky_for_once_is_not_lost() -> None:
    story = Story(have=1)
    story.run(900, 3.0, prefix_hit_rate=0.5)
    settled = story.wanted
    story.step(3.0, prefix_hit_rate=0.4)
    assert story.wanted == settled
    story.step(3.0, prefix_hit_rate=0.1)
    assert story.wanted > settled


def test_what_decode_holds_does_not_shrink_with_the_prefix_cache() -> None:
    hit, missed = Story(have=1, role="decode"), Story(have=1, role="decode")
    hit.run(300, 1.0, prefix_hit_rate=0.9)
    missed.run(300, 1.0)
    assert hit.wanted == missed.wanted


def test_a_replica_that_never_starts_blocks_no_later_decision() -> None:
    """Two of four wait for GPUs that nobody has: less load lowers, more load raises, whatever waits."""
    story = Story(have=2, follow=False, enable_load_scaling=True, load_adjustment_interval=10)
    story.starting = 2
    story.run(400, 4.0)
    needed = story.wanted
    story.run(900, 1.0)
    assert story.wanted < needed, "scale-down is decided although two are pending"
    story.run(300, 6.0)
    assert story.wanted > needed
    assert story.have == 2 and story.starting == 2, "nothing of this waited for the pending ones"


def test_a_forecast_that_takes_for_ever_holds_up_nothing() -> None:
    """ARIMA's fits are handed out; as long as none comes back the simpler forecast serves, and one that is late is taken."""
    story = Story(have=1, load_predictor="arima")
    handed_out = []
    for minute in range(60):
        story.step(2.0 + 0.02 * minute)
        handed_out += fit_jobs(story.state)
        assert isinstance(story.report, Proposal) and story.report.forecast is not None
        assert story.report.forecast.age_s == 0.0
    assert handed_out
    name, series, job = handed_out[0]
    late = ArimaFit(learned=job.learned, d=1, ar=(), ma=(), mean=0.0)
    story.state = fitted(story.state, name, series, late, now=story.now)
    story.step(3.2)
    assert story.wanted >= 3


def test_a_forecast_is_as_old_as_the_data_behind_it() -> None:
    story = Story(have=1)
    story.run(300, 2.0)
    for _ in range(2):
        story.now += story.tick_s
        story.tell(None)
    story.step(None, requests=None, workers=None)
    assert "unknown" in story.held
    story.step(2.0)
    assert isinstance(story.report, Proposal) and story.report.forecast is not None
    assert story.report.forecast.age_s == 0.0
