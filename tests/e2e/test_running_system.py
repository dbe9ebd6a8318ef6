"""A running system, from its start to its restart. Its clients: the official OpenAI client sees a normal endpoint, whatever
happens behind it. Its operators: what is ordered at the command line happens, and only that."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from global_planner.demo.snapshot import over_budget
from global_planner.journal_reader import read
from global_planner.mocker.engine_api import expected_text
from global_planner.replay.check import check
from global_planner.types import Override, Round
from tests.e2e.runs import TOPOLOGY, Inside, Run, busiest, console, finished, started, until

CHAT, CODE = "demo/chat", "demo/code"
MESSAGES = [{"role": "user", "content": "Say something in a few words, please."}]
PROMPT = MESSAGES[0]["content"]
PROMPT_TOKENS = -(-len(PROMPT) // 4)
RUN = ("run", "--topology", str(TOPOLOGY), "--speed", "20", "--folder", "system")
READY = r"ready: (http://127\.0\.0\.1:\d+)/v1 serves demo/chat, demo/code"
OPERATED = "chat-decode"


@dataclass(frozen=True, slots=True)
class System:
    run: Run
    folder: Path
    base: str

    @property
    def inside(self) -> Inside:
        return Inside(self.folder)

    @property
    def rounds(self) -> list[Round]:
        return [record for record in read(self.folder / "journal") if isinstance(record, Round)]

    @property
    def replicas(self) -> int:
        return len(self.inside.engines(OPERATED))

    def operator_says(self, *arguments: str) -> str:
        """A command of somebody with a terminal beside the system."""
        done = finished(console("global-planner"), *arguments, "--folder", "system", folder=self.folder.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """`global-planner run`, as a user starts it, ready for clients."""
    home = tmp_path_factory.mktemp("run")
    with started(*RUN, folder=home) as run:
        base = run.wait_for(READY, 90).group(1)
        yield System(run, home / "system", base)


@pytest.fixture
def client(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.base}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def other(system: System) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{system.base}/v1", api_key="none", max_retries=0, timeout=60)


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [CHAT, CODE])
def test_a_plain_chat_answer(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=7)  # type: ignore[arg-type]
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.content == expected_text(PROMPT, 7)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 7)
    assert answer.usage.total_tokens == PROMPT_TOKENS + 7


def test_a_streamed_chat_answer(client: openai.OpenAI) -> None:
    """With include_usage every chunk but the last says usage null, and the last has no choice."""
    with client.chat.completions.create(  # type: ignore[call-overload]
        model=CHAT, messages=MESSAGES, max_tokens=9, stream=True, stream_options={"include_usage": True}
    ) as stream:
        parts = list(stream)
    said = [part for part in parts if part.choices]
    assert "".join(part.choices[0].delta.content or "" for part in said) == expected_text(PROMPT, 9)
    assert said[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in said if part.choices[0].finish_reason] == ["length"]
    assert {part.object for part in parts} == {"chat.completion.chunk"}
    assert len({part.id for part in parts}) == 1
    assert [part.usage for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].choices == []
    assert (parts[-1].usage.prompt_tokens, parts[-1].usage.completion_tokens) == (PROMPT_TOKENS, 9)


def test_without_include_usage_a_stream_has_none(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=3, stream=True) as stream:  # type: ignore[call-overload]
        parts = list(stream)
    assert all(part.usage is None and part.choices for part in parts)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected_text(PROMPT, 3)


def test_completions_plain_and_streamed(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=CODE, prompt="def f(x):", max_tokens=5)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == expected_text("def f(x):", 5)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 5, 8)
    with client.completions.create(
        model=CODE, prompt="def f(x):", max_tokens=5, stream=True, stream_options={"include_usage": True}
    ) as stream:
        parts = list(stream)
    assert "".join(part.choices[0].text for part in parts if part.choices) == answer.choices[0].text
    assert parts[-1].usage == answer.usage


def test_long_prompts_are_answered_too(client: openai.OpenAI, system: System) -> None:
    """Above the short pool's limit of 2048 tokens, so by the pool of long prompts."""
    name = "dynamo_component_router_requests_total"
    before = system.inside.metric(name, pool="chat-prefill-long")
    prompt = "long words " * 1000
    answer = client.completions.create(model=CHAT, prompt=prompt, max_tokens=2)
    assert answer.choices[0].text == expected_text(prompt, 2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2750
    assert system.inside.metric(name, pool="chat-prefill-long") == before + 1


async def test_the_async_client_with_many_at_once(other: openai.AsyncOpenAI) -> None:
    async def plain(number: int) -> bool:
        text = f"question {number}"
        answer = await other.chat.completions.create(
            model=CHAT if number % 2 else CODE, messages=[{"role": "user", "content": text}], max_tokens=4
        )
        return answer.choices[0].message.content == expected_text(text, 4)

    async def streamed(number: int) -> bool:
        text = f"stream {number}"
        stream = await other.completions.create(model=CHAT if number % 2 else CODE, prompt=text, max_tokens=4, stream=True)
        return "".join([part.choices[0].text async for part in stream]) == expected_text(text, 4)

    async with other:
        assert [model.id async for model in other.models.list()] == [CHAT, CODE]
        assert all(await asyncio.gather(*(kind(number) for number in range(6) for kind in (plain, streamed))))


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="demo/nope", messages=MESSAGES, stream=stream)  # type: ignore[call-overload]
        assert unknown.value.code == "model_not_found"
        assert "demo/nope" in unknown.value.message


