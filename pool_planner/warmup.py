"""[I/O] A traffic trace as the intervals that a forecast learns before it starts: Mooncake JSONL or Azure CSV, plain or gzip.

The format is told by content: a line that begins with `{` is Mooncake's (`timestamp` in ms, `input_length`, `output_length`),
a header with TIMESTAMP, ContextTokens and GeneratedTokens is Azure's (date and time).
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TextIO

from pool_planner.setup import PlannerSetup
from pool_planner.state import WarmBin

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A trace that cannot be learned from: file, row (without the header), and what is wrong."""


def load_warmup(path: Path, interval_s: float) -> tuple[WarmBin, ...]:
    """The trace in bins of `interval_s`, oldest first; a last bin that is not full is left out. Raises TraceError."""
    try:
        with _opened(path) as file:
            return bins(_arrivals(file, path), interval_s)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error


def warmup_of(setup: PlannerSetup) -> Mapping[str, tuple[WarmBin, ...]]:
    """By pool: what `load_predictor_warmup_trace` teaches, the same for every pool of the deployment. Raises TraceError."""
    trace = setup.config.load_predictor_warmup_trace
    if trace is None:
        return {}
    learned = load_warmup(Path(trace), float(setup.config.throughput_adjustment_interval))
    return {pool.name: learned for pool in setup.pools}


def bins(arrivals: Iterable[tuple[float, float, float]], interval_s: float) -> tuple[WarmBin, ...]:
    """Arrivals (s, prompt tokens, answer tokens) in order of time, in bins that begin with the first.

    >>> [each.requests for each in bins([(5.0, 10, 1), (6.0, 30, 1), (16.0, 10, 1), (36.0, 1, 1)], 10.0)]
    [2.0, 1.0, 0.0]
    """
    found: list[WarmBin] = []
    begin: float | None = None
    count = isl = osl = 0.0
    for at_s, prompt, answer in arrivals:
        begin = at_s if begin is None else begin
        while at_s >= begin + (len(found) + 1) * interval_s:
            found.append(
                WarmBin(requests=count, isl_tokens=isl / count if count else None, osl_tokens=osl / count if count else None)
            )
            count = isl = osl = 0.0
        count, isl, osl = count + 1.0, isl + prompt, osl + answer
    return tuple(found)


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open("rt", encoding="utf-8", newline="")


def _arrivals(file: TextIO, path: Path) -> Iterator[tuple[float, float, float]]:
    first = file.readline()
    if not first.strip():
        raise TraceError(f"{path}: empty")
    rows = _mooncake(first, file) if first.lstrip().startswith("{") else _azure(first, file, path)
    before, line = -math.inf, 0
    while True:
        line += 1
        try:
            at_s, isl, osl = next(rows)
        except StopIteration:
            return
        except TraceError:
            raise
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise TraceError(f"{path}: row {line}: {type(error).__name__}: {error}") from error
        if not (math.isfinite(at_s) and math.isfinite(isl) and math.isfinite(osl)) or isl < 0 or osl < 0:
            raise TraceError(f"{path}: row {line}: {at_s}, {isl}, {osl} are not a time and two lengths")
        if at_s < before:
            raise TraceError(f"{path}: row {line}: goes back in time, from {before} s to {at_s} s")
        before = at_s
        yield at_s, isl, osl


def _mooncake(first: str, file: TextIO) -> Iterator[tuple[float, float, float]]:
    for text in chain((first,), file):
        row = json.loads(text)
        yield float(row["timestamp"]) / 1e3, float(row["input_length"]), float(row["output_length"])


def _azure(first: str, file: TextIO, path: Path) -> Iterator[tuple[float, float, float]]:
    header = [name.strip() for name in next(csv.reader([first]))]
    missing = [name for name in AZURE if name not in header]
    if missing:
        raise TraceError(f"{path}: line 1: column {missing[0]} is missing (has: {', '.join(header)})")
    columns = [header.index(name) for name in AZURE]
    for cells in csv.reader(file):
        at, isl, osl = (cells[column] for column in columns)
        # The trace has seven digits of a second, datetime takes six.
        moment, _, fraction = at.strip().partition(".")
        whole = datetime.fromisoformat(f"{moment}+00:00").timestamp()
        yield whole + (float(f"0.{fraction}") if fraction else 0.0), float(isl), float(osl)
