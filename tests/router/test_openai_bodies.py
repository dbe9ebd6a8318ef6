"""Reading bodies: what is estimated, what is spliced, what is refused; and that the router learns lengths from answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.handoff import handed_over, prefill_body
from router.openai import (
    BadRequest,
    Lengths,
    error_body,
    parse,
    prefix_blocks,
    usage_in,
)


def call(**body: Any) -> Any:
    return parse(json.dumps({"model": "m", **body}).encode())


LENGTHS = {
    "string": ({"prompt": "x" * 10}, 10, 0, True),
    "strings": ({"prompt": ["abc", "de"]}, 5, 0, True),
    "token ids": ({"prompt": [1, 2, 3]}, 0, 3, True),
    "lists of token ids": ({"prompt": [[1, 2], [3]]}, 0, 3, True),
    "messages": ({"messages": [{"role": "user", "content": "abcd"}, {"role": "assistant", "content": None}]}, 4, 0, True),
    "parts": (
        {"messages": [{"content": [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {}}]}]},
        2,
        0,
        False,
    ),
    "nonsense": ({"messages": [7, None, {"content": 3}]}, 0, 0, True),
    "nothing": ({}, 0, 0, True),
}


@pytest.mark.parametrize(("body", "chars", "token_ids", "pure"), LENGTHS.values(), ids=LENGTHS.keys())
def test_lengths(body: dict[str, Any], chars: int, token_ids: int, pure: bool) -> None:
    read = call(**body)
    assert (read.chars, read.token_ids, read.pure_text) == (chars, token_ids, pure)
    assert Lengths().isl(read) == max(1, -(-chars // 4) + token_ids)


def test_targets_and_priority() -> None:
    read = call(extra_args={"ttft_target": 250, "itl_target": 20.5}, nvext={"agent_hints": {"priority": 7}}, max_tokens=9)
    assert (read.ttft_ms, read.itl_ms, read.priority, read.max_tokens) == (250.0, 20.5, 7, 9)
    odd = call(extra_args={"ttft_target": "soon", "itl_target": -1}, nvext=[1], max_tokens=-3, max_completion_tokens=True)
    assert (odd.ttft_ms, odd.itl_ms, odd.priority, odd.max_tokens) == (None, None, None, None)


def test_what_strict_json_refuses_but_engines_take() -> None:
    assert parse(b'{"model":"m","prompt":"\\ud800","x":NaN}').chars == 1
    tools = parse(b'{"model":"m","messages":[],"tools":[{"x":"\\udc00"}]}')
    assert tools.chars > 0
    assert b"udc00" in prefill_body(tools, "vllm")
    assert json.loads(error_body("\ud800", kind="k"))["error"]["message"] == "\ud800"
    assert b'"x":null' in prefill_body(parse(b'{"model":"m","x":NaN}'), "vllm").replace(b": ", b":")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=12), json_values, max_size=6), st.booleans())
def test_the_two_bodies_of_a_hand_off(fields: dict[str, Any], spaced: bool) -> None:
    """Decode gets the same object plus what was handed over; prefill gets it with its own few fields."""
    body = {**fields, "model": "m"}
    raw = json.dumps(body, indent=1 if spaced else None).encode() + (b"\n " if spaced else b"")
    read = parse(raw)
    assert handed_over(read, b"{}", "vllm").decode is raw
    params = {"remote_engine_id": "é", "remote_block_ids": [1]}
    answer = json.dumps({"kv_transfer_params": params}).encode()
    assert json.loads(handed_over(read, answer, "vllm").decode) == {
        **body,
        "kv_transfer_params": params,
    }
    changed = json.loads(prefill_body(read, "vllm"))
    for name, value in body.items():
        if name not in ("max_tokens", "max_completion_tokens", "stream", "stream_options", "kv_transfer_params", "min_tokens"):
            assert changed[name] == value


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), json_values.map(lambda value: json.dumps({"model": "m", "messages": value}).encode()))
)
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        read = parse(raw)
    except BadRequest as refusal:
        assert refusal.status == 400
        assert json.loads(refusal.body)["error"]["message"]
    else:
        prefill_body(read, "vllm")
        Lengths().isl(read)


TAILS = [
    (b'{"usage":{"prompt_tokens":7,"completion_tokens":12,"total_tokens":19}}', (7, 12)),
    (b'data: {"usage":null}\n\ndata: {"usage": {"prompt_tokens": 7, "completion_tokens" : 12}}\n\ndata: [DONE]\n\n', (7, 12)),
    (b'{"usage":{"prompt_tokens":7}}', (7, None)),
    (b'"completion_tokens":', (None, None)),
    (b'"completion_tokens": null', (None, None)),
    (b"", (None, None)),
]


@pytest.mark.parametrize(("tail", "usage"), TAILS)
def test_usage_in_the_tail(tail: bytes, usage: tuple[int | None, int | None]) -> None:
    assert usage_in(tail) == usage


def test_lengths_learn_from_answers() -> None:
    """A tokenizer that makes a token of every 3 characters is found out within some tens of requests, to 5 %."""
    lengths = Lengths()
    asked = call(prompt="x" * 3000)
    assert lengths.isl(asked) == 750
    for _ in range(60):
        lengths.learn_isl(asked, 1000)
        lengths.learn_events(52, 200)
        lengths.learn_osl(200.0)
    assert lengths.isl(asked) == pytest.approx(1000, rel=0.05)
    assert lengths.of_events(26) == pytest.approx(100, rel=0.05)
    assert lengths.osl(asked) < 256
    assert lengths.osl(call(prompt="", max_tokens=10)) == 10


def test_prefix_blocks() -> None:
    """Prompts share the hashes of as many whole blocks as they share."""
    one, two = "a" * 5000, "a" * 4096 + "b" * 904
    first, second = prefix_blocks(call(prompt=one)), prefix_blocks(call(messages=[{"role": "user", "content": two}]))
    assert len(first) == len(second) == 2
    assert first == second
    longer = prefix_blocks(call(prompt=one + "c" * 2000))
    assert longer[:2] == first
    assert len(longer) == 3
    assert (
        len(prefix_blocks(call(prompt="short"))) == len(prefix_blocks(call(prompt=[1, 2]))) == len(prefix_blocks(call())) == 1
    )
    assert prefix_blocks(call(prompt="short")) != prefix_blocks(call(prompt="shore"))
