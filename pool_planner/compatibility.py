"""How the configurations of existing deployments are understood: one table, and the reading that applies it. Pure.

Every problem of a configuration is found before any is reported. Where a value came from is remembered for `explain`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import ValidationError

from pool_planner.config import PLAIN, Extensions, PlannerConfig, broken_rules

Treatment = Literal["honoured", "mapped", "warned", "refused"]


class ConfigError(ValueError):
    """A configuration that cannot be used. `problems` has every one of them: path, value and what is allowed."""

    def __init__(self, origin: str, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(f"{origin}: {problem}" for problem in problems))
        self.origin = origin
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What becomes of a field that existing configurations carry beside the guide's. `target`: the field it is mapped to
    (`extensions.…`: one of ours). `harmless`: values that ask for nothing, as null does; files that profilers write hold every
    field with its default."""

    name: str
    treatment: Treatment
    why: str
    target: str | None = None
    harmless: Callable[[object], bool] = lambda value: False


def _without_plugins(value: object) -> bool:
    """Whether settings of a plugin system have no plugin in them, and no door for one."""
    if not isinstance(value, Mapping):
        return False
    gateway = value.get("gateway")
    listening = isinstance(gateway, Mapping) and gateway.get("enabled")
    return not (value.get("external_plugins") or value.get("in_process_plugins") or listening)


def _table(*rows: Carried) -> Mapping[str, Carried]:
    return {row.name: row for row in rows}


CARRIED = _table(
    Carried(name="profile_results_dir", treatment="honoured", why="the profile data is read from there"),
    Carried(name="model_name", treatment="honoured", why="selects the series of one model"),
    Carried(name="prefill_engine_num_gpu", treatment="honoured", why="GPUs of a prefill replica"),
    Carried(name="decode_engine_num_gpu", treatment="honoured", why="GPUs of a decode or aggregated replica"),
    Carried(name="throughput_metrics_source", treatment="honoured", why="whose traffic series are read"),
    Carried(name="metric_pulling_prometheus_endpoint", treatment="honoured", why="the Prometheus that is queried"),
    Carried(name="metric_reporting_prometheus_port", treatment="honoured", why="port of the planner's own metrics; 0 is none"),
    Carried(name="no_operation", treatment="honoured", why="decisions are reported as holds"),
    Carried(name="min_gpu_budget", treatment="honoured", why="floor of the GPUs of all pools; -1 is none"),
    Carried(name="ttft_ms", treatment="mapped", target="ttft", why="the same value with its unit in the name"),
    Carried(name="itl_ms", treatment="mapped", target="itl", why="the same value with its unit in the name"),
    Carried(
        name="throughput_adjustment_interval_seconds",
        treatment="mapped",
        target="throughput_adjustment_interval",
        why="the same value with its unit in the name",
    ),
    Carried(
        name="load_adjustment_interval_seconds",
        treatment="mapped",
        target="load_adjustment_interval",
        why="the same value with its unit in the name",
    ),
    Carried(name="advisory", treatment="mapped", target="no_operation", why="to decide without acting"),
    Carried(
        name="global_planner_namespace",
        treatment="warned",
        why="the arbiter is found through the topology, in one Ray cluster; no namespace is needed",
    ),
    Carried(
        name="optimization_target",
        treatment="warned",
        why="planning is for the SLA in ttft and itl, which is what 'sla' asks; static thresholds are not used",
        harmless=lambda value: value == "sla",
    ),
    *(
        Carried(name=name, treatment="warned", why="static thresholds are not used: load is planned for by the SLA")
        for name in (
            *("prefill_scale_up_queue_tokens", "prefill_scale_down_queue_tokens"),
            *("decode_scale_up_kv_rate", "decode_scale_down_kv_rate"),
        )
    ),
    Carried(name="log_dir", treatment="warned", why="decisions are logged to standard error, one structured line each"),
    Carried(name="report_interval_hours", treatment="warned", why="reports come from the arbiter's journal, at any time"),
    Carried(name="report_output_dir", treatment="warned", why="reports come from the arbiter's journal"),
    Carried(name="report_filename", treatment="warned", why="reports come from the arbiter's journal"),
    Carried(name="report_write_gzip_log", treatment="warned", why="the arbiter's journal is the log"),
    Carried(name="live_dashboard_port", treatment="warned", why="the arbiter serves one dashboard for all pools"),
    Carried(
        name="max_num_fpm_samples",
        treatment="warned",
        why="forward-pass metrics are not read; load_learning_window bounds what the regression keeps",
    ),
    Carried(name="fpm_sample_bucket_size", treatment="warned", why="forward-pass metrics are not read"),
    *(
        Carried(name=name, treatment="warned", why="the profile in profile_results_dir is used; the profiler simulates one")
        for name in ("aic_interpolation", "aic_perf_model")
    ),
    Carried(
        name="speculative_nextn",
        treatment="warned",
        why="what speculation gains has to be in the profile",
        harmless=lambda value: value == 0,
    ),
    Carried(
        name="metric_pulling_prometheus_token_file",
        treatment="mapped",
        target="extensions.prometheus_token_file",
        why="read for every query, as there",
    ),
    Carried(
        name="metric_pulling_prometheus_ca_bundle",
        treatment="mapped",
        target="extensions.prometheus_ca_file",
        why="what the server's certificate is signed by",
    ),
    Carried(
        name="metric_pulling_prometheus_token",
        treatment="refused",
        why="a token does not belong into a configuration: put it into a file, and name that in "
        "metric_pulling_prometheus_token_file",
    ),
    Carried(
        name="metric_pulling_prometheus_ssl_verify",
        treatment="refused",
        why="a Prometheus with https is always verified: name its CA in metric_pulling_prometheus_ca_bundle",
        harmless=lambda value: value is True,
    ),
    Carried(
        name="metric_pulling_prometheus_extra_query_params",
        treatment="refused",
        why="queries carry no other parameters: put them into a proxy in front of Prometheus",
        harmless=lambda value: value == {},
    ),
    *(
        Carried(
            name=name,
            treatment="refused",
            why="plugins are not run, and a plan without them would be another one",
            harmless=_without_plugins,
        )
        for name in ("scheduling", "plugin_registration")
    ),
)
ADVISORY_PREFIX = "advisory_"  # settings of how advice is shown elsewhere
ADVISORY_WHY = "advice is shown by status, metrics and the journal"

