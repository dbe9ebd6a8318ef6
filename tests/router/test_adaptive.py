"""Adaptive selection and grids: predictions on curves that one can add up by hand, a dumb twin, and real sockets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pool_planner.performance.profile import Profile, ProfileError, decode_curve, prefill_curve
from router.__main__ import main
from router.adaptive import AdaptiveStage, Predictor, Waiting
from router.config import validate
from router.config_pools import GridConfig, ModelConfig, PoolConfig
from router.foreign import translate
from router.grid import grids
from router.policy import Ask, Stage
from tests.router.conftest import MODEL, StartEngine, StartRouter


def prefill(ms_per_token: float) -> Any:
    isl = [100.0, 1000.0, 10_000.0]
    raw = {
        "prefill_isl": isl,
        "prefill_ttft": [ms_per_token * x for x in isl],
        "prefill_thpt_per_gpu": [1000 / ms_per_token] * 3,
    }
    return raw


def decode(base_ms: float) -> Any:
    """ITL rises from base to three times that with KV usage, whatever the context; the cache holds 100,000 tokens."""
    usage = [0.0, 0.5, 1.0] * 2
    context = [1000.0] * 3 + [10_000.0] * 3
    itl = [base_ms * (1 + 2 * x) for x in usage]
    thpt = [x * 100_000 / y / z * 1000 for x, y, z in zip(usage, context, itl, strict=True)]
    return {"x_kv_usage": usage, "y_context_length": context, "z_itl": itl, "z_thpt_per_gpu": thpt, "max_kv_tokens": 100_000}


def profile(ms_per_token: float = 0.1, base_ms: float = 10.0) -> Profile:
    return Profile(prefill=prefill_curve(prefill(ms_per_token), source="p"), decode=decode_curve(decode(base_ms), source="d"))


@dataclass
class Load:
    in_flight: int = 0
    outstanding_tokens: float = 0.0
    unstarted: int = 0
    unstarted_tokens: float = 0.0


def predictor(role: Any, cost: float = 3600.0, **curves: float) -> Predictor:
    pool = PoolConfig(name="x", role=role, profile="x", cost_per_hour=cost)
    return Predictor(pool, profile(**curves), ttft_ms=1000.0)


def test_a_prompt_waits_for_those_ahead_of_it() -> None:
    one = predictor("prefill")
    alone = one.predict([Load()], 1000, 100, 20.0)
    assert alone.ttft_ms == pytest.approx(100.0)
    # 1,000 tokens take 100 ms of a replica that costs 1 a second.
    assert alone.cost == pytest.approx(0.1)
    assert alone.itl_ms is None
    behind = one.predict([Load(unstarted=2, unstarted_tokens=4000), Load(unstarted=1, unstarted_tokens=2000)], 1000, 100, 20.0)
    assert behind.ttft_ms == pytest.approx(300.0)
    assert behind.cost == alone.cost


def test_what_answers_teach_differs_by_load() -> None:
    """Engines that take 6 ms longer for every step than their profile says: half as much again where steps are short, a quarter
    where they are long. One factor for both would be wrong by a tenth at each."""
    one, profiled = predictor("decode"), predictor("decode")
    loads = [Load(in_flight=1, outstanding_tokens=1000), Load(in_flight=40, outstanding_tokens=70_000)]

    def expected(of: Predictor, load: Load) -> float:
        itl = of.predict([load], 1000, 100, 50.0).itl_ms
        assert itl is not None
        return itl

    for _ in range(30):
        for load in loads:
            one.learn(one.predict([load], 1000, 100, 50.0), ttft_ms=None, itl_ms=expected(profiled, load) + 6.0)
    for load in loads:
        assert expected(one, load) == pytest.approx(expected(profiled, load) + 6.0, rel=0.03)


def test_what_waits_in_the_router_is_ahead_too() -> None:
    """Four prompts of 2,000 tokens wait for two engines: two of them for each, 400 ms."""
    waiting = Waiting(requests=4, tokens=8000)
    prefill = predictor("prefill").predict([Load(), Load()], 1000, 100, 20.0, waiting)
    assert prefill.ttft_ms == pytest.approx(500.0)
    decode = predictor("decode").predict([Load()], 900, 200, 20.0, Waiting(requests=50, tokens=45_000))
    assert decode.itl_ms == pytest.approx(10.0 * (1 + 2 * 0.51), rel=0.02)


def test_decode_slows_with_what_is_resident() -> None:
    one = predictor("decode")
    alone = one.predict([Load()], 900, 200, 20.0)
    assert alone.itl_ms == pytest.approx(10.2, rel=0.01)  # 1,000 of 100,000 tokens
    full = one.predict([Load(in_flight=50, outstanding_tokens=55_000)], 900, 200, 20.0)
    assert full.itl_ms == pytest.approx(10.0 * (1 + 2 * 0.51), rel=0.02)
    # ITL 20 ms is reached at half of the cache, with 50 sequences: 200 tokens x 20 ms / 50.
    assert alone.cost == pytest.approx(0.08, rel=0.1)


def test_an_aggregated_pool_does_both() -> None:
    one = predictor("agg")
    got = one.predict([Load(in_flight=3, outstanding_tokens=3300, unstarted=1, unstarted_tokens=500)], 900, 200, 20.0)
    assert got.itl_ms == pytest.approx(10 * (1 + 2 * 0.04), rel=0.02)
    assert got.ttft_ms == pytest.approx(50 + 90 + got.itl_ms, rel=0.02)


def test_a_profile_without_the_roles_curve_is_refused() -> None:
    pool = PoolConfig(name="x", role="decode", profile="dir")
    with pytest.raises(ProfileError, match="pool 'x' is a decode pool and needs a decode curve"):
        Predictor(pool, Profile(prefill=prefill_curve(prefill(0.1), source="p")), ttft_ms=1000.0)


def test_answers_correct_predictions_slowly() -> None:
    """The engine's TTFT is 50 ms longer than the profile says: after a few dozen answers, predictions know."""
    one = predictor("prefill")
    for _ in range(60):
        one.learn(one.predict([Load()], 1000, 100, 20.0), ttft_ms=150.0, itl_ms=None)
    assert one.predict([Load()], 1000, 100, 20.0).ttft_ms == pytest.approx(150.0, abs=2.0)
    slow = predictor("decode")
    for _ in range(60):
        slow.learn(slow.predict([Load()], 900, 200, 20.0), ttft_ms=None, itl_ms=15.0)
    assert slow.predict([Load()], 900, 200, 20.0).itl_ms == pytest.approx(15.0, rel=0.02)


