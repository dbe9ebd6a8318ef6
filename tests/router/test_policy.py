"""Which pool and which endpoint: tables of cell edges, a deliberately dumb twin on random configurations, and stated
bounds."""

from __future__ import annotations

import gzip
import heapq
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import RouterConfig, validate
from router.config_pools import AxisConfig, ModelConfig
from router.foreign import translate
from router.policy import Ask, LeastTokens, Path, PowerOfTwo, PrefixAffinity, RoundRobin, Stage, Stages, cell, usable

AXIS = AxisConfig(by="isl_tokens", min=0, max=1000, resolution=4)


@pytest.mark.parametrize(
    ("value", "index"),
    [(-1, 0), (0, 0), (249.9, 0), (250, 1), (499, 1), (500, 2), (749, 2), (750, 3), (999, 3), (1000, 3), (1e300, 3), (None, 2)],
)
def test_cell_edges(value: float | None, index: int) -> None:
    assert cell(value, AXIS) == index


def disagg(**more: Any) -> dict[str, Any]:
    """The JSON of an existing deployment: two prefill pools by ISL and TTFT, two decode pools by context and ITL."""
    return {
        "num_prefill_pools": 2,
        "num_decode_pools": 2,
        "prefill_pool_dynamo_namespaces": ["p0", "p1"],
        "decode_pool_dynamo_namespaces": ["d0", "d1"],
        "prefill_pool_selection_strategy": {
            "isl_min": 0,
            "isl_max": 8000,
            "isl_resolution": 2,
            "ttft_min": 10,
            "ttft_max": 3000,
            "ttft_resolution": 2,
            "prefill_pool_mapping": [[0, 1], [1, 1]],
            "priority_overrides": [{"min_priority": 5, "max_priority": 10, "target_pool": 0}],
        },
        "decode_pool_selection_strategy": {
            "context_length_min": 0,
            "context_length_max": 8000,
            "context_length_resolution": 2,
            "itl_min_ms": 5,
            "itl_max_ms": 105,
            "itl_resolution": 2,
            "decode_pool_mapping": [[0, 1], [1, 0]],
        },
        **more,
    }


CHOICES = [
    # isl, ttft, itl, priority -> prefill, decode
    ((100, 10.0, 5.0, None), ("p0", "d0")),
    ((100, None, None, None), ("p1", "d1")),  # the middle of a range is the upper cell of two
    ((100, 1504.9, 54.9, None), ("p0", "d0")),
    ((100, 1505.0, 55.0, None), ("p1", "d1")),
    ((4000, 10.0, 5.0, None), ("p1", "d1")),
    ((3999.9, 10.0, 105.0, None), ("p0", "d1")),
    ((4000, 10.0, 60.0, None), ("p1", "d0")),
    ((9e9, 9e9, 9e9, None), ("p1", "d0")),
    ((9e9, 9e9, 9e9, 4), ("p1", "d0")),
    ((9e9, 9e9, 9e9, 5), ("p0", "d0")),
    ((9e9, 9e9, 9e9, 10), ("p0", "d0")),
    ((9e9, 9e9, 9e9, 11), ("p1", "d0")),
]


@pytest.mark.parametrize(("request_", "pools"), CHOICES)
def test_an_existing_deployments_grid(
    request_: tuple[float, float | None, float | None, int | None], pools: tuple[str, str]
) -> None:
    isl, ttft, itl, priority = request_
    [path, fallback] = Stages(translate(disagg()).models[0]).paths(
        Ask(isl_tokens=isl, ttft_ms=ttft, itl_ms=itl, priority=priority), lambda name: 0.0
    )
    assert (path.prefill, path.serve) == ((pools[0],), (pools[1],))
    assert fallback == Path(prefill=(), serve=path.serve, instead_of=path.prefill)


