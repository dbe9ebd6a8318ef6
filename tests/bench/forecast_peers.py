"""[I/O] Forecasters of other projects on the same series and origins, each family in a virtual environment of its own.

Each appears twice: as shipped (capacity is planned on its forecast, it has no quantile) and with our conformal quantile made
from its own errors, which separates the worth of the forecast from that of the quantile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from pool_planner.forecast.conformal import ErrorWindow, Margin
from tests.bench.forecast_scores import HORIZONS, Issued, holm_rejections, scores, totals, worse_than_naive
from tests.bench.forecast_series import TraceSeries

FAMILIES = {
    "statsforecast": (("statsforecast==2.1.1",), ("AutoARIMA", "AutoETS", "AutoTheta")),
    "dynamo": (
        ("ai-dynamo==1.4.2", "pmdarima", "filterpy", "prophet", "pandas", "scipy"),
        ("Constant", "ARIMA", "Kalman", "Prophet"),
    ),
}
ERRORS_KEPT = 150


def environment(family: str, folder: Path) -> Path:
    """The interpreter of the family's environment, made and filled if it is not there yet."""
    python = folder / family / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv")
        if uv is None:
            raise SystemExit("--peer: `uv` is needed to make the environments; it was not found")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder / family)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), *FAMILIES[family][0]], check=True)
    return python


def _issued_by(python: Path, peer: str, all_series: list[TraceSeries]) -> dict[str, dict[str, list[float]]]:
    request = {
        "peer": peer,
        "series": [{"name": s.name, "step_s": s.step_s, "values": s.values} for s in all_series],
    }
    worker = Path(__file__).with_name("forecast_peer_worker.py")
    done = subprocess.run(
        [str(python), str(worker)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        cwd=python.parent,
    )
    if done.returncode != 0:
        raise SystemExit(f"--peer: {peer} failed in {python}:\n{done.stderr[-2000:]}")
    answer: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return answer


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


def peer_tables(all_series: list[TraceSeries], environments: Path) -> dict[str, Any]:
    """Tables like those of our predictors, named family/peer and family/peer+conformal."""
    tables: dict[str, Any] = {}
    for family, (_, peers) in FAMILIES.items():
        python = environment(family, environments)
        for peer in peers:
            forecasts = _issued_by(python, f"{family}/{peer}", all_series)
            for conformal in (False, True):
                rows, p_values = {}, {}
                for series in all_series:
                    issued = {
                        steps: _judge(series, steps, forecasts[series.name][str(steps)], conformal=conformal)
                        for steps in HORIZONS
                    }
                    rows[series.name] = scores(series.values, issued)
                    for steps in HORIZONS:
                        p_values[f"{series.name} h{steps}"] = worse_than_naive(series.values, issued[steps].mean, steps)
                worse = holm_rejections(p_values)
                total = totals(list(rows.values())) | {"series_worse_than_naive": float(len(worse))}
                name = f"{family}/{peer}{'+conformal' if conformal else ''}"
                tables[name] = {"series": rows, "total": total, "worse_than_naive": worse}
    return tables
