"""How the configurations of existing deployments are understood: one table, and the reading that applies it. Pure.

Every problem of a configuration is found before any is reported. Where a value came from is remembered for `explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """What becomes of a field that existing configurations carry beside the guide's. `target`: the field it is mapped to."""

    name: str
    treatment: Treatment
    why: str
    target: str | None = None


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
    ),
    Carried(name="log_dir", treatment="warned", why="decisions are logged to standard error, one structured line each"),
    Carried(name="report_interval_hours", treatment="warned", why="reports come from the arbiter's journal, at any time"),
    Carried(name="report_output_dir", treatment="warned", why="reports come from the arbiter's journal"),
    Carried(name="live_dashboard_port", treatment="warned", why="the arbiter serves one dashboard for all pools"),
    Carried(
        name="max_num_fpm_samples",
        treatment="warned",
        why="forward-pass metrics are not read; load_learning_window bounds what the regression keeps",
    ),
    Carried(name="fpm_sample_bucket_size", treatment="warned", why="forward-pass metrics are not read"),
)
ADVISORY_PREFIX = "advisory_"  # settings of how advice is shown elsewhere: ours is in status, metrics and the journal

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
    for key, value in given.items():
        _take(str(key), value, origin, values, origins, problems, warnings)
    for name, variable in ENVIRONMENT.items():
        if name not in values and (environ or {}).get(variable):
            values[name] = _none_or((environ or {})[variable], name)
            origins[name] = f"environment {variable}"
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
            origins[f"extensions.{name}"] = origin
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
    if key.startswith(ADVISORY_PREFIX) or (carried is not None and carried.treatment == "warned"):
        if key == "optimization_target" and value == "sla":
            return
        why = carried.why if carried is not None else "advice is shown by status, metrics and the journal"
        warnings.append(f"{key}: has no effect here: {why}")
        return
    if carried is not None and carried.treatment == "refused":
        problems.append(f"{key}: {value!r} is refused: {carried.why}")
        return
    name = carried.target if carried is not None and carried.target is not None else key
    if name not in PlannerConfig.model_fields:
        known = [*PlannerConfig.model_fields, *CARRIED]
        problems.append(f"{key}: unknown field{_nearest(key, known)}")
        return
    value = _none_or(value, name)
    if name in values and values[name] != value:
        problems.append(f"{key}: {value!r} contradicts {name}, which is {values[name]!r}")
        return
    values[name] = value
    origins[name] = origin if name == key else f"{origin} ({key})"


def _none_or(value: Any, name: str) -> Any:
    if isinstance(value, bool):
        return value
    return None if value in NONE_VALUES.get(name, ()) or str(value) in map(str, NONE_VALUES.get(name, ())) else value


def _unknown_extensions(extensions: object) -> list[str]:
    if not isinstance(extensions, Mapping):
        return []
    return [
        f"extensions.{key}: unknown field{_nearest(str(key), list(Extensions.model_fields))}"
        for key in extensions
        if key not in Extensions.model_fields
    ]


def _nearest(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.5)
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
