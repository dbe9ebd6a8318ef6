"""[I/O: `load_profile` reads files; the rest is pure] Profile data: what was measured of an engine, checked before use.

Two layouts of one content, in a directory: `selected_prefill_interpolation/raw_data.npz` and
`selected_decode_interpolation/raw_data.npz`, or `prefill_raw_data.json` and `decode_raw_data.json` with the same keys. JSON
is read without numpy, which a process that starts often (a mock engine) does not want to import.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pool_planner.performance.interpolation import SAME_CONTEXT, DecodeCurve, PrefillCurve

PREFILL_JSON, DECODE_JSON = "prefill_raw_data.json", "decode_raw_data.json"
PREFILL_NPZ = Path("selected_prefill_interpolation", "raw_data.npz")
DECODE_NPZ = Path("selected_decode_interpolation", "raw_data.npz")


class ProfileError(ValueError):
    """Profile data that cannot be used: the text names the source, the key, the index and the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The curves of one engine; None: not measured."""

    prefill: PrefillCurve | None = None
    decode: DecodeCurve | None = None


def load_profile(directory: Path) -> Profile:
    """[I/O] The profile in `directory`, in either layout (npz first, as its writers do). Raises ProfileError, also when
    neither file of either layout is there."""
    prefill = _read_first((directory / PREFILL_NPZ, directory / PREFILL_JSON))
    decode = _read_first((directory / DECODE_NPZ, directory / DECODE_JSON))
    if prefill is None and decode is None:
        raise ProfileError(
            f"{directory}: no profile data: expected {PREFILL_NPZ}, {PREFILL_JSON}, {DECODE_NPZ} or {DECODE_JSON} in it"
        )
    return Profile(
        prefill=None if prefill is None else prefill_curve(prefill[1], source=prefill[0]),
        decode=None if decode is None else decode_curve(decode[1], source=decode[0]),
    )


def profile_from_raw(raw: Mapping[str, object], *, source: str) -> Profile:
    """The profile of `raw_profile`'s form: {"prefill": columns or null, "decode": columns or null}. Raises ProfileError."""
    unknown = sorted(set(raw) - {"prefill", "decode"})
    if unknown:
        raise ProfileError(f"{source}: unknown key {unknown[0]!r} (has: prefill, decode)")
    prefill, decode = raw.get("prefill"), raw.get("decode")
    return Profile(
        prefill=None if prefill is None else prefill_curve(_object(prefill, f"{source}: prefill"), source=f"{source}: prefill"),
        decode=None if decode is None else decode_curve(_object(decode, f"{source}: decode"), source=f"{source}: decode"),
    )


def raw_profile(profile: Profile) -> dict[str, dict[str, object] | None]:
    """The columns that `profile` was made of, ready for JSON: `profile_from_raw` makes an equal profile of them."""
    prefill, decode = profile.prefill, profile.decode
    return {
        "prefill": None
        if prefill is None
        else {
            "prefill_isl": list(prefill.isl_tokens),
            "prefill_ttft": list(prefill.raw_ttft_ms),
            "prefill_thpt_per_gpu": list(prefill.raw_thpt_per_gpu),
        },
        "decode": None
        if decode is None
        else {
            "x_kv_usage": [point[0] for point in decode.raw],
            "y_context_length": [point[1] for point in decode.raw],
            "z_itl": [point[2] for point in decode.raw],
            "z_thpt_per_gpu": [point[3] for point in decode.raw],
            "max_kv_tokens": decode.max_kv_tokens,
        },
    }


def prefill_curve(raw: Mapping[str, object], *, source: str) -> PrefillCurve:
    """Check {prefill_isl tokens, prefill_ttft ms, prefill_thpt_per_gpu tokens/s/GPU}. Raises ProfileError."""
    isl = _column(raw, "prefill_isl", source)
    ttft = _column(raw, "prefill_ttft", source)
    thpt = _column(raw, "prefill_thpt_per_gpu", source)
    _same_length(source, prefill_isl=isl, prefill_ttft=ttft, prefill_thpt_per_gpu=thpt)
    for index, (before, after) in enumerate(pairwise(isl)):
        if after <= before:
            raise ProfileError(f"{source}: prefill_isl[{index + 1}]: {after:g} does not follow {before:g} in increasing order")
    if isl[0] <= 0:
        raise ProfileError(f"{source}: prefill_isl[0]: {isl[0]:g} is not a prompt length (must be > 0)")
    _all_positive(ttft, "prefill_ttft", source)
    return PrefillCurve(isl_tokens=isl, ttft_ms=ttft, thpt_per_gpu=thpt)


