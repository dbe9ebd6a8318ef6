"""[I/O] Runs forecasters of other projects inside their own environment: JSON lines in and out. Imports nothing of ours.

Input, one line a series: {"peer": FAMILY/NAME, "name", "step_s", "values", "refit_every"}; output, one line for each:
{"1": [...], "3": [...]}, forecasts issued after each bin. Values that are null are not shown to the forecaster. What the
libraries say goes to stderr.
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
WINDOW = 400  # bins that a fit looks at


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
    """A model chosen and fitted anew every `refit_every` bins on the last `WINDOW` values; between, the newest values are run
    through the last fit (`refit` of statsforecast's own cross-validation)."""
    np, models = import_module("numpy"), import_module("statsforecast.models")
    history: list[float] = []
    forecasts: dict[str, list[float]] = {"1": [], "3": []}
    model, last = None, (0.0, 0.0)
    for index, value in enumerate(series["values"]):
        if value is not None:
            history.append(value)
        if value is not None and len(history) >= 5:
            window = np.array(history[-WINDOW:])
            path = None
            with contextlib.suppress(ArithmeticError, LookupError, ValueError, NotImplementedError, np.linalg.LinAlgError):
                if model is None or index % series["refit_every"] == 0:
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
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        series = json.loads(line)
        family, _, peer = series["peer"].partition("/")
        issued = {"dynamo": dynamo, "statsforecast": statsforecast}[family](peer, series)
        told = {steps: [value if math.isfinite(value) else 0.0 for value in values] for steps, values in issued.items()}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