# Values that mean "none" in existing files, and become None here and nowhere else.
NONE_VALUES: Mapping[str, tuple[object, ...]] = {
    "max_gpu_budget": (-1,),
    "min_gpu_budget": (-1,),
    "metric_reporting_prometheus_port": (0,),
}
ENVIRONMENT: Mapping[str, str] = {
    "namespace": "DYN_NAMESPACE",
    "metric_pulling_prometheus_endpoint": "PROMETHEUS_ENDPOINT",
    "metric_reporting_prometheus_port": "PLANNER_PROMETHEUS_PORT",
    "metric_pulling_prometheus_token_file": "PROMETHEUS_TOKEN_FILE",
    "metric_pulling_prometheus_ca_bundle": "PROMETHEUS_CA_BUNDLE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A configuration as it was read: `origins` says by path (`extensions.hold_s`) where each value came from, `warnings`
    what was given and has no effect, and why."""

    config: PlannerConfig
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One line of `explain`: a field's path, effective value, where it came from, and what it does."""

    path: str
    value: object
    origin: str
    meaning: str


def read_config(given: object, *, origin: str, environ: Mapping[str, str] | None = None) -> Reading:
    """The configuration that `given` (what a JSON or YAML document holds) means.

    `origin` names the document in messages; `environ` fills fields that have an environment variable and are not given.
    Raises ConfigError with every problem: unknown names (with the nearest known one), types, ranges, rules between fields.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(origin, (f"a mapping of field names to values is needed, not {type(given).__name__}",))
    problems: list[str] = []
    warnings: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in sorted(given.items(), key=lambda item: item[0] != "extensions"):  # others may add to those
        _take(str(key), value, origin, values, origins, problems, warnings)
    for name, variable in ENVIRONMENT.items():
        target = _target(name)
        section, _, inner = target.partition(".")
        known = values.get(section, {}) if inner else values
        if (environ or {}).get(variable) and not (isinstance(known, Mapping) and (inner or section) in known):
            _put(target, (environ or {})[variable], values, problems, name)
            origins[target] = f"environment {variable}"
    problems += _unknown_extensions(values.get("extensions"))
    config = _validated(values, problems)
    if problems or config is None:
        raise ConfigError(origin, tuple(problems))
    if config.no_correction and values.get("no_correction") is False:
        origins["no_correction"] = "forced: load-based scaling is on"
        warnings.append("no_correction: false has no effect while enable_load_scaling is on: the regression corrects")
    extensions = values.get("extensions")
    for name in Extensions.model_fields:
        if isinstance(extensions, Mapping) and name in extensions:
            origins.setdefault(f"extensions.{name}", origin)
        elif config.extensions.plain and name in PLAIN:
            origins[f"extensions.{name}"] = "extensions.plain"
    return Reading(config=config, origins=origins, warnings=tuple(warnings))


def explain(reading: Reading) -> tuple[Explained, ...]:
    """Every field with its effective value, origin and meaning, those of `extensions` last."""
    config = reading.config
    pairs: list[tuple[str, object, str | None]] = [
        (name, getattr(config, name), info.description)
        for name, info in PlannerConfig.model_fields.items()
        if name != "extensions"
    ]
    pairs += [
        (f"extensions.{name}", getattr(config.extensions, name), info.description)
        for name, info in Extensions.model_fields.items()
    ]
    return tuple(
        Explained(path=path, value=value, origin=reading.origins.get(path, "default"), meaning=meaning or "")
        for path, value, meaning in pairs
    )


def config_schema() -> dict[str, Any]:
    """The JSON schema of what `read_config` accepts: the fields of PlannerConfig, and what existing files carry beside them."""
    schema = PlannerConfig.model_json_schema()
    properties = schema["properties"]
    for name, values in NONE_VALUES.items():
        known = properties[name]
        nulls = [{"const": value, "description": "as null"} for value in values]
        properties[name] = {**known, "anyOf": [*known["anyOf"], *nulls]}
    for row in CARRIED.values():
        if row.treatment == "mapped" and row.target is not None:
            section, _, inner = row.target.partition(".")
            target = schema["$defs"]["Extensions"]["properties"][inner] if inner else properties[section]
            told = {key: value for key, value in target.items() if key not in ("default", "title")}
            properties[row.name] = {**told, "description": f"Another name of {row.target}: {row.why}."}
        elif row.treatment in ("warned", "refused"):
            effect = "Has no effect here" if row.treatment == "warned" else "Refused where it asks for anything"
            properties[row.name] = {"deprecated": True, "description": f"{effect}: {row.why}."}
    schema["patternProperties"] = {
        f"^{ADVISORY_PREFIX}": {"deprecated": True, "description": f"Has no effect here: {ADVISORY_WHY}."}
    }
    return schema


def _take(
    key: str,
    value: Any,
    origin: str,
    values: dict[str, Any],
    origins: dict[str, str],
    problems: list[str],
    warnings: list[str],
) -> None:
    """Put one given field where it belongs."""
    carried = CARRIED.get(key)
    if carried is not None and carried.treatment in ("warned", "refused") and (value is None or carried.harmless(value)):
        return
    if key.startswith(ADVISORY_PREFIX) or (carried is not None and carried.treatment == "warned"):
        why = carried.why if carried is not None else ADVISORY_WHY
        warnings.append(f"{key}: has no effect here: {why}")
        return
    if carried is not None and carried.treatment == "refused":
        problems.append(f"{key}: {value!r} is refused: {carried.why}")
        return
    name = _target(key)
    if name.partition(".")[0] not in PlannerConfig.model_fields:
        problems.append(f"{key}: unknown field{_nearest(key, {*PlannerConfig.model_fields, *CARRIED})}")
        return
    if _put(name, value, values, problems, key):
        origins[name] = origin if name == key else f"{origin} ({key})"


def _target(key: str) -> str:
    carried = CARRIED.get(key)
    return carried.target if carried is not None and carried.target is not None else key


def _put(name: str, value: Any, values: dict[str, Any], problems: list[str], key: str) -> bool:
    """Whether `value` could be put under `name` (`extensions.…`: into those), which `key` means; else the problem is told."""
    section, _, inner = name.partition(".")
    into = values
    if inner:
        given = values.get(section, {})
        if not isinstance(given, Mapping):
            return True  # what is wrong with it is told elsewhere
        into = values[section] = dict(given)
        name = inner
    value = _none_or(value, name)
    if name in into and into[name] != value:
        problems.append(f"{key}: {value!r} contradicts {name}, which is {into[name]!r}")
        return False
    into[name] = value
    return True


def _none_or(value: Any, name: str) -> Any:
    if isinstance(value, bool):
        return value
    return None if value in NONE_VALUES.get(name, ()) or str(value) in map(str, NONE_VALUES.get(name, ())) else value


def _unknown_extensions(extensions: object) -> list[str]:
    if not isinstance(extensions, Mapping):
        return []
    return [
        f"extensions.{key}: unknown field{_nearest(str(key), set(Extensions.model_fields))}"
        for key in extensions
        if key not in Extensions.model_fields
    ]


def _nearest(key: str, known: set[str]) -> str:
    close = get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f" (known: {', '.join(sorted(known))})"


def _validated(values: Mapping[str, Any], problems: list[str]) -> PlannerConfig | None:
    """The model, or None with what is wrong added to `problems`: fields first, then the rules between the fields that are
    right, so that one run tells all."""
    try:
        return PlannerConfig.model_validate(dict(values))
    except ValidationError as error:
        wrong: set[str] = set()
        for each in error.errors(include_url=False):
            path = ".".join(str(part) for part in each["loc"])
            if each["type"] == "extra_forbidden" or not path:
                continue  # unknown names are told with their nearest known one, rules below
            wrong.add(str(each["loc"][0]))
            problems.append(f"{path}: {each['input']!r}: {each['msg']}")
        right = {name: value for name, value in values.items() if name not in wrong and name != "extensions"}
        effective = {
            name: right.get(name, info.get_default(call_default_factory=True))
            for name, info in PlannerConfig.model_fields.items()
            if name not in wrong
        }
        problems += broken_rules(effective)
        return None
