"""Rules of the topology over many pools at once: selectors, schedules, overrides. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from global_planner.config_base import Name, NonNegativeFloat, NonNegativeInt, Pattern, PositiveFloat, PositiveInt, Section
from global_planner.config_types import Day, Moment, TimeOfDay, TimeZone, Weekday
from pool_planner.types import Role


class SelectorMatch(Section):
    """Which pools: each matcher is a name or a pattern with `*`; absent matches any."""

    pool: Pattern | None = None
    group: Pattern | None = None
    model: Pattern | None = None
    namespace: Pattern | None = None
    role: Role | None = None
    gpu_type: str | None = None


class SelectorValues(Section):
    """What is set, instead of what the pool or group itself says. `priority` and `weight` belong to groups."""

    min_replicas: NonNegativeInt | None = None
    guarantee_replicas: NonNegativeInt | None = None
    max_replicas: PositiveInt | None = None
    priority: Annotated[int, Field(strict=True)] | None = None
    weight: PositiveFloat | None = None


class SelectorConfig(Section):
    """One rule for many pools. The most specific rule that sets a value wins: an exact name before a pattern, `pool` before
    `group`, `model`, `namespace`, `role` and `gpu_type`, more matchers before fewer; of equals the later."""

    name: Name
    match: SelectorMatch = SelectorMatch()
    set: SelectorValues


class ScheduleMatch(Section):
    """Which pools: names or patterns with `*`; absent matches any."""

    pool: Pattern | None = None
    group: Pattern | None = None


class ScheduleValues(Section):
    """Either a floor, or a factor on the load, while the event lasts."""

    min_replicas: PositiveInt | None = None
    load_factor: PositiveFloat | None = None


class ScheduleConfig(Section):
    """A known event: it starts at `start` (local time in `timezone`), on `days` of the week (empty: every day) or on one
    `date`, and lasts `duration_s`. It takes effect `lead_s` earlier, so that replicas are warm in time (absent: the cluster's
    cold start)."""

    name: Name
    start: TimeOfDay
    duration_s: PositiveFloat
    timezone: TimeZone = "UTC"
    days: tuple[Weekday, ...] = ()
    date: Day | None = None
    lead_s: NonNegativeFloat | None = None
    match: ScheduleMatch = ScheduleMatch()
    set: ScheduleValues


class OverrideConfig(Section):
    """A number that somebody set for a pool: `pin` (exactly `replicas`), `cap` (at most), or `hold` (leave it alone). It is
    stronger than everything else here, until a moment of the calendar (absent: for ever)."""

    pool: Name
    kind: Literal["pin", "cap", "hold"]
    replicas: NonNegativeInt | None = None
    until: Moment | None = None
    reason: str = ""
