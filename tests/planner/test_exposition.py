"""What the planner shows of itself, traces that warm it up, and where its observations come from."""

from __future__ import annotations

import gzip
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pool_planner.metrics.names import by_namespace, by_pool
from pool_planner.metrics.own import render
from pool_planner.metrics.prometheus import PrometheusSource
from pool_planner.metrics.scrape import RouterScrape
from pool_planner.metrics.serve import MetricsServer
from pool_planner.metrics.source import source_of
from pool_planner.setup import PlannerSetup, SetupError
from pool_planner.warmup import TraceError, load_warmup, warmup_of
from tests.planner.story import Story, config, pool, worker


def samples(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}[{labels}]" if labels else sample.name] = sample.value
    return found


def test_a_proposal_and_a_hold_are_shown_and_the_unknown_is_absent() -> None:
    story = Story(have=2)
    story.run(120, 2.0, ttft_ms=900.0)
    assert story.report is not None
    shown = samples(render(story.setup, story.state, [story.report], now=story.now))
    assert shown["global_planner_pool_wanted[pool=prefill,role=prefill]"] == story.wanted
    assert shown["global_planner_pool_observed_rps[pool=prefill,role=prefill]"] == 2.0
    assert shown["global_planner_pool_verdict_throughput[pool=prefill,role=prefill,verdict=covered]"] == 1.0
    assert shown["global_planner_pool_verdict_outcome[pool=prefill,role=prefill,verdict=hold]"] == 0.0
    assert shown["dynamo_planner_predicted_num_prefill_replicas"] == story.wanted
    assert shown["dynamo_planner_observed_ttft_ms"] == 900.0
    assert shown["dynamo_planner_observed_requests_per_second"] == 2.0
    assert shown["dynamo_planner_predicted_requests_per_second"] == pytest.approx(2.0)
    assert not any("itl_ms" in name and "observed" in name for name in shown), "never observed: no sample"
    story.step(None)
    assert story.report is not None
    held = samples(render(story.setup, story.state, [story.report], now=story.now))
    assert held["global_planner_pool_verdict_outcome[pool=prefill,role=prefill,verdict=hold]"] == 1.0
    assert "global_planner_pool_wanted[pool=prefill,role=prefill]" not in held
    assert held["global_planner_pool_observation_age_s[pool=prefill,role=prefill]"] == story.tick_s


def test_what_the_regression_found_is_shown() -> None:
    story = Story(have=1, enable_load_scaling=True, load_adjustment_interval=10)
    for step in range(8):
        load = 500.0 * step
        busy = worker("w", active_prefill_tokens=load, last_isl_tokens=1000.0, last_ttft_ms=1000.0 + load)
        story.step(1.0, workers=(busy,))
    assert story.report is not None
    shown = samples(render(story.setup, story.state, [story.report], now=story.now))
    labels = "[pool=prefill,role=prefill]"
    assert shown["global_planner_pool_regression_slope_ttft" + labels] == pytest.approx(1.0)
    assert shown["global_planner_pool_regression_limit_ttft" + labels] == pytest.approx(3000.0)
    assert "global_planner_pool_regression_limit_itl" + labels not in shown
    # The names that existing dashboards read.
    assert shown["dynamo_planner_estimated_ttft_ms"] == pytest.approx(4500.0)
    assert shown["dynamo_planner_sla_target_ttft_ms"] == 3000.0
    assert "dynamo_planner_sla_target_itl_ms" not in shown, "of a prefill pool nobody wants one"
    assert shown["dynamo_planner_engine_prefill_capacity_requests_per_second"] == pytest.approx(0.6, abs=0.2)
    assert "dynamo_planner_engine_decode_capacity_requests_per_second" not in shown


async def test_it_is_served_on_the_configured_port() -> None:
    import asyncio

    server = MetricsServer(lambda: "global_planner_pool_wanted 3.0\n", port=0)
    await server.start()
    try:
        url = f"http://127.0.0.1:{server.port}/metrics"

        def get() -> str:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return str(answer.read().decode())

        assert await asyncio.to_thread(get) == "global_planner_pool_wanted 3.0\n"
        with pytest.raises(OSError):
            await MetricsServer(lambda: "", port=server.port).start()
    finally:
        await server.stop()