def model(*pools: dict[str, Any], **more: Any) -> ModelConfig:
    described = [{"profile": "x", **pool} for pool in pools]
    adaptive = {"selection": "adaptive", "default_ttft_ms": 500, "default_itl_ms": 20}
    return validate({"models": [{"model": MODEL, "pools": described, **adaptive, **more}]}).models[0]


CHEAP = {"name": "cheap", "role": "agg", "cost_per_hour": 1.0}
FAST = {"name": "fast", "role": "agg", "cost_per_hour": 10.0}
SLOW_CURVES = {"ms_per_token": 0.4, "base_ms": 15.0}
FAST_CURVES = {"ms_per_token": 0.1, "base_ms": 5.0}
CASES = [
    # isl, ttft target, itl target, load of cheap (requests without a first token, their tokens) -> order
    ("within both", (1000, 1000.0, 50.0, 0, 0), ["cheap", "fast"]),
    ("TTFT too tight", (1000, 200.0, 50.0, 0, 0), ["fast", "cheap"]),
    ("ITL too tight", (1000, 1000.0, 10.0, 0, 0), ["fast", "cheap"]),
    ("a queue ahead", (1000, 1000.0, 50.0, 2, 2000), ["fast", "cheap"]),
    ("nobody in time: the least late", (9000, 100.0, 50.0, 0, 0), ["fast", "cheap"]),
    ("defaults stand in", (1000, None, None, 0, 0), ["cheap", "fast"]),
    ("defaults bind", (1300, None, None, 0, 0), ["fast", "cheap"]),
]