def test_default_targets_stand_in_for_missing_ones() -> None:
    stages = Stages(translate(disagg(), default_ttft_ms=10.0, default_itl_ms=5.0).models[0])
    assert stages.paths(Ask(isl_tokens=1), lambda name: 0.0)[0] == Path(prefill=("p0",), serve=("d0",))


def agg(**strategy: Any) -> ModelConfig:
    raw = {
        "mode": "agg",
        "enable_priority_retry": True,
        "num_agg_pools": 4,
        "agg_pool_dynamo_namespaces": ["slow", "fast", "mid", "mid-too"],
        "agg_pool_priorities": [10, 0, 5, 5],
        "agg_pool_selection_strategy": {
            "ttft_min": 0,
            "ttft_max": 4,
            "ttft_resolution": 4,
            "itl_min": 0,
            "itl_max": 1,
            "itl_resolution": 1,
            "agg_pool_mapping": [[0], [1], [2], [3]],
            **strategy,
        },
    }
    return translate(raw).models[0]


@pytest.mark.parametrize(
    ("ttft", "order"),
    [
        (0.5, ("slow", "mid", "mid-too", "fast")),  # strictly faster pools, slowest of them first
        (1.5, ("fast",)),
        (2.5, ("mid", "fast")),
        (3.5, ("mid-too", "fast")),
    ],
)
def test_priority_retry_order(ttft: float, order: tuple[str, ...]) -> None:
    assert Stage(agg(), "agg").route(Ask(isl_tokens=1, ttft_ms=ttft), lambda name: 0.0) == order


def test_a_fixed_chain_replaces_the_grid() -> None:
    model = agg(routing_priority=[2, 0])
    assert Stage(model, "agg").route(Ask(isl_tokens=1, ttft_ms=1.5), lambda name: 0.0) == ("mid", "slow")


def test_three_axes() -> None:
    model = agg(isl_min=0, isl_max=100, isl_resolution=2, agg_pool_mapping=[[[0, 1]], [[2, 3]], [[1, 1]], [[0, 0]]])
    for ttft, isl, name in ((0.5, 10, "slow"), (0.5, 60, "fast"), (1.5, 10, "mid"), (1.5, 60, "mid-too"), (3.0, 60, "slow")):
        assert Stage(model, "agg").route(Ask(isl_tokens=isl, ttft_ms=ttft), lambda name: 0.0)[0] == name


@st.composite
def grids(draw: st.DrawFn) -> tuple[dict[str, Any], list[Ask]]:
    # Thousandths, and bytes for what has few values: drawing them takes a third of the time of floats and lists of lists.
    number = st.integers(0, 10**8).map(lambda x: x / 1000)
    pools = draw(st.integers(1, 4))
    strategy: dict[str, Any] = {}
    for name in ("isl", "ttft"):
        low = draw(number)
        strategy[f"{name}_min"], strategy[f"{name}_max"] = low, low + draw(st.integers(500, 10**7)) / 1000
        strategy[f"{name}_resolution"] = draw(st.integers(1, 6))
    index = st.integers(0, pools - 1)
    rows, columns = strategy["isl_resolution"], strategy["ttft_resolution"]
    cells = [byte % pools for byte in draw(st.binary(min_size=rows * columns, max_size=rows * columns))]
    strategy["prefill_pool_mapping"] = [cells[i * columns : (i + 1) * columns] for i in range(rows)]
    rules = st.tuples(st.integers(-5, 5), st.integers(0, 5), index)
    strategy["priority_overrides"] = [
        {"min_priority": low, "max_priority": low + more, "target_pool": pool}
        for low, more, pool in draw(st.lists(rules, max_size=3))
    ]
    orders = [byte % 4 for byte in draw(st.binary(min_size=pools, max_size=pools))]
    ask = st.builds(
        Ask,
        isl_tokens=st.one_of(number, st.just(strategy["isl_max"]), st.just(strategy["isl_min"])),
        ttft_ms=st.one_of(st.none(), number),
        priority=st.one_of(st.none(), st.integers(-6, 11)),
    )
    raw = disagg(
        num_prefill_pools=pools,
        prefill_pool_dynamo_namespaces=[f"p{i}" for i in range(pools)],
        prefill_pool_priorities=orders,
        decode_pool_priorities=[0, 1],
        enable_priority_retry=draw(st.booleans()),
        prefill_pool_selection_strategy=strategy,
    )
    return raw, draw(st.lists(ask, min_size=3, max_size=8))


