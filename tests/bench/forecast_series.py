"""The traffic series of the forecast benchmark, read from public traces. [I/O]

Per-request traces are binned by 10, 30 and 60 s: requests are counted (an empty bin is a zero), ISL and OSL are means over the
bin's requests (an empty bin is unknown). The last, partial bin is dropped. The other traces keep their native bins.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

BINS_S = (10.0, 30.0, 60.0)
SHORTEST = 40  # fewer bins cannot be scored out of sample


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSeries:
    """`values[i]` is what was measured over bin i, `step_s` wide; None where there was nothing to measure."""

    name: str
    step_s: float
    values: tuple[float | None, ...]


def read_series(folder: Path) -> list[TraceSeries]:
    """All series of the traces in `folder`. Raises FileNotFoundError that names the first file missing."""
    found: list[TraceSeries] = []
    for trace, requests in (
        ("azure2023_conv", _azure(folder / "azure2023_conv.csv.gz")),
        ("azure2023_code", _azure(folder / "azure2023_code.csv.gz")),
        ("mooncake_conversation", _mooncake(folder / "mooncake_conversation.jsonl.gz")),
    ):
        for step_s in BINS_S:
            found.extend(_binned(trace, requests, step_s))
    for trace in ("servegen_m-large", "servegen_deepseek-r1"):
        rows = list(_rows(folder / f"{trace}_10min.csv.gz"))
        rates = tuple(float(row["rate_rps_sum"]) * 600.0 for row in rows)
        found.append(TraceSeries(name=f"{trace}/requests/600s", step_s=600.0, values=rates))
        tokens = list(_rows(folder / f"{trace}_tokens.csv.gz"))
        for what, column in (("isl", "mean_input"), ("osl", "mean_output")):
            means = tuple(float(row[column]) for row in tokens)
            found.append(TraceSeries(name=f"{trace}/{what}/21600s", step_s=21600.0, values=means))
    week = tuple(float(row["rpm_mid_scaled"]) * 7.216 for row in _rows(folder / "azure2024_conv_week_digitised.csv.gz"))
    found.append(TraceSeries(name="azure2024_conv_week/requests/433s", step_s=7.216 * 60.0, values=week))
    return [series for series in found if len(series.values) >= SHORTEST]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


def _azure(path: Path) -> list[tuple[float, float, float]]:
    """(arrival in seconds since the first, input tokens, output tokens) of every request."""
    requests = []
    for row in _rows(path):
        stamp = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()  # the seventh decimal is beyond a datetime
        requests.append((stamp, float(row["ContextTokens"]), float(row["GeneratedTokens"])))
    requests.sort()
    return [(stamp - requests[0][0], isl, osl) for stamp, isl, osl in requests]


def _mooncake(path: Path) -> list[tuple[float, float, float]]:
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    return sorted((row["timestamp"] / 1000.0, float(row["input_length"]), float(row["output_length"])) for row in rows)


def _binned(trace: str, requests: list[tuple[float, float, float]], step_s: float) -> Iterator[TraceSeries]:
    bins = int(requests[-1][0] / step_s)
    count, isl, osl = [0.0] * bins, [0.0] * bins, [0.0] * bins
    for at_s, tokens_in, tokens_out in requests:
        index = int(at_s / step_s)
        if index < bins:
            count[index] += 1.0
            isl[index] += tokens_in
            osl[index] += tokens_out
    yield TraceSeries(name=f"{trace}/requests/{step_s:.0f}s", step_s=step_s, values=tuple(count))
    for what, sums in (("isl", isl), ("osl", osl)):
        means = tuple(total / n if n else None for total, n in zip(sums, count, strict=True))
        yield TraceSeries(name=f"{trace}/{what}/{step_s:.0f}s", step_s=step_s, values=means)
