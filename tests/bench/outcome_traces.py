"""[I/O] The real traces as columns for the judge: copies of request traces, and arrivals drawn from published rates."""

from __future__ import annotations

import csv
import gzip
from functools import cache
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from global_planner.replay.arrivals import Arrivals, arrivals
from global_planner.replay.trace_file import load_trace

Floats = NDArray[np.float64]
DATA = Path(__file__).parents[3] / "shared/data"
TRACES = DATA / "traces"
JITTER_S = 5.0  # copies of a request come within this time of it: load, not a burst of twins
STEP_S = 1.0  # resolution of rates that requests are drawn from


@cache
def azure(name: str) -> tuple[Floats, Floats, Floats]:
    """Times (s from the first request), prompt and answer tokens of an Azure 2023 trace: `conv` or `code`."""
    trace = load_trace(TRACES / f"azure2023_{name}.csv.gz")
    columns = [(each.at_s, each.isl_tokens, each.osl_tokens) for each in trace.arrivals]
    at_s, isl, osl = np.array(columns, dtype=np.float64).T
    return at_s, isl, osl


def copies(
    model: str,
    columns: tuple[Floats, Floats, Floats],
    *,
    begin_s: float,
    span_s: float,
    times: float,
    seed: int,
    priority: int = 0,
) -> Arrivals:
    """`times` copies of the requests of (begin, begin + span), each moved by up to JITTER_S; a fraction is one more copy of a
    part of them. Reflected at both ends, so that nothing piles up there."""
    rng = np.random.default_rng(seed)
    at_s, isl, osl = columns
    rows = np.flatnonzero((at_s >= begin_s) & (at_s < begin_s + span_s))
    count = np.full(rows.size, int(times)) + (rng.uniform(size=rows.size) < times - int(times))
    rows = np.repeat(rows, count)
    moved = at_s[rows] - begin_s + rng.uniform(-JITTER_S, JITTER_S, rows.size)
    moved = np.where(moved < 0.0, -moved, np.where(moved > span_s, 2 * span_s - moved, moved))
    return arrivals(model, moved, isl[rows].astype(np.int32), osl[rows].astype(np.int32), priority=priority)


def mooncake(model: str, *, span_s: float, times: int, seed: int) -> Arrivals:
    """Copies of the Mooncake conversation trace with the blocks of their prompts. A copy is another set of users: its blocks
    are its own."""
    rng = np.random.default_rng(seed)
    at_s, isl, osl, blocks = [], [], [], []
    with gzip.open(TRACES / "mooncake_conversation.jsonl.gz", "rb") as lines:
        rows = [orjson.loads(line) for line in lines]
    for copy in range(times):
        for row in rows:
            at = row["timestamp"] / 1e3
            if at >= span_s:
                break
            at_s.append(abs(at + (rng.uniform(-JITTER_S, JITTER_S) if copy else 0.0)))
            isl.append(row["input_length"])
            osl.append(row["output_length"])
            blocks.append(tuple(block * times + copy for block in row["hash_ids"]))
    return arrivals(model, np.array(at_s), np.array(isl), np.array(osl), blocks=tuple(blocks))


@cache
def week() -> tuple[Floats, Floats]:
    """Times (s) and requests/s of the Azure 2024 conversation week, as digitised."""
    with gzip.open(TRACES / "azure2024_conv_week_digitised.csv.gz", "rt", encoding="utf-8") as text:
        rows = list(csv.DictReader(line for line in text if not line.startswith("#")))
    return (
        np.array([60.0 * float(row["minute"]) for row in rows]),
        np.array([float(row["rpm_mid_scaled"]) / 60.0 for row in rows]),
    )


@cache
def servegen() -> tuple[Floats, Floats]:
    """Times (s) and requests/s of ServeGen's m-large, in windows of ten minutes."""
    with gzip.open(TRACES / "servegen_m-large_10min.csv.gz", "rt", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    return np.array([float(row["t_s"]) for row in rows]), np.array([float(row["rate_rps_sum"]) for row in rows])


def drawn(
    model: str,
    rates: tuple[Floats, Floats],
    *,
    begin_s: float,
    span_s: float,
    scale: float,
    seed: int,
    priority: int = 0,
    lengths: str = "conv",
    turn_s: float = 0.0,
) -> Arrivals:
    """Poisson arrivals at `scale` times the published rates from `begin_s` on, linear between their points (with `turn_s`, as
    they were that much later in a day that repeats), with the lengths of requests of an Azure trace."""
    rng = np.random.default_rng(seed)
    grid = np.arange(0.0, span_s, STEP_S)
    rate = scale * np.interp(begin_s + (grid + turn_s) % max(span_s, STEP_S), *rates)
    count = rng.poisson(rate * STEP_S)
    at_s = np.repeat(grid, count) + rng.uniform(0.0, STEP_S, int(count.sum()))
    _, isl, osl = azure(lengths)
    pick = rng.integers(isl.size, size=at_s.size)
    return arrivals(model, np.sort(at_s), isl[pick].astype(np.int32), osl[pick].astype(np.int32), priority=priority)
