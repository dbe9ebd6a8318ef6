"""The load against real sockets: what is completed, rejected or lost, what is tried again, and that it stays open loop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from pydantic import TypeAdapter

from global_planner.mocker.load import ATTEMPTS, RETRY_CAP_S, Load
from global_planner.mocker.load_record import LoadProgress, LoadRecord
from global_planner.mocker.load_requests import CHAT_SHARE, STREAMED_SHARE, compose
from global_planner.replay.trace_file import write_workload
from global_planner.replay.workload import Request
from pool_planner.clock import SpeedClock
from tests.workload.endpoint import (
    STEP_S,
    Endpoint,
    Script,
    answer,
    answering_as,
    hang,
    refuse,
    reset,
    sending,
)

SPEED = 20.0
_RECORD, _PROGRESS = TypeAdapter(LoadRecord), TypeAdapter(LoadProgress)


def requests(count: int, gap_s: float = 0.2, osl: int = 6) -> list[Request]:
    return [Request(at_s=n * gap_s, model="demo/chat", isl_tokens=20 + n, osl_tokens=osl) for n in range(count)]


def loading(endpoint: Endpoint, folder: Path, played: Sequence[Request], *, seed: int = 1, deadline_s: float = 600.0) -> Load:
    return Load(
        played,
        url=endpoint.url,
        clock=SpeedClock(origin=time.time(), speed=SPEED),
        out=folder / "out.jsonl",
        progress=folder / "progress.json",
        seed=seed,
        deadline_s=deadline_s,
    )


def written(folder: Path) -> tuple[list[LoadRecord], LoadProgress]:
    records = [_RECORD.validate_json(line) for line in (folder / "out.jsonl").read_bytes().splitlines()]
    return sorted(records, key=lambda record: record.index), _PROGRESS.validate_json((folder / "progress.json").read_bytes())


def streamed_seed() -> int:
    """A seed whose first request streams (compose decides who does)."""
    return next(seed for seed in range(50) if compose(requests(1), host="h", base="", seed=seed)[0].streamed)


async def one(folder: Path, *scripts: Script, deadline_s: float = 600.0, osl: int = 6) -> tuple[LoadRecord, Endpoint]:
    """A single streamed request against an endpoint with these scripts."""
    async with Endpoint(scripts=list(scripts)) as endpoint:
        await loading(endpoint, folder, requests(1, osl=osl), seed=streamed_seed(), deadline_s=deadline_s).play()
    records, progress = written(folder)
    assert len(records) == 1
    assert (progress.sent, progress.in_flight, progress.done) == (1, 0, True)
    assert getattr(progress, records[0].outcome) == 1
    return records[0], endpoint


async def test_every_kind_of_request_is_asked_right_and_completed(tmp_path: Path) -> None:
    async with Endpoint() as endpoint:
        await loading(endpoint, tmp_path, requests(60, gap_s=0.05)).play()
    records, progress = written(tmp_path)
    assert [record.outcome for record in records] == ["completed"] * 60
    assert {(path.endswith("/chat/completions"), call.stream) for path, call in endpoint.seen} == {
        (chat, stream) for chat in (True, False) for stream in (True, False)
    }
    assert sorted((call.isl, call.osl) for _, call in endpoint.seen) == [(20 + n, 6) for n in range(60)]
    assert len({call.prompt[:40] for _, call in endpoint.seen}) == 60
    assert (progress.completed, progress.total, progress.retried, progress.lost) == (60, 60, 0, 0)
    assert progress.models["demo/chat"].completed == 60
    assert endpoint.connections < 40  # they are kept and used again


async def test_latencies_are_what_the_client_saw_in_model_time(tmp_path: Path) -> None:
    record, _ = await one(tmp_path)
    step_ms = STEP_S * SPEED * 1e3
    assert record.ttft_ms is not None and step_ms <= record.ttft_ms < 6 * step_ms
    assert record.itl_ms is not None and 2 * step_ms / 5 * 0.9 <= record.itl_ms < 6 * step_ms / 5
    assert record.ttft_ms + 5 * record.itl_ms <= record.duration_ms + 1e-6
    assert record.engine_model_ms == 12.0
    assert (record.http_status, record.retries, record.reason) == (200, 0, None)


async def test_a_single_token_has_no_itl(tmp_path: Path) -> None:
    record, _ = await one(tmp_path, osl=1)
    assert record.outcome == "completed"
    assert record.itl_ms is None and record.ttft_ms is not None


@pytest.mark.parametrize("status", [429, 503, 502])
async def test_a_refusal_is_tried_again_after_its_time_but_at_most_the_cap(tmp_path: Path, status: int) -> None:
    record, endpoint = await one(tmp_path, refuse(status, "0"), refuse(status, "3600"))
    assert (record.outcome, record.retries, record.http_status) == ("completed", 2, 200)
    assert len(endpoint.seen) == 3
    assert record.ttft_ms is not None and RETRY_CAP_S * 1e3 <= record.ttft_ms < 2.5 * RETRY_CAP_S * 1e3


async def test_who_is_refused_to_the_last_attempt_is_rejected(tmp_path: Path) -> None:
    record, endpoint = await one(tmp_path, *[refuse(429, "0")] * (ATTEMPTS + 1))
    assert (record.outcome, record.http_status, record.retries) == ("rejected", 429, ATTEMPTS - 1)
    assert len(endpoint.seen) == ATTEMPTS
    assert record.reason is not None and record.reason.startswith("HTTP 429")


async def test_who_is_refused_until_the_deadline_is_rejected(tmp_path: Path) -> None:
    record, _ = await one(tmp_path, *[refuse(503, "9")] * ATTEMPTS, deadline_s=4.0, osl=1)
    assert record.outcome == "rejected"
    assert record.reason is not None and "no whole answer within 6 s; before: HTTP 503" in record.reason


async def test_a_connection_that_breaks_before_a_byte_is_tried_again(tmp_path: Path) -> None:
    record, endpoint = await one(tmp_path, reset, reset)
    assert (record.outcome, record.retries) == ("completed", 2)
    assert endpoint.connections == 3


FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"abc "},"text":"abc ","finish_reason":null}]}\n\n'


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (sending(FIRST, then_cut=True), "connection"),
        (sending(FIRST), "ended before its finish reason"),
        (sending(FIRST, b'data: {"error": {"message": "engine lost"}}\n\n'), "broke off"),
        (sending(FIRST, b"data: {nonsense}\n\n"), "an event is not JSON"),
        (sending(b"data: [DONE]\n\n"), "ended before its finish reason"),
        (answering_as(lambda call: replace(call, prompt="another prompt")), "the text is not the answer"),
        (answering_as(lambda call: replace(call, osl=call.osl - 1)), "usage is (20, 5) tokens"),
        (answering_as(lambda call: replace(call, include_usage=False)), "usage is None"),
        (refuse(400), "HTTP 400"),
        (refuse(500), "HTTP 500"),
        (refuse(502), "HTTP 502"),
        (refuse(404, "1"), "HTTP 404"),
        (sending(), "ended before its finish reason"),
    ],
)
async def test_anything_that_is_not_the_whole_right_answer_is_lost(tmp_path: Path, script: Script, reason: str) -> None:
    record, endpoint = await one(tmp_path, script)
    assert record.outcome == "lost"
    assert record.reason is not None and reason in record.reason
    assert len(endpoint.seen) == 1  # what has begun is never asked again
    assert record.ttft_ms is None


async def test_a_request_without_an_answer_is_lost_at_its_deadline(tmp_path: Path) -> None:
    record, _ = await one(tmp_path, hang, deadline_s=2.0, osl=3)  # and 2 s a token
    assert (record.outcome, record.http_status) == ("lost", None)
    assert 8000.0 <= record.duration_ms < 11_000.0


async def test_nobody_listening_is_lost_after_the_attempts(tmp_path: Path) -> None:
    endpoint = Endpoint(url="http://127.0.0.1:1")
    await loading(endpoint, tmp_path, requests(1)).play()
    records, _ = written(tmp_path)
    assert (records[0].outcome, records[0].retries) == ("lost", ATTEMPTS - 1)
    assert records[0].reason is not None and "cannot connect" in records[0].reason


async def test_an_endpoint_that_stalls_does_not_slow_the_others_down(tmp_path: Path) -> None:
    """Open loop: ten requests hang for ever, the ninety behind them leave at their times all the same."""
    async with Endpoint(scripts=[hang] * 10) as endpoint:
        begun = time.monotonic()
        await loading(endpoint, tmp_path, requests(100, gap_s=0.1), deadline_s=18.0).play()
        took_s = (time.monotonic() - begun) * SPEED
    records, _ = written(tmp_path)
    assert [record.outcome for record in records].count("lost") == 10
    assert [record.outcome for record in records].count("completed") == 90
    planned = np.array([record.sent_s - record.late_ms / 1e3 - record.at_s for record in records])
    assert np.ptp(planned) < 1e-3
    assert np.median([record.late_ms for record in records]) < 1000.0
    assert 30.0 <= took_s < 90.0


async def test_stopping_sends_no_more_and_writes_what_there_is(tmp_path: Path) -> None:
    async with Endpoint(scripts=[answer] * 5 + [hang] * 1000) as endpoint:
        load = loading(endpoint, tmp_path, requests(1000, gap_s=1.0))
        playing = asyncio.create_task(load.play())
        await until(lambda: len(endpoint.seen) >= 10)
        load.stop()
        await asyncio.wait_for(playing, 10.0)
    records, progress = written(tmp_path)
    outcomes = [record.outcome for record in records]
    assert outcomes.count("completed") == 5
    assert outcomes.count("abandoned") == len(records) - 5 >= 5
    assert (progress.sent, progress.in_flight, progress.done) == (len(records), 0, True)
    assert progress.total == 1000


def test_prompts_have_the_exact_length_and_nothing_to_escape() -> None:
    played = [Request(at_s=0.0, model='odd"model', isl_tokens=isl, osl_tokens=1, priority=3) for isl in (1, 7, 90_000)]
    for asked in compose(played, host="h:1", base="/base", seed=1):
        head, body = asked.wire()
        sent = orjson.loads(body)
        text = sent["messages"][0]["content"] if asked.chat else sent["prompt"]
        assert len(text) == 4 * asked.request.isl_tokens and text == asked.prompt()
        assert sent["model"] == 'odd"model'
        assert sent["nvext"] == {"agent_hints": {"priority": 3}}
        assert f"content-length: {len(body)}\r\n".encode() in head
        assert head.startswith(b"POST /base/v1/")


def test_shares_of_streams_and_chats_are_as_said() -> None:
    asked = compose(requests(4000), host="h", base="", seed=2)
    assert np.mean([one.streamed for one in asked]) == pytest.approx(STREAMED_SHARE, abs=0.02)
    assert np.mean([one.chat for one in asked]) == pytest.approx(CHAT_SHARE, abs=0.03)


# ---- the process -----------------------------------------------------------------------------------------------------


def command(url: str, folder: Path) -> list[str]:
    files = ["--out", str(folder / "out.jsonl"), "--progress", str(folder / "progress.json")]
    return [sys.executable, "-m", "global_planner.mocker.load", "--workload", str(folder / "w.jsonl"), "--url", url, *files]


def environment() -> dict[str, str]:
    return {**os.environ, **SpeedClock(origin=time.time(), speed=SPEED).environment()}


def ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be collected by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


async def test_sigterm_ends_the_process_with_all_records(tmp_path: Path) -> None:
    write_workload(tmp_path / "w.jsonl", requests(5000, gap_s=0.5))
    async with Endpoint() as endpoint:
        process = await asyncio.create_subprocess_exec(*command(endpoint.url, tmp_path), env=environment())
        await until(lambda: len(endpoint.seen) >= 20)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10.0) == 0
    records, progress = written(tmp_path)
    assert len(records) == progress.sent >= 20
    assert progress.done and progress.lost == 0


async def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    write_workload(tmp_path / "w.jsonl", requests(5000, gap_s=0.5))
    async with Endpoint() as endpoint:
        parent = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(60)"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", parent, *command(endpoint.url, tmp_path), stdout=subprocess.PIPE, env=environment()
        )
        assert process.stdout is not None
        load_pid = int(await process.stdout.readline())
        await until(lambda: len(endpoint.seen) >= 5)
        process.kill()
        await process.wait()
        await until(lambda: ended(load_pid))
    assert written(tmp_path)[1].done


async def test_a_bad_workload_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "w.jsonl").write_text("{}\n")
    process = await asyncio.create_subprocess_exec(*command("http://127.0.0.1:9", tmp_path), stderr=subprocess.PIPE)
    _, said = await process.communicate()
    assert process.returncode == 1
    assert b"line 1: not a request" in said
