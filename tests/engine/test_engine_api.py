"""Text that can be checked, requests that can be read, and errors in OpenAI's shape; no sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from global_planner.mocker.engine_api import ApiError, expected_text, parse_call, prompt_of, tokens_text
from global_planner.mocker.engine_metrics import Histogram

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_every_token_has_four_characters_and_depends_on_prompt_and_position() -> None:
    text = expected_text("why?", 200)
    tokens = [text[i : i + 4] for i in range(0, 800, 4)]
    assert len(text) == 800 and len(set(tokens)) > 190
    assert text != expected_text("why!", 200)
    assert expected_text("why?", 50) + tokens_text(0, 0, 0) == text[:200]


@pytest.mark.parametrize(
    ("body", "prompt", "tokens"),
    [
        ({"prompt": "12345"}, "12345", 2),
        ({"prompt": ""}, "", 1),
        ({"prompt": ["1234"]}, "1234", 1),
        ({"prompt": [7, 8, 9]}, "7 8 9", 3),
        ({"prompt": [[7, 8]]}, "7 8", 2),
        ({"messages": [{"role": "system", "content": "ab"}, {"role": "user", "content": "cde"}]}, "abcde", 2),
        ({"messages": [{"content": [{"type": "text", "text": "abcd"}, {"type": "image_url"}]}, {"content": None}]}, "abcd", 1),
    ],
)
def test_prompts(body: dict[str, Any], prompt: str, tokens: int) -> None:
    assert prompt_of(body) == (prompt, tokens)


@pytest.mark.parametrize(
    ("change", "osl"),
    [({}, 16), ({"max_tokens": 3}, 3), ({"max_tokens": 3, "max_completion_tokens": 5}, 5), ({"max_tokens": None}, 16)],
)
def test_how_many_tokens(change: dict[str, Any], osl: int) -> None:
    assert parse_call(json.dumps({**CHAT, **change}).encode(), chat=True, model="m").osl == osl


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        (b"{", 400, "invalid_json", "not valid JSON"),
        (b"[]", 400, "invalid_json", "must be a JSON object"),
        (b"{}", 400, None, "must provide a model"),
        (json.dumps({**CHAT, "model": "other"}).encode(), 404, "model_not_found", "`other` does not exist"),
        (json.dumps({"model": "m"}).encode(), 400, None, "messages must be a list"),
        (json.dumps({**CHAT, "messages": []}).encode(), 400, None, "messages must be a list"),
        (json.dumps({**CHAT, "messages": ["x"]}).encode(), 400, None, "messages[0] must be an object"),
        (json.dumps({**CHAT, "messages": [{"content": 1}]}).encode(), 400, None, "messages[0].content must be text"),
        (json.dumps({**CHAT, "n": 2}).encode(), 400, None, "n must be 1"),
        (json.dumps({**CHAT, "max_tokens": 0}).encode(), 400, None, "max_tokens must be a whole number"),
        (json.dumps({**CHAT, "max_completion_tokens": "9"}).encode(), 400, None, "max_completion_tokens must be"),
    ],
)
def test_refusals_are_shaped_like_openais(body: bytes, status: int, code: str | None, says: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_call(body, chat=True, model="m")
    error = json.loads(refused.value.body)["error"]
    assert refused.value.status == status and error["code"] == code and says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_prompts_that_are_none() -> None:
    for prompt in (None, 5, [], ["a", "b"], [1, "b"], {"x": 1}):
        with pytest.raises(ApiError, match="prompt must be one text"):
            parse_call(json.dumps({"model": "m", "prompt": prompt}).encode(), chat=False, model="m")


def test_a_hand_off_that_names_no_place_is_no_hand_off() -> None:
    whole = {
        "do_remote_prefill": True,
        "remote_engine_id": "p",
        "remote_request_id": "p-1",
        "remote_host": "127.0.0.1",
        "remote_port": 1,
        "engine_model_ms": 5,
    }
    for change, there in (({}, True), ({"remote_port": None}, False), ({"do_remote_prefill": False}, False)):
        body = json.dumps({**CHAT, "kv_transfer_params": {**whole, **change}}).encode()
        assert (parse_call(body, chat=True, model="m").remote is not None) is there


def test_histogram_buckets_are_cumulative_and_closed_above() -> None:
    histogram = Histogram((1, 2))
    for value, times in ((1.0, 1), (1.5, 2), (9.0, 1)):
        histogram.observe(value, times)
    assert histogram.lines("x", "a") == [
        "# TYPE x histogram",
        'x_bucket{a,le="1.0"} 1',
        'x_bucket{a,le="2.0"} 3',
        'x_bucket{a,le="+Inf"} 4',
        "x_sum{a} 13.0",
        "x_count{a} 4",
    ]
