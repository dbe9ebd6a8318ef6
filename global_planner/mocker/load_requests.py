"""Requests of a workload as bytes to send: prompts of an exact length, streamed or not, chat or completion. Pure.

Prompts are slices of one long text at drawn places: their length is exact (four characters a token, as the mock engines
count), their beginnings differ, and nothing in them needs escaping.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from global_planner.mocker.engine_api import CHARS_PER_TOKEN
from global_planner.replay.workload import Request

STREAMED_SHARE = 0.9
CHAT_SHARE = 0.75
_VARIETY_CHARS = 262_144


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to send: `start` is where its prompt begins in `text`."""

    index: int
    request: Request
    chat: bool
    streamed: bool
    start: int
    text: str
    host: str
    base: str

    def prompt(self) -> str:
        return self.text[self.start : self.start + CHARS_PER_TOKEN * self.request.isl_tokens]

    def wire(self) -> tuple[bytes, bytes]:
        """(head, body) of the HTTP request."""
        request, prompt = self.request, self.prompt()
        words = f'"messages":[{{"role":"user","content":"{prompt}"}}]' if self.chat else f'"prompt":"{prompt}"'
        stream = ',"stream":true,"stream_options":{"include_usage":true}' if self.streamed else ""
        priority = f',"nvext":{{"agent_hints":{{"priority":{request.priority}}}}}' if request.priority else ""
        model = json.dumps(request.model)
        body = f'{{"model":{model},{words},"max_tokens":{request.osl_tokens}{stream}{priority}}}'.encode()
        path = f"{self.base}/v1/chat/completions" if self.chat else f"{self.base}/v1/completions"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
            f"x-request-id: load-{self.index}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode(), body


def compose(requests: Sequence[Request], *, host: str, base: str, seed: int) -> tuple[Asked, ...]:
    """What to send for each request, drawn from `seed`: 90 % streamed, 75 % chat."""
    rng = np.random.default_rng(seed)
    count = len(requests)
    longest = CHARS_PER_TOKEN * max((request.isl_tokens for request in requests), default=0)
    letters = rng.integers(ord("a"), ord("z") + 1, _VARIETY_CHARS).astype(np.uint8)
    letters[rng.uniform(size=_VARIETY_CHARS) < 0.18] = ord(" ")
    variety = letters.tobytes().decode("ascii")
    text = variety * (2 + longest // _VARIETY_CHARS)
    streamed = rng.uniform(size=count) < STREAMED_SHARE
    chat = rng.uniform(size=count) < CHAT_SHARE
    starts = rng.integers(_VARIETY_CHARS, size=count)
    return tuple(
        Asked(index, request, bool(chat[index]), bool(streamed[index]), int(starts[index]), text, host, base)
        for index, request in enumerate(requests)
    )
