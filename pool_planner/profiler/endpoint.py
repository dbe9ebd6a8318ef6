"""[I/O] An OpenAI-compatible engine as a thing to measure: streamed completions of exact lengths, and when tokens came.

Times are model seconds: wall time x PLANNER_SPEED, which is 1 for everything but mock engines. Prompts are random token ids, so
that no prefix cache helps; an engine that does not take ids gets words instead, as many as its tokenizer needs. Requests are
counted, and one more than were promised is refused here.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from pool_planner.clock import SpeedClock

TIMEOUT_S = 600.0
TRIES = 4
PAUSE_WALL_S = 1.0
TOKEN_IDS = (1000, 20_000)
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state", "family")


class EndpointError(RuntimeError):
    """An engine that does not answer as it must; the text has its URL."""


class TooLong(EndpointError):
    """The engine refuses a request of this length."""


@dataclass(slots=True)
class Answer:
    """When one streamed request was sent and its chunks with text came (model seconds on one clock), and its tokens."""

    sent_s: float = 0.0
    at_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        return self.at_s[0] - self.sent_s

    def tokens_by(self, chunk: int) -> int:
        """Tokens that have come with chunk number `chunk`: one with the first, then equally many with each, the last less."""
        chunks = len(self.at_s)
        if chunk == chunks - 1:
            return self.completion_tokens
        return 1 + chunk * max(1, -(-(self.completion_tokens - 1) // max(1, chunks - 1)))


class Endpoint:
    """One engine, from the loop that measures it. `budget`: requests that may still be sent."""

    def __init__(self, url: str, *, model: str | None, clock: SpeedClock, budget: int, seed: int = 1) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model or ""
        self.max_model_len: int | None = None
        self.sent = 0
        self.budget = budget
        self._clock = clock
        self._random = random.Random(seed)
        self._words_per_token: float | None = None  # None: prompts are token ids
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=clock.wall(TIMEOUT_S) + 60.0)
        )

    async def close(self) -> None:
        await self._session.close()

    async def discover(self) -> None:
        """Which model is served and how long a sequence may be. Raises EndpointError."""
        served = await self._get_json("/v1/models")
        models = [entry for entry in served.get("data", []) if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        names = [str(entry["id"]) for entry in models]
        if not names:
            raise EndpointError(f"{self.url}/v1/models: names no model")
        if self.model not in names:
            if self.model and len(names) > 1:
                raise EndpointError(f"{self.url}: serves no model {self.model!r} (has: {', '.join(names)})")
            self.model = names[0]
        limit = next(entry for entry in models if entry["id"] == self.model).get("max_model_len")
        self.max_model_len = limit if isinstance(limit, int) and limit > 0 else None

    async def kv_tokens(self) -> int | None:
        """Tokens of the KV cache, from vLLM's /metrics; None where they do not tell."""
        try:
            async with self._session.get(f"{self.url}/metrics") as answer:
                text = await answer.text() if answer.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
            return None
        for line in text.splitlines():
            if line.startswith("vllm:cache_config_info{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
                size, blocks = labels.get("block_size", ""), labels.get("num_gpu_blocks", "")
                if size.isdigit() and blocks.isdigit() and int(size) * int(blocks) > 0:
                    return int(size) * int(blocks)
        return None

    async def complete(self, prompt_tokens: int, max_tokens: int) -> Answer:
        """One streamed answer of exactly `max_tokens` tokens. Raises EndpointError, TooLong."""
        for attempt in range(1, TRIES + 1):
            try:
                return await self._complete(prompt_tokens, max_tokens)
            except (aiohttp.ClientError, TimeoutError, _Busy) as error:
                if attempt == TRIES or self.sent >= self.budget:
                    text = f"{self.url}: no answer after {attempt} attempts ({type(error).__name__}: {error})"
                    raise EndpointError(text) from error
                await asyncio.sleep(PAUSE_WALL_S * attempt)
        raise AssertionError("unreachable")

    async def _complete(self, prompt_tokens: int, max_tokens: int) -> Answer:
        if self.sent >= self.budget:
            raise EndpointError(f"{self.url}: all {self.budget} requests that were announced are sent")
        self.sent += 1
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": self._prompt(prompt_tokens),
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            "ignore_eos": True,
        }
        answer = Answer(sent_s=self._now())
        async with self._session.post(f"{self.url}/v1/completions", json=body) as response:
            if response.status != 200:
                await self._refused(response, prompt_tokens + max_tokens)
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    break
                self._note(answer, json.loads(line[6:]))
        if not answer.at_s:
            raise EndpointError(f"{self.url}: an answer without any token")
        answer.completion_tokens = answer.completion_tokens or max_tokens
        answer.prompt_tokens = answer.prompt_tokens or prompt_tokens
        if self._words_per_token is not None:
            self._words_per_token *= prompt_tokens / answer.prompt_tokens
        return answer

    def _note(self, answer: Answer, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if "error" in event:
            raise EndpointError(f"{self.url}: {event['error']}")
        if event.get("choices"):
            text = event["choices"][0].get("text")
            if text:
                answer.at_s.append(self._now())
        usage = event.get("usage")
        if isinstance(usage, dict):
            answer.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            answer.completion_tokens = int(usage.get("completion_tokens") or 0)

    async def _refused(self, response: aiohttp.ClientResponse, tokens: int) -> None:
        text = (await response.text())[:400]
        if response.status in (429, 503):
            raise _Busy(f"HTTP {response.status}")
        if response.status == 400 and ("context length" in text or "too long" in text or "KV cache" in text):
            raise TooLong(f"{self.url}: refuses {tokens} tokens: {text}")
        if response.status in (400, 422) and self._words_per_token is None and "prompt" in text:
            self._words_per_token = 1.0
            raise _Busy("token ids are not taken; words are tried")
        raise EndpointError(f"{self.url}: HTTP {response.status}: {text}")

    def _now(self) -> float:
        return time.perf_counter() * self._clock.speed

    def _prompt(self, tokens: int) -> list[int] | str:
        if self._words_per_token is None:
            return [self._random.randint(*TOKEN_IDS) for _ in range(tokens)]
        return " ".join(self._random.choice(WORDS) for _ in range(max(1, round(tokens * self._words_per_token))))

    async def _get_json(self, path: str) -> dict[str, Any]:
        try:
            async with self._session.get(f"{self.url}{path}") as answer:
                content = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EndpointError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        if answer.status != 200 or not isinstance(content, dict):
            raise EndpointError(f"{self.url}{path}: HTTP {answer.status}, not what an OpenAI-compatible engine answers")
        return content


class _Busy(Exception):
    """Not now: the request may be sent again."""