@pytest.mark.parametrize(("case", "order"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_cheapest_that_meets_the_target(case: tuple[Any, ...], order: list[str]) -> None:
    isl, ttft, itl, waiting, tokens = case
    configured = model(CHEAP, FAST)
    predictors = {
        pool.name: Predictor(pool, profile(**curves), ttft_ms=500.0)
        for pool, curves in zip(configured.pools, (SLOW_CURVES, FAST_CURVES), strict=True)
    }
    loads = {"cheap": [Load(waiting, tokens, waiting, tokens)], "fast": [Load()]}
    stage = AdaptiveStage(configured, "agg", predictors, loads.__getitem__)
    route = stage.route(Ask(isl_tokens=isl, osl_tokens=100, ttft_ms=ttft, itl_ms=itl), lambda name: 0.0)
    assert list(route) == order
    # A pool without an endpoint is last, but stays: its request may wait for it.
    loads["fast"] = []
    assert stage.route(Ask(isl_tokens=isl, ttft_ms=ttft, itl_ms=itl), lambda name: 0.0) == ("cheap", "fast")


def test_length_limits_hold() -> None:
    configured = model({**CHEAP, "isl_max_tokens": 500}, FAST)
    predictors = {pool.name: Predictor(pool, profile(), ttft_ms=500.0) for pool in configured.pools}
    stage = AdaptiveStage(configured, "agg", predictors, lambda name: [Load()])
    assert stage.route(Ask(isl_tokens=501), lambda name: 0.0) == ("fast",)
    assert stage.route(Ask(isl_tokens=499), lambda name: 0.0) == ("cheap", "fast")


WRONG = [
    ({"profile": None}, {}, "selection: adaptive needs a profile of pool 'cheap'"),
    ({}, {"default_itl_ms": None}, "selection: adaptive needs default_itl_ms"),
    (
        {},
        {"grids": {"agg": {"axes": [{"by": "ttft_ms", "min": 0, "max": 1, "resolution": 1}], "cells": ["cheap"]}}},
        "adaptive and grids exclude",
    ),
]


@pytest.mark.parametrize(("pool", "more", "told"), WRONG)
def test_what_cannot_adapt_is_refused(pool: dict[str, Any], more: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model({**CHEAP, **pool}, **more)


# ---- grids ----------------------------------------------------------------------------------------------------------


@given(st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.floats(1, 20), st.floats(100, 5000), st.integers(1, 5), st.floats(1, 3))
def test_every_cell_of_a_grid_against_a_dumb_twin(
    one_ms: float, other_ms: float, price: float, ttft_ms: float, resolution: int, margin: float
) -> None:
    """The cheapest pool whose TTFT at the cell's longest prompt, with the margin, is within its tightest target."""
    pools = [
        {"name": "a", "role": "prefill", "cost_per_hour": 1.0},
        {"name": "b", "role": "prefill", "cost_per_hour": price},
        {"name": "d", "role": "decode"},
    ]
    configured = model(*pools)
    speed = {"a": one_ms, "b": other_ms, "d": 0.1}
    predictors = {pool.name: Predictor(pool, profile(speed[pool.name]), ttft_ms=500.0) for pool in configured.pools}
    made = grids(
        configured,
        predictors,
        isl_max_tokens=8000.0,
        longest_tokens=10_000.0,
        ttft_ms=ttft_ms,
        itl_ms=20.0,
        osl_tokens=100.0,
        resolution=resolution,
        margin=margin,
    )
    isl, ttft = made["prefill"].axes
    for i in range(resolution):
        for j in range(resolution):
            tokens = 10_000.0 if i == resolution - 1 else (i + 1) * 8000.0 / resolution
            target = ttft.min + j * (ttft.max - ttft.min) / resolution
            time = {name: predictors[name].prefill.ttft_ms(tokens) for name in "ab"}  # type: ignore[union-attr]
            able = [name for name in "ab" if margin * time[name] / target <= 1.0]
            cost = {"a": time["a"], "b": time["b"] * price}
            best = min(able, key=lambda name: (cost[name], name)) if able else min("ab", key=lambda name: (time[name], name))
            chosen = made["prefill"].cells[i][j]
            assert chosen == best or (cost if able else time)[chosen] == pytest.approx((cost if able else time)[best])
    assert isl.max == 8000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A router configuration with two prefill pools, the profiles beside it."""
    for name, curves in (("slow", SLOW_CURVES), ("quick", FAST_CURVES)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prefill_raw_data.json").write_text(json.dumps(prefill(curves["ms_per_token"])))
        (tmp_path / name / "decode_raw_data.json").write_text(json.dumps(decode(curves["base_ms"])))
    pools = [
        {"name": "ps", "role": "prefill", "profile": "slow", "dynamo_namespace": "ns-slow"},
        {"name": "pq", "role": "prefill", "profile": "quick", "cost_per_hour": 9.0},
        {"name": "d", "role": "decode", "profile": "quick"},
    ]
    model = {"model": "m", "pools": pools, "default_ttft_ms": 1000, "default_itl_ms": 30}
    (tmp_path / "router.json").write_text(json.dumps({"models": [model]}))
    return tmp_path


def test_the_grid_command_writes_both_forms_of_one_grid(folder: Path) -> None:
    options = ["grid", "--topology", str(folder / "router.json"), "--resolution", "4"]
    ours = CliRunner().invoke(main, options, catch_exceptions=False)
    assert ours.exit_code == 0
    made = json.loads(ours.stdout)["m"]["grids"]
    theirs = CliRunner().invoke(main, [*options, "--form", "global-router"], catch_exceptions=False)
    told = json.loads(theirs.stdout)
    assert told["prefill_pool_dynamo_namespaces"] == ["ns-slow", "pq"]
    raw = json.loads((folder / "router.json").read_text())["models"][0]
    config = validate({"models": [{**raw, "grids": made}]})
    mine, foreign = Stage(config.models[0], "prefill"), Stage(translate(told).models[0], "prefill")
    chosen = set()
    for isl in range(0, 12_000, 500):
        for ttft in range(100, 2200, 100):
            ask = Ask(isl_tokens=isl, ttft_ms=float(ttft))
            name = mine.route(ask, lambda _: 0.0)[0]
            assert foreign.route(ask, lambda _: 0.0)[0] == {"ps": "ns-slow", "pq": "pq"}[name]
            chosen.add(name)
    assert chosen == {"ps", "pq"}
    assert GridConfig.model_validate(made["decode"]).axes[0].by == "context_tokens"


def test_the_grid_command_says_what_is_missing(folder: Path) -> None:
    (folder / "quick" / "decode_raw_data.json").unlink()
    told = CliRunner().invoke(main, ["grid", "--topology", str(folder / "router.json")])
    assert told.exit_code == 2
    assert "pool 'd' is a decode pool and needs a decode curve" in told.stderr
    told = CliRunner().invoke(main, ["grid", "--topology", str(folder / "router.json"), "--model", "x"])
    assert "--model: 'x' is not in router.json (has: m)" in told.stderr


def test_a_topology_is_a_form_of_the_configuration() -> None:
    """The command reads it, without the router's code knowing what a topology is; its limits are where grid cells end."""
    topology = Path(__file__).parents[2] / "examples/two-models/topology.yaml"
    told = CliRunner().invoke(main, ["--config", str(topology), "--check"])
    assert (told.exit_code, told.stdout) == (0, "topology.yaml: 2 models, 6 pools\n")
    options = ["grid", "--topology", str(topology), "--model", "demo/chat", "--resolution", "4"]
    made = json.loads(CliRunner().invoke(main, options).stdout)["demo/chat"]["grids"]["prefill"]
    assert (made["axes"][0]["max"], made["cells"][0][3], made["cells"][1][3]) == (
        4 * 2048.0,
        "chat-prefill-short",
        "chat-prefill-long",
    )


# ---- over sockets ---------------------------------------------------------------------------------------------------


async def test_load_spills_to_the_dearer_pool_and_back(
    start_router: StartRouter, start_engine: StartEngine, folder: Path
) -> None:
    """Prompts of about 1,000 tokens, 1 s: the cheap pool takes 400 ms each, so it takes two; the third goes to the dear one."""
    cheap, dear = await start_engine("c", tokens=2), await start_engine("q", tokens=2)
    for engine in (cheap, dear):
        engine.itl_s = 0.2
    pools = [
        {"name": "c", "role": "agg", "profile": str(folder / "slow"), "endpoints": [cheap.url]},
        {"name": "q", "role": "agg", "profile": str(folder / "quick"), "cost_per_hour": 20.0, "endpoints": [dear.url]},
    ]
    targets = {"selection": "adaptive", "default_ttft_ms": 1000, "default_itl_ms": 100}
    router = await start_router(pools, model=targets)
    calls = []
    for number in (1, 2, 3):
        calls.append(asyncio.ensure_future(router.chat("x" * 4000)))
        await asyncio.sleep(0.05)
        assert (len(cheap.calls), len(dear.calls)) == (min(number, 2), max(0, number - 2))
    assert [status for status, _, _ in await asyncio.gather(*calls)] == [200] * 3
    await router.chat("x" * 4000)
    assert (len(cheap.calls), len(dear.calls)) == (3, 1)
    # Nothing is left of the load, and a tight target goes to the fast pool at once.
    pool = router.app.endpoints.pools["c"]
    assert [(one.unstarted, one.unstarted_tokens) for one in pool.ready] == [(0, 0.0)]
    await router.chat("x" * 4000, extra_args={"ttft_target": 200})
    assert len(dear.calls) == 2
