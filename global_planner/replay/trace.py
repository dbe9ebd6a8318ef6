"""Traces of arrivals as others publish them, read strictly into requests. Pure: works on an iterator of lines.

Two formats, told apart by what the first line says:

- *Azure CSV* (Azure/AzurePublicDataset): a header with `TIMESTAMP`, `ContextTokens`, `GeneratedTokens` in any order, other
  columns ignored; timestamps are ISO 8601 (UTC where no zone is given).
- *Mooncake JSONL* (kvcache-ai/Mooncake): objects with `timestamp` in ms, `input_length`, `output_length`, and perhaps
  `hash_ids` (of the prompt's blocks of 512 tokens); other keys ignored.

Time is counted from the first row. Every row of the file is checked, also those after the minutes that are played: a trace
with a flaw is not played in part (about 1 s a million rows). A length of 0 becomes 1, since no request is without a token.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import orjson

from global_planner.replay.workload import Request

TraceKind = Literal["azure", "mooncake"]
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
MAX_TOKENS = 100_000_000  # a longer prompt is a damaged number, not a prompt
# Copies of a request (a scale above 1) come within this time of it, so that they are load, not a burst of twins.
COPY_JITTER_S = 5.0
_QUOTED = 60


class TraceError(ValueError):
    """A trace that is refused: which file, which line (None: the file as a whole), and why."""

    def __init__(self, name: str, line: int | None, reason: str) -> None:
        super().__init__(f"{name}: {reason}" if line is None else f"{name}: line {line}: {reason}")
        self.name = name
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One row: `at_s` seconds after the first row, tokens in and out as the trace says. `blocks`: ids of the prompt's blocks,
    equal where prompts are equal from their beginning on (empty: the trace does not tell)."""

    at_s: float
    isl_tokens: int
    osl_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The part of a trace that is played, and what there was: `rows` in the whole file over `span_s` seconds."""

    name: str
    kind: TraceKind
    rows: int
    span_s: float
    arrivals: tuple[Arrival, ...]


def parse_trace(lines: Iterable[str], *, name: str, span_s: float = math.inf) -> Trace:
    """Read and check all lines; keep the rows of the first `span_s` seconds. Raises TraceError with `name` and the line."""
    numbered = iter(enumerate(lines, start=1))
    number, line = next(((number, line) for number, line in numbered if line.strip()), (0, ""))
    if not line:
        raise TraceError(name, None, "is empty: expected Azure CSV or Mooncake JSONL")
    kind: TraceKind = "mooncake" if line.lstrip().startswith("{") else "azure"
    rows = _mooncake(name, number, line, numbered) if kind == "mooncake" else _azure(name, number, line, numbered)
    kept: list[Arrival] = []
    count, first, last = 0, 0.0, -math.inf
    for number, at_s, isl, osl, blocks in rows:
        if count == 0:
            first = at_s
        elif at_s < last:
            raise TraceError(name, number, f"is {last - at_s:.6g} s before the row above it; rows must be sorted by time")
        last = at_s
        count += 1
        if at_s - first < span_s:
            kept.append(Arrival(at_s=at_s - first, isl_tokens=max(1, isl), osl_tokens=max(1, osl), blocks=blocks))
    if count == 0:
        raise TraceError(name, number, "the header is all there is: no row follows it")
    return Trace(name=name, kind=kind, rows=count, span_s=last - first, arrivals=tuple(kept))


Row = tuple[int, float, int, int, tuple[int, ...]]  # line, absolute seconds, tokens in, tokens out, blocks of the prompt


def _azure(name: str, number: int, header: str, numbered: Iterator[tuple[int, str]]) -> Iterator[Row]:
    columns = [column.strip() for column in next(csv.reader([header]), [])]
    missing = [column for column in AZURE_COLUMNS if column not in columns]
    if len(missing) == len(AZURE_COLUMNS):
        expected = (
            f"a header with {', '.join(AZURE_COLUMNS)} (Azure CSV) or an object with {', '.join(MOONCAKE_KEYS)} (Mooncake)"
        )
        raise TraceError(name, number, f"is neither of the known formats: expected {expected}, found {_quote(header)}")
    if missing:
        raise TraceError(name, number, f"column {' and '.join(missing)} is missing (has: {', '.join(columns)})")
    when, tokens_in, tokens_out = (columns.index(column) for column in AZURE_COLUMNS)
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise TraceError(name, number, f"is not CSV: {error}") from error
        if len(cells) != len(columns):
            raise TraceError(name, number, f"has {len(cells)} values, the header has {len(columns)} columns")
        try:
            moment = datetime.fromisoformat(cells[when].strip())
        except ValueError:
            raise TraceError(name, number, f"TIMESTAMP {_quote(cells[when])} is not a date and time") from None
        at_s = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        isl = _count(name, number, "ContextTokens", _whole(name, number, "ContextTokens", cells[tokens_in]))
        osl = _count(name, number, "GeneratedTokens", _whole(name, number, "GeneratedTokens", cells[tokens_out]))
        yield number, at_s, isl, osl, ()


def _mooncake(name: str, number: int, first: str, numbered: Iterator[tuple[int, str]]) -> Iterator[Row]:
    line: str | None = first
    while line is not None:
        if line.strip():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise TraceError(name, number, f"is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise TraceError(name, number, f"is not an object: {_quote(line)}")
            missing = [key for key in MOONCAKE_KEYS if key not in row]
            if missing:
                raise TraceError(name, number, f"{' and '.join(missing)} is missing (has: {', '.join(row)})")
            when, isl, osl = (row[key] for key in MOONCAKE_KEYS)
            if isinstance(when, bool) or not isinstance(when, int | float):
                raise TraceError(name, number, f"timestamp {_quote(when)} is not a number of ms")
            for key, value in (("input_length", isl), ("output_length", osl)):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TraceError(name, number, f"{key} {_quote(value)} is not a whole number")
            isl = _count(name, number, "input_length", isl)
            yield number, when / 1e3, isl, _count(name, number, "output_length", osl), _blocks(name, number, row)
        number, line = next(numbered, (number, None))


def _blocks(name: str, number: int, row: Mapping[str, object]) -> tuple[int, ...]:
    blocks = row.get("hash_ids", ())
    if not isinstance(blocks, list | tuple) or not all(isinstance(each, int) for each in blocks):
        raise TraceError(name, number, f"hash_ids {_quote(blocks)} is not a list of whole numbers")
    return tuple(blocks)


def _whole(name: str, number: int, column: str, cell: str) -> int:
    try:
        return int(cell)
    except ValueError:
        raise TraceError(name, number, f"{column} {_quote(cell)} is not a whole number") from None


def _count(name: str, number: int, column: str, tokens: int) -> int:
    if not 0 <= tokens <= MAX_TOKENS:
        raise TraceError(name, number, f"{column} is {tokens}, must be 0..{MAX_TOKENS}")
    return tokens


def _quote(value: object) -> str:
    text = repr(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A trace as it is played: `requests`, and how many prompts were `shortened` so that prompt and answer fit a model."""

    trace: Trace
    requests: tuple[Request, ...]
    shortened: int


