"""[I/O] Estimates for measured serving points, in an interpreter that has aiconfigurator.

Reads a JSON list of points {model, system, backend, precision, isl, osl, batch, tp} on stdin; writes a list of {ttft_ms,
tpot_ms} or {problem}, in the same order, on stdout.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pool_planner.profiler.aic import Aiconfigurator, Unsupported
from pool_planner.profiler.shapes import EngineShape, EstimateError

# What a precision of the table means to each backend; attention in FP8 was measured of two of them only.
_KV = {"kvcache_quant_mode": "fp8"}
_ATTENTION = {"vllm": _KV, "sglang": _KV | {"fmha_quant_mode": "fp8"}, "trtllm": _KV | {"fmha_quant_mode": "fp8"}}
GEMM = {"fp8": "fp8", "fp4": "nvfp4"}


def quantization(precision: str | None, backend: str) -> dict[str, str]:
    return {} if precision is None else {"gemm_quant_mode": GEMM[precision], **_ATTENTION[backend]}


def estimate(engines: dict[tuple[str, ...], Aiconfigurator], point: dict[str, Any]) -> dict[str, object]:
    model, system, precision, backend = (point[name] for name in ("model", "system", "precision", "backend"))
    key = (model, system, str(precision), backend)
    try:
        if key not in engines:
            engines[key] = Aiconfigurator(model, system, quantization=quantization(precision, backend))
        shape = EngineShape(backend=backend, tensor_parallel=point["tp"])
        ttft_ms, tpot_ms = engines[key].aggregated_ms(shape, point["isl"], point["osl"], point["batch"])
    except (Unsupported, EstimateError) as error:
        return {"problem": str(error)}
    return {"ttft_ms": ttft_ms, "tpot_ms": tpot_ms}


def main() -> None:
    engines: dict[tuple[str, ...], Aiconfigurator] = {}
    answers = []
    points = json.load(sys.stdin)
    for number, point in enumerate(points, 1):
        answers.append(estimate(engines, point))
        if number % 50 == 0 or number == len(points):
            print(f"estimates: {number} of {len(points)}", file=sys.stderr)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
