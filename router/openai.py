"""The OpenAI API as far as the router must understand it: what decides the route, its length, and errors.
Pure.

A body is read once; everything the router does not know stays in it (`router.handoff` writes the bodies of prefill and
decode calls). Toward aggregated engines the client's own bytes are sent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import orjson

CHARS_PER_TOKEN = 4.0
BLOCK_BYTES = 2048
MAX_BLOCKS = 512
AROUND_GAIN = 0.1


class BadRequest(Exception):
    """A request that gets an OpenAI-shaped error: `status`, and the fields of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind=kind, code=code, param=param)


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    return dump({"error": {"message": message, "type": kind, "param": param, "code": code}})


@dataclass(slots=True)
class Call:
    """One completion request. `chars` counts the prompt's text, `token_ids` its ready-made tokens; `pure_text` is false where
    the prompt holds parts that are neither (images): then returned usage teaches nothing about text. `counted`: tokens of the
    text, where a tokenizer counted them."""

    raw: bytes
    body: dict[str, Any]
    model: str
    stream: bool
    chars: int
    token_ids: int
    pure_text: bool
    max_tokens: int | None
    texts: list[str]
    ids: list[Any]
    priority: int | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    counted: int | None = None


def parse(raw: bytes) -> Call:
    """Raises BadRequest: 400 for malformed JSON, anything but an object, and a missing model."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        # Lone surrogates and NaN are refused by orjson, while engines take them.
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadRequest(400, f"The request body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest(400, "The request body must be a JSON object.", code="invalid_json")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest(400, "You must provide a model parameter, a string.", param="model", code="missing_required_parameter")
    length = _Length()
    messages = body.get("messages")
    if isinstance(messages, list):
        length.messages(messages)
        if isinstance(body.get("tools"), list):
            length.chars += len(dump(body["tools"]))
    else:
        length.prompt(body.get("prompt"))
    call = Call(
        raw,
        body,
        model,
        body.get("stream") is True,
        length.chars,
        length.token_ids,
        length.pure,
        _count(body.get("max_completion_tokens")) or _count(body.get("max_tokens")),
        length.texts,
        length.ids,
    )
    # What few requests carry is set only where it is.
    nvext = body.get("nvext")
    if isinstance(nvext, dict) and isinstance(hints := nvext.get("agent_hints"), dict):
        call.priority = _integer(hints.get("priority"))
    extra = body.get("extra_args")
    if isinstance(extra, dict):
        call.ttft_ms, call.itl_ms = _target(extra.get("ttft_target")), _target(extra.get("itl_target"))
    return call


class _Length:
    """Adds up a prompt's text and token ids, whatever shape it has, and keeps hold of its pieces."""

    __slots__ = ("chars", "ids", "pure", "texts", "token_ids")

    def __init__(self) -> None:
        self.chars = 0
        self.token_ids = 0
        self.pure = True
        self.texts: list[str] = []
        self.ids: list[Any] = []

    def text(self, text: str) -> None:
        self.chars += len(text)
        self.texts.append(text)

    def messages(self, messages: list[Any]) -> None:
        for message in messages:
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, str):
                self.chars += len(content)
                self.texts.append(content)
            elif isinstance(content, list):
                for part in content:
                    text = part.get("text") if isinstance(part, dict) else None
                    if isinstance(text, str):
                        self.text(text)
                    else:
                        self.pure = False

    def prompt(self, prompt: Any) -> None:
        if isinstance(prompt, str):
            self.text(prompt)
        elif isinstance(prompt, list) and prompt:
            if isinstance(prompt[0], int):
                self.token_ids += len(prompt)
                self.ids += prompt
            else:
                for item in prompt:
                    self.prompt(item)


