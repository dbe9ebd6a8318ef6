"""[I/O] `python -m tests.bench.curves [--data FOLDER] [--json FILE]`: how far the curves can be trusted.

1. Leave one out: each point of the measured H200 profile is predicted from all others, by our curves and by scipy's griddata
   (linear, cubic). griddata gives no number on the hull; errors are compared on the points where both of it do, and ours on
   the hull is told beside them. Means of |predicted / measured - 1| in per cent.
2. Simulated against measured: what aiconfigurator estimates for each measured serving point (aggregated engines; rows above
   20 s of TTFT dropped, medians of repeated points, points whose repeats disagree by more than 1.5 x dropped), and what is left
   of the TPOT error after the online correction has seen ten points of the deployment (10 random orders each; judged on the
   points that it has not seen, of deployments with at least 13).

The second part runs in an interpreter that has aiconfigurator: this one, or an environment that is made under .cache with uv.
JSON keys: prefill_loo_mape, decode_loo_mape, griddata_loo_mape, cubic_loo_mape, rapid_tpot_mape, rapid_ttft_mape,
corrected_tpot_mape (per cent; null where a part was skipped).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline, griddata

from pool_planner.performance.correction import Correction
from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve
from pool_planner.performance.profile import Profile, load_profile

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "profiles"
TTFT_LIMIT_MS = 20_000.0
DISAGREEMENT = 1.5
SEEN = 10
ORDERS = 10
KEYS = (
    *("prefill_loo_mape", "decode_loo_mape", "griddata_loo_mape", "cubic_loo_mape"),
    *("rapid_tpot_mape", "rapid_ttft_mape", "corrected_tpot_mape"),
)


# ---- leave one out -------------------------------------------------------------------------------------------------


def left_out(profile: Profile) -> dict[str, float]:
    """Errors of the measured profile, in per cent."""
    assert profile.prefill is not None and profile.decode is not None
    points = np.array(profile.decode.raw)
    ours, linear, cubic = np.array([_decode_without(points, i, profile.decode.max_kv_tokens) for i in range(len(points))]).T
    inner = np.isfinite(linear) & np.isfinite(cubic)
    lengths, times = np.array(profile.prefill.isl_tokens), np.array(profile.prefill.raw_ttft_ms)
    prefill = np.array([_prefill_without(lengths, times, i) for i in range(1, len(lengths) - 1)])
    return {
        "inner decode points": float(inner.sum()),
        "decode_loo_mape": 100 * float(ours[inner].mean()),
        "griddata_loo_mape": 100 * float(linear[inner].mean()),
        "cubic_loo_mape": 100 * float(cubic[inner].mean()),
        "decode, on the hull (griddata: none)": 100 * float(ours[~inner].mean()),
        "prefill_loo_mape": 100 * float(prefill[:, 0].mean()),
        "prefill, straight lines": 100 * float(prefill[:, 1].mean()),
        "prefill, cubic spline": 100 * float(prefill[:, 2].mean()),
    }


def _decode_without(points: Any, index: int, max_kv_tokens: int) -> tuple[float, float, float]:
    rest, (usage, context, itl, _) = np.delete(points, index, 0), points[index]
    curve = DecodeCurve(
        kv_usage=rest[:, 0], context_tokens=rest[:, 1], itl_ms=rest[:, 2], thpt_per_gpu=rest[:, 3], max_kv_tokens=max_kv_tokens
    )
    theirs = [
        float(griddata(rest[:, :2], rest[:, 2], points[index : index + 1, :2], method=method)[0])
        for method in ("linear", "cubic")
    ]
    return tuple(abs(value / itl - 1.0) for value in (curve.itl_ms(usage, context), *theirs))  # type: ignore[return-value]


def _prefill_without(lengths: Any, times: Any, index: int) -> tuple[float, float, float]:
    xs, ys = np.delete(lengths, index), np.delete(times, index)
    ours = PrefillCurve(isl_tokens=xs, ttft_ms=ys, thpt_per_gpu=np.ones_like(xs)).ttft_ms(lengths[index])
    theirs = np.interp(lengths[index], xs, ys), CubicSpline(xs, ys)(lengths[index])
    return tuple(abs(float(value) / times[index] - 1.0) for value in (ours, *theirs))  # type: ignore[return-value]


# ---- simulated against measured ------------------------------------------------------------------------------------


def measured_points(path: Path) -> list[dict[str, Any]]:
    """The aggregated rows of the table, cleaned as its description asks."""
    rows: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["mode"] != "agg" or float(row["ttft_ms"]) > TTFT_LIMIT_MS:
                continue
            key = (
                *(row["model_path"], row["system"], row["backend"], row["precision"] or None),
                *(int(float(row["isl"])), int(float(row["osl"])), int(float(row["concurrency"] or row["batch_size"]))),
                int(float(row["tp_size"])),
            )
            rows[key].append((float(row["ttft_ms"]), float(row["tpot_ms"])))
    points = []
    for key, values in rows.items():
        tpots = [tpot for _, tpot in values]
        if max(tpots) > DISAGREEMENT * min(tpots):
            continue
        names = ("model", "system", "backend", "precision", "isl", "osl", "batch", "tp")
        point = dict(zip(names, key, strict=True))
        points.append({**point, "ttft_ms": median(ttft for ttft, _ in values), "tpot_ms": median(tpots)})
    return points


def estimates(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What aiconfigurator says of each point. Raises RuntimeError where no interpreter with it can be had."""
    done = subprocess.run(
        [str(_interpreter()), "-m", "tests.bench.rapid_worker"],
        input=json.dumps(points), stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the estimates ended with exit status {done.returncode}")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def _interpreter() -> Path:
    if find_spec("aiconfigurator") is not None:
        return Path(sys.executable)
    python = ROOT / ".cache" / "aic" / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv") or str(ROOT / ".cache" / "uv" / "bin" / "uv")
        if not Path(uv).exists():
            raise RuntimeError("neither aiconfigurator (extra 'aic') nor uv is installed")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(python.parents[1])], check=True)
        more = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([uv, "pip", "install", "-q", "--python", str(python), "aiconfigurator==0.12.0", *more], check=True)
    return python