def test_a_prompt_beyond_the_context_is_refused(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as long:
            client.completions.create(model=CHAT, prompt="word" * 131_073, max_tokens=1, stream=stream)
        assert long.value.code == "context_length_exceeded"
        assert "131072" in long.value.message


def test_prompt_and_answer_together_beyond_the_context_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=CHAT, messages=MESSAGES, max_tokens=131_072)  # type: ignore[arg-type]
    assert long.value.code == "context_length_exceeded"


MALFORMED = {
    "not JSON": b'{"model": "demo/chat", "messages": [',
    "not an object": b'["demo/chat"]',
    "no model": b'{"messages": [{"role": "user", "content": "hi"}]}',
    "model of another type": b'{"model": 7, "messages": [{"role": "user", "content": "hi"}]}',
    "no messages": b'{"model": "demo/chat"}',
    "messages of another type": b'{"model": "demo/chat", "messages": "hi"}',
    "no tokens": b'{"model": "demo/chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 0}',
    "nothing": b"",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_refused_in_openai_shape(system: System, body: bytes) -> None:
    status, answer = post(f"{system.base}/v1/chat/completions", body)
    assert status == 400, answer
    assert set(answer["error"]) >= {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


def test_models_and_health(system: System) -> None:
    assert get(f"{system.base}/health")[0] == 200
    assert get(f"{system.base}/ready")[0] == 200
    status, models = get(f"{system.base}/v1/models")
    assert status == 200
    assert [model["id"] for model in models["data"]] == [CHAT, CODE]
    assert {model["object"] for model in models["data"]} == {"model"}
    assert get(f"{system.base}/v1/nothing")[0] == 404


# ---- an engine dies with answers on their way --------------------------------------------------------------------------


async def test_a_killed_decode_engine_breaks_only_what_it_was_streaming(system: System, other: openai.AsyncOpenAI) -> None:
    """Twelve long answers over two decode engines, half of them streamed and begun; one engine is killed. What had begun to
    stream there ends with an error that the client raises; everything else is answered in full: plain answers by the other
    engine."""
    begun = [asyncio.Event() for _ in range(6)]
    tokens = 150

    async def streamed(number: int) -> str:
        stream = await other.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": f"stream {number}"}], max_tokens=tokens, stream=True
        )
        text = ""
        async for part in stream:
            text += part.choices[0].delta.content or ""
            begun[number].set()
        return text

    async def plain(number: int) -> str:
        answer = await other.completions.create(model=CHAT, prompt=f"plain {number}", max_tokens=tokens)
        return answer.choices[0].text

    inside = system.inside
    retried = inside.metric("global_planner_router_requests_total", model=CHAT, outcome="retried")
    told = len(system.run.text)
    async with other:
        streams = [asyncio.create_task(streamed(number)) for number in range(6)]
        plains = [asyncio.create_task(plain(number)) for number in range(6)]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 30)
        load = await asyncio.to_thread(inside.in_flight, "chat-decode")
        pids = {engine["id"]: engine["pid"] for engine in await asyncio.to_thread(inside.engines, "chat-decode")}
        victim = busiest(load, list(pids))
        os.kill(pids[victim], signal.SIGKILL)
        streamed_to_end = await asyncio.gather(*streams, return_exceptions=True)
        answered = await asyncio.gather(*plains)

    assert answered == [expected_text(f"plain {number}", tokens) for number in range(6)]
    broken = [result for result in streamed_to_end if isinstance(result, BaseException)]
    whole = [(number, result) for number, result in enumerate(streamed_to_end) if isinstance(result, str)]
    assert all(isinstance(error, openai.APIError) for error in broken), broken
    assert all(text == expected_text(f"stream {number}", tokens) for number, text in whole)
    assert 1 <= len(broken) < 6
    moved = inside.metric("global_planner_router_requests_total", model=CHAT, outcome="retried") - retried
    assert len(broken) + moved >= load[victim], "each request there was either streaming or tried again"
    assert moved >= 1
    system.run.wait_for(rf"engine {victim} died", 10, after=told)
    # A new one takes its place, in its own time.
    await asyncio.to_thread(
        until, lambda: len([one for one in inside.engines("chat-decode") if one["state"] == "ready"]) == 2, 15, "two engines"
    )
    assert victim not in [engine["id"] for engine in inside.engines("chat-decode") if engine["state"] == "ready"]


