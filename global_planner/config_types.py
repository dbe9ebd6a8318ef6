"""Times as people write them in a topology: of day, of the calendar, of a zone. Pure.

Each is kept as the text that was written, once it is known to mean something; one that means nothing is refused with what is
allowed. YAML reads some of them as numbers or dates when they stand without quotes: that is said, or undone where it can be.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _time_of_day(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        raise ValueError('must be a time of day in quotes, like "10:00" (without them, YAML reads 10:00 as the number 600)')
    if isinstance(value, str) and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
        raise ValueError('must be a time of day like "09:00"')
    return value


def _day(value: Any) -> Any:
    if isinstance(value, datetime):
        raise ValueError("must be a date without a time, like 2026-07-01")
    return value.isoformat() if isinstance(value, date) else value  # YAML's own reading of an unquoted one


def _is_day(value: str) -> str:
    try:
        date.fromisoformat(value)
    except ValueError:
        raise ValueError("must be a date like 2026-07-01") from None
    return value


def _is_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # unknown, not a name at all, or a folder of zones
        raise ValueError("must be a time zone like UTC or Europe/Berlin") from None
    return value


def _moment(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _is_moment(value: str) -> str:
    try:
        zoned = datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        zoned = False
    if not zoned:
        raise ValueError('must be a date and time with its offset, like "2026-07-01T08:50:00+02:00"')
    return value


TimeOfDay = Annotated[str, BeforeValidator(_time_of_day)]
Day = Annotated[str, BeforeValidator(_day), AfterValidator(_is_day)]
TimeZone = Annotated[str, AfterValidator(_is_zone)]
Moment = Annotated[str, BeforeValidator(_moment), AfterValidator(_is_moment)]
