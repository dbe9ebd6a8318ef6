"""Exposition text, increases over instances and resets, worker gauges, and the scrape over real sockets."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pool_planner.metrics import names, workers
from pool_planner.metrics.exposition import MalformedExposition, parse
from pool_planner.metrics.names import PoolSeries
from pool_planner.metrics.observe import Pair, Snapshot, buckets, increase, observation

POOL = PoolSeries(pool="chat-decode", role="decode", match={"pool": "chat-decode"})
NAMES: Any = names.NAMES["router"]
LABELS = ["dynamo_namespace", "model", "pool", "role"]


class Router:
    """The series of one router process, as a real client library writes them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.started = Counter(NAMES.started, "x", LABELS, registry=r)
        self.done = Counter(NAMES.completed, "x", LABELS, registry=r)
        self.shed = Counter(NAMES.shed, "x", LABELS, registry=r)
        self.queued = Gauge(NAMES.waiting, "x", LABELS, registry=r)
        self.isl = Histogram(NAMES.isl, "x", LABELS, buckets=(128, 1024, 8192), registry=r)
        self.itl = Histogram(NAMES.itl, "x", LABELS, buckets=(0.1, 1.0), registry=r)
        self.blocks = Gauge(names.WORKER_GAUGES["active_decode_blocks"], "x", ["worker_id", "pool"], registry=r)
        self.last_itl = Gauge(names.WORKER_GAUGES["last_itl_s"], "x", ["worker_id", "pool"], registry=r)

    def serve(self, requests: int, *, pool: str = "chat-decode", isl: float = 1000.0, itl: float = 0.4) -> Router:
        labels = {"dynamo_namespace": "demo_chat_main", "model": "demo/chat", "pool": pool, "role": "decode"}
        self.started.labels(**labels).inc(requests)
        self.done.labels(**labels).inc(requests)
        self.shed.labels(**labels)
        self.queued.labels(**labels).set(2)
        for _ in range(requests):
            self.isl.labels(**labels).observe(isl)
            self.itl.labels(**labels).observe(itl)
        return self

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def snapshot(self, at_s: float) -> Snapshot:
        return Snapshot(at_s=at_s, families=parse(self.text(), names.wanted))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=12), st.floats(allow_nan=True), min_size=1, max_size=8),
)
def test_reads_what_the_reference_parser_reads(values: dict[str, float]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("global_planner_router_thing", "help with\nnewline", ["label", "other"], registry=registry)
    for label, value in values.items():
        gauge.labels(label=label, other='a"b,c}{').set(value)
    text = generate_latest(registry).decode()
    ours = {s.labels["label"]: s.value for s in parse(text, names.wanted)["global_planner_router_thing"].values()}
    theirs = {
        sample.labels["label"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "global_planner_router_thing"
    }
    assert ours.keys() == theirs.keys()
    for label, value in theirs.items():
        assert ours[label] == value or (math.isnan(ours[label]) and math.isnan(value))


@pytest.mark.parametrize("text", ["x{a=1} 2", 'x{a="1" 2', "x", "x nope", 'x{="1"} 3', 'x{a="1"b="2"} 3'])
def test_malformed_lines_are_refused_with_their_number(text: str) -> None:
    with pytest.raises(MalformedExposition, match="line 2"):
        parse("# fine\n" + text, lambda name: True)


def test_timestamps_spaces_and_special_values() -> None:
    text = 'a{x="1",} 3 1700000000\na{x="2"} +Inf\nb 1e3\n'
    found = parse(text, lambda name: True)
    assert [s.value for s in found["a"].values()] == [3.0, math.inf]
    assert found["b"][""].value == 1000.0


def test_increases_add_up_over_instances_before_anything_is_divided() -> None:
    one, two = Router().serve(10, isl=100.0), Router().serve(10, isl=100.0)
    before = [one.snapshot(0.0), two.snapshot(0.0)]
    one.serve(90, isl=100.0)
    two.serve(10, isl=2000.0)
    pairs = [Pair(before=b, after=r.snapshot(10.0)) for b, r in zip(before, (one, two), strict=True)]
    seen = observation(POOL, pairs, at_s=10.0, interval_s=10.0, complete=True, workers=None)
    assert seen.requests == 100.0
    assert seen.isl_tokens == pytest.approx((90 * 100 + 10 * 2000) / 100)
    assert seen.itl_ms == pytest.approx(400.0)
    assert seen.shed == 0.0
    assert seen.queued_requests == 4.0
    assert seen.isl_histogram is not None
    assert seen.isl_histogram.edges == (128.0, 1024.0, 8192.0)
    assert seen.isl_histogram.counts == (90.0, 0.0, 10.0, 0.0)


def test_a_restarted_router_counts_from_zero() -> None:
    before = Router().serve(500).snapshot(0.0)
    pair = Pair(before=before, after=Router().serve(7).snapshot(10.0))
    assert increase([pair], NAMES.started, POOL) == 7.0
    assert observation(POOL, [pair], at_s=10, interval_s=10, complete=True, workers=None).isl_tokens == 1000.0


def test_another_pools_traffic_and_missing_series_are_not_zero() -> None:
    before = Router().serve(5, pool="chat-prefill")
    pair = Pair(before=before.snapshot(0.0), after=before.serve(5, pool="chat-prefill").snapshot(10.0))
    seen = observation(POOL, [pair], at_s=10.0, interval_s=10.0, complete=True, workers=None)
    assert seen.requests is None
    assert seen.isl_tokens is None
    assert seen.isl_histogram is None


def test_instances_with_other_buckets_give_a_mean_but_no_histogram() -> None:
    one = Router().serve(10)
    text = one.text().replace('le="128.0"', 'le="64.0"')
    other = Snapshot(at_s=10.0, families=parse(text, names.wanted))
    empty = Snapshot(at_s=0.0, families={})
    pairs = [Pair(before=empty, after=one.snapshot(10.0)), Pair(before=empty, after=other)]
    assert buckets(pairs, NAMES.isl, POOL) is None
    assert observation(POOL, pairs, at_s=10, interval_s=10, complete=True, workers=None).isl_tokens == 1000.0


def test_namespaces_and_models_are_compared_in_one_spelling() -> None:
    series = PoolSeries(pool="p", role="prefill", match={"dynamo_namespace": "demo-chat-main", "model": "Demo/Chat"})
    assert series.mine({"dynamo_namespace": "demo_chat_main", "model": "demo/chat"})
    assert not series.mine({"dynamo_namespace": "demo_code_main", "model": "demo/chat"})


def test_worker_load_adds_over_routers_and_averages_over_samples() -> None:
    def gauges(blocks: float, itl: float) -> Router:
        router = Router()
        router.blocks.labels(worker_id="w1", pool="chat-decode").set(blocks)
        router.last_itl.labels(worker_id="w1", pool="chat-decode").set(itl)
        router.blocks.labels(worker_id="other", pool="code-decode").set(99)
        return router

    samples = [
        workers.sample([gauges(a, 0.4).snapshot(0).families, gauges(b, 0.6).snapshot(0).families], POOL)
        for a, b in ((10, 20), (30, 40))
    ]
    (worker,) = workers.average(samples)
    assert worker.worker_id == "w1"
    assert worker.active_decode_blocks == 50.0
    assert worker.last_itl_ms == pytest.approx(500.0)
    assert worker.active_prefill_tokens is None


def test_the_projects_own_router_is_understood() -> None:
    """Series, labels and units as the router renders them: seconds there, milliseconds here."""
    from router.metrics import FrontendMetrics, OutcomeMetrics, PoolGauges, PoolMetrics, Scrape, WorkerGauges, render

    metrics = PoolMetrics(model="demo/chat", pool="chat-decode", role="decode", namespace="demo_chat_main")
    gauges = PoolGauges(queued_requests=3, queued_tokens=900.0, endpoints={"ready": 1})
    worker = WorkerGauges(
        worker_id="w1",
        role="decode",
        pool="chat-decode",
        prefill_tokens=0.0,
        decode_blocks=64.0,
        ttft_s=None,
        isl_tokens=1000.0,
        itl_s=0.4,
    )

    def shown() -> Snapshot:
        scrape = Scrape(
            pools=[(metrics, gauges)],
            frontends=[FrontendMetrics(model="demo/chat", namespace="demo_chat_main")],
            outcomes=[OutcomeMetrics("demo/chat")],
            waiting={},
            discovery=[],
            duplicates=[],
            tenants=[],
            workers=(worker,),
            queue_requests=3,
            queue_isl_tokens=900.0,
            code="python",
            scalars={},
        )
        return Snapshot(at_s=0.0, families=parse(render(scrape).decode(), names.wanted))

    before = shown()
    for number in range(20):
        metrics.arrived(-3 if number < 15 else 40)
    metrics.completed, metrics.shed = 10, 2
    metrics.cache_queried_tokens, metrics.cached_tokens = 8000, 2000
    for _ in range(10):
        metrics.isl.observe(1000)
        metrics.osl.observe(60)
        metrics.itl.observe(0.35)
        metrics.duration.observe(21.0)
    pair = Pair(before=before, after=shown())
    loads = workers.average([workers.sample([pair.after.families], POOL)])
    seen = observation(POOL, [pair], at_s=10.0, interval_s=10.0, complete=True, workers=loads)
    assert (seen.requests, seen.completed, seen.shed, seen.queued_requests, seen.queued_tokens) == (20, 10, 2, 3, 900)
    assert seen.requests_by_priority == {"0": 0.0, "-3": 15.0, "40": 5.0}
    assert seen.prefix_hit_rate == 0.25
    assert (seen.isl_tokens, seen.osl_tokens, seen.duration_s) == (1000.0, 60.0, 21.0)
    assert seen.itl_ms == pytest.approx(350.0)
    assert seen.ttft_ms is None
    assert seen.osl_histogram is not None and sum(seen.osl_histogram.counts) == 10.0
    (load,) = loads
    assert (load.worker_id, load.active_decode_blocks, load.last_itl_ms) == ("w1", 64.0, 400.0)


def test_what_waits_in_dynamos_own_router_is_seen_by_worker_type() -> None:
    """Its gauges are router-wide: no namespace and no pool, but the kind of worker, and the policy that queues."""
    told = "\n".join(
        f'{name}{{worker_type="{kind}",policy_class="{policy}"}} {value}'
        for name, kind, policy, value in (
            (names.PENDING_REQUESTS, "prefill", "fcfs", 3),
            (names.PENDING_REQUESTS, "prefill", "priority", 2),
            (names.PENDING_TOKENS, "prefill", "fcfs", 9000),
            (names.PENDING_REQUESTS, "decode", "fcfs", 7),
        )
    )
    families = parse(told, names.wanted)
    prefill = PoolSeries(pool="p", role="prefill", source="frontend", match={"dynamo_namespace": "demo"})
    decode = PoolSeries(pool="d", role="decode", source="frontend", match={"dynamo_namespace": "demo"})
    assert workers.pending([families, families], prefill) == (10.0, 18000.0)
    assert workers.pending([families], decode) == (7.0, None)
    assert workers.pending([{}], decode) == (None, None)
    seen = observation(
        prefill, [], at_s=1.0, interval_s=1.0, complete=True, workers=None, pending=workers.pending([families], prefill)
    )
    assert (seen.queued_requests, seen.queued_tokens) == (5.0, 9000.0)


def test_engines_without_dynamo_are_understood_by_their_own_series() -> None:
    """Arrivals are what was completed and what more is under way; each engine is a worker."""
    series = PoolSeries(pool="agg", role="agg", source="vllm", match={"model_name": "demo/chat"})

    def engine(name: str, done: int, running: int, waiting: int, usage: float) -> Snapshot:
        label = '{model_name="demo/chat",engine="0"}'
        text = f"""\
vllm:request_success_total{label} {done}
vllm:num_requests_running{label} {running}
vllm:num_requests_waiting{label} {waiting}
vllm:kv_cache_usage_perc{label} {usage}
vllm:time_to_first_token_seconds_sum{label} {0.5 * done}
vllm:time_to_first_token_seconds_count{label} {done}
vllm:inter_token_latency_seconds_sum{label} {0.02 * 100 * done}
vllm:inter_token_latency_seconds_count{label} {100 * done}
vllm:request_prompt_tokens_sum{label} {800 * done}
vllm:request_prompt_tokens_count{label} {done}
vllm:prefix_cache_queries_total{label} {800 * done}
vllm:prefix_cache_hits_total{label} {200 * done}
"""
        return Snapshot(at_s=0.0, families=parse(text, names.wanted), instance=name)

    pairs = [
        Pair(before=engine("a", 100, 5, 0, 0.2), after=engine("a", 140, 9, 2, 0.5)),
        Pair(before=engine("b", 10, 1, 0, 0.1), after=engine("b", 30, 1, 0, 0.1)),
    ]
    loads = workers.of_vllm(pairs, series)
    seen = observation(series, pairs, at_s=10.0, interval_s=10.0, complete=True, workers=loads)
    assert seen.completed == 60.0
    assert seen.requests == 66.0
    assert seen.queued_requests == 2.0
    assert seen.isl_tokens == 800.0
    assert seen.prefix_hit_rate == 0.25
    assert seen.ttft_ms == pytest.approx(500.0)
    assert seen.itl_ms == pytest.approx(20.0)
    assert [(load.worker_id, load.active_decode_blocks, load.active_prefill_tokens) for load in loads] == [
        ("a", 50.0, 1600.0),
        ("b", 10.0, 0.0),
    ]
