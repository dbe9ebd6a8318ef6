"""Profile data: both layouts are read, and what cannot be used is refused by file, key and index."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from global_planner.mocker.demo_profile import ONE_GPU, TWO_GPUS, decode_raw, files, prefill_raw
from pool_planner.performance.profile import (
    DECODE_NPZ,
    PREFILL_NPZ,
    ProfileError,
    decode_curve,
    load_profile,
    prefill_curve,
    profile_from_raw,
    raw_profile,
)

EXAMPLES = Path(__file__).parents[2] / "examples" / "two-models"
GOOD_PREFILL: dict[str, Any] = {
    "prefill_isl": [100, 200, 400],
    "prefill_ttft": [10.0, 20.0, 45.0],
    "prefill_thpt_per_gpu": [10_000.0, 10_000.0, 8888.0],
}
GOOD_DECODE: dict[str, Any] = {
    "x_kv_usage": [0.1, 0.5, 0.1, 0.5],
    "y_context_length": [100, 100, 1000, 1000],
    "z_itl": [10.0, 20.0, 5.0, 8.0],
    "z_thpt_per_gpu": [100.0, 250.0, 20.0, 62.0],
    "max_kv_tokens": 1000,
}


def write_json(folder: Path, prefill: object = None, decode: object = None) -> Path:
    for name, content in (("prefill_raw_data.json", prefill), ("decode_raw_data.json", decode)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def write_npz(folder: Path, prefill: dict[str, Any], decode: dict[str, Any]) -> Path:
    for path, columns in ((PREFILL_NPZ, prefill), (DECODE_NPZ, decode)):
        (folder / path).parent.mkdir()
        np.savez(folder / path, **{key: np.asarray(value) for key, value in columns.items()})
    return folder


def test_both_layouts_give_the_same_curves(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "npz").mkdir()
    from_json = load_profile(write_json(tmp_path / "json", GOOD_PREFILL, GOOD_DECODE))
    from_npz = load_profile(write_npz(tmp_path / "npz", GOOD_PREFILL, {**GOOD_DECODE, "max_kv_tokens": [1000]}))
    assert raw_profile(from_json) == raw_profile(from_npz)
    assert from_json.decode is not None and from_json.decode.max_kv_tokens == 1000


def test_one_role_alone_is_a_profile(tmp_path: Path) -> None:
    profile = load_profile(write_json(tmp_path, GOOD_PREFILL))
    assert profile.prefill is not None and profile.decode is None


def test_the_raw_form_survives_json() -> None:
    profile = profile_from_raw({"prefill": GOOD_PREFILL, "decode": GOOD_DECODE}, source="spec")
    again = profile_from_raw(json.loads(json.dumps(raw_profile(profile))), source="spec")
    assert raw_profile(again) == raw_profile(profile)
    assert raw_profile(profile_from_raw({"prefill": GOOD_PREFILL}, source="spec"))["decode"] is None


@pytest.mark.parametrize(
    ("role", "key", "value", "complaint"),
    [
        ("prefill", "prefill_ttft", None, "prefill_ttft is missing (has: prefill_isl, prefill_thpt_per_gpu)"),
        ("prefill", "prefill_ttft", [10.0, float("nan"), 45.0], "prefill_ttft[1]: nan is not finite"),
        ("prefill", "prefill_ttft", [10.0, 20.0], "columns of different lengths: prefill_isl 3, prefill_ttft 2"),
        ("prefill", "prefill_ttft", [10.0, -1.0, 45.0], "prefill_ttft[1]: -1 is negative"),
        ("prefill", "prefill_ttft", [10.0, 0, 45.0], "prefill_ttft[1]: 0 must be > 0"),
        ("prefill", "prefill_ttft", [10.0, "20", 45.0], "prefill_ttft[1]: '20' is not a number"),
        ("prefill", "prefill_ttft", [10.0, True, 45.0], "prefill_ttft[1]: True is not a number"),
        ("prefill", "prefill_isl", [100, 400, 200], "prefill_isl[2]: 200 does not follow 400"),
        ("prefill", "prefill_isl", [100, 100, 200], "prefill_isl[1]: 100 does not follow 100"),
        ("prefill", "prefill_isl", [0, 100, 200], "prefill_isl[0]: 0 is not a prompt length"),
        ("prefill", "prefill_isl", [], "prefill_isl: no measurement in it"),
        ("prefill", "prefill_isl", 7, "prefill_isl: expected a list of numbers, got int"),
        ("decode", "x_kv_usage", [0.1, 1.5, 0.1, 0.5], "x_kv_usage[1]: 1.5 is a share"),
        ("decode", "y_context_length", [100, 0, 1000, 1000], "y_context_length[1]: 0 must be > 0"),
        ("decode", "y_context_length", [100, 200, 400, 800], "y_context_length: no context length was measured at two"),
        ("decode", "z_itl", [1, 2, 3, float("inf")], "z_itl[3]: inf is not finite"),
        ("decode", "max_kv_tokens", None, "max_kv_tokens is missing"),
        ("decode", "max_kv_tokens", 0, "max_kv_tokens: 0: a KV cache that holds nothing"),
        ("decode", "max_kv_tokens", [1, 2], "max_kv_tokens: expected one number, got 2"),
        ("decode", "max_kv_tokens", "many", "max_kv_tokens: 'many' is not a number"),
    ],
)
def test_refusals(role: str, key: str, value: object, complaint: str) -> None:
    raw = copy.deepcopy(GOOD_PREFILL if role == "prefill" else GOOD_DECODE)
    if value is None:
        del raw[key]
    else:
        raw[key] = value
    check = prefill_curve if role == "prefill" else decode_curve
    with pytest.raises(ProfileError) as refused:
        check(raw, source="dir/file.json")
    assert str(refused.value).startswith(f"dir/file.json: {complaint}")


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no profile data"):
        load_profile(tmp_path)
    (tmp_path / "prefill_raw_data.json").write_text("{")
    with pytest.raises(ProfileError, match=r"prefill_raw_data\.json: cannot be read as JSON"):
        load_profile(tmp_path)
    (tmp_path / "prefill_raw_data.json").write_text("[1]")
    with pytest.raises(ProfileError, match="expected an object with columns, got list"):
        load_profile(tmp_path)
    (tmp_path / PREFILL_NPZ).parent.mkdir()
    (tmp_path / PREFILL_NPZ).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ProfileError, match=r"raw_data\.npz: cannot be read as npz"):
        load_profile(tmp_path)
    with pytest.raises(ProfileError, match="unknown key 'prefil'"):
        profile_from_raw({"prefil": {}}, source="spec")


@pytest.mark.parametrize(("folder", "engine"), [("profile", ONE_GPU), ("profile-2gpu", TWO_GPUS)])
def test_the_committed_demo_profiles_are_the_generators_output(folder: str, engine: Any) -> None:
    for name, text in files(engine).items():
        assert (EXAMPLES / folder / name).read_text() == text


def test_the_demo_engine_is_what_its_docstring_says() -> None:
    profile = profile_from_raw({"prefill": prefill_raw(ONE_GPU), "decode": decode_raw(ONE_GPU)}, source="demo")
    prefill, decode = profile.prefill, profile.decode
    assert prefill is not None and decode is not None
    assert prefill.ttft_ms(512) == pytest.approx(570, abs=40)
    assert prefill.ttft_ms(4096) == pytest.approx(3200, abs=50)
    assert decode.itl_ms(1024 / decode.max_kv_tokens, 1024) == pytest.approx(250, abs=5)
    assert decode.max_kv_usage(500, 1024) * decode.max_kv_tokens / 1024 == pytest.approx(12.4, abs=0.1)
    for sequences, context in ((5, 3000), (20, 700), (2, 50_000)):
        usage = sequences * context / decode.max_kv_tokens
        assert decode.itl_ms(usage, context) == pytest.approx(ONE_GPU.itl_ms(sequences, context), rel=0.01)
        assert decode.thpt_per_gpu(usage, context) == pytest.approx(
            1e3 * sequences / ONE_GPU.itl_ms(sequences, context), rel=0.01
        )
