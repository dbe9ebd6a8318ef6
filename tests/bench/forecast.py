"""[I/O] `python -m tests.bench.forecast --data FOLDER --json FILE [--predictors a,b] [--peer]`: how good the forecasts are.

Rolling origin, out of sample: bins are learned one by one, after each the bins 1 and 3 ahead are forecast, and from the second
third of a series on the forecasts are judged (`early`: from the second fifth on, what a young planner is worth). Predictors
are made with the options that a planner makes them with. Background fits are run where they are offered, at once, and are not
part of the timed update: a live planner runs them elsewhere. Times are of the thread's processor, so that neighbours do not
count. Rows and totals hold the keys of `forecast_scores.scores`; capacity is planned on the 80 % quantile in `asym_cost`.
`--peer` adds other forecasting libraries (forecast_peers.py).

Two looks at whether `auto` owes its figures to having been tuned: `--development` shows the series that its rules were chosen
on (forecast_development.py: others, not judged); `--leave-trace-out` chooses its rules anew for each trace, by the others.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np

from pool_planner.forecast import PREDICTORS, Predictor, PredictorOptions, make_predictor
from pool_planner.forecast.auto import RecentBest
from pool_planner.forecast.contest import Contest
from pool_planner.forecast.series import SeriesPredictor
from tests.bench.forecast_development import development_series
from tests.bench.forecast_peers import PEERS, peer_tables
from tests.bench.forecast_scores import EARLY, HORIZONS, Issued, holm_rejections, scores, totals, worse_than_naive
from tests.bench.forecast_series import TraceSeries, read_series

TARGETS: dict[str, dict[str, tuple[float, float]]] = {  # (least, most) of each total
    "auto": {
        "rmae_h1": (0.0, 0.81),
        "rmae_h3": (0.0, 0.85),
        "asym_cost": (0.0, 0.50),
        "asym_cost_mean": (0.0, 0.50),
        "coverage_q90": (0.88, 0.93),
        "series_worse_than_naive": (0.0, 0.0),
        "update_ms_p50": (0.0, 1.0),
        "update_ms_p99": (0.0, 5.0),
    },
    "arima": {"rmae_h1": (0.0, 1.05), "rmae_h3": (0.0, 1.05)},
    "kalman": {"rmae_h1": (0.0, 0.94)},
}


def forecast_series(series: TraceSeries, predictor: Predictor) -> tuple[dict[int, Issued], list[float], list[float]]:
    """What `predictor` issued at each bin, and the milliseconds of each update with its forecasts, and of each fit."""
    issued = {steps: Issued() for steps in HORIZONS}
    update_ms, fit_ms = [], []
    for index, value in enumerate(series.values):
        at_s = (index + 1) * series.step_s
        began = thread_time()
        predictor.learn(value, at_s)
        predictions = [(steps, predictor.forecast(steps, (0.8, 0.9))) for steps in HORIZONS]
        update_ms.append(1e3 * (thread_time() - began))
        for steps, prediction in predictions:
            mean = prediction.mean if prediction else 0.0
            issued[steps].mean.append(mean)
            issued[steps].q80.append(prediction.quantile(0.8) if prediction else mean)
            issued[steps].q90.append(prediction.quantile(0.9) if prediction else mean)
        job = predictor.fit_job()
        if job is not None:
            began = thread_time()
            result = job.run()
            fit_ms.append(1e3 * (thread_time() - began))
            predictor.fitted(result, at_s)
    return issued, update_ms, fit_ms


def table(all_series: Iterable[TraceSeries], make: Callable[[TraceSeries], Predictor]) -> dict[str, Any]:
    """Rows by series and their totals, for one predictor."""
    rows: dict[str, dict[str, float]] = {}
    p_values: dict[str, float] = {}
    update_ms: list[float] = []
    fit_ms: list[float] = []
    early: list[dict[str, float]] = []
    for series in all_series:
        issued, updates, fits = forecast_series(series, make(series))
        row = scores(series.values, issued)
        early.append(scores(series.values, issued, EARLY))
        row["update_ms_p50"], row["update_ms_p99"] = (float(np.percentile(updates, q)) for q in (50, 99))
        rows[series.name] = row
        for steps in HORIZONS:
            p_values[f"{series.name} h{steps}"] = worse_than_naive(series.values, issued[steps].mean, steps)
        update_ms += updates
        fit_ms += fits
    total = totals(list(rows.values()))
    worse = holm_rejections(p_values)
    total["series_worse_than_naive"] = float(len(worse))
    total["update_ms_p50"], total["update_ms_p99"] = (float(np.percentile(update_ms, q)) for q in (50, 99))
    total["fits"] = float(len(fit_ms))
    total["fit_ms_mean"] = float(np.mean(fit_ms)) if fit_ms else 0.0
    return {"series": rows, "total": total, "early": totals(early), "worse_than_naive": worse}


def ours(name: str, all_series: list[TraceSeries]) -> dict[str, Any]:
    """The table of one of our predictors."""
    return table(all_series, lambda series: make_predictor(name, PredictorOptions(step_s=series.step_s)))


# What `--leave-trace-out` chooses from: neighbours of the rules that are the default, one change each.
CHOICES = (
    Contest(),
    *(Contest(best=count) for count in (3, 6, 16)),
    *(Contest(discount=share) for share in (0.96, 0.99)),
    *(Contest(cap=errors) for errors in (2.0, 3.0, 8.0)),
    *(Contest(long_probation=errors) for errors in (15.0, 25.0)),
    *(Contest(longer=share) for share in (0.0, 1.0)),
)


def leave_trace_out(all_series: list[TraceSeries]) -> dict[str, Any]:
    """`auto` with the rules that are best on the other traces, judged on each trace in turn."""
    by_choice: list[list[tuple[dict[str, float], dict[str, float]]]] = []
    for number, rules in enumerate(CHOICES, start=1):
        rows = []
        for series in all_series:
            options = PredictorOptions(step_s=series.step_s)
            model = RecentBest(step_s=series.step_s, horizons=options.horizons, rules=rules)
            issued, _, _ = forecast_series(series, SeriesPredictor("auto", model, step_s=series.step_s))
            rows.append((scores(series.values, issued), scores(series.values, issued, EARLY)))
        by_choice.append(rows)
        print(f"leave-trace-out: {number} of {len(CHOICES)} rules", file=sys.stderr, flush=True)
    traces = [series.name.partition("/")[0] for series in all_series]
    chosen: dict[str, int] = {}
    for trace in dict.fromkeys(traces):

        def elsewhere(choice: int, trace: str = trace) -> float:
            others = [row for (row, _), of in zip(by_choice[choice], traces, strict=True) if of != trace]
            return sum(math.log(row["rmae_h1"]) + math.log(row["rmae_h3"]) for row in others)

        chosen[trace] = min(range(len(CHOICES)), key=elsewhere)
    rows = [by_choice[chosen[trace]][index] for index, trace in enumerate(traces)]
    return {
        "chosen": {trace: str(CHOICES[index]) for trace, index in chosen.items()},
        "total": totals([late for late, _ in rows]),
        "early": totals([early for _, early in rows]),
    }


def check(results: dict[str, Any]) -> list[str]:
    """A line for each target that was missed."""
    missed = []
    for name, targets in TARGETS.items():
        for key, (least, most) in targets.items():
            if name in results and not least <= results[name]["total"][key] <= most:
                missed.append(f"{name}: {key} {results[name]['total'][key]:.4f} is not in {least:g}..{most:g}")
    behind = [name for name in results if "/" in name and "auto" in results]
    for key in ("asym_cost", "asym_cost_mean"):
        for name in behind:
            if results[name]["total"][key] <= results["auto"]["total"][key]:
                missed.append(f"auto: {key} is not ahead of {name}, {results[name]['total'][key]:.4f}")
    return missed


SHOWN = (
    "rmae_h1",
    "rmae_h3",
    "mase",
    "wape",
    "pinball_q80",
    "pinball_q90",
    "coverage_q90",
    "bias",
    "asym_cost",
    "asym_cost_mean",
)


def show(results: dict[str, Any]) -> str:
    lines = [f"{'':32s}" + "".join(f"{key:>15s}" for key in (*SHOWN, "worse", "p50 ms", "p99 ms"))]
    for name, result in results.items():
        total = result["total"]
        cells = [f"{total[key]:15.3f}" for key in SHOWN]
        cells += [f"{len(result['worse_than_naive']):15d}"]
        cells += [f"{total[key]:15.3f}" if key in total else f"{'':15s}" for key in ("update_ms_p50", "update_ms_p99")]
        lines.append(f"{name:32s}" + "".join(cells))
    return "\n".join(lines)


def show_early(results: dict[str, Any]) -> str:
    """Judged from the second fifth of each series on."""
    keys = ("rmae_h1", "rmae_h3", "asym_cost", "coverage_q90")
    lines = [f"{'early':32s}" + "".join(f"{key:>15s}" for key in keys)]
    lines += [f"{name:32s}" + "".join(f"{of['early'][key]:15.3f}" for key in keys) for name, of in results.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--json", type=Path, help="where the whole table goes")
    parser.add_argument(
        "--predictors", default="constant,kalman,arima,auto", help="comma-separated, of " + ", ".join(PREDICTORS)
    )
    parser.add_argument(
        "--peer", action="store_true", help="also the forecasters of other projects, each in its own environment (an hour)"
    )
    parser.add_argument(
        "--peers", default=",".join(PEERS), help="with --peer: which ones, comma-separated, of %(default)s (the default)"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path(__file__).parents[2] / ".cache/forecast-peers",
        help="where --peer installs them and keeps what they forecast",
    )
    parser.add_argument(
        "--longest",
        type=int,
        metavar="BINS",
        help="leave out series with more bins, for everybody (a peer that refits on all of its history takes an hour for one)",
    )
    parser.add_argument("--development", action="store_true", help="the series that the rules of auto were chosen on instead")
    parser.add_argument("--leave-trace-out", action="store_true", help="also auto with rules chosen by the other traces")
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        print(
            f"skipped: no folder {arguments.data} with traces; give the folder that holds azure2023_conv.csv.gz and the others"
        )
        return 0
    try:
        all_series = development_series(arguments.data) if arguments.development else read_series(arguments.data)
    except FileNotFoundError as missing:
        print(f"skipped: {missing.filename} is missing from {arguments.data}")
        return 0
    all_series = [series for series in all_series if arguments.longest is None or len(series.values) <= arguments.longest]
    results = {name: ours(name, all_series) for name in arguments.predictors.split(",")}
    if arguments.peer:
        results |= peer_tables(all_series, arguments.environments, arguments.peers.split(","))
    left_out = leave_trace_out(all_series) if arguments.leave_trace_out else None
    missed = check(results)
    print(f"{len(all_series)} series" + ("" if arguments.longest is None else f" of at most {arguments.longest} bins"))
    print(show(results))
    print(show_early(results))
    if left_out is not None:
        late, early = left_out["total"], left_out["early"]
        print(
            f"auto, rules chosen by the other traces: rmae_h1 {late['rmae_h1']:.3f}, rmae_h3 {late['rmae_h3']:.3f}, asym_cost "
            f"{late['asym_cost']:.3f}; early {early['rmae_h1']:.3f}, {early['rmae_h3']:.3f}, {early['asym_cost']:.3f}"
        )
    print("\n".join(missed) or "every target is met")
    if arguments.json:
        report = {
            "protocol": {
                "horizons": HORIZONS,
                "judged_from": "the second third of each series; `early` from the second fifth",
                "series": len(all_series),
                "longest_bins": arguments.longest,
                "planned_on": "the 80 % quantile",
                "arima_fits": "where they are offered: at 10 values, then when history has grown by a quarter or 100 bins",
            },
            "predictors": results,
            "leave_trace_out": left_out,
            "missed": missed,
        }
        arguments.json.write_text(json.dumps(report, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