def dumb(raw: dict[str, Any], ask: Ask) -> list[int]:
    """The reference formula, word for word, on the raw JSON."""
    s = raw["prefill_pool_selection_strategy"]

    def clamp(x: float, name: str) -> int:
        step = (s[f"{name}_max"] - s[f"{name}_min"]) / s[f"{name}_resolution"]
        return max(0, min(s[f"{name}_resolution"] - 1, int((x - s[f"{name}_min"]) / step)))

    ttft = (s["ttft_min"] + s["ttft_max"]) / 2 if ask.ttft_ms is None else ask.ttft_ms
    pool = s["prefill_pool_mapping"][clamp(ask.isl_tokens, "isl")][clamp(ttft, "ttft")]
    if ask.priority is not None:
        for rule in s["priority_overrides"]:
            if rule["min_priority"] <= ask.priority <= rule["max_priority"]:
                pool = rule["target_pool"]
                break
    orders = raw["prefill_pool_priorities"]
    faster = [i for i in range(len(orders)) if orders[i] < orders[pool]] if raw["enable_priority_retry"] else []
    return [pool, *sorted(faster, key=lambda i: -orders[i])]


# Hypothesis for the edges; the number of configurations is the next test's.
@settings(max_examples=250, deadline=None)
@given(grids())
def test_the_same_answer_as_the_reference_formula(case: tuple[dict[str, Any], list[Ask]]) -> None:
    raw, asks = case
    stage = Stage(translate(raw).models[0], "prefill")
    for ask in asks:
        expected = tuple(f"p{i}" for i in dumb(raw, ask))
        assert stage.route(ask, lambda name: 0.0) == (expected if len(stage.names) > 1 else stage.names)


def test_ten_thousand_random_configurations() -> None:
    """The same twin, without Hypothesis: many configurations, a few requests each."""
    rng = random.Random(20)
    for _ in range(500 if os.environ["HYPOTHESIS_PROFILE"] == "quick" else 10_000):
        pools = rng.randint(1, 4)
        strategy: dict[str, Any] = {}
        for name in ("isl", "ttft"):
            low = round(rng.uniform(0, 1e4), 2)
            strategy[f"{name}_min"], strategy[f"{name}_max"] = low, low + round(rng.uniform(0.5, 1e4), 2)
            strategy[f"{name}_resolution"] = rng.randint(1, 6)
        rows, columns = strategy["isl_resolution"], strategy["ttft_resolution"]
        strategy["prefill_pool_mapping"] = [[rng.randrange(pools) for _ in range(columns)] for _ in range(rows)]
        lows = [rng.randint(-5, 5) for _ in range(rng.randint(0, 2))]
        strategy["priority_overrides"] = [
            {"min_priority": low, "max_priority": low + rng.randint(0, 5), "target_pool": rng.randrange(pools)} for low in lows
        ]
        raw = disagg(
            num_prefill_pools=pools,
            prefill_pool_dynamo_namespaces=[f"p{i}" for i in range(pools)],
            prefill_pool_priorities=[rng.randint(0, 3) for _ in range(pools)],
            decode_pool_priorities=[0, 1],
            enable_priority_retry=rng.random() < 0.5,
            prefill_pool_selection_strategy=strategy,
        )
        stage = Stage(translate(raw).models[0], "prefill")
        for _ in range(3):
            edge = strategy["isl_min"] + rng.randint(-1, rows + 1) * (strategy["isl_max"] - strategy["isl_min"]) / rows
            ask = Ask(
                isl_tokens=rng.choice([edge, rng.uniform(0, 2e4)]),
                ttft_ms=rng.choice([None, rng.uniform(0, 2e4)]),
                priority=rng.choice([None, rng.randint(-6, 11)]),
            )
            expected = tuple(f"p{i}" for i in dumb(raw, ask))
            assert stage.route(ask, lambda name: 0.0) == (expected if pools > 1 else stage.names)