def decode_curve(raw: Mapping[str, object], *, source: str) -> DecodeCurve:
    """Check {x_kv_usage 0..1, y_context_length tokens, z_itl ms, z_thpt_per_gpu tokens/s/GPU, max_kv_tokens}. Raises
    ProfileError."""
    usage = _column(raw, "x_kv_usage", source)
    context = _column(raw, "y_context_length", source)
    itl = _column(raw, "z_itl", source)
    thpt = _column(raw, "z_thpt_per_gpu", source)
    _same_length(source, x_kv_usage=usage, y_context_length=context, z_itl=itl, z_thpt_per_gpu=thpt)
    for index, value in enumerate(usage):
        if value > 1.0 + 1e-6:
            raise ProfileError(f"{source}: x_kv_usage[{index}]: {value:g} is a share of the KV cache and cannot be above 1")
    _all_positive(context, "y_context_length", source)
    _all_positive(itl, "z_itl", source)
    if not _tells_the_rise(usage, context):
        raise ProfileError(
            f"{source}: y_context_length: no context length was measured at two values of x_kv_usage, "
            "so nothing says how ITL rises with load"
        )
    return DecodeCurve(
        kv_usage=usage, context_tokens=context, itl_ms=itl, thpt_per_gpu=thpt, max_kv_tokens=_max_kv_tokens(raw, source)
    )


def _tells_the_rise(usage: Sequence[float], context: Sequence[float]) -> bool:
    points = sorted(zip(context, usage, strict=True))
    return any(b[0] <= a[0] * (1 + SAME_CONTEXT) and a[1] != b[1] for a, b in pairwise(points))


def _max_kv_tokens(raw: Mapping[str, object], source: str) -> int:
    """A number, or a list of one (npz files hold it so)."""
    value = raw.get("max_kv_tokens")
    if value is None:
        raise ProfileError(f"{source}: max_kv_tokens is missing")
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 1:
            raise ProfileError(f"{source}: max_kv_tokens: expected one number, got {len(value)}")
        value = value[0]
    tokens = _number(value, f"{source}: max_kv_tokens")
    if tokens < 1:
        raise ProfileError(f"{source}: max_kv_tokens: {tokens:g}: a KV cache that holds nothing cannot decode (must be >= 1)")
    return int(tokens)


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ProfileError(f"{where}: expected an object with columns, got {type(value).__name__}")
    return value


def _column(raw: Mapping[str, object], key: str, source: str) -> tuple[float, ...]:
    if key not in raw:
        raise ProfileError(f"{source}: {key} is missing (has: {', '.join(sorted(raw)) or 'nothing'})")
    values = raw[key]
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ProfileError(f"{source}: {key}: expected a list of numbers, got {type(values).__name__}")
    if not values:
        raise ProfileError(f"{source}: {key}: no measurement in it")
    column = tuple(_number(value, f"{source}: {key}[{index}]") for index, value in enumerate(values))
    for index, value in enumerate(column):
        if value < 0:
            raise ProfileError(f"{source}: {key}[{index}]: {value:g} is negative")
    return column


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError(f"{where}: {value!r} is not a number")
    if not math.isfinite(value):
        raise ProfileError(f"{where}: {value!r} is not finite")
    return float(value)


def _all_positive(values: Iterable[float], key: str, source: str) -> None:
    for index, value in enumerate(values):
        if value <= 0:
            raise ProfileError(f"{source}: {key}[{index}]: {value:g} must be > 0")


def _same_length(source: str, **columns: Sequence[float]) -> None:
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ProfileError(f"{source}: columns of different lengths: " + ", ".join(f"{k} {n}" for k, n in lengths.items()))


# ---- [I/O] reading -------------------------------------------------------------------------------------------------


def _read_first(candidates: Sequence[Path]) -> tuple[str, Mapping[str, object]] | None:
    for path in candidates:
        if path.is_file():
            return str(path), _read_npz(path) if path.suffix == ".npz" else _read_json(path)
    return None


def _read_json(path: Path) -> Mapping[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ProfileError(f"{path}: cannot be read as JSON: {error}") from error
    return _object(content, str(path))


def _read_npz(path: Path) -> Mapping[str, object]:
    from zipfile import BadZipFile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: np.atleast_1d(archive[key]).tolist() for key in archive.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ProfileError(f"{path}: cannot be read as npz: {error}") from error
