"""Every field of the guide: changing it changes what is planned, observed, profiled or remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pool_planner.config import Extensions, PlannerConfig
from pool_planner.metrics.names import by_namespace
from pool_planner.profiler.request import read_request
from pool_planner.setup import PlannerSetup, SetupError, setup_from_config
from pool_planner.state import start
from pool_planner.types import Hold, Proposal, Report
from pool_planner.warmup import warmup_of
from tests.planner.story import PROFILE, Story, config, pool, worker
from tests.planner.test_config import GUIDE, TYPES
from tests.planner.test_exposition import MOONCAKE

GPUS = {"prefill": 1, "decode": 1, "agg": 1}


def said(report: Report | None) -> tuple[object, ...]:
    assert report is not None
    if isinstance(report, Hold):
        return ("hold", report.reason)
    reach = None if report.forecast is None else report.forecast.horizon_s
    return (reach, report.wanted, report.predicted_replicas, report.load_replicas, round(report.load_rps, 6), report.curve)


def busy(count: int, step: int, *, tokens: float = 3000.0) -> Any:
    """Workers whose TTFT grows with their load, and which slow down over time."""
    return tuple(
        worker(
            f"w{i}",
            active_prefill_tokens=tokens + 40.0 * step + 100.0 * i,
            last_isl_tokens=1000.0,
            last_ttft_ms=300.0 + (0.5 + 0.03 * step) * (tokens + 40.0 * step + 100.0 * i),
        )
        for i in range(count)
    )


def rising(**changes: Any) -> tuple[object, ...]:
    """Traffic that grows, without load-based scaling."""
    story = Story(have=2, **changes)
    for minute in range(16):
        story.step(1.0 + 0.25 * minute, ttft_ms=1500.0)
    return (*said(story.report), story.tick_s)


def loaded(**changes: Any) -> tuple[object, ...]:
    """Load-based scaling alone, workers that fill up slowly and then empty."""
    settings = {"enable_throughput_scaling": False, "enable_load_scaling": True, **changes}
    story = Story(have=3, follow=False, **settings)
    seen: list[object] = [story.setup.samples_per_tick, story.tick_s]
    for step in range(100):
        story.step(2.0, workers=busy(3, step, tokens=2500.0) if step < 20 else busy(3, step % 3, tokens=0.0))
        seen.append(said(story.report))
    return tuple(seen)


def alone(**changes: Any) -> object:
    """The setup that a configuration makes by itself."""
    settings = config(**changes)
    try:
        setup = setup_from_config(settings, PROFILE, gpus_per_replica=GPUS)
    except SetupError as error:
        return str(error)
    return (
        [(each.name, each.role, each.min_replicas, each.max_replicas, each.gpus_per_replica) for each in setup.pools],
        setup.max_gpus,
        setup.min_gpus,
    )


def series(**changes: Any) -> object:
    return by_namespace(pool(), config(**changes))


def urls(**changes: Any) -> object:
    return config(**changes).router_metrics_urls


def forecaster(**changes: Any) -> object:
    return start(Story(**changes).setup).pools["prefill"].forecaster.config


def falling(**changes: Any) -> tuple[object, ...]:
    """Load that falls: the arbiter holds for those who report to it."""
    story = Story(have=1, **changes)
    story.run(180, 6.0)
    story.step(1.0)
    return said(story.report)


def warmed(**changes: Any) -> object:
    """What is expected before any request was seen."""
    setup = PlannerSetup(config=config(**changes), pools=(pool(),))
    return start(setup, warmup=warmup_of(setup)).pools["prefill"].forecaster.forecast(at_s=0.0, horizon_s=30.0)


def profiled(**changes: Any) -> object:
    """How the profiler is to make the curves."""
    hardware = {"gpuSku": "h200_sxm", "numGpusPerNode": 8}
    asked = {"model": "org/model", "backend": "vllm", "image": "none", "hardware": hardware, "sla": {"ttft": 500, "itl": 50}}
    return read_request({**asked, "workload": {"isl": 1000, "osl": 100}, "features": {"planner": changes}}).sweeping


# field -> (scenario, what else is set, the value that is compared with the default).
SCENARIOS: dict[str, tuple[Callable[..., object], dict[str, Any], object]] = {
    "enable_throughput_scaling": (rising, {"enable_load_scaling": True}, False),
    "enable_load_scaling": (rising, {}, True),
    "throughput_adjustment_interval": (rising, {}, 60),
    "min_endpoint": (alone, {}, 2),
    "max_gpu_budget": (alone, {}, 16),
    "ttft": (alone, {}, 100.0),
    "itl": (alone, {}, 10.0),
    "no_correction": (rising, {"load_predictor": "constant"}, False),
    "load_adjustment_interval": (loaded, {}, 10),
    "load_learning_window": (loaded, {}, 6),
    "load_scaling_down_sensitivity": (loaded, {}, 0),
    "load_metric_samples": (loaded, {}, 3),
    "load_min_observations": (loaded, {}, 40),
    "load_router_metrics_url": (urls, {}, "http://127.0.0.1:9/metrics"),
    "mode": (alone, {}, "agg"),
    "backend": (alone, {}, "sglang"),
    "namespace": (series, {}, "other"),
    "load_predictor": (rising, {}, "kalman"),
    "load_predictor_log1p": (rising, {"load_predictor": "kalman"}, True),
    "prophet_window_size": (forecaster, {}, 10),
    "kalman_q_level": (rising, {"load_predictor": "kalman"}, 5.0),
    "kalman_q_trend": (rising, {"load_predictor": "kalman"}, 5.0),
    "kalman_r": (rising, {"load_predictor": "kalman"}, 1000.0),
    "kalman_min_points": (rising, {"load_predictor": "kalman"}, 40),
    "pre_deployment_sweeping_mode": (profiled, {}, "thorough"),
    "environment": (falling, {"extensions": {"remember_starts": 0.0}}, "global-planner"),
    "load_predictor_warmup_trace": (warmed, {}, "trace.jsonl"),
}


@pytest.mark.parametrize("field", SCENARIOS)
def test_changing_a_field_changes_behaviour(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, others, value = SCENARIOS[field]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.jsonl").write_text(MOONCAKE)
    if scenario is alone and field in ("ttft", "itl"):
        at = [setup_from_config(config(**{field: v}), PROFILE, gpus_per_replica=GPUS).pools for v in (3000.0, value)]
        assert at[0] != at[1]
        return
    assert scenario(**others) != scenario(**others, **{field: value})


def test_the_table_is_the_guide() -> None:
    assert set(SCENARIOS) == {row[0] for row in GUIDE} == set(TYPES)
    assert len(GUIDE) == len(TYPES) == 27


def test_sla_changes_the_plan() -> None:
    strict = Story(have=1, pool={"ttft_ms": 1500.0})
    loose = Story(have=1, pool={"ttft_ms": 9000.0})
    strict.run(300, 3.0)
    loose.run(300, 3.0)
    assert strict.wanted > loose.wanted


def test_every_field_is_read_somewhere() -> None:
    """A field that nothing reads is a defect: its name stands in a module beside config, compatibility and tests."""
    package = Path(__file__).parents[2] / "pool_planner"
    code = "\n".join(
        path.read_text()
        for path in package.rglob("*.py")
        if path.name not in ("compatibility.py",) and path.name != "config.py"
    )
    code += (package / "config.py").read_text().split("class PlannerConfig")[1].split("def tick_s")[1]
    shell = {"environment", "pre_deployment_sweeping_mode", "profile_results_dir", "metric_reporting_prometheus_port", "plain"}
    for name in (*PlannerConfig.model_fields, *Extensions.model_fields):
        if name not in shell:
            assert f".{name}" in code or f'"{name}"' in code, name


def switched(**extensions: Any) -> Story:
    return Story(have=1, extensions=extensions)


def test_every_switch_changes_what_it_says() -> None:
    from pool_planner.types import Histogram

    def told(story: Story, **changes: Any) -> tuple[object, ...]:
        for step in range(12):
            story.step(
                (1.0, 1.5, 5.0, 2.5)[step % 4],
                queued_requests=40.0 if step == 11 else 0.0,
                queued_tokens=90_000.0 if step == 11 else 0.0,
                isl_histogram=Histogram(edges=(256.0, 4096.0), counts=(50.0, 10.0, 0.0)),
                **{"completed": 30.0, "ttft_ms": 2600.0, "prefix_hit_rate": 0.3, **changes},
            )
        return said(story.report)

    base = told(switched())
    for name, value in (
        ("offered_load", False),
        ("pending_tokens", False),
        ("uncached_tokens", False),
        ("cover_cold_start", False),
        ("length_distribution", False),
        ("queueing", False),
        ("attainment_target", 0.999),
        ("violation_price", 1.5),
        ("plain", True),
    ):
        assert told(switched(**{name: value})) != base, name
    # A reserve for bursts stands for all that is not sure, and keeps as much as any hold.
    alone = told(switched(remember_starts=0.0))
    assert told(switched(remember_starts=0.0, forecast_quantile=None)) != alone
    held, lowered = (switched(remember_starts=0.0, hold_s=hold_s) for hold_s in (300.0, 0.0))
    for story in (held, lowered):
        story.run(120.0, 5.0)
        story.run(180.0, 1.0)
    assert held.wanted > lowered.wanted
    assert told(Story(have=1, no_correction=False)) != base
    divided = [Story(have=1, extensions={"queueing": False}, no_correction=off) for off in (False, True)]
    assert told(divided[0], ttft_ms=500.0) != told(divided[1], ttft_ms=500.0)
    begun, at_once = Story(have=9, follow=False), Story(have=9, follow=False, extensions={"start_from_provisioned": False})
    begun.step(1.0)
    at_once.step(1.0)
    assert begun.wanted == 9 > at_once.wanted
    early = Story(have=1, throughput_adjustment_interval=180, enable_load_scaling=True, load_adjustment_interval=10)
    late = Story(
        have=1,
        throughput_adjustment_interval=180,
        enable_load_scaling=True,
        load_adjustment_interval=10,
        extensions={"react_early": False, "remember_starts": 0.0},
    )
    for story in (early, late):
        story.run(720, 1.0)
        story.run(30, 8.0)
    assert early.wanted > late.wanted
    quick, slow = Story(have=6, extensions={"idle_hold_s": 60.0}), Story(have=6, extensions={"idle_hold_s": 600.0})
    for story in (quick, slow):
        story.run(120, 5.0)
        story.run(200, 0.0)
    assert isinstance(quick.report, Proposal) and isinstance(slow.report, Proposal)
    assert "idle" in quick.reasons and "idle" not in slow.reasons
