"""The official OpenAI client against the router: sync, async, streamed, tools, errors."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from tests.router.conftest import MODEL, Running, StartEngine, StartRouter
from tests.router.engines import answering

MESSAGES = [{"role": "user", "content": "Say something in five words, please."}]


@pytest.fixture
async def router(start_router: StartRouter, start_engine: StartEngine) -> Running:
    prefill, decode = await start_engine("pre", "prefill"), await start_engine("w", "decode")
    router = await start_router([{"name": "p", "role": "prefill"}, {"name": "d", "role": "decode"}])
    await router.put_endpoints(1, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})
    return router


async def test_async_client(router: Running) -> None:
    async with openai.AsyncOpenAI(base_url=router.base + "/v1", api_key="none") as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "w0 w1 w2 w3 w4 "
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 5)
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,  # type: ignore[arg-type]
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [part async for part in stream]
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "w0 w1 w2 w3 w4 "
        assert parts[-1].usage is not None
        assert parts[-1].usage.completion_tokens == 5
        text = await client.completions.create(model=MODEL, prompt="once upon a time", max_tokens=2)
        assert text.choices[0].text == "w0 w1 "
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nope", messages=MESSAGES)  # type: ignore[arg-type]
        assert unknown.value.code == "model_not_found"


async def test_sync_client_with_tools(router: Running, start_engine: StartEngine) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    decode = await start_engine("tools", "decode", script=answering(200, body))
    prefill = await start_engine("pre2", "prefill")
    await router.put_endpoints(2, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})

    def use() -> str:
        with openai.OpenAI(base_url=router.base + "/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[tool])  # type: ignore[call-overload]
            name: str = answer.choices[0].message.tool_calls[0].function.name
            return name

    assert await asyncio.to_thread(use) == "f"
    assert decode.calls[0].body["tools"] == [tool]


async def test_errors_are_raised_as_their_kind(router: Running, start_engine: StartEngine) -> None:
    refusal = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": "context_length_exceeded"}}
    prefill = await start_engine("pre3", "prefill", script=answering(400, refusal))
    decode = await start_engine("dec3", "decode")
    await router.put_endpoints(2, {"p": ("prefill", [prefill]), "d": ("decode", [decode])})
    async with openai.AsyncOpenAI(base_url=router.base + "/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)  # type: ignore[arg-type]
        assert too_long.value.code == "context_length_exceeded"
        message = json.dumps(MESSAGES)
        assert message in json.dumps(json.loads(prefill.calls[0].raw)["messages"])
