"""[I/O: reads files, and asks a Prometheus] Where a replay's requests come from: `MODEL=SOURCE[,option=value…]`.

A source is told by what it holds: an Azure CSV, a Mooncake JSONL, ServeGen's client rates, any CSV with a time and a rate
column, the journal of a system (a folder), or a rate expression of a Prometheus (`prometheus:URL?query=…`). Sources that hold
rates give requests drawn from a seeded generator, with lengths from a log-normal distribution.
"""

from __future__ import annotations

import difflib
import http.client
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

import numpy as np
import orjson

from global_planner.journal import JournalCorrupt
from global_planner.journal_reader import read, segments
from global_planner.replay.arrivals import Arrivals, Floats, arrivals
from global_planner.replay.rates import (
    CLIENT_COLUMNS,
    Lengths,
    Rates,
    draw_clients,
    draw_rates,
    header_of,
    parse_clients,
    parse_rates,
)
from global_planner.replay.trace import COPY_JITTER_S, TraceError, parse_trace
from global_planner.replay.trace_file import lines_of
from pool_planner.types import PlannerStatus

PROMETHEUS = "prometheus:"
ASK_S = 30.0
MOST_REQUESTS = 50_000_000  # more is a slip in a rate or a scale: a replay of so many takes half an hour, and gigabytes
PROMPTS = Lengths(mean=1000.0, cv=1.0)  # about those of published conversation traces
ANSWERS = Lengths(mean=200.0, cv=0.8)
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One `--trace`. `start_s`: where in the source to begin; `duration_s`: how much of it (None: all); `repeat`: so many
    times, one after the other; `shift_s`: how much later everything comes; `scale` multiplies the rate. `prefixes`: use the
    prompts' blocks.

    For rates: `isl`, `osl` are `MEAN[:CV]` tokens, `cv` the coefficient of variation of the gaps within a bin (1: Poisson),
    `time` and `rate` name columns. `pool`: of a journal, whose observations count (None: the model's only pool that prompts
    come to)."""

    model: str
    place: str
    scale: float = 1.0
    shift_s: float = 0.0
    start_s: float = 0.0
    duration_s: float | None = None
    repeat: int = 1
    priority: int = 0
    prefixes: bool = True
    isl: Lengths = PROMPTS
    osl: Lengths = ANSWERS
    cv: float = 1.0
    time: str | None = None
    rate: str | None = None
    pool: str | None = None


def parse_source(text: str) -> Source:
    """`MODEL=SOURCE[,option=value…]`. Raises ValueError with what is allowed.

    >>> source = parse_source("chat=azure.csv.gz,scale=2,start=10m,duration=1h")
    >>> source.model, source.place, source.scale, source.start_s, source.duration_s
    ('chat', 'azure.csv.gz', 2.0, 600.0, 3600.0)
    """
    model, equals, rest = text.partition("=")
    if not equals or not model or not rest:
        raise ValueError(f"{text!r}: must be MODEL=FILE[,option=value…]")
    parts = rest.split(",")
    # A Prometheus expression may hold commas: options are what stands at the end and looks like one.
    options: dict[str, str] = {}
    while len(parts) > 1 and parts[-1].partition("=")[0] in _READERS:
        key, _, value = parts.pop().partition("=")
        if key in options:
            raise ValueError(f"{text!r}: {key} is given twice")
        options[key] = value
    place = ",".join(parts)
    if "," in place and not place.startswith(PROMETHEUS):
        stray = parts[-1].partition("=")[0]
        near = difflib.get_close_matches(stray, list(_READERS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f" (has: {', '.join(_READERS)})"
        raise ValueError(f"{text!r}: no option {stray!r}{hint}")
    values: dict[str, object] = {}
    for key, value in options.items():
        field, reader = _READERS[key]
        try:
            values[field] = reader(value)
        except ValueError as error:
            raise ValueError(f"{text!r}: {key}={value}: {error}") from None
    return Source(model=model, place=place, **values)  # type: ignore[arg-type]


def load(source: Source, rng: np.random.Generator) -> Arrivals:
    """The requests of a source. Raises TraceError with the file, the line and the reason; nothing is played in part."""
    if source.place.startswith(PROMETHEUS):
        return _of_rates(source, _ask_prometheus(source), rng)
    path = Path(source.place)
    if path.is_dir():
        return _of_rates(*_of_journal(source, path), rng)
    with lines_of(path) as lines:
        first = next(lines, "")
        lines = chain([first], lines)
        columns = [] if first.lstrip().startswith("{") else [cell.strip() for cell in first.split(",")]
        if first.startswith("#"):
            skipped, columns = header_of(lines)
            return _of_csv(source, lines, columns, skipped, rng)
        requests = first.lstrip().startswith("{") or {"ContextTokens", "GeneratedTokens"} & set(columns)
        if set(CLIENT_COLUMNS) <= set(columns) or not requests:
            skipped, columns = header_of(lines)
            return _of_csv(source, lines, columns, skipped, rng)
        _unread(source, ("isl", "osl", "cv", "time", "rate", "pool"), "a trace of requests")
        trace = parse_trace(lines, name=source.place)
    at_s = np.array([each.at_s for each in trace.arrivals])
    isl = np.array([each.isl_tokens for each in trace.arrivals], dtype=np.int32)
    osl = np.array([each.osl_tokens for each in trace.arrivals], dtype=np.int32)
    blocks = [each.blocks for each in trace.arrivals] if any(each.blocks for each in trace.arrivals) else None
    rows, moved, copies = _placed(source, at_s, float(trace.span_s), rng)
    _some(source, rows.size, f" of {at_s.size:,}, which take {trace.span_s / 60.0:,.1f} minutes,")
    mine = None
    if blocks is not None and source.prefixes:
        # A copy stands for other users: what they share is among themselves.
        mine = tuple(
            tuple(block * 1024 + copy for block in blocks[row])
            for row, copy in zip(rows.tolist(), copies.tolist(), strict=True)
        )
    return arrivals(source.model, moved, isl[rows], osl[rows], priority=source.priority, blocks=mine)


def _of_csv(source: Source, lines: Iterator[str], columns: list[str], line: int, rng: np.random.Generator) -> Arrivals:
    if not columns:
        raise TraceError(source.place, None, "is empty: expected a trace or a CSV of rates")
    missing = [column for column in CLIENT_COLUMNS if column not in columns]
    if "client" in columns and missing and source.time is None and source.rate is None:
        has = f"(has: {', '.join(columns)}; time=COLUMN and rate=COLUMN read it as rates)"
        raise TraceError(source.place, line, f"column {' and '.join(missing)} of ServeGen's client rates is missing {has}")
    if not missing:
        _unread(source, ("cv", "time", "rate", "pool", "prefixes"), "ServeGen's client rates")
        clients = parse_clients(lines, columns, name=source.place, line=line)
        # Windows are long (ten minutes) beside what may be asked for: of those at both ends only the part inside is played.
        length_s = math.inf if source.duration_s is None else source.duration_s
        kept = [
            replace(one, since_s=one.since_s - source.start_s)
            for one in clients
            if one.since_s + one.lasts_s > source.start_s and one.since_s < source.start_s + length_s
        ]
        _few(source, sum(one.rps * one.lasts_s for one in kept))
        at_s = draw_clients(kept, scale=source.scale, rng=rng)
        span_s = min(length_s, max((one.since_s + one.lasts_s for one in kept), default=0.0))
        return _with_lengths(source, at_s[(at_s >= 0.0) & (at_s < length_s)], span_s, rng)
    _unread(source, ("pool", "prefixes"), "a CSV of rates")
    rates = parse_rates(lines, columns, name=source.place, line=line, time=source.time, rate=source.rate)
    return _of_rates(source, rates, rng)


def _of_rates(source: Source, rates: Rates, rng: np.random.Generator) -> Arrivals:
    since, until = rates.since_s, rates.since_s + rates.lasts_s
    begin = source.start_s
    end = math.inf if source.duration_s is None else begin + source.duration_s
    lasts = np.minimum(until, end) - np.maximum(since, begin)
    kept = lasts > 0.0
    cut = Rates(since_s=np.maximum(since, begin)[kept] - begin, lasts_s=lasts[kept], rps=rates.rps[kept])
    _few(source, float((cut.lasts_s * cut.rps).sum()))
    at_s = draw_rates(cut, cv=source.cv, scale=source.scale, rng=rng)
    span_s = float((cut.since_s + cut.lasts_s).max()) if kept.any() else 0.0
    return _with_lengths(source, at_s, span_s, rng)


def _with_lengths(source: Source, at_s: Floats, span_s: float, rng: np.random.Generator) -> Arrivals:
    """Requests drawn from rates, repeated as they are (another day is the same day)."""
    _some(source, at_s.size, "")
    isl, osl = source.isl.draw(at_s.size, rng), source.osl.draw(at_s.size, rng)
    moved = np.concatenate([at_s + source.shift_s + turn * span_s for turn in range(source.repeat)])
    return arrivals(source.model, moved, np.tile(isl, source.repeat), np.tile(osl, source.repeat), priority=source.priority)


def _placed(source: Source, at_s: Floats, whole_s: float, rng: np.random.Generator) -> tuple[np.ndarray, Floats, np.ndarray]:
    """(row, time, number of the copy) of every request that is played. Below a scale of 1 each is kept with that probability;
    above, copies come up to `COPY_JITTER_S` from their originals, within the part that is played."""
    length_s = min(whole_s - source.start_s, math.inf if source.duration_s is None else source.duration_s)
    inside = np.flatnonzero((at_s >= source.start_s) & (at_s - source.start_s <= length_s))
    _few(source, inside.size)
    times = math.floor(source.scale) + (rng.uniform(size=inside.size) < source.scale - math.floor(source.scale)).astype(int)
    rows = np.repeat(inside, times)
    copies = np.arange(rows.size) - np.repeat(np.cumsum(times) - times, times)
    moved = at_s[rows] - source.start_s
    jittered = moved + np.where(copies > 0, rng.uniform(-COPY_JITTER_S, COPY_JITTER_S, rows.size), 0.0)
    # Reflected, not clipped, at both ends: no pile of copies at the first and the last moment.
    moved = np.clip(np.where(jittered > length_s, 2 * length_s - jittered, np.abs(jittered)), 0.0, max(length_s, 0.0))
    rows, copies = np.tile(rows, source.repeat), np.tile(copies, source.repeat)
    turns = np.repeat(np.arange(source.repeat), moved.size)
    return rows, np.tile(moved, source.repeat) + turns * max(length_s, 0.0) + source.shift_s, copies


def _some(source: Source, left: int, of: str) -> None:
    if left == 0:
        raise TraceError(source.place, None, f"no request{of} is left with start, duration and scale as given")


def _few(source: Source, once: float) -> None:
    """Refuses more requests than can be played; `once`: how many there are at a scale of 1, without repeats."""
    count = once * source.scale * source.repeat
    if count > MOST_REQUESTS:
        reason = f"would be about {count:,.3g} requests, more than {MOST_REQUESTS:,}: use a smaller scale, repeat or duration"
        raise TraceError(source.place, None, reason)


def _unread(source: Source, options: tuple[str, ...], what: str) -> None:
    """Refuses options that this kind of source has no use for: who gives them believes that they change something."""
    plain = Source(model=source.model, place=source.place)
    given = [option for option in options if getattr(source, option) != getattr(plain, option)]
    if given:
        raise TraceError(source.place, None, f"{' and '.join(f'{option}=' for option in given)} says nothing of {what}")


# ---- our own journals ------------------------------------------------------------------------------------------------------


def _of_journal(source: Source, folder: Path) -> tuple[Source, Rates]:
    """What a system saw: the arrivals that its planners observed, tick by tick, of the pool that prompts of the model come
    to, and the mean lengths. Requests themselves are not in a journal."""
    _unread(source, ("time", "rate", "prefixes"), "a journal")
    path = folder if segments(folder) else folder / "journal"
    if not segments(path):
        inside = sorted(str(each.relative_to(folder)) for each in folder.glob("*/journal") if segments(each))
        hint = f"; there is one in {', '.join(inside)}" if inside else ""
        raise TraceError(source.place, None, f"is a folder without a journal{hint}")
    seen: dict[str, dict[float, tuple[float, float, float | None, float | None]]] = {}
    try:
        for record in read(path):
            observation = record.observation if isinstance(record, PlannerStatus) else None
            if observation is not None and observation.requests is not None:
                told = (observation.interval_s, observation.requests, observation.isl_tokens, observation.osl_tokens)
                seen.setdefault(observation.pool, {})[observation.at_s] = told
    except JournalCorrupt as error:
        raise TraceError(source.place, None, str(error)) from error
    pool = source.pool
    if pool is None and len(seen) == 1:
        pool = next(iter(seen))
    if pool not in seen:
        has = ", ".join(sorted(seen)) or "none"
        text = "say pool=NAME: the pool whose arrivals are the model's" if pool is None else f"has no pool {pool!r}"
        raise TraceError(source.place, None, f"{text} (has: {has})")
    times = sorted(seen[pool])
    rows = [seen[pool][at_s] for at_s in times]
    isl, osl = (_mean([(row[index], row[1]) for row in rows]) for index in (2, 3))
    rates = Rates(
        since_s=np.array([at_s - row[0] for at_s, row in zip(times, rows, strict=True)]) - (times[0] - rows[0][0]),
        lasts_s=np.array([row[0] for row in rows]),
        rps=np.array([row[1] / row[0] for row in rows]),
    )
    return replace(
        source,
        isl=replace(source.isl, mean=isl) if isl is not None and source.isl == PROMPTS else source.isl,
        osl=replace(source.osl, mean=osl) if osl is not None and source.osl == ANSWERS else source.osl,
    ), rates


def _mean(weighted: list[tuple[float | None, float]]) -> float | None:
    known = [(value, weight) for value, weight in weighted if value is not None and weight > 0.0]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


# ---- a Prometheus ------------------------------------------------------------------------------------------------------------


def _ask_prometheus(source: Source) -> Rates:
    """`prometheus:http://host:9090?query=sum(rate(…))&start=UNIX&end=UNIX&step=60`: the expression's value is requests/s; its
    series are summed. `start` and `end` may also be RFC 3339, `step` a duration. Raises TraceError."""
    _unread(source, ("time", "rate", "pool", "prefixes"), "a Prometheus")
    base, _, asked = source.place.removeprefix(PROMETHEUS).partition("?")
    options = dict(urllib.parse.parse_qsl(asked.replace("+", "%2B")))
    missing = [key for key in ("query", "start", "end") if key not in options]
    if missing:
        raise TraceError(
            source.place, None, f"{' and '.join(missing)} missing: prometheus:URL?query=EXPR&start=UNIX&end=UNIX[&step=SECONDS]"
        )
    try:
        step_s = _some_time(options.get("step", "60"))
    except ValueError as error:
        raise TraceError(source.place, None, f"step={options['step']}: {error}") from None
    options["step"] = f"{step_s:g}"
    url = f"{base.rstrip('/')}/api/v1/query_range?{urllib.parse.urlencode(options)}"
    if not url.startswith(("http://", "https://")):
        raise TraceError(source.place, None, "the address must begin with http:// or https://")
    try:
        with urllib.request.urlopen(url, timeout=ASK_S) as answer:
            body = orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise TraceError(source.place, None, f"answered {error.code}: {error.read()[:200].decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
        raise TraceError(source.place, None, f"cannot be asked: {error}") from error
    if not isinstance(body, dict) or not isinstance(body.get("data"), dict):
        raise TraceError(source.place, None, "answers, but not as a Prometheus does")
    summed: dict[float, float] = {}
    for series in body["data"].get("result", []):
        for at, value in series.get("values", []):
            number = float(value)
            if math.isfinite(number) and number >= 0.0:
                summed[float(at)] = summed.get(float(at), 0.0) + number
    if not summed:
        raise TraceError(source.place, None, "the expression has no value in that time")
    times = np.array(sorted(summed))
    return Rates(
        since_s=times - times[0], lasts_s=np.full(times.size, step_s), rps=np.array([summed[at] for at in times.tolist()])
    )


# ---- options ---------------------------------------------------------------------------------------------------------------


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError("must be a number above 0")
    return value


def _duration(text: str) -> float:
    unit = next((unit for unit in sorted(_UNITS, key=len, reverse=True) if text.endswith(unit)), "")
    try:
        value = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError("must be a duration like 90s, 15m or 2h")
    return value


def _some_time(text: str) -> float:
    value = _duration(text)
    if value == 0.0:
        raise ValueError("must be longer than nothing")
    return value


def _times(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number above 0")
    return int(text)


def _whole(text: str) -> int:
    if not text.removeprefix("-").isdecimal():
        raise ValueError("must be a whole number")
    return int(text)


def _lengths(text: str) -> Lengths:
    mean, _, cv = text.partition(":")
    return Lengths(mean=_positive(mean), cv=_positive(cv) if cv else 1.0)


def _on_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("must be on or off")
    return text == "on"


_READERS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "scale": ("scale", _positive),
    "shift": ("shift_s", _duration),
    "start": ("start_s", _duration),
    "duration": ("duration_s", _some_time),
    "repeat": ("repeat", _times),
    "priority": ("priority", _whole),
    "prefixes": ("prefixes", _on_off),
    "isl": ("isl", _lengths),
    "osl": ("osl", _lengths),
    "cv": ("cv", _positive),
    "time": ("time", str),
    "rate": ("rate", str),
    "pool": ("pool", str),
}
assert {field for field, _ in _READERS.values()} | {"model", "place"} == {each.name for each in fields(Source)}
