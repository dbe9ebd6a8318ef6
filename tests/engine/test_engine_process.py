"""Mock engines as their users meet them: real processes, real sockets, the real openai client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from global_planner.mocker.engine_api import expected_text
from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineRequest, raw_spec
from tests.engine.engines import SIMPLE, drive, spec
from tests.engine.processes import Engine, command, engine, state, stream, until, wait_for_port

MODEL = "demo/chat"
AGG = spec(model=MODEL, max_model_len=2000)


@pytest.fixture(scope="module")
def agg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine(tmp_path_factory.mktemp("agg"), AGG, name="agg-0") as started:
        yield started


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as made:
        yield made


def test_the_openai_client_gets_what_it_asked_for(agg: Engine) -> None:
    client = openai.OpenAI(base_url=f"{agg.url}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello there"}]
    prompt = "be briefhello there"
    assert [model.id for model in client.models.list()] == [MODEL]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=9)
    assert chat.choices[0].message.content == expected_text(prompt, 9)
    assert chat.choices[0].finish_reason == "length"
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (5, 9, 14)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=messages, max_completion_tokens=10, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert [len(text) // 4 for text in texts] == [1, 4, 4, 1] and "".join(texts) == expected_text(prompt, 10)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 10
    text = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=2)
    assert text.usage is not None and text.usage.prompt_tokens == 3
    assert text.choices[0].text == expected_text("1 2 3", 2)
    assert client.completions.create(model=MODEL, prompt="x").choices[0].text == expected_text("x", 16)
    pieces = [event.choices[0].text for event in client.completions.create(model=MODEL, prompt="x", max_tokens=1, stream=True)]
    assert pieces == [expected_text("x", 1)]
    with pytest.raises(openai.NotFoundError, match="The model `other` does not exist") as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(
        openai.BadRequestError, match="maximum context length is 2000 tokens, but you requested 2005"
    ) as refused:
        client.completions.create(model=MODEL, prompt="x" * 7980, max_tokens=10)
    assert refused.value.code == "context_length_exceeded"


async def test_the_engines_own_account_does_not_know_the_stack(agg: Engine, session: aiohttp.ClientSession) -> None:
    """400 tokens alone: 500 ms to the first, 10 ms for each of the other 20, on whatever machine this runs."""
    told = await stream(session, agg.url, {"model": MODEL, "prompt": "x" * 1600, "max_tokens": 21})
    assert told.headers["x-replica-id"] == "agg-0" and told.text == expected_text("x" * 1600, 21)
    assert told.last["engine_ttft_ms"] == pytest.approx(500, abs=0.1)
    assert told.last["engine_model_ms"] == pytest.approx(700, abs=0.1)
    assert told.at_s[0] >= 0.5 / 50 and told.at_s[-1] >= 0.7 / 50


async def test_what_is_not_there_and_what_is_no_http(agg: Engine, session: aiohttp.ClientSession) -> None:
    async with session.get(f"{agg.url}/v2") as answer:
        assert answer.status == 404 and "There is no /v2 here" in (await answer.json())["error"]["message"]
    async with session.get(f"{agg.url}/v1/completions", headers={"x-request-id": "r1"}) as answer:
        assert answer.status == 405 and answer.headers["x-request-id"] == "r1"
    for garbage, status in ((b"hello\r\n\r\n", b"400"), (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000, b"431")):
        reader, writer = await asyncio.open_connection("127.0.0.1", agg.port)
        writer.write(garbage)
        assert (await reader.read()).split(b" ")[1] == status
        writer.close()


async def test_pipelined_requests_are_answered_in_order(agg: Engine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", agg.port)
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2 and answers.index(b"text_completion") < answers.index(b"connection: close")
    writer.close()


async def test_a_client_that_goes_away_stops_the_work(agg: Engine, session: aiohttp.ClientSession) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await stream(session, agg.url, {"model": MODEL, "prompt": "x", "max_tokens": 1900})
    await until(session, agg.url, running=0, waiting=0)


async def test_metrics_are_vllms(agg: Engine, session: aiohttp.ClientSession) -> None:
    async def scrape() -> dict[str, float]:
        async with session.get(f"{agg.url}/metrics") as answer:
            families = list(text_string_to_metric_families(await answer.text()))
        return {
            s.name: s.value for f in families for s in f.samples if "le" not in s.labels and s.labels.get("model_name") == MODEL
        }

    before = await scrape()
    await stream(session, agg.url, {"model": MODEL, "prompt": "x" * 800, "max_tokens": 11})
    after = await scrape()
    gained = {name.removeprefix("vllm:"): round(after[name] - before[name], 2) for name in after}
    assert gained == {
        "num_requests_running": 0, "num_requests_waiting": 0, "kv_cache_usage_perc": 0, "num_preemptions_total": 0,
        "prompt_tokens_total": 200, "generation_tokens_total": 11, "request_success_total": 1,
        "time_to_first_token_seconds_sum": 0.3, "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_sum": 0.1, "inter_token_latency_seconds_count": 10,
        "e2e_request_latency_seconds_sum": 0.4, "e2e_request_latency_seconds_count": 1,
        "request_prompt_tokens_sum": 200, "request_prompt_tokens_count": 1,
        "request_generation_tokens_sum": 11, "request_generation_tokens_count": 1,
            "prefix_cache_queries_total": 0, "prefix_cache_hits_total": 0,
    }  # fmt: skip


# ---- prefill and decode ----------------------------------------------------------------------------------------------


async def hand_over(session: aiohttp.ClientSession, prefill: Engine, prompt: str) -> dict[str, Any]:
    ask = {
        "model": MODEL, "prompt": prompt, "max_tokens": 1, "max_completion_tokens": 1, "stream": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
                               "remote_block_ids": None, "remote_host": None, "remote_port": None},
    }  # fmt: skip
    async with session.post(f"{prefill.url}/v1/completions", json=ask) as answer:
        body = await answer.json()
    assert body["choices"][0]["text"] == expected_text(prompt, 1)
    params: dict[str, Any] = body["kv_transfer_params"]
    assert params["do_remote_prefill"] is True and params["remote_port"] == prefill.port
    return params


async def test_prefill_hands_over_to_decode(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """Prefill: 500 ms. Decode: blocks for 50 ms, then 11 tokens in 10 ms each; 5 model seconds are held at most."""
    prompt = "x" * 1600
    with (
        engine(tmp_path, spec(role="prefill", model=MODEL), name="p") as prefill,
        engine(tmp_path, spec(role="decode", model=MODEL, kv_hold_s=5), name="d") as decode,
    ):
        params = await hand_over(session, prefill, prompt)
        assert (await state(session, prefill.url))["pending_kv"] == 1
        ask = {"model": MODEL, "prompt": prompt, "max_tokens": 11}
        told = await stream(session, decode.url, {**ask, "kv_transfer_params": params})
        assert told.text == expected_text(prompt, 11) and told.headers["x-replica-id"] == "d"
        assert told.last["engine_ttft_ms"] == pytest.approx(560, abs=0.5)
        assert told.last["engine_model_ms"] == pytest.approx(660, abs=0.5)
        await until(session, prefill.url, pending_kv=0)

        # Fetched before: decode computes the prompt itself, and the answer is the same.
        told = await stream(session, decode.url, {**ask, "kv_transfer_params": params})
        assert told.text == expected_text(prompt, 11) and told.last["engine_model_ms"] > 500 + 500 + 100
        # Never handed over: likewise.
        told = await stream(session, decode.url, ask)
        assert told.text == expected_text(prompt, 11) and told.last["engine_model_ms"] == pytest.approx(600, abs=0.5)

        # Nobody fetches them: the blocks time out.
        await hand_over(session, prefill, prompt)
        await until(session, prefill.url, pending_kv=1)
        await until(session, prefill.url, pending_kv=0)

        # The prefill engine is gone.
        params = await hand_over(session, prefill, prompt)
        prefill.popen.kill()
        prefill.popen.wait()
        told = await stream(session, decode.url, {**ask, "kv_transfer_params": params})
        assert told.text == expected_text(prompt, 11)
        assert told.usage is None and told.last["engine_model_ms"] > 500 + 500 + 100


# ---- from start to end -------------------------------------------------------------------------------------------------


async def test_cold_start_then_ready(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    with engine(tmp_path, AGG, ready_in_s=60.0) as started:
        async with session.get(f"{started.url}/health") as answer:
            assert answer.status == 503 and answer.headers["retry-after"] == "1"
        async with session.post(f"{started.url}/v1/completions", json={"model": MODEL, "prompt": "x"}) as answer:
            assert answer.status == 503 and (await answer.json())["error"]["code"] == "engine_starting"
        await started.clock.sleep(61 - started.clock.now())
        async with session.get(f"{started.url}/health") as answer:
            assert answer.status == 200


async def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    with engine(tmp_path, AGG) as started:
        running = asyncio.create_task(stream(session, started.url, {"model": MODEL, "prompt": "x", "max_tokens": 1900}))
        await until(session, started.url, running=1)
        started.popen.terminate()
        await until(session, started.url, draining=True)
        async with session.post(f"{started.url}/v1/completions", json={"model": MODEL, "prompt": "x"}) as answer:
            assert answer.status == 503 and (await answer.json())["error"]["code"] == "engine_draining"
        assert (await running).text == expected_text("x", 1900)
        assert await asyncio.to_thread(started.popen.wait, 5) == 0


async def test_the_grace_is_the_longest_wait(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    with engine(tmp_path, spec(role="prefill", model=MODEL, kv_hold_s=10_000), name="p", grace_s=20) as prefill:
        await hand_over(session, prefill, "x")
        began = time.monotonic()
        prefill.popen.terminate()
        assert await asyncio.to_thread(prefill.popen.wait, 5) == 0
        assert time.monotonic() - began > 20 / 50 * 0.9, "the blocks are held for a decode engine until the grace is over"


def test_an_engine_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(raw_spec(AGG)))
    arguments = command(tmp_path / "spec.json", tmp_path / "ports.json")
    code = f"import subprocess, time; subprocess.Popen({arguments!r}); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for_port(tmp_path / "ports.json")
        child = json.loads((tmp_path / "ports.json").read_text())["pid"]
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(150):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split(") ")[1][0] == "Z":
            return
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the engine outlived its parent")


def test_a_useless_specification_is_refused_at_once(tmp_path: Path) -> None:
    for content, says in (
        ("{", "spec.json: not valid JSON"),
        ('{"role": "agg"}', "spec.json: profile is missing"),
        (json.dumps({**raw_spec(AGG), "max_num_seqs": 0}), "spec.json: max_num_seqs: 0 must be >= 1"),
    ):
        (tmp_path / "spec.json").write_text(content)
        ended = subprocess.run(command(tmp_path / "spec.json", tmp_path / "p"), capture_output=True, timeout=10, text=True)
        assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr


def test_an_engine_starts_light(agg: Engine) -> None:
    heavy = "{'numpy', 'scipy', 'pydantic', 'aiohttp', 'ray', 'click', 'prometheus_client'}"
    code = f"import sys, global_planner.mocker.engine; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20).stdout == "[]\n"
    status = Path(f"/proc/{agg.popen.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 45_000, "kB"


# ---- wall clock and virtual clock --------------------------------------------------------------------------------------


async def test_served_over_http_at_speed_1_it_is_as_fast_as_in_virtual_time(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """24 requests in 2.4 s: TTFT and ITL as a client sees them, against the model alone, at p50 and p90 within 5 %."""
    arrivals = [(0.1 * i, 80 + 37 * (i % 7), 10 + 7 * (i % 5)) for i in range(24)]
    shape = spec(model=MODEL, profile=SIMPLE.profile, prefill_chunk_tokens=500)
    virtual = drive(Replica(shape), [(at, EngineRequest(id=str(i), isl=n, osl=m)) for i, (at, n, m) in enumerate(arrivals)])
    first = {e.id: e.at_s for e in virtual if e.kind == "first_token"}
    last = {e.id: e.at_s for e in virtual if e.kind == "finished"}
    ttft = [first[str(i)] - at for i, (at, _, _) in enumerate(arrivals)]
    itl = [(last[str(i)] - first[str(i)]) / (m - 1) for i, (_, _, m) in enumerate(arrivals)]
    with engine(tmp_path, shape, speed=1.0) as started:
        await stream(session, started.url, {"model": MODEL, "prompt": "warm", "max_tokens": 2})

        async def send(at: float, isl: int, osl: int) -> tuple[float, float]:
            await asyncio.sleep(at)
            told = await stream(session, started.url, {"model": MODEL, "prompt": "x" * 4 * isl, "max_tokens": osl})
            return told.at_s[0], (told.at_s[-1] - told.at_s[0]) / (osl - 1)

        seen = await asyncio.gather(*(send(*arrival) for arrival in arrivals))
    for expected, measured in ((ttft, [s[0] for s in seen]), (itl, [s[1] for s in seen])):
        assert median(measured) == pytest.approx(median(expected), rel=0.05)
        assert quantiles(measured, n=10)[-1] == pytest.approx(quantiles(expected, n=10)[-1], rel=0.05)


async def test_a_prefix_that_was_seen_before_is_not_computed_again(tmp_path: Path, session: aiohttp.ClientSession) -> None:
    """320 tokens, of which the first 256 come again: counted as vLLM counts them, told in the usage, and quicker."""
    body = {"model": MODEL, "max_tokens": 1, "stream": False}
    shared = "abcd" * 256
    with engine(tmp_path, spec(model=MODEL, prefix_cache_tokens=4096), name="cached") as started:

        async def ask(prompt: str) -> tuple[int, float]:
            async with session.post(f"{started.url}/v1/completions", json={**body, "prompt": prompt}) as answer:
                told = await answer.json()
            return told["usage"]["prompt_tokens_details"]["cached_tokens"], told["engine_ttft_ms"]

        (first, slow), (second, quick) = await ask(shared + "one!" * 64), await ask(shared + "two!" * 64)
        assert (first, second) == (0, 256)
        assert quick < slow
        async with session.get(f"{started.url}/metrics") as answer:
            text = await answer.text()
    families = {family.name: family.samples[0].value for family in text_string_to_metric_families(text)}
    assert families["vllm:prefix_cache_queries"] == 640.0
    assert families["vllm:prefix_cache_hits"] == 256.0