# ---- prompt length limits --------------------------------------------------------------------------------------------


def limits(*pools: tuple[str, int | None], **more: Any) -> Stage:
    described = [{"name": name, "role": "agg", "isl_max_tokens": limit} for name, limit in pools]
    config: RouterConfig = validate({"models": [{"model": "m", "pools": described, **more}]})
    return Stage(config.models[0], "agg")


@pytest.mark.parametrize(
    ("isl", "order"),
    [(1, ("s", "m", "l")), (100, ("s", "m", "l")), (100.5, ("m", "l")), (1000, ("m", "l")), (1001, ("l",)), (1e9, ("l",))],
)
def test_limits_choose_the_smallest_that_fits_and_spill_upward(isl: float, order: tuple[str, ...]) -> None:
    assert limits(("l", None), ("s", 100), ("m", 1000)).route(Ask(isl_tokens=isl), lambda name: 0.0) == order


def test_too_long_for_all_goes_to_the_longest() -> None:
    assert limits(("s", 10), ("m", 20)).route(Ask(isl_tokens=30), lambda name: 0.0) == ("m",)


def test_equal_limits_go_by_load() -> None:
    load = {"a": 10.0, "b": 5.0}
    assert limits(("a", None), ("b", None)).route(Ask(isl_tokens=1), load.__getitem__) == ("b", "a")
    assert limits(("a", None), ("b", None), spill=False).route(Ask(isl_tokens=1), load.__getitem__) == ("b",)


# ---- endpoints ------------------------------------------------------------------------------------------------------


@dataclass
class Fake:
    id: str
    outstanding_tokens: float = 0.0
    in_flight: int = 0


ASK = Ask(isl_tokens=1)


def test_filter() -> None:
    a, b, c = Fake("a", in_flight=1), Fake("b", in_flight=2), Fake("c")
    assert usable([a, b, c], max_in_flight=2, without=()) == [a, c]
    assert usable([a, b, c], max_in_flight=None, without={"a"}) == [b, c]
    full, room = Fake("full", outstanding_tokens=4000.0), Fake("room", outstanding_tokens=3999.0)
    assert usable([full, room], max_in_flight=None, max_tokens=4000, without=()) == [room]


def test_least_tokens() -> None:
    a, b, c = Fake("a", 10, 1), Fake("b", 5, 3), Fake("c", 5, 2)
    assert [LeastTokens().pick(order, ASK).id for order in ([a, b, c], [c, b, a], [a, b])] == ["c", "c", "b"]
    equal = [Fake("a"), Fake("b"), Fake("c")]
    picker = LeastTokens()
    assert sorted(picker.pick(equal, ASK).id for _ in range(3)) == ["a", "b", "c"]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), st.lists(st.floats(1, 1000), min_size=1, max_size=200), st.randoms(use_true_random=False))
def test_least_tokens_keeps_equals_within_one_request(count: int, sizes: list[float], rng: random.Random) -> None:
    """Nothing ends while requests arrive: any two endpoints differ by at most the largest request."""
    endpoints = [Fake(str(i)) for i in range(count)]
    picker = LeastTokens()
    for size in sizes:
        picker.pick(endpoints, ASK).outstanding_tokens += size
    loads = [endpoint.outstanding_tokens for endpoint in endpoints]
    assert max(loads) - min(loads) <= max(sizes) + 1e-6