def prefix_blocks(call: Call) -> tuple[int, ...]:
    """Hashes of ever longer beginnings of the prompt, one for each whole `BLOCK_BYTES` (about 512 tokens) and one for all of
    a shorter prompt; at most `MAX_BLOCKS`. The depth is part of each, so that equal blocks at different places differ."""
    limit = BLOCK_BYTES * MAX_BLOCKS
    data = "\0".join(call.texts).encode("utf-8", "surrogatepass") if call.texts else repr(call.ids[: limit // 4]).encode()
    size = min(len(data), limit)
    blocks, chain = [], 0
    for depth, end in enumerate(range(BLOCK_BYTES, size + 1, BLOCK_BYTES)):
        chain = crc32(data[end - BLOCK_BYTES : end], chain)
        blocks.append(chain << 16 | depth)
    return tuple(blocks) or (crc32(data) << 16,)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31 else None


def _count(value: Any) -> int | None:
    number = _integer(value)
    return number if number is not None and number > 0 else None


def _target(value: Any) -> float | None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    return float(value) if valid else None


def dump(body: Any) -> bytes:
    """JSON; where orjson refuses (a lone surrogate), as the standard library writes it."""
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body).encode()


def usage_in(tail: bytes) -> tuple[int | None, int | None]:
    """(prompt tokens, completion tokens) of the last usage object in the end of an answer, streamed or not; None: not told.

    >>> usage_in(b'data: {"usage":{"prompt_tokens":7, "completion_tokens":12}}')
    (7, 12)
    """
    return _number_after(tail, b'"prompt_tokens"'), _number_after(tail, b'"completion_tokens"')


def cached_in(tail: bytes) -> int | None:
    """Prompt tokens that the engine found in its prefix cache, by the same usage object; None: not told.

    >>> cached_in(b'{"usage":{"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}')
    4
    """
    return _number_after(tail, b'"cached_tokens"')


def _number_after(text: bytes, key: bytes) -> int | None:
    at = text.rfind(key)
    if at < 0:
        return None
    start = at + len(key)
    rest = text[start : start + 24].lstrip(b" \t\r\n:")
    digits = len(rest) - len(rest.lstrip(b"0123456789"))
    return int(rest[:digits]) if digits else None


class Lengths:
    """What a model's answers have taught: tokens a character of prompt text, tokens a streamed event, tokens an answer.

    Each is a ratio of exponentially forgotten sums (weight 0.98 a request, about the last fifty), so that long requests count
    for as much as they are.
    """

    __slots__ = ("_around", "_chars", "_event_tokens", "_events", "_osl", "_tokens")
    KEEP = 0.98

    def __init__(self) -> None:
        self._chars = 4000.0
        self._tokens = self._chars / CHARS_PER_TOKEN
        self._events = 1.0
        self._event_tokens = 1.0
        self._osl = 256.0
        self._around = 0.0

    def isl(self, call: Call) -> int:
        """Prompt tokens, estimated or counted, at least 1."""
        if call.counted is not None:
            return max(1, call.token_ids + call.counted + round(self._around))
        return max(1, call.token_ids + -int(-call.chars * self._tokens // self._chars))

    def osl(self, call: Call) -> float:
        """Tokens that the answer will probably have."""
        return min(self._osl, call.max_tokens) if call.max_tokens else self._osl

    def of_events(self, events: int) -> float:
        """Estimated tokens of a streamed answer of that many events."""
        return events * self._event_tokens / self._events

    def learn_isl(self, call: Call, tokens: int) -> None:
        if call.counted is not None:
            if call.pure_text:
                # What the chat template put around the counted text.
                self._around += (max(0, tokens - call.token_ids - call.counted) - self._around) * AROUND_GAIN
        elif call.pure_text and not call.token_ids and call.chars >= 32:
            self._chars = self._chars * self.KEEP + call.chars
            self._tokens = self._tokens * self.KEEP + tokens

    def learn_osl(self, tokens: float) -> None:
        self._osl += (tokens - self._osl) * (1.0 - self.KEEP)

    def learn_events(self, events: int, tokens: int) -> None:
        if events > 0:
            self._events = self._events * self.KEEP + events
            self._event_tokens = self._event_tokens * self.KEEP + tokens
