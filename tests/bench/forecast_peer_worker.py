"""[I/O] Runs forecasters of other projects inside their own environment: JSON in, JSON out. Imports nothing of this project.

Input: {"peer": NAME, "series": [{"name", "step_s", "values"}]}; output: {series name: {"1": [...], "3": [...]}}, forecasts
issued after each bin. Values that are null are not shown to the forecaster. Diagnostics of the libraries go to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import signal
import sys
import warnings
from importlib import import_module
from typing import Any

PR_SET_PDEATHSIG = 1
LONG, REFIT_EVERY, WINDOW = 400, 12, 400  # bins; a long series is refitted every 12 bins and filtered between


def dynamo(peer: str, series: dict[str, Any]) -> dict[str, list[float]]:
    """The planner's own predictor, with its defaults. Its one forecast is of the next interval; 3 bins ahead it is the same."""
    predictors = import_module("dynamo.planner.core.load.predictors")
    shipped = import_module("dynamo.planner.config.planner_config").PlannerConfig
    config = shipped.model_construct(throughput_adjustment_interval_seconds=series["step_s"])
    predictor = getattr(predictors, f"{peer}Predictor")(config)
    forecasts, last = [], 0.0
    for value in series["values"]:
        if value is not None:
            predictor.add_data_point(value)
            last = float(predictor.predict_next())
        forecasts.append(last)
    return {"1": forecasts, "3": forecasts}


def statsforecast(peer: str, series: dict[str, Any]) -> dict[str, list[float]]:
    """A model chosen and fitted anew after each bin on the last `WINDOW` values (long series: see `REFIT_EVERY`)."""
    np, models = import_module("numpy"), import_module("statsforecast.models")
    history: list[float] = []
    forecasts: dict[str, list[float]] = {"1": [], "3": []}
    model, last = None, (0.0, 0.0)
    refit_every = REFIT_EVERY if len(series["values"]) > LONG else 1
    for index, value in enumerate(series["values"]):
        if value is not None:
            history.append(value)
        if value is not None and len(history) >= 5:
            window = np.array(history[-WINDOW:])
            path = None
            with contextlib.suppress(ArithmeticError, LookupError, ValueError, NotImplementedError, np.linalg.LinAlgError):
                if model is None or index % refit_every == 0:
                    model = getattr(models, peer)(season_length=1).fit(window)
                    path = model.predict(3)["mean"]
                else:
                    path = model.forward(window, 3)["mean"]
            last = (value, value) if path is None else (float(path[0]), float(path[2]))
        elif value is not None:
            last = (value, value)
        forecasts["1"].append(last[0])
        forecasts["3"].append(last[1])
    return forecasts


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    request = json.load(sys.stdin)
    family, _, peer = request["peer"].partition("/")
    forecast = {"dynamo": dynamo, "statsforecast": statsforecast}[family]
    answer = {}
    with contextlib.redirect_stdout(sys.stderr):
        for series in request["series"]:
            issued = forecast(peer, series)
            answer[series["name"]] = {
                steps: [value if math.isfinite(value) else 0.0 for value in line] for steps, line in issued.items()
            }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
