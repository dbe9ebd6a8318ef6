"""[I/O] Series that the rules of `auto` were chosen on, and that are not judged: what single clients of ServeGen sent.

Rates in ten minutes, and hours of single requests: of one client or of a few, each window's arrivals a renewal process with
the rate and the Gamma or Weibull shape that ServeGen measured for it, lengths log-normal by client; binned as the judged traces
are. The two ServeGen totals among the judged series are sums of such clients; the other traces have nothing to do with them.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.forecast_series import BINS_S, SHORTEST, TraceSeries

SEED = 5
WINDOW_S = 600.0
WINDOWS = 6  # an hour of single requests
RATES, HOURS = 16, {"servegen_m-large": 14, "servegen_deepseek-r1": 6}
BUSY_RPS, PRESENT = 0.05, 0.8  # clients with at least this mean rate, in at least this share of the windows
FEWEST_REQUESTS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Ten minutes of one client: requests/s, and the family and shape of the times between them."""

    rate_rps: float
    family: str
    shape: float


Clients = Mapping[str, Mapping[int, Window]]


def development_series(folder: Path) -> list[TraceSeries]:
    """Raises FileNotFoundError that names the first file missing."""
    rng = np.random.default_rng(SEED)
    found: list[TraceSeries] = []
    for trace, hours in HOURS.items():
        clients = _busy(_read(folder / f"{trace}_clients.csv.gz"))
        last = max(max(windows) for windows in clients.values())
        names = sorted(clients)
        for name in rng.choice(names, size=min(RATES, len(names)), replace=False):
            found += _rates(trace, name, clients[name], last, rng)
        for hour in range(hours):
            found += _hour(f"{trace}/hour{hour}", clients, names, last, rng)
    return found


def _read(path: Path) -> Clients:
    clients: dict[str, dict[int, Window]] = {}
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            window = Window(rate_rps=float(row["rate_rps"]), family=row["pattern"], shape=float(row["param1"] or 1.0))
            clients.setdefault(row["client"], {})[int(float(row["t_s"]) // WINDOW_S)] = window
    return clients


def _busy(clients: Clients) -> Clients:
    last = max(max(windows) for windows in clients.values())
    return {
        name: windows
        for name, windows in clients.items()
        if len(windows) > PRESENT * last and np.mean([each.rate_rps for each in windows.values()]) > BUSY_RPS
    }


def _rates(trace: str, name: str, windows: Mapping[int, Window], last: int, rng: np.random.Generator) -> Iterator[TraceSeries]:
    bins = min(int(rng.choice([58, 116, 144, 350, 700])), last - 1)
    first = int(rng.integers(0, last - bins))
    rates = (windows.get(first + index) for index in range(bins))
    values = tuple(0.0 if each is None else WINDOW_S * each.rate_rps for each in rates)
    if sum(value > 0.0 for value in values) > bins / 2:
        yield TraceSeries(name=f"{trace}/client{name}/600s", step_s=WINDOW_S, values=values)


def _hour(name: str, clients: Clients, names: list[str], last: int, rng: np.random.Generator) -> Iterator[TraceSeries]:
    group = rng.choice(names, size=min(int(rng.choice([1, 3, 8])), len(names)), replace=False)
    first = int(rng.integers(0, last - WINDOWS))
    times, isl, osl = [], [], []
    for client in group:
        middles, spreads = rng.uniform((5.5, 3.5), (8.5, 6.5)), rng.uniform((0.4, 0.4), (1.2, 1.0))
        for window in range(WINDOWS):
            drawn = clients[client].get(first + window)
            if drawn is None or drawn.rate_rps <= 0.0:
                continue
            arrivals = _arrivals(drawn, rng)
            times.append(window * WINDOW_S + arrivals)
            isl.append(rng.lognormal(middles[0], spreads[0], len(arrivals)))
            osl.append(rng.lognormal(middles[1], spreads[1], len(arrivals)))
    at_s = np.concatenate(times) if times else np.zeros(0)
    if len(at_s) < FEWEST_REQUESTS:
        return
    for step_s in BINS_S:
        bins = int(WINDOWS * WINDOW_S / step_s)
        index = np.minimum((at_s // step_s).astype(int), bins - 1)
        counts = np.bincount(index, minlength=bins)
        assert bins >= SHORTEST
        yield TraceSeries(name=f"{name}/requests/{step_s:.0f}s", step_s=step_s, values=tuple(map(float, counts)))
        for what, lengths in (("isl", isl), ("osl", osl)):
            sums = np.bincount(index, weights=np.concatenate(lengths), minlength=bins)
            means = tuple(float(total / n) if n else None for total, n in zip(sums, counts, strict=True))
            yield TraceSeries(name=f"{name}/{what}/{step_s:.0f}s", step_s=step_s, values=means)


def _arrivals(window: Window, rng: np.random.Generator) -> np.ndarray:
    most = int(2.0 * WINDOW_S * window.rate_rps + 50)
    if window.family == "Gamma":
        gaps = rng.gamma(max(window.shape, 0.02), 1.0, most)
    elif window.family == "Weibull":
        gaps = rng.weibull(max(window.shape, 0.2), most)
    else:
        gaps = rng.exponential(1.0, most)
    at_s = np.cumsum(gaps / (window.rate_rps * (gaps.mean() + 1e-12)))
    return at_s[at_s < WINDOW_S]