def test_round_robin_and_power_of_two() -> None:
    endpoints = [Fake("a"), Fake("b", 100.0)]
    turns = RoundRobin()
    assert {turns.pick(endpoints, ASK).id for _ in range(2)} == {"a", "b"}
    two = PowerOfTwo(random.Random(1).randrange)
    picks = [two.pick(endpoints, ASK).id for _ in range(400)]
    # The loaded one is picked only when both draws are it: one in four.
    assert 60 < picks.count("b") < 140


def test_prefix_affinity_is_sticky_and_bounded() -> None:
    endpoints = [Fake(str(i)) for i in range(4)]
    affinity = PrefixAffinity(bound=1.25)
    asked = Ask(isl_tokens=1, blocks=(7, 8, 9))
    home = affinity.pick(endpoints, asked)
    assert all(affinity.pick(endpoints, asked) is home for _ in range(5))
    # The longest known beginning decides, and another process, which remembers nothing, agrees on an unknown one.
    assert affinity.pick(endpoints, Ask(isl_tokens=1, blocks=(7, 8, 10, 11))) is home
    assert PrefixAffinity(bound=1.25).pick(endpoints, asked) is home
    # Removing another endpoint moves nobody.
    others = [endpoint for endpoint in endpoints if endpoint is home or endpoint.id != ("0" if home.id != "0" else "1")]
    assert affinity.pick(others, asked) is home
    # 2 requests at home of 2 in all: ceil(1.25 x 3 / 4) = 1 is the bound.
    home.in_flight = 2
    second = affinity.pick(endpoints, asked)
    assert second is not home
    home.in_flight = 0
    second.outstanding_tokens = 100.0
    # Both have served it now: the less loaded one.
    assert affinity.pick(endpoints, asked) is home
    spread = {PrefixAffinity().pick([Fake(str(i)) for i in range(4)], Ask(isl_tokens=1, blocks=(p,))).id for p in range(64)}
    assert spread == {"0", "1", "2", "3"}


MOONCAKE = FilePath(__file__).parents[3] / "shared/data/traces/mooncake_conversation.jsonl.gz"


@pytest.mark.skipif(not MOONCAKE.exists(), reason=f"the trace is not at {MOONCAKE}")
def test_prefix_affinity_on_a_real_conversation_trace() -> None:
    """4 replicas, bound 1.25: at least 90 % of the blocks that any replica had seen are found on the one that was picked. A
    request takes 1 s for 10,000 prompt tokens and 20 ms for each token of its answer."""
    endpoints = [Fake(str(i)) for i in range(4)]
    seen: dict[str, set[int]] = {endpoint.id: set() for endpoint in endpoints}
    by_anyone: set[int] = set()
    running: list[tuple[float, int, Fake, float]] = []
    picker = PrefixAffinity(bound=1.25)
    hits = possible = 0

    def leading(blocks: list[int], known: set[int]) -> int:
        return next((i for i, block in enumerate(blocks) if block not in known), len(blocks))

    with gzip.open(MOONCAKE, "rt") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            at, blocks = row["timestamp"] / 1000.0, row["hash_ids"]
            while running and running[0][0] <= at:
                _, _, endpoint, tokens = heapq.heappop(running)
                endpoint.in_flight -= 1
                endpoint.outstanding_tokens -= tokens
            endpoint = picker.pick(endpoints, Ask(isl_tokens=row["input_length"], blocks=tuple(blocks)))
            hits += leading(blocks, seen[endpoint.id])
            possible += leading(blocks, by_anyone)
            seen[endpoint.id].update(blocks)
            by_anyone.update(blocks)
            tokens = row["input_length"] + row["output_length"]
            endpoint.in_flight += 1
            endpoint.outstanding_tokens += tokens
            ends = at + row["input_length"] / 10_000 + row["output_length"] * 0.02
            heapq.heappush(running, (ends, number, endpoint, tokens))
    assert hits / possible >= 0.9
