"""What one router process is told: where it listens, which models and pools exist, how a pool is chosen, and its limits.
Pure.

Models and pools are in `router.config_pools`. Every duration is in model seconds, every rate per model second; sizes are
bytes. `validate` refuses unknown keys with the nearest known one, and reports all problems at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

import orjson
import yaml
from pydantic import Field, ValidationError, model_validator

from router.config_pools import ANY_MODEL as ANY_MODEL
from router.config_pools import (
    HttpUrl,
    NonNegativeFloat,
    NonNegativeInt,
    Port,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
)
from router.config_pools import ModelConfig as ModelConfig
from router.config_pools import PoolConfig as PoolConfig


class ConfigError(ValueError):
    """A configuration that cannot be used: every problem on a line of its own, each with its path."""


class TlsConfig(Section):
    """PEM files. They are read at the start."""

    certificate: str
    key: str


class ListenConfig(Section):
    """Where clients connect. Port 0: any free port. On an address that others can reach, `pool-router` starts only with API
    keys, or when `without_keys` says that a gateway in front checks who asks. `cors_origins`: web pages of these origins may
    ask ("*": of any)."""

    host: str = "127.0.0.1"
    port: Port = 8000
    without_keys: bool = False
    tls: TlsConfig | None = None
    cors_origins: tuple[str, ...] = ()


class KeyConfig(Section):
    """One API key, known by its SHA-256 (`printf %s "$KEY" | sha256sum`). `models`: the only ones it may use (absent: all).
    `priority`, `ttft_ms`, `itl_ms`: of requests that name none themselves; `max_priority`: the highest they may claim. Where
    requests wait, keys of different names take turns within a priority, by tokens and in proportion to their `weight`."""

    name: str = Field(min_length=1, max_length=64)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    models: tuple[str, ...] | None = None
    priority: int | None = None
    max_priority: int | None = None
    weight: PositiveFloat = 1.0
    ttft_ms: PositiveFloat | None = None
    itl_ms: PositiveFloat | None = None


class AdminConfig(Section):
    """Where the planner and Prometheus connect. With `token_env` or `token_file` (one of them), every admin request except
    `/health` needs `Authorization: Bearer <token>`; `/metrics` too unless `open_metrics`."""

    host: str = "127.0.0.1"
    port: Port = 8001
    token_env: str | None = None
    token_file: str | None = None
    open_metrics: bool = True


class LimitsConfig(Section):
    """What one client may ask of the router. `header_timeout_s` bounds the time from a request's first byte to its last
    (a slow-loris client is cut off then); `keepalive_s` is how long an idle connection is kept. These two are wall seconds:
    they protect this process, not the model of time."""

    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    max_header_bytes: PositiveInt = 64 * 1024
    max_connections: PositiveInt = 20_000
    header_timeout_s: PositiveFloat = 30.0
    keepalive_s: PositiveFloat = 75.0


class TimeoutConfig(Section):
    """How long each phase of a call to an engine may take, model seconds. `first_byte_s` counts from the decode (or
    aggregated) call to its first body byte, `idle_s` between bytes after that, `total_s` from arrival to the last byte."""

    connect_s: PositiveFloat = 30.0
    prefill_s: PositiveFloat = 300.0
    first_byte_s: PositiveFloat = 300.0
    idle_s: PositiveFloat = 120.0
    total_s: PositiveFloat = 1800.0
    shutdown_s: PositiveFloat = 120.0


class RetryConfig(Section):
    """Retries happen only before the first byte went to the client. Each request adds `ratio` to the budget, each retry takes
    1, and at most `burst` is saved up; `attempts` bounds the tries of one request, the first included."""

    ratio: Share = 0.2
    burst: NonNegativeFloat = 50.0
    attempts: PositiveInt = 4


class QueueConfig(Section):
    """The waiting room for requests that cannot be sent now: no ready endpoint, or the admitted rate is used up. `limit`
    bounds it over all models; when it is full, the least important of the longest line is shed. `starting_retry_after_s` is
    what a client is told when a pool is at zero."""

    limit: NonNegativeInt = 1000
    deadline_s: PositiveFloat = 30.0
    starting_retry_after_s: PositiveFloat = 10.0
    plan_valid_s: PositiveFloat = 30.0


class HealthConfig(Section):
    """When an endpoint is taken out: `failures` failed calls in a row. It is probed (`GET /health`) after `backoff_s`,
    doubling up to `backoff_max_s`, and comes back when the probe answers 200: half open, so that its first failure takes it out
    again and its first success makes it as good as any."""

    failures: PositiveInt = 3
    backoff_s: PositiveFloat = 2.0
    backoff_max_s: PositiveFloat = 60.0


class OutlierConfig(Section):
    """When an endpoint that answers is left alone because it is slow: its median over the last `samples` answers is `factor`
    times that of its siblings (and by more than anybody would not notice), in answers that came over at least `for_s`. It is
    ejected for `eject_s`, then tried with one request at a time, and when it is still slow, for twice as long, up to
    `eject_max_s`. At most `max_share` of a pool's endpoints is away at a time: by default a third, so that only pools of three
    or more eject."""

    enabled: bool = True
    factor: float = Field(default=3.0, gt=1, allow_inf_nan=False)
    samples: int = Field(default=10, ge=2, le=1000)
    for_s: PositiveFloat = 20.0
    eject_s: PositiveFloat = 30.0
    eject_max_s: PositiveFloat = 600.0
    max_share: float = Field(default=1 / 3, gt=0, lt=1)

    @model_validator(mode="after")
    def _may_double(self) -> OutlierConfig:
        if self.eject_max_s < self.eject_s:
            raise ValueError(f"eject_max_s {self.eject_max_s:g} is below eject_s {self.eject_s:g}")
        return self


class TracingConfig(Section):
    """Spans for OpenTelemetry (extra `otel`). `endpoint`: of a collector, as "http://collector:4318/v1/traces"."""

    endpoint: HttpUrl
    service_name: str = "pool-router"


class RouterConfig(Section):
    """The whole configuration of one router process.

    `planner_url`: where `POST /v1/wake {model}` goes when a request meets a pool at zero, with the bearer token that
    `planner_token_file` holds at that time. `access_log`: "-" is standard output.
    """

    listen: ListenConfig = ListenConfig()
    admin: AdminConfig = AdminConfig()
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    limits: LimitsConfig = LimitsConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    retry: RetryConfig = RetryConfig()
    queue: QueueConfig = QueueConfig()
    health: HealthConfig = HealthConfig()
    outliers: OutlierConfig = OutlierConfig()
    keys: tuple[KeyConfig, ...] = ()
    planner_url: HttpUrl | None = None
    planner_token_file: str | None = None
    access_log: str | None = None
    tracing: TracingConfig | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> RouterConfig:
        problems = []
        names = [pool.name for model in self.models for pool in model.pools]
        models = [model.model for model in self.models]
        problems += [f"two pools are named {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
        problems += [f"two models are named {name!r}" for name in sorted({m for m in models if models.count(m) > 1})]
        digests = [key.sha256 for key in self.keys]
        problems += [f"two keys are the same: {name[:8]}…" for name in sorted({d for d in digests if digests.count(d) > 1})]
        strangers = sorted({name for key in self.keys for name in key.models or ()} - set(models))
        problems += [f"keys name the model {name!r}, which is not here" for name in strangers]
        if self.listen.port and (self.listen.host, self.listen.port) == (self.admin.host, self.admin.port):
            problems.append(f"listen and admin are both {self.listen.host}:{self.listen.port}")
        if self.admin.token_env and self.admin.token_file:
            problems.append("admin.token_env and admin.token_file are both set; keep one")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def validate(raw: Mapping[str, Any], *, source: str = "router configuration") -> RouterConfig:
    """The configuration in `raw` (our own form). Raises ConfigError with every problem and its path."""
    try:
        return RouterConfig.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A list whose items are all wrong is also reported as too short: only the items' own problems help.
        deeper = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
        told = [one for one in problems if one["type"] != "too_short" or one["loc"] not in deeper]
        lines = [f"{source}: {_path(problem['loc'])}{_message(problem)}" for problem in told]
        raise ConfigError("\n".join(lines)) from error


def read(text: bytes, *, source: str) -> dict[str, Any]:
    """The mapping in a JSON or YAML text. Raises ConfigError."""
    try:
        raw = orjson.loads(text) if text.lstrip()[:1] == b"{" else yaml.safe_load(text)
    except (orjson.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{source}: not JSON or YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source}: must be a mapping, not {type(raw).__name__}")
    return raw


def _section_at(location: tuple[int | str, ...]) -> type[Section] | None:
    """The section class that stands at a path, so that an unknown key can be compared with the known ones."""
    section: Any = RouterConfig
    for part in location:
        if isinstance(part, str) and isinstance(section, type) and issubclass(section, Section):
            field = section.model_fields.get(part)
            section = field.annotation if field else None
        else:
            section = next((arg for arg in get_args(section) if isinstance(arg, type) and issubclass(arg, Section)), None)
    return section if isinstance(section, type) and issubclass(section, Section) else None


def _unknown(location: tuple[int | str, ...]) -> str:
    section = _section_at(location[:-1])
    known = sorted(section.model_fields) if section else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"unknown key; did you mean {near[0]!r}?" if near else f"unknown key (known: {', '.join(known)})"


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return f"{text}: " if text else ""


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return _unknown(problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = problem.get("input")
    return f"{message} (got {given!r})" if isinstance(given, str | int | float | bool) else message
