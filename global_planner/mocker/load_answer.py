"""An answer of the endpoint, read after it is complete: text, usage, and the times at which its tokens arrived. Pure.

A body arrives in pieces; only their ends and times are noted while it does (`Body`), so that measuring costs little and a slow
reader does not disturb the clock. An event counts at the time of the piece that completed it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import orjson

_DATA = b"data:"
_DONE = b"[DONE]"


class BadAnswer(ValueError):
    """An answer that is not complete or not what was asked for; the text says what is wrong with it."""


@dataclass(slots=True)
class Body:
    """The bytes of an answer; `ends[i]` is the length of the body when the piece that came at `times[i]` was in."""

    content: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, piece: bytes, at: float) -> None:
        self.content += piece
        self.ends.append(len(self.content))
        self.times.append(at)

    def time_of(self, end: int) -> float:
        """When the byte before `end` had arrived."""
        return self.times[bisect_left(self.ends, end)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a complete answer says. `first` and `last` are the arrival times of the first and last text (streams only), `end`
    that of its last byte."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    end: float
    first: float | None = None
    last: float | None = None
    engine_model_ms: float | None = None


def read_plain(body: Body) -> Answer:
    """A `chat.completion` or `text_completion` object. Raises BadAnswer."""
    try:
        answer = orjson.loads(bytes(body.content))
    except orjson.JSONDecodeError as error:
        raise BadAnswer(f"the answer is not JSON: {error}") from error
    choice = _choice(answer)
    if choice is None or choice.get("finish_reason") is None:
        raise BadAnswer("the answer has no finished choice")
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    usage = answer.get("usage")
    return _answer(body, text or "", usage, answer.get("engine_model_ms"), None, None)


def read_stream(body: Body) -> Answer:
    """Server-sent events up to `[DONE]`. Raises BadAnswer for an error event and for a stream that ends early."""
    content = bytes(body.content)
    texts: list[str] = []
    first = last = None
    usage: object = None
    engine_ms: object = None
    finished = done = False
    start = 0
    while (end := content.find(b"\n\n", start)) >= 0:
        event, start = content[start:end], end + 2
        if not event.startswith(_DATA):
            continue  # a comment keeps the connection awake
        payload = event[len(_DATA) :].strip()
        if payload == _DONE:
            done = True
            break
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise BadAnswer(f"an event is not JSON: {error}") from error
        if not isinstance(chunk, dict) or chunk.get("error") is not None:
            raise BadAnswer(f"the stream broke off: {payload[:200].decode(errors='replace')}")
        usage = chunk.get("usage") or usage
        engine_ms = chunk.get("engine_model_ms", engine_ms)
        choice = _choice(chunk)
        if choice is None:
            continue
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        if text:
            texts.append(text)
            last = body.time_of(end + 2)
            first = last if first is None else first
        finished = finished or choice.get("finish_reason") is not None
    if not (done and finished):
        raise BadAnswer("the stream ended before its finish reason and [DONE]")
    return _answer(body, "".join(texts), usage, engine_ms, first, last)


def _choice(chunk: Any) -> dict[str, Any] | None:
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _answer(body: Body, text: str, usage: object, engine_ms: object, first: float | None, last: float | None) -> Answer:
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        raise BadAnswer(f"the answer's usage is {usage!r}")
    return Answer(
        text=text,
        prompt_tokens=prompt,
        completion_tokens=completion,
        end=body.times[-1],
        first=first,
        last=last,
        engine_model_ms=float(engine_ms) if isinstance(engine_ms, int | float) else None,
    )