def play(
    trace: Trace, models: Sequence[str], rng: np.random.Generator, *, scale: float = 1.0, max_model_len: int | None = None
) -> Played:
    """Requests of a trace at `scale` times its rate, each sent to one of `models` with equal chance, drawn from `rng`.

    Below 1 each arrival is kept with probability `scale`. Above 1 arrivals are laid over copies of themselves: floor(scale)
    times each, and once more with the remaining probability; every copy comes up to 5 s from its original, within the span
    that is played. Answers (then prompts) that together exceed `max_model_len` tokens are cut to fit. Raises TraceError when
    nothing is left to play.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise TraceError(trace.name, None, f"scale {scale} must be a number above 0")
    if not models:
        raise TraceError(trace.name, None, "no model to send its requests to")
    count = len(trace.arrivals)
    times = math.floor(scale) + (rng.uniform(size=count) < scale - math.floor(scale)).astype(int)
    source = np.repeat(np.arange(count), times)
    if source.size == 0:
        raise TraceError(
            trace.name, None, f"no request is left of {count} at scale {scale:g}; use a larger scale or more minutes"
        )
    is_copy = np.concatenate(([False], source[1:] == source[:-1]))
    end_s = trace.arrivals[-1].at_s
    original_s = np.array([arrival.at_s for arrival in trace.arrivals])[source]
    jittered_s = original_s + np.where(is_copy, rng.uniform(-COPY_JITTER_S, COPY_JITTER_S, source.size), 0.0)
    # Reflected, not clipped, at both ends: no pile of copies at the first and the last moment.
    at_s = np.clip(np.where(jittered_s > end_s, 2 * end_s - jittered_s, np.abs(jittered_s)), 0.0, end_s)
    model = rng.integers(len(models), size=source.size)
    shortened = 0
    requests: list[Request] = []
    for index in np.argsort(at_s, kind="stable"):
        arrival = trace.arrivals[source[index]]
        isl, osl = arrival.isl_tokens, arrival.osl_tokens
        if max_model_len is not None and isl + osl > max_model_len:
            osl = max(1, min(osl, max_model_len - isl))
            isl = min(isl, max_model_len - osl)
            shortened += 1
        requests.append(Request(at_s=float(at_s[index]), model=models[model[index]], isl_tokens=isl, osl_tokens=osl))
    return Played(trace=trace, requests=tuple(requests), shortened=shortened)
