"""Requests drawn from rates: of a whole service by bins, or of its clients with their burstiness. Pure, from a seeded
generator.

Within a bin of constant rate, a service with `cv` 1 has Poisson arrivals; another `cv` gives gamma-distributed gaps of that
coefficient of variation. ServeGen (arXiv 2505.09999) gives a rate and a fitted shape of the gaps (Gamma or Weibull) for each
client and window; the fits' scales do not always agree with the rates beside them, so gaps are scaled to the rate, which was
counted.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from global_planner.replay.arrivals import Floats, Ints
from global_planner.replay.trace import MAX_TOKENS, TraceError

TIME_COLUMNS = {
    "t_s": 1.0, "at_s": 1.0, "time_s": 1.0, "seconds": 1.0, "time": 1.0, "timestamp": 1.0, "minute": 60.0, "hour": 3600.0,
}  # fmt: skip
RATE_COLUMNS = {
    "rate_rps_sum": 1.0, "rate_rps": 1.0, "rps": 1.0, "requests_per_s": 1.0, "rate": 1.0, "qps": 1.0, "value": 1.0,
    "rpm_mid_scaled": 1 / 60, "rpm_mid": 1 / 60, "rpm": 1 / 60, "requests_per_minute": 1 / 60,
}  # fmt: skip
CLIENT_COLUMNS = ("client", "t_s", "rate_rps", "pattern", "param1")
Gaps = Literal["gamma", "weibull"]
LEAD = 10.0  # a renewal process is settled after so many times cv^2 gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bins of constant rate: they begin at `since_s` and last `lasts_s` each."""

    since_s: Floats
    lasts_s: Floats
    rps: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientBin:
    """One client in one window: `shape` of its gaps' distribution."""

    since_s: float
    lasts_s: float
    rps: float
    gaps: Gaps
    shape: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Log-normal token counts with this mean and coefficient of variation, between 1 and `most`."""

    mean: float
    cv: float = 1.0
    most: int = MAX_TOKENS

    def draw(self, count: int, rng: np.random.Generator) -> Ints:
        sigma = math.sqrt(math.log(1.0 + self.cv**2))
        tokens = rng.lognormal(math.log(self.mean) - sigma**2 / 2.0, sigma, count)
        return np.clip(np.rint(tokens), 1, self.most).astype(np.int32)


# ---- what files say ---------------------------------------------------------------------------------------------------------


def header_of(lines: Iterator[str]) -> tuple[int, list[str]]:
    """(line number, columns) of a CSV, comments (`#`) and empty lines before it left out."""
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            return number, [cell.strip() for cell in next(csv.reader([line]), [])]
    return 0, []


def parse_rates(
    lines: Iterator[str], columns: Sequence[str], *, name: str, line: int, time: str | None = None, rate: str | None = None
) -> Rates:
    """The rows after the header at `line`. `time`, `rate`: the columns (absent: the first known ones). A bin lasts until the
    next; the last as long as the one before. Raises TraceError."""
    when, to_s = _column(columns, time, TIME_COLUMNS, name, line, "time")
    what, to_rps = _column(columns, rate, RATE_COLUMNS, name, line, "rate")
    rows = [
        (number, _number(row, when, name, number), _number(row, what, name, number))
        for number, row in _rows(lines, columns, name, line)
    ]
    if len(rows) < 2:
        raise TraceError(name, line, "needs at least two rows of rates")
    for (_, before, _), (number, at, rps) in pairwise(rows):
        if at <= before:
            raise TraceError(name, number, "times must grow from row to row")
        if rps < 0.0:
            raise TraceError(name, number, f"rate {rps:g} is below 0")
    since = np.array([at for _, at, _ in rows]) * to_s
    lasts = np.append(np.diff(since), since[-1] - since[-2])
    return Rates(since_s=since - since[0], lasts_s=lasts, rps=np.array([max(0.0, rps) for _, _, rps in rows]) * to_rps)


def parse_clients(lines: Iterator[str], columns: Sequence[str], *, name: str, line: int) -> tuple[ClientBin, ...]:
    """ServeGen's rows `client, t_s, rate_rps, …, pattern, param1`; a window lasts as long as the smallest step between two.
    Raises TraceError."""
    places = [columns.index(column) for column in CLIENT_COLUMNS]
    read: list[tuple[float, float, str, float]] = []
    for number, row in _rows(lines, columns, name, line):
        pattern = row[places[3]].strip().lower()
        if pattern not in ("gamma", "weibull"):
            raise TraceError(name, number, f"pattern {row[places[3]]!r} is neither Gamma nor Weibull")
        shape = _number(row, places[4], name, number)
        if shape <= 0.0:
            raise TraceError(name, number, f"param1 {shape:g}, the shape, must be above 0")
        rps = _number(row, places[2], name, number)
        if rps < 0.0:
            raise TraceError(name, number, f"rate_rps {rps:g} is below 0")
        read.append((_number(row, places[1], name, number), rps, pattern, shape))
    times = np.unique([at for at, *_ in read])
    if times.size < 2:
        raise TraceError(name, line, "needs clients in at least two windows")
    lasts_s = float(np.diff(times).min())
    return tuple(
        ClientBin(
            since_s=at - float(times[0]),
            lasts_s=lasts_s,
            rps=rps,
            gaps="gamma" if pattern == "gamma" else "weibull",
            shape=shape,
        )
        for at, rps, pattern, shape in read
        if rps > 0.0
    )


def _column(
    columns: Sequence[str], asked: str | None, known: Mapping[str, float], name: str, line: int, what: str
) -> tuple[int, float]:
    """(place, factor to seconds or requests/s) of the column that tells the time or the rate."""
    found = asked if asked is not None else next((column for column in known if column in columns), None)
    if found is None or found not in columns:
        expected = f"column {asked!r}" if asked is not None else f"{what} column ({', '.join(known)}; or say {what}=COLUMN)"
        raise TraceError(name, line, f"has no {expected}: its columns are {', '.join(columns)}")
    return columns.index(found), known.get(found, 1.0)


def _rows(lines: Iterator[str], columns: Sequence[str], name: str, line: int) -> Iterator[tuple[int, list[str]]]:
    for number, text in enumerate(lines, start=line + 1):
        if not text.strip() or text.startswith("#"):
            continue
        row = next(csv.reader([text]), [])
        if len(row) != len(columns):
            raise TraceError(name, number, f"has {len(row)} values, the header has {len(columns)} columns")
        yield number, row


def _number(row: Sequence[str], place: int, name: str, number: int) -> float:
    try:
        value = float(row[place])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TraceError(name, number, f"{row[place]!r} is not a number")
    return value


# ---- requests ---------------------------------------------------------------------------------------------------------------


def draw_rates(rates: Rates, *, cv: float, scale: float, rng: np.random.Generator) -> Floats:
    """Sorted arrival times (s) of a service at `scale` times its rates."""
    return draw_clients(
        [
            ClientBin(since_s=since_s, lasts_s=lasts_s, rps=rps, gaps="gamma", shape=1.0 / cv**2)
            for since_s, lasts_s, rps in zip(rates.since_s.tolist(), rates.lasts_s.tolist(), rates.rps.tolist(), strict=True)
        ],
        scale=scale,
        rng=rng,
    )


def draw_clients(clients: Sequence[ClientBin], *, scale: float, rng: np.random.Generator) -> Floats:
    """Sorted arrival times (s) of all clients, each at `scale` times its rate, with its own kind of gaps."""
    bins = [_renewals(one, one.rps * scale, rng) for one in clients if one.rps > 0.0]
    return np.sort(np.concatenate(bins)) if bins else np.zeros(0)


def _renewals(one: ClientBin, rps: float, rng: np.random.Generator) -> Floats:
    """One client's renewal process in one window, with gaps of mean 1 / rps. It begins long before the window: a process that
    begins with a request has (cv^2 - 1) / 2 requests too many at its beginning."""
    if one.gaps == "gamma":
        draw: Callable[[int], Floats] = lambda size: rng.gamma(one.shape, 1.0 / one.shape, size)  # noqa: E731
        cv2 = 1.0 / one.shape
    else:
        mean = math.gamma(1.0 + 1.0 / one.shape)
        draw = lambda size: rng.weibull(one.shape, size) / mean  # noqa: E731
        cv2 = math.gamma(1.0 + 2.0 / one.shape) / mean**2 - 1.0
    lead_s = 0.0 if abs(cv2 - 1.0) < 1e-9 else LEAD * max(1.0, cv2) / rps
    end_s = lead_s + one.lasts_s
    parts, reached_s = [], 0.0
    while reached_s < end_s:
        times = reached_s + np.cumsum(draw(math.ceil(1.1 * rps * (end_s - reached_s)) + 16)) / rps
        parts.append(times)
        reached_s = float(times[-1])
    times = np.concatenate(parts)
    return np.asarray(one.since_s - lead_s + times[(times >= lead_s) & (times < end_s)])
