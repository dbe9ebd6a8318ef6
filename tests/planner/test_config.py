"""Every field of the guide: type, default, rule; what existing files carry beside them; all problems at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from pool_planner.__main__ import main
from pool_planner.compatibility import CARRIED, ConfigError, config_schema, explain, read_config
from pool_planner.config import PLAIN, Extensions, PlannerConfig
from pool_planner.config_source import load_config


def read(environ: dict[str, str] | None = None, **given: Any) -> Any:
    return read_config(given, origin="test", environ=environ)


def problems(**given: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(**given)
    return list(caught.value.problems)


# name, default, another good value, values that are refused
GUIDE = [
    ("enable_throughput_scaling", True, False, ["maybe", 2]),
    ("enable_load_scaling", False, True, ["maybe"]),
    ("pre_deployment_sweeping_mode", "rapid", "thorough", ["slow", 1]),
    ("throughput_adjustment_interval", 180, 60, [0, -5, 1.5, "soon"]),
    ("min_endpoint", 1, 0, [-1, 0.5]),
    ("max_gpu_budget", 8, 16, [0, -2, 1.5]),
    ("ttft", 500.0, 250.0, [0, -1, "fast", float("nan"), float("inf")]),
    ("itl", 50.0, 25.0, [0, -1, float("nan")]),
    ("no_correction", True, False, ["perhaps"]),
    ("load_adjustment_interval", 5, 10, [0, -1, 2.5]),
    ("load_learning_window", 50, 20, [0, -1]),
    ("load_scaling_down_sensitivity", 80, 0, [-1, 101]),
    ("load_metric_samples", 10, 3, [0, -1]),
    ("load_min_observations", 5, 2, [0]),
    ("load_router_metrics_url", None, "http://127.0.0.1:9/metrics", [5]),
    ("mode", "disagg", "agg", ["both", 1]),
    ("backend", "vllm", "sglang", ["llama.cpp"]),
    ("environment", "kubernetes", "virtual", ["docker"]),
    ("namespace", "dynamo", "prod", [5]),
    ("load_predictor", "arima", "kalman", ["crystal-ball"]),
    ("load_predictor_log1p", False, True, ["perhaps"]),
    ("prophet_window_size", 50, 20, [0]),
    ("load_predictor_warmup_trace", None, "trace.jsonl", [5]),
    ("kalman_q_level", 1.0, 2.0, [0, -1]),
    ("kalman_q_trend", 0.1, 0.5, [0, -1]),
    ("kalman_r", 10.0, 5.0, [0, -1]),
    ("kalman_min_points", 5, 3, [0]),
]


# The guide's word for the type of each.
TYPES = {
    **dict.fromkeys(("enable_throughput_scaling", "enable_load_scaling", "no_correction", "load_predictor_log1p"), "bool"),
    **dict.fromkeys(("throughput_adjustment_interval", "min_endpoint", "max_gpu_budget", "load_adjustment_interval"), "int"),
    **dict.fromkeys(("load_learning_window", "load_scaling_down_sensitivity", "load_metric_samples"), "int"),
    **dict.fromkeys(("load_min_observations", "prophet_window_size", "kalman_min_points"), "int"),
    **dict.fromkeys(("ttft", "itl", "kalman_q_level", "kalman_q_trend", "kalman_r"), "float"),
    **dict.fromkeys(("pre_deployment_sweeping_mode", "load_router_metrics_url", "mode", "backend", "environment"), "string"),
    **dict.fromkeys(("namespace", "load_predictor", "load_predictor_warmup_trace"), "string"),
}
JSON_TYPES = {"bool": "boolean", "int": "integer", "float": "number", "string": "string"}


@pytest.mark.parametrize("name", TYPES)
def test_types_of_the_guide(name: str) -> None:
    told = config_schema()["properties"][name]
    kinds = {kind.get("type") for kind in told.get("anyOf", [told])} - {None, "null"}
    assert kinds == {JSON_TYPES[TYPES[name]]}


@pytest.mark.parametrize(("name", "default", "other", "refused"), GUIDE, ids=[row[0] for row in GUIDE])
def test_fields_of_the_guide(name: str, default: object, other: object, refused: list[object]) -> None:
    assert getattr(read().config, name) == default
    others = {"enable_load_scaling": True} if name == "enable_throughput_scaling" else {}
    reading = read(**{name: other}, **others)
    assert getattr(reading.config, name) == other
    assert reading.origins[name] == "test"
    for value in refused:
        assert any(problem.startswith(f"{name}: ") for problem in problems(**{name: value})), value


RULES = [
    ({"enable_throughput_scaling": False}, "at least one scaling mode"),
    ({"pre_deployment_sweeping_mode": "none"}, "leaves no profile data"),
    ({"enable_load_scaling": True, "load_adjustment_interval": 180}, "must be shorter than throughput_adjustment_interval"),
    ({"enable_load_scaling": True, "load_min_observations": 60}, "can never be reached"),
    ({"min_gpu_budget": 9}, "above max_gpu_budget"),
]


@pytest.mark.parametrize(("given", "text"), RULES, ids=[row[1] for row in RULES])
def test_rules_between_fields(given: dict[str, Any], text: str) -> None:
    assert any(text in problem for problem in problems(**given))
    with pytest.raises(ValueError, match=text):
        PlannerConfig(**given)


def test_load_only_needs_no_profile_and_no_order_of_intervals() -> None:
    config = read(
        enable_throughput_scaling=False,
        enable_load_scaling=True,
        pre_deployment_sweeping_mode="none",
        load_adjustment_interval=200,
    ).config
    assert config.tick_s == 200.0


def test_all_problems_at_once_with_the_nearest_known_name() -> None:
    found = problems(
        ttfft=3,
        min_endpoint=-2,
        ttft=3,
        ttft_ms=4,
        enable_throughput_scaling=False,
        extensions={"hold": 1, "attainment_target": 2},
    )
    text = "\n".join(found)
    for expected in (
        "ttfft: unknown field; did you mean ttft?",
        "min_endpoint: -2",
        "ttft_ms: 4 contradicts ttft, which is 3",
        "at least one scaling mode",
        "extensions.hold: unknown field; did you mean hold_s?",
        "extensions.attainment_target: 2",
    ):
        assert expected in text
    assert len(found) == 6


def test_no_correction_is_forced_by_load_based_scaling_and_says_so() -> None:
    reading = read(enable_load_scaling=True, no_correction=False)
    assert reading.config.no_correction is True
    assert "forced" in reading.origins["no_correction"]
    assert any("no_correction" in warning for warning in reading.warnings)
    assert PlannerConfig(enable_load_scaling=True, no_correction=False).no_correction is True


EXAMPLES: dict[str, Any] = {
    "profile_results_dir": "profiles",
    "model_name": "demo/chat",
    "prefill_engine_num_gpu": 2,
    "decode_engine_num_gpu": 4,
    "throughput_metrics_source": "router",
    "metric_pulling_prometheus_endpoint": "http://127.0.0.1:9090",
    "metric_reporting_prometheus_port": 9085,
    "no_operation": True,
    "min_gpu_budget": 2,
    "ttft_ms": 200.0,
    "itl_ms": 20.0,
    "throughput_adjustment_interval_seconds": 60,
    "load_adjustment_interval_seconds": 7,
    "advisory": True,
    "global_planner_namespace": "global",
    "optimization_target": "throughput",
    "log_dir": "/var/log",
    "report_interval_hours": 24.0,
    "report_output_dir": "reports",
    "live_dashboard_port": 8080,
    "max_num_fpm_samples": 64,
    "fpm_sample_bucket_size": 16,
    "prefill_scale_up_queue_tokens": 5000,
    "prefill_scale_down_queue_tokens": 500,
    "decode_scale_up_kv_rate": 0.9,
    "decode_scale_down_kv_rate": 0.5,
    "report_filename": "report.html",
    "report_write_gzip_log": True,
    "aic_interpolation": {"hf_id": "org/model"},
    "aic_perf_model": {"hf_id": "org/model"},
    "speculative_nextn": 2,
    "metric_pulling_prometheus_token_file": "/var/run/token",
    "metric_pulling_prometheus_ca_bundle": "/etc/ca.pem",
    "metric_pulling_prometheus_token": "secret",
    "metric_pulling_prometheus_ssl_verify": False,
    "metric_pulling_prometheus_extra_query_params": {"tenant": "a"},
    "scheduling": {"external_plugins": [{"plugin_id": "mine"}]},
    "plugin_registration": {"in_process_plugins": [{"plugin_id": "mine"}]},
}
# The names in interfaces.md, section 9, and the aliases there.
CARRIED_BESIDE_THE_GUIDE = (
    *("profile_results_dir", "model_name", "prefill_engine_num_gpu", "decode_engine_num_gpu", "throughput_metrics_source"),
    *("global_planner_namespace", "metric_pulling_prometheus_endpoint", "metric_reporting_prometheus_port", "no_operation"),
    *("log_dir", "optimization_target", "min_gpu_budget", "report_interval_hours", "report_output_dir", "live_dashboard_port"),
    *("max_num_fpm_samples", "fpm_sample_bucket_size", "advisory"),
    *("ttft_ms", "itl_ms", "throughput_adjustment_interval_seconds", "load_adjustment_interval_seconds"),
)


def test_the_table_has_what_deployments_carry() -> None:
    assert set(CARRIED_BESIDE_THE_GUIDE) <= set(CARRIED)
    assert set(EXAMPLES) == set(CARRIED)


@pytest.mark.parametrize("name", CARRIED)
def test_what_existing_configurations_carry(name: str) -> None:
    row = CARRIED[name]
    if row.treatment == "refused":
        (problem,) = problems(**{name: EXAMPLES[name]})
        assert problem.startswith(f"{name}: ") and row.why in problem
        return
    reading = read(**{name: EXAMPLES[name]})
    if row.treatment == "warned":
        assert any(warning.startswith(f"{name}: ") and row.why in warning for warning in reading.warnings)
        assert read(**{name: None}).warnings == (), "a file with all defaults in it asks for nothing"
        return
    section, _, inner = (row.target or name).partition(".")
    value = getattr(reading.config, section)
    assert (getattr(value, inner) if inner else value) == EXAMPLES[name]
    assert reading.origins[row.target or name].startswith("test")
    assert reading.warnings == ()


HARMLESS: dict[str, Any] = {
    "optimization_target": "sla",
    "speculative_nextn": 0,
    "metric_pulling_prometheus_ssl_verify": True,
    "metric_pulling_prometheus_extra_query_params": {},
    "scheduling": {"external_plugins": [], "gateway": {"enabled": False}, "scale_interval_seconds": 5.0},
    "plugin_registration": {"in_process_plugins": [], "heartbeat_timeout_seconds": 15.0},
    "aic_interpolation": None,
    "metric_pulling_prometheus_token": None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_defaults_that_profilers_write_out_ask_for_nothing(name: str) -> None:
    assert read(**{name: HARMLESS[name]}).warnings == ()


def test_a_door_for_plugins_is_no_default() -> None:
    assert problems(scheduling={"external_plugins": [], "gateway": {"enabled": True}})


def test_names_of_others_fill_extensions_and_contradict_them() -> None:
    both = {"extensions": {"prometheus_ca_file": "a.pem", "hold_s": 5.0}, "metric_pulling_prometheus_ca_bundle": "a.pem"}
    assert read(**both).config.extensions.hold_s == 5.0
    other = {**both, "metric_pulling_prometheus_ca_bundle": "b.pem"}
    for given in (other, dict(reversed(other.items()))):
        assert any("contradicts prometheus_ca_file" in problem for problem in problems(**given))
    environ = {"PROMETHEUS_CA_BUNDLE": "env.pem", "PROMETHEUS_TOKEN_FILE": "token"}
    reading = read(environ, extensions={"prometheus_ca_file": "a.pem"})
    assert (reading.config.extensions.prometheus_ca_file, reading.config.extensions.prometheus_token_file) == ("a.pem", "token")
    assert reading.origins["extensions.prometheus_token_file"] == "environment PROMETHEUS_TOKEN_FILE"


def test_the_schema_accepts_what_is_accepted() -> None:
    check = jsonschema.Draft202012Validator(config_schema())
    check.check_schema(check.schema)
    for name, _, other, refused in GUIDE:
        assert check.is_valid({name: other}), name
        for value in refused:
            finite = not isinstance(value, float) or math.isfinite(value)  # JSON has no other numbers
            assert not finite or not check.is_valid({name: value}), (name, value)
    for name, value in EXAMPLES.items():
        assert check.is_valid({name: value}), name
    assert check.is_valid({"max_gpu_budget": -1, "advisory_window": 3})
    assert not check.is_valid({"ttfft": 3}) and not check.is_valid({"extensions": {"hold": 1}})


def test_the_schema_is_printed_by_config_and_by_itself() -> None:
    said = [CliRunner().invoke(main, arguments) for arguments in (["config", "--schema"], ["schema"])]
    assert said[0].exit_code == said[1].exit_code == 0 and said[0].output == said[1].output
    assert json.loads(said[0].output) == config_schema()
    for wrong in (["config"], ["config", "--schema", "--explain"]):
        assert CliRunner().invoke(main, wrong).exit_code == 2


def test_minus_one_and_zero_become_none_only_in_reading() -> None:
    config = read(max_gpu_budget=-1, min_gpu_budget=-1, metric_reporting_prometheus_port=0).config
    assert (config.max_gpu_budget, config.min_gpu_budget, config.metric_reporting_prometheus_port) == (None, None, None)
    with pytest.raises(ValueError):
        PlannerConfig(max_gpu_budget=-1)


def test_the_environment_fills_what_is_not_given() -> None:
    environ = {"DYN_NAMESPACE": "prod-chat", "PROMETHEUS_ENDPOINT": "http://127.0.0.1:1", "PLANNER_PROMETHEUS_PORT": "9085"}
    reading = read(environ)
    assert reading.config.namespace == "prod-chat"
    assert reading.config.metric_pulling_prometheus_endpoint == "http://127.0.0.1:1"
    assert reading.config.metric_reporting_prometheus_port == 9085
    assert reading.origins["namespace"] == "environment DYN_NAMESPACE"
    assert read(environ, namespace="given").config.namespace == "given"
    assert read({"PLANNER_PROMETHEUS_PORT": "0"}).config.metric_reporting_prometheus_port is None


def test_sla_target_needs_no_warning_and_advice_settings_are_told() -> None:
    assert read(optimization_target="sla").warnings == ()
    assert any("advisory_interval" in warning for warning in read(advisory_interval=5).warnings)


def test_plain_turns_every_addition_off_unless_given() -> None:
    extensions = read(extensions={"plain": True, "hold_s": 5.0}).config.extensions
    for name, off in PLAIN.items():
        assert getattr(extensions, name) == (5.0 if name == "hold_s" else off)
        assert getattr(Extensions(), name) != off


def test_explain_has_every_field_with_its_origin_and_meaning() -> None:
    lines = {line.path: line for line in explain(read(ttft_ms=200.0, extensions={"plain": True}))}
    assert set(PlannerConfig.model_fields) - {"extensions"} <= set(lines)
    assert {f"extensions.{name}" for name in Extensions.model_fields} <= set(lines)
    assert all(line.meaning for line in lines.values())
    assert lines["ttft"].origin == "test (ttft_ms)"
    assert lines["itl"].origin == "default"
    assert lines["extensions.queueing"].origin == "extensions.plain"


def test_sources(tmp_path: Path) -> None:
    as_json, as_yaml = tmp_path / "a.json", tmp_path / "b.yaml"
    as_json.write_text(json.dumps({"ttft": 100}))
    as_yaml.write_text("ttft: 100\nextensions:\n  hold_s: 5\n")
    for source in (str(as_json), str(as_yaml), '{"ttft": 100}', "ttft: 100\nitl: 5"):
        assert load_config(source, environ={}).config.ttft == 100.0
    for source, text in (
        (str(tmp_path / "missing.json"), "no such file"),
        ("just words", "neither a file nor"),
        ("[1, 2]", "a mapping of field names"),
        ('{"ttft": [}', "neither JSON"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_config(source, environ={})