# ---- its operators -----------------------------------------------------------------------------------------------------


def test_what_is_ordered_at_the_command_line_happens_and_what_is_frozen_does_not(system: System) -> None:
    had = system.replicas
    system.operator_says("override", "pin", OPERATED, str(had + 1), "--by", "anna")
    until(lambda: system.replicas == had + 1, 30, "the pinned number")

    system.operator_says("freeze", "--reason", "nobody touches anything")
    system.operator_says("override", "pin", OPERATED, "5", "--by", "anna")
    (arbiter,) = system.run.titled("GlobalPlannerActor")
    arbiter.kill()
    before = system.rounds[-1].inputs.round_no

    def frozen_rounds() -> list[Round]:
        return [done for done in system.rounds if done.inputs.round_no > before and done.inputs.freeze is not None]

    until(lambda: len(frozen_rounds()) >= 3, 60, "rounds of the arbiter that came back")
    assert any(step.pool == OPERATED for step in frozen_rounds()[-1].steps), "what would be done is recorded"
    assert not any(done.outcomes for done in frozen_rounds())
    assert system.replicas == had + 1 < 5
    assert "EVERYTHING IS FROZEN by" in system.operator_says("status")

    system.operator_says("unfreeze")
    until(lambda: system.replicas == 5, 30, "the number that was pinned meanwhile")


# ---- the end, and after it -----------------------------------------------------------------------------------------------


def test_sigterm_ends_it_cleanly(system: System) -> None:
    """Its journal is whole, and within the budget throughout."""
    there = system.run.processes()
    assert len(there) >= 12, there
    os.kill(system.run.pid, signal.SIGTERM)
    assert system.run.end(15) == 0, system.run.text
    system.run.wait_gone(3)
    assert "SIGTERM: everything is stopped" in system.run.text
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{system.base}/health", timeout=2)
    assert len(system.rounds) > 10
    assert not any(map(over_budget, system.rounds))
    assert check(system.folder / "journal").reproduced


def test_it_all_goes_on_after_the_whole_system_was_stopped_and_started(system: System) -> None:
    """The last test here, in the folder of the one before."""
    last = system.rounds[-1].inputs
    with started(*RUN, folder=system.folder.parent) as again:
        again.wait_for(READY, 90)
        until(lambda: system.rounds[-1].inputs.round_no > last.round_no, 60, "a round after the restart")
        first = next(done.inputs for done in system.rounds if done.inputs.round_no > last.round_no)
        # A round that the end cut short has left its orders in the journal, but no record: its number is not given again.
        assert last.round_no < first.round_no <= last.round_no + 2
        assert first.at_s > last.at_s, "model time has not begun anew"
        assert first.overrides == (Override(pool=OPERATED, kind="pin", replicas=5, by="anna"),)
        until(lambda: system.replicas == 5, 30, "the pinned number in the new cluster")
        checked = finished(console("global-planner"), "replay", "--check", "system", folder=system.folder.parent)
        assert checked.returncode == 0, checked.stdout + checked.stderr


# ---- asking ------------------------------------------------------------------------------------------------------------


def get(url: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    return _answer(urllib.request.Request(url))


def post(url: str, body: bytes) -> tuple[int, dict]:  # type: ignore[type-arg]
    return _answer(urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}))


def _answer(request: urllib.request.Request) -> tuple[int, dict]:  # type: ignore[type-arg]
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
