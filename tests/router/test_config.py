"""Configurations that are refused: each problem with its path, all at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from router.__main__ import main
from router.config import ConfigError, RouterConfig, read, validate
from router.foreign import is_foreign, translate
from router.reference import sections
from tests.router.test_policy import disagg

PD = [{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}]


def model(**more: Any) -> dict[str, Any]:
    return {"models": [{"model": "m", "pools": PD, **more}]}


def pools(*described: dict[str, Any]) -> dict[str, Any]:
    return {"models": [{"model": "m", "pools": list(described)}]}


AXIS = {"by": "isl_tokens", "min": 0, "max": 10, "resolution": 2}
PROBLEMS = {
    "unknown key": ({**model(), "quue": {}}, "quue: unknown key; did you mean 'queue'?"),
    "unknown nested key": (model(prority_class=1), "models[0].prority_class: unknown key; did you mean 'priority_class'?"),
    "no models": ({}, "models: Field required"),
    "no decode": (pools({"name": "p", "role": "prefill"}), "models[0]: 'm' has no decode pool"),
    "same pool name": ({"models": [{"model": "m", "pools": PD}, {"model": "n", "pools": PD}]}, "two pools are named 'd'"),
    "same address": ({**model(), "listen": {"port": 8001}}, "listen and admin are both 127.0.0.1:8001"),
    "bad role": (pools({"name": "p", "role": "pre"}), "models[0].pools[0].role: Input should be"),
    "bad url": (pools({"name": "a", "role": "agg", "endpoints": ["10.0.0.1:80"]}), "models[0].pools[0].endpoints[0]"),
    "other hand-off": (model(handoff="lmdeploy"), "models[0].handoff: no hand-off is known for 'lmdeploy' (known: 'vllm'"),
    "Dynamo's hand-off": (model(handoff="dynamo"), "is one pool of role agg here"),
    "decode alone where it cannot": (
        model(handoff="sglang", decode_only_fallback=True),
        "models[0]: decode_only_fallback: a decode engine of sglang cannot prefill",
    ),
    "grid of strangers": (
        model(grids={"prefill": {"axes": [AXIS], "cells": ["p", "q"]}}),
        "models[0]: grids.prefill names q; the prefill pools are p",
    ),
    "grid of another shape": (
        model(grids={"prefill": {"axes": [AXIS], "cells": ["p"]}}),
        "models[0].grids.prefill: cells must be a list of 2",
    ),
    "empty axis": (
        model(grids={"prefill": {"axes": [{**AXIS, "max": 0}], "cells": ["p", "p"]}}),
        "models[0].grids.prefill.axes[0]: max 0.0 must be above min 0.0",
    ),
    "KV blocks that nobody reads": (
        pools({"name": "p", "role": "prefill", "kv_format": "x"}, {"name": "d", "role": "decode"}),
        "no decode pool takes kv_format 'x' of prefill pool 'p'",
    ),
    "two tokens": ({**model(), "admin": {"token_env": "A", "token_file": "b"}}, "admin.token_env and admin.token_file"),
}


@pytest.mark.parametrize(("raw", "told"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_refused(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        validate(raw, source="r.yaml")
    assert f"r.yaml: {told}" in str(refusal.value) or told in str(refusal.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        validate({"listn": {}, "models": [{"model": "m", "pools": [{"name": "p", "rol": "agg"}]}]})
    assert len(str(refusal.value).splitlines()) == 3


FOREIGN = {
    "count": ({"num_prefill_pools": 3}, "num_prefill_pools: is 3, but prefill_pool_dynamo_namespaces names 2"),
    "mode": ({"mode": "both"}, "mode: 'both' is neither"),
    "unknown": ({"num_agg_pools": 1}, "num_agg_pools: unknown key"),
    "retry without ranks": ({"enable_priority_retry": True}, "enable_priority_retry: needs"),
    "ranks": ({"prefill_pool_priorities": [1]}, "prefill_pool_priorities: must be a list of 2 numbers"),
}


@pytest.mark.parametrize(("change", "told"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_refused(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        translate(disagg(**change), source="g.json")
    assert f"g.json: {told}" in str(refusal.value)


def test_foreign_cells_are_checked() -> None:
    raw = disagg()
    raw["prefill_pool_selection_strategy"]["prefill_pool_mapping"] = [[0, 1], [2, True]]
    with pytest.raises(ConfigError) as refusal:
        translate(raw)
    assert "prefill_pool_mapping[1][0]: pool 2 is not one of 0..1" in str(refusal.value)
    assert "prefill_pool_mapping[1][1]: pool True" in str(refusal.value)


def test_forms_are_told_apart_and_read() -> None:
    assert is_foreign(disagg())
    assert not is_foreign(model())
    assert read(b'{"a": 1}', source="x") == read(b"a: 1", source="x") == {"a": 1}
    for text in (b"{", b"[1]", b"a: [", b""):
        with pytest.raises(ConfigError, match="x: "):
            read(text, source="x")


def test_a_configuration_survives_its_own_json() -> None:
    config = validate(model(grids={"prefill": {"axes": [AXIS], "cells": ["p", "p"]}}))
    assert validate(read(config.model_dump_json().encode(), source="x")) == config


def test_settings_tell_every_key() -> None:
    """Every key of every section stands in the reference once, and every section says what it is for."""
    told = CliRunner().invoke(main, ["settings"]).output
    for path, section in sections().items():
        part = CliRunner().invoke(main, ["settings", path]).output if path else told
        assert part.startswith(path) and (section.__doc__ or "").split()[0] in part
        for name in section.model_fields:
            assert any(line.startswith(f"  {name} ") for line in part.splitlines()), (path, name)
    assert "max_in_flight           whole number" in told
    assert "eject_s      number        30\n" in told


def test_settings_help_to_find_a_section() -> None:
    told = CliRunner().invoke(main, ["settings", "pools"])
    assert told.exit_code == 2
    assert "there are models[].pools[], models[].pools[].discovery" in told.output
    schema = json.loads(CliRunner().invoke(main, ["settings", "--schema"]).output)
    assert set(schema["properties"]) == set(RouterConfig.model_fields)
