"""[I/O] What a profile leaves in its folder, each file written whole.

selected_*_interpolation/raw_data.npz and *_raw_data.json (the curves), planner_config.json, final_config.yaml, candidates.json,
profiler_status.yaml and report.html.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pool_planner.performance.profile import DECODE_JSON, DECODE_NPZ, PREFILL_JSON, PREFILL_NPZ, load_profile
from pool_planner.profiler.manifests import documents, planner_config
from pool_planner.profiler.rapid import Profiled
from pool_planner.profiler.report import render
from pool_planner.profiler.request import ProfileRequest

STATUS = "profiler_status.yaml"
MEASUREMENTS = "measurements.jsonl"
OUTPUTS = {
    "planner_config.json": "the planner's configuration, for a planner on this machine",
    "final_config.yaml": "ConfigMaps and the deployment, for kubectl apply",
    "report.html": "curves, candidates and SLA",
    "candidates.json": "the ranking of engine shapes",
    PREFILL_JSON: "TTFT and throughput over prompt length",
    DECODE_JSON: "ITL and throughput over KV usage and context",
    str(PREFILL_NPZ): "the same as npz",
    str(DECODE_NPZ): "the same as npz",
    MEASUREMENTS: "what was measured, point by point",
}


def write_status(folder: Path, status: str, message: str, *, warnings: Sequence[str] = ()) -> None:
    """running, success or failed, and what there is by now. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"status": status, "message": message}
    if warnings:
        content["warnings"] = list(warnings)
    if status == "success":
        content["outputs"] = {name: what for name, what in OUTPUTS.items() if (folder / name).exists()}
    _write(folder / STATUS, yaml.safe_dump(content, sort_keys=False, width=120))


def write_results(
    folder: Path,
    request: ProfileRequest,
    profiled: Profiled | None,
    *,
    backend: str,
    planner_image: str | None,
    warnings: Sequence[str],
) -> None:
    """Everything but the status. Curves of an earlier profile are removed first; `planner_image` None: no
    deployment is written. Raises OSError, ProfileError."""
    for old in (PREFILL_NPZ, DECODE_NPZ, Path(PREFILL_JSON), Path(DECODE_JSON)):
        (folder / old).unlink(missing_ok=True)
    profile = None
    if profiled is not None:
        for columns, npz, name in (
            (profiled.prefill, PREFILL_NPZ, PREFILL_JSON),
            (profiled.decode, DECODE_NPZ, DECODE_JSON),
        ):
            if columns is not None:
                _write_columns(folder, columns, npz, name)
        if profiled.prefill is not None or profiled.decode is not None:
            profile = load_profile(folder)
        ranking: dict[str, Any] = {
            "target": asdict(profiled.target),
            **{
                str(phase): {"chosen": str(choice.candidate.shape), "ranking": [_candidate(c) for c in choice.ranking]}
                for phase, choice in profiled.choices.items()
            },
            **profiled.extras,
        }
        _write(folder / "candidates.json", json.dumps(ranking, indent=2) + "\n")
    config = planner_config(
        request, profiled, backend=backend, profile_dir=str(folder.resolve()) if profile is not None else None
    )
    _write(folder / "planner_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "final_config.yaml").unlink(missing_ok=True)
    if planner_image is not None:
        final = documents(request, profiled, backend=backend, planner_image=planner_image)
        _write(folder / "final_config.yaml", yaml.safe_dump_all(final, sort_keys=False, width=120))
    _write(folder / "report.html", render(request, profiled, profile, warnings))


def _candidate(candidate: Any) -> dict[str, Any]:
    return {**asdict(candidate), "shape": str(candidate.shape), "gpus": candidate.shape.gpus}


def _write_columns(folder: Path, columns: Mapping[str, Any], npz: Path, name: str) -> None:
    (folder / npz).parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: np.atleast_1d(np.asarray(value, dtype=np.float64)) for key, value in columns.items()}
    np.savez(folder / npz, **arrays)  # type: ignore[arg-type]
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in columns.items())
    _write(folder / name, "{\n" + lines + "\n}\n")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