MOONCAKE = """\
{"timestamp": 0, "input_length": 100, "output_length": 10}
{"timestamp": 15000, "input_length": 300, "output_length": 30}
{"timestamp": 31000, "input_length": 5, "output_length": 5}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,100,10
2023-11-16 18:17:18.0,300,30
2023-11-16 18:17:35,5,5
"""


@pytest.mark.parametrize("text", [MOONCAKE, AZURE], ids=["mooncake", "azure"])
@pytest.mark.parametrize("zipped", [False, True])
def test_traces_are_told_by_content(text: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    (one,) = load_warmup(path, 30.0)
    assert (one.requests, one.isl_tokens, one.osl_tokens) == (2.0, 200.0, 20.0)
    setup = PlannerSetup(config=config(load_predictor_warmup_trace=str(path)), pools=(pool("prefill"), pool("decode")))
    assert warmup_of(setup) == {"prefill": (one,), "decode": (one,)}
    assert warmup_of(PlannerSetup(config=config(), pools=(pool(),))) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("a,b\n1,2\n", "column TIMESTAMP is missing"),
        ('{"timestamp": 5}\n', "row 1: KeyError"),
        ('{"timestamp": 5, "input_length": -1, "output_length": 2}\n', "are not a time and two lengths"),
        ('{"timestamp": 5, "input_length": 1, "output_length": 2}\n{', "row 2"),
        (MOONCAKE.replace("31000", "3"), "goes back in time"),
        (AZURE.replace("2023-11-16 18:17:35", "yesterday"), "row 3"),
    ],
)
def test_traces_that_cannot_be_learned_from_say_why(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError, match=reason) as caught:
        load_warmup(path, 1.0)
    assert str(path) in str(caught.value)
    path.write_bytes(gzip.compress(MOONCAKE.encode())[:-12])
    with pytest.raises(TraceError, match="cannot be read"):
        load_warmup(path, 1.0)
    with pytest.raises(TraceError, match="cannot be read"):
        load_warmup(tmp_path / "missing", 1.0)


async def test_the_configuration_names_the_source() -> None:
    def setup(**changes: object) -> PlannerSetup:
        return PlannerSetup(config=config(**changes), pools=(pool(),))

    series = [by_pool(pool())]
    url = "http://127.0.0.1:9/metrics"
    prometheus = "http://127.0.0.1:9"
    for given, urls, expected in (
        ({}, [url], RouterScrape),
        ({"load_router_metrics_url": f"{url}, {url}2"}, [], RouterScrape),
        ({"metric_pulling_prometheus_endpoint": prometheus}, [], PrometheusSource),
        ({"metric_pulling_prometheus_endpoint": prometheus, "enable_load_scaling": True}, [url], PrometheusSource),
    ):
        source = source_of(setup(**given), series, router_urls=urls)
        assert isinstance(source, expected)
        await source.close()
    with pytest.raises(SetupError, match="nothing to observe"):
        source_of(setup(), series)
    with pytest.raises(SetupError, match="no URL is known"):
        source_of(setup(metric_pulling_prometheus_endpoint=prometheus, enable_load_scaling=True), series)


def test_series_of_deployments_that_know_no_pools() -> None:
    settings = config(namespace="prod-chat", model_name="Org/Chat", throughput_metrics_source="router")
    series = by_namespace(pool(), settings)
    assert series.mine({"dynamo_namespace": "prod_chat", "model": "org/chat"})
    assert series.my_worker({"worker_id": "w", "worker_type": "prefill"})
    assert not series.my_worker({"worker_id": "w", "worker_type": "decode"})
    assert by_namespace(pool("agg"), settings).my_worker({"worker_type": "backend"})
    engines = by_namespace(pool("agg"), config(model_name="m", extensions={"vllm_series": True}))
    assert engines.source == "vllm"
    assert engines.mine({"model_name": "M"})
