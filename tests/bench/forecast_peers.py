"""[I/O] Forecasters of other projects on the same series and origins, each family in a virtual environment of its own.

Each appears twice: as shipped (capacity is planned on its forecast, it has no quantile) and with our conformal quantile made
from its own errors, which separates the worth of the forecast from that of the quantile. What a peer forecast for a series is
kept beside its environment, so a run that was interrupted goes on where it was, and judging anew costs nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pool_planner.forecast.conformal import ErrorWindow, Margin
from tests.bench.forecast_scores import EARLY, HORIZONS, Issued, holm_rejections, scores, totals, worse_than_naive
from tests.bench.forecast_series import TraceSeries

FAMILIES = {
    "dynamo": (
        ("ai-dynamo==1.4.2", "pmdarima", "filterpy", "prophet", "pandas", "scipy", "scikit-learn", "prometheus-api-client"),
        ("Constant", "Kalman", "ARIMA", "Prophet"),
    ),
    "statsforecast": (("statsforecast==2.1.1",), ("AutoTheta", "AutoETS", "AutoARIMA")),
    # Its replay, for the outcome benchmark: no forecaster.
    "dynamo-replay": (
        (
            "ai-dynamo==1.4.2",
            "pmdarima",
            "filterpy",
            "prophet",
            "pandas",
            "scipy",
            "scikit-learn",
            "plotly",
            "prometheus-api-client",
        ),
        (),
    ),
}
PEERS = tuple(f"{family}/{peer}" for family, (_, peers) in FAMILIES.items() for peer in peers)
ERRORS_KEPT = 150
REFIT_EVERY = ((120, 1), (500, 10))  # (bins at most, bins from fit to fit) of statsforecast's models; longer series: 20
REFIT_LONGEST = 20
WORKER = Path(__file__).with_name("forecast_peer_worker.py")
OWN_UV = Path(__file__).parents[2] / ".cache/uv/bin/uv"  # where deploy/install.sh puts it


def environment(family: str, folder: Path) -> Path:
    """The interpreter of the family's environment, made and filled if it is not there yet."""
    home = folder / family
    python, finished = home / "bin" / "python", home / ".installed"
    wanted = " ".join(FAMILIES[family][0])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{family}.lock").open("w") as lock:  # runs side by side need it at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (finished.exists() and finished.read_text() == wanted):
            _fill(home, family)
            finished.write_text(wanted)
    return python


def _fill(home: Path, family: str) -> None:
    uv = shutil.which("uv") or (str(OWN_UV) if OWN_UV.exists() else None)
    if uv is None:
        raise SystemExit("--peer: `uv` is needed to make the environments; run `make setup`, or install it")
    say(f"{family}: installing {' '.join(FAMILIES[family][0])} into {home}")
    subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", str(home / "bin" / "python"), *FAMILIES[family][0]], check=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def issued_by(python: Path, peer: str, all_series: list[TraceSeries]) -> dict[str, dict[str, list[float]]]:
    """What `peer` (family/name) forecasts after each bin of each series, by series and horizon; from what was kept, where the
    series and its protocol are the same."""
    kept = python.parents[1] / "forecasts" / peer.partition("/")[2]
    kept.mkdir(parents=True, exist_ok=True)
    files = {series.name: kept / f"{_digest(series)}.json" for series in all_series}
    todo = [series for series in all_series if not files[series.name].exists()]
    if todo:
        _ask(python, peer, todo, files)
    return {name: json.loads(file.read_text()) for name, file in files.items()}


def _digest(series: TraceSeries) -> str:
    text = json.dumps([series.name, series.step_s, series.values, _refit_every(series)])
    return series.name.replace("/", "-") + "-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _refit_every(series: TraceSeries) -> int:
    """Bins from fit to fit. The predictors of `dynamo` decide for themselves and do not look at it."""
    return next((bins for most, bins in REFIT_EVERY if len(series.values) <= most), REFIT_LONGEST)


def _ask(python: Path, peer: str, todo: list[TraceSeries], files: dict[str, Path]) -> None:
    log = python.parents[1] / f"{peer.partition('/')[2]}.log"
    with log.open("w") as errors:
        worker = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=python.parent,
        )
        assert worker.stdin is not None and worker.stdout is not None
        try:
            for number, series in enumerate(todo, start=1):
                began = time.monotonic()
                line: dict[str, Any] = {"peer": peer, "name": series.name, "step_s": series.step_s, "values": series.values}
                line["refit_every"] = _refit_every(series)
                try:
                    worker.stdin.write(json.dumps(line) + "\n")
                    worker.stdin.flush()
                except BrokenPipeError:
                    pass  # it has ended: the empty answer says so, with its log
                answer = worker.stdout.readline()
                if not answer:
                    raise SystemExit(f"--peer: {peer} failed on {series.name} in {python}:\n{log.read_text()[-2000:]}")
                part = files[series.name].with_suffix(".part")
                part.write_text(answer)
                part.rename(files[series.name])
                took_s = time.monotonic() - began
                say(f"{peer}: {number} of {len(todo)}: {series.name}, {len(series.values)} bins in {took_s:.1f} s")
        finally:
            worker.kill()
            worker.wait()


def _judge(series: TraceSeries, steps: int, means: list[float], *, conformal: bool) -> Issued:
    """Forecasts as they are planned on: bounded below by 0, with or without a quantile from earlier errors."""
    margin, issued = Margin(ErrorWindow(ERRORS_KEPT)), Issued()
    units: list[float] = []
    for index, mean in enumerate(means):
        value = series.values[index]
        if index >= steps and value is not None:
            margin.learn(value - max(0.0, means[index - steps]), units[index - steps])
        mean = max(0.0, mean)
        units.append(margin.unit)
        issued.mean.append(mean)
        issued.q80.append(max(0.0, mean + margin.quantile(0.8)) if conformal else mean)
        issued.q90.append(max(0.0, mean + margin.quantile(0.9)) if conformal else mean)
    return issued


def peer_tables(all_series: list[TraceSeries], environments: Path, wanted: Sequence[str] = PEERS) -> dict[str, Any]:
    """Tables like those of our predictors, named family/peer and family/peer+conformal, of the `wanted` family/peer."""
    strangers = sorted(set(wanted) - set(PEERS))
    if strangers:
        raise SystemExit(f"--peers {strangers[0]}: unknown (known: {', '.join(PEERS)})")
    tables: dict[str, Any] = {}
    for family, (_, all_peers) in FAMILIES.items():
        peers = [peer for peer in all_peers if f"{family}/{peer}" in wanted]
        if not peers:
            continue
        python = environment(family, environments)
        for peer in peers:
            forecasts = issued_by(python, f"{family}/{peer}", all_series)
            for conformal in (False, True):
                rows, p_values, early = {}, {}, []
                for series in all_series:
                    issued = {
                        steps: _judge(series, steps, forecasts[series.name][str(steps)], conformal=conformal)
                        for steps in HORIZONS
                    }
                    rows[series.name] = scores(series.values, issued)
                    early.append(scores(series.values, issued, EARLY))
                    for steps in HORIZONS:
                        p_values[f"{series.name} h{steps}"] = worse_than_naive(series.values, issued[steps].mean, steps)
                worse = holm_rejections(p_values)
                total = totals(list(rows.values())) | {"series_worse_than_naive": float(len(worse))}
                name = f"{family}/{peer}{'+conformal' if conformal else ''}"
                tables[name] = {"series": rows, "total": total, "early": totals(early), "worse_than_naive": worse}
    return tables
