"""Answers are read the same however the network cuts them, and a token's time is that of the piece that completed it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from global_planner.mocker.engine_api import AnswerShape, Call, expected_text
from global_planner.mocker.load_answer import BadAnswer, Body, read_plain, read_stream


def call(*, chat: bool = True, osl: int = 9, include_usage: bool = True) -> Call:
    return Call(chat=chat, prompt="hello", isl=2, osl=osl, stream=True, include_usage=include_usage, hold_kv=False, remote=None)


def stream(asked: Call) -> bytes:
    shape = AnswerShape(asked, name="x", model="m", created=1)
    chunks = b"".join(shape.chunk(begin, begin + 4) for begin in range(0, asked.osl - 4, 4))
    return chunks + shape.last_chunks(asked.osl - (asked.osl % 4 or 4), engine_model_ms=70.0, engine_ttft_ms=5.0)


def body_of(content: bytes, cuts: list[int]) -> Body:
    """Pieces between the cuts; each arrives at the time that is its last byte's place."""
    body, start = Body(), 0
    for end in [*sorted({cut % len(content) for cut in cuts} - {0}), len(content)]:
        body.add(content[start:end], float(end))
        start = end
    return body


@given(chat=st.booleans(), osl=st.integers(1, 30), cuts=st.lists(st.integers(0, 5000), max_size=12))
def test_a_stream_is_read_alike_however_it_is_cut(chat: bool, osl: int, cuts: list[int]) -> None:
    asked = call(chat=chat, osl=osl)
    content = stream(asked)
    body = body_of(content, cuts)
    answer = read_stream(body)
    assert answer.text == expected_text("hello", osl)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.engine_model_ms) == (2, osl, 70.0)
    # The dumb twin: the time of the first piece end at or after the event's last byte.
    first_event_end = content.index(b"\n\n") + 2
    assert answer.first == next(end for end in body.times if end >= first_event_end)
    assert answer.first <= (answer.last or 0.0) <= answer.end == len(content)


def test_comments_and_empty_deltas_are_no_tokens() -> None:
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
    body = body_of(b": awake\n\n" + role + stream(call()), [10, 60, 120])
    assert read_stream(body).text == expected_text("hello", 9)
    assert (read_stream(body).first or 0.0) > len(role)


def test_a_plain_answer_is_read() -> None:
    for chat in (True, False):
        shape = AnswerShape(call(chat=chat), name="x", model="m", created=1)
        body = body_of(shape.body(engine_model_ms=7.0, engine_ttft_ms=5.0, kv_transfer=None), [5])
        answer = read_plain(body)
        assert (answer.text, answer.first, answer.engine_model_ms) == (expected_text("hello", 9), None, 7.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>", "not JSON"),
        (b"[]", "no finished choice"),
        (b"{}", "no finished choice"),
        (b'{"choices": []}', "no finished choice"),
        (b'{"choices": [{"text": "a", "finish_reason": null}]}', "no finished choice"),
        (b'{"choices": [{"text": "a", "finish_reason": "stop"}]}', "usage is None"),
        (b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}', "usage is"),
    ],
)
def test_a_bad_plain_answer_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadAnswer, match=reason):
        read_plain(body_of(content, []))