def against_measured(points: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, float]:
    """Errors of the estimates, in per cent."""
    known = [(point, answer) for point, answer in zip(points, answers, strict=True) if "problem" not in answer]
    deployments: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for point, answer in known:
        key = tuple(point[name] for name in ("model", "system", "backend", "precision", "tp"))
        deployments[key].append((point["tpot_ms"], answer["tpot_ms"]))
    before, after = [], []
    for pairs in deployments.values():
        if len(pairs) < SEEN + 3:
            continue
        for seed in range(ORDERS):
            shuffled = random.Random(seed).sample(pairs, len(pairs))
            correction = Correction()
            for observed, profiled in shuffled[:SEEN]:
                correction = correction.with_itl(observed_ms=observed, expected_ms=correction.itl_ms(profiled))
            before += [abs(profiled / observed - 1.0) for observed, profiled in shuffled[SEEN:]]
            after += [abs(correction.itl_ms(profiled) / observed - 1.0) for observed, profiled in shuffled[SEEN:]]
    return {
        "measured points": float(len(points)),
        "of which estimated": float(len(known)),
        "rapid_tpot_mape": 100 * mean(abs(answer["tpot_ms"] / point["tpot_ms"] - 1.0) for point, answer in known),
        "rapid_ttft_mape": 100 * mean(abs(answer["ttft_ms"] / point["ttft_ms"] - 1.0) for point, answer in known),
        "tpot, the judged points before correction": 100 * mean(before),
        "corrected_tpot_mape": 100 * mean(after),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the measured profile and points (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--no-rapid", action="store_true", help="only the first part, which takes a second")
    arguments = parser.parse_args(argv)
    if not arguments.data.is_dir():
        print(f"skipped: no folder {arguments.data} with measured data")
        return 0
    results: dict[str, float] = left_out(load_profile(arguments.data / "h200_llama31_8b_fp8_tp1"))
    missed = []
    for theirs in ("griddata_loo_mape", "cubic_loo_mape"):
        if results["decode_loo_mape"] > results[theirs]:
            missed.append(f"decode_loo_mape {results['decode_loo_mape']:.2f} is above {theirs} {results[theirs]:.2f}")
    if not arguments.no_rapid:
        try:
            points = measured_points(arguments.data / "measured_serving_points.csv.gz")
            results |= against_measured(points, estimates(points))
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            print(f"skipped the second part: {error}")
        else:
            for whole in ("rapid_tpot_mape", "tpot, the judged points before correction"):
                if results["corrected_tpot_mape"] > results[whole] / 2:
                    missed.append(f"corrected_tpot_mape {results['corrected_tpot_mape']:.2f} is not half of: {whole}")
    for name, value in results.items():
        print(f"{name:45s} {value:8.2f}")
    print("\n".join(missed) or "every target is met")
    if arguments.json:
        arguments.json.write_text(json.dumps({key: results.get(key) for key in KEYS}, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
