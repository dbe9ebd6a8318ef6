"""[I/O] Plays a workload against the public endpoint, honestly; a process: `python -m global_planner.mocker.load`.

Open loop: every request leaves at its time, whatever became of the others, and every request ends as exactly one record. A
request is `completed` only when its answer is whole and right: the text that the mock engines must give, the usage, the end
mark. 429, 503 and a 502 with Retry-After are tried again after the time that the server named (seconds of the wall, at most
`RETRY_CAP_S` of model time, since a second is long at a high speed), and so is a connection that broke before a byte of an
answer; never what has begun to stream. How late the generator itself was is written down with every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import click
import numpy as np
import orjson
import uvloop

from global_planner.mocker.engine_api import expected_text
from global_planner.mocker.load_answer import Answer, BadAnswer, read_plain, read_stream
from global_planner.mocker.load_connection import ConnectionFailed, Connections, Exchange
from global_planner.mocker.load_record import LoadProgress, LoadRecord, ModelProgress, Outcome
from global_planner.mocker.load_requests import Asked, compose
from global_planner.replay.trace_file import read_workload
from global_planner.replay.workload import Request
from pool_planner.clock import SpeedClock, clock_from_environment

ATTEMPTS = 6
RETRY_CAP_S = 10.0
# Beside the deadline, what an answer may take a token: a long answer of a slow engine is not a lost one.
DEADLINE_TOKEN_S = 2.0
RECENT_S = 60.0
PROGRESS_WALL_S = 0.5
STOP_GRACE_WALL_S = 2.0
LEAD_WALL_S = 0.2
RETRYABLE = frozenset((429, 502, 503))


class Load:
    """One run. `play` sends everything and returns when every request has its record."""

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        url: str,
        clock: SpeedClock,
        out: Path,
        progress: Path,
        seed: int,
        deadline_s: float,
    ) -> None:
        address = urlsplit(url)
        if address.scheme != "http" or not address.hostname:
            raise ValueError(f"--url {url!r} is not http://host:port")
        self._asked = compose(requests, host=address.netloc, base=address.path.rstrip("/"), seed=seed)
        self._clock, self._deadline_s = clock, deadline_s
        self._connections = Connections(address.hostname, address.port or 80)
        self._jitter = np.random.default_rng((seed, 1))
        self._out, self._progress = out.open("wb"), progress
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        # Model time on a clock that nobody sets: durations must not jump when somebody corrects the wall clock.
        self._model_zero_s = clock.now() - perf_counter() * clock.speed
        self._started_s = self._now() + LEAD_WALL_S * clock.speed
        self._sent, self._retried = 0, 0
        self._outcomes: Counter[Outcome] = Counter()
        self._reasons: Counter[str] = Counter()
        self._late_ms: list[float] = []
        self._by_model: dict[str, Counter[str]] = {asked.request.model: Counter() for asked in self._asked}
        self._recent: dict[str, deque[tuple[float, float, float | None]]] = {model: deque() for model in self._by_model}

    def _now(self) -> float:
        return self._model_s(perf_counter())

    def _model_s(self, counter_s: float) -> float:
        return self._model_zero_s + counter_s * self._clock.speed

    def stop(self) -> None:
        """Send nothing more; what is on its way gets a moment."""
        self._stop.set()

    async def play(self) -> None:
        ticker = asyncio.create_task(self._tell())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await self._send_all(stopped)
            if self._tasks and not self._stop.is_set():
                whole = asyncio.ensure_future(asyncio.wait(self._tasks))
                await asyncio.wait({whole, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=STOP_GRACE_WALL_S)
            for task in tuple(self._tasks):
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            ticker.cancel()
            stopped.cancel()
            self._connections.close()
            self._out.close()
            self._write_progress(done=True)
        if self._failure is not None:
            raise self._failure

    async def _send_all(self, stopped: asyncio.Task[bool]) -> None:
        for asked in self._asked:
            due = self._started_s + asked.request.at_s
            wait_wall_s = self._clock.wall(due - self._now())
            if wait_wall_s > 0:
                await asyncio.wait({stopped}, timeout=wait_wall_s)
            if self._stop.is_set():
                return
            self._sent += 1
            self._by_model[asked.request.model]["sent"] += 1
            task = asyncio.create_task(self._one(asked, due))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            # A request without a record would be a lie by omission: stop, and let the process fail.
            self._failure = failure
            self.stop()

    # ---- one request ----------------------------------------------------------------------------------------------

    async def _one(self, asked: Asked, due: float) -> None:
        sent_s = self._now()
        deadline_s = self._deadline_s + DEADLINE_TOKEN_S * asked.request.osl_tokens
        late_ms = (sent_s - due) * 1e3
        self._late_ms.append(late_ms)
        head, body = asked.wire()
        retries = 0
        outcome: Outcome = "lost"
        status: int | None = None
        reason: str | None = None
        answer: Answer | None = None
        try:
            async with asyncio.timeout(self._clock.wall(deadline_s)):
                while True:
                    try:
                        exchange = await self._connections.ask(head, body)
                    except ConnectionFailed as failed:
                        status, reason = None, str(failed)
                        again, after_wall_s = failed.clean, 0.0
                    else:
                        status = exchange.status
                        if status == 200:
                            answer = _read(asked, exchange)
                            outcome, reason = "completed", None
                            break
                        reason = _refusal(exchange)
                        again = status in RETRYABLE and (status != 502 or exchange.retry_after is not None)
                        after_wall_s = _seconds(exchange.retry_after)
                    if not again or retries + 1 >= ATTEMPTS:
                        outcome = "rejected" if status in (429, 503) else "lost"
                        break
                    retries += 1
                    self._retried += 1
                    await asyncio.sleep(self._pause_wall_s(after_wall_s))
        except BadAnswer as bad:
            reason = str(bad)
        except TimeoutError:
            # What a server refused until the deadline came was rejected; what it never answered is lost.
            outcome = "rejected" if status in (429, 503) else "lost"
            reason = f"no whole answer within {deadline_s:g} s" + (f"; before: {reason}" if reason else "")
        except asyncio.CancelledError:
            outcome, reason = "abandoned", "the load was stopped"
        self._record(asked, outcome, sent_s, late_ms, answer, status=status, retries=retries, reason=reason)

    def _pause_wall_s(self, asked_wall_s: float) -> float:
        """What the server asked for, within the cap, and a little more so that those who were refused together spread out."""
        cap_wall_s = self._clock.wall(RETRY_CAP_S)
        return min(max(asked_wall_s, cap_wall_s / 10), cap_wall_s) * (1.0 + 0.25 * float(self._jitter.random()))

    def _record(
        self,
        asked: Asked,
        outcome: Outcome,
        sent_s: float,
        late_ms: float,
        answer: Answer | None,
        *,
        status: int | None,
        retries: int,
        reason: str | None,
    ) -> None:
        request = asked.request
        # What the load does with a whole answer (checking its text) is not the server's time.
        now = self._now() if answer is None else self._model_s(answer.end)
        ttft_ms = itl_ms = None
        if answer is not None and answer.first is not None and answer.last is not None:
            ttft_ms = (self._model_s(answer.first) - sent_s) * 1e3
            if answer.completion_tokens > 1:
                itl_ms = (answer.last - answer.first) * self._clock.speed * 1e3 / (answer.completion_tokens - 1)
        record = LoadRecord(
            index=asked.index,
            model=request.model,
            at_s=request.at_s,
            isl_tokens=request.isl_tokens,
            osl_tokens=request.osl_tokens,
            priority=request.priority,
            chat=asked.chat,
            streamed=asked.streamed,
            sent_s=sent_s,
            late_ms=late_ms,
            outcome=outcome,
            duration_ms=(now - sent_s) * 1e3,
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            engine_model_ms=answer.engine_model_ms if answer is not None else None,
            http_status=status,
            retries=retries,
            reason=reason,
        )
        self._out.write(orjson.dumps(record) + b"\n")
        self._outcomes[outcome] += 1
        self._by_model[request.model][outcome] += 1
        if reason is not None:
            self._reasons[f"{outcome}: {reason[:120]}"] += 1
        if ttft_ms is not None:
            self._recent[request.model].append((now, ttft_ms, itl_ms))

    # ---- telling --------------------------------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            self._write_progress(done=False)
            self._out.flush()
            await asyncio.sleep(PROGRESS_WALL_S)

    def _write_progress(self, *, done: bool) -> None:
        now = self._now()
        late = self._late_ms[-1000:]
        progress = LoadProgress(
            pid=os.getpid(),
            started_s=self._started_s,
            now_s=now,
            total=len(self._asked),
            sent=self._sent,
            in_flight=self._sent - self._outcomes.total(),
            completed=self._outcomes["completed"],
            rejected=self._outcomes["rejected"],
            lost=self._outcomes["lost"],
            abandoned=self._outcomes["abandoned"],
            retried=self._retried,
            late_ms_p50=float(np.median(late)) if late else 0.0,
            late_ms_max=max(self._late_ms, default=0.0),
            models={model: self._model_progress(model, now) for model in self._by_model},
            reasons=dict(self._reasons.most_common(5)),
            done=done,
        )
        part = self._progress.with_name(self._progress.name + ".part")
        part.write_bytes(orjson.dumps(progress))
        os.replace(part, self._progress)

    def _model_progress(self, model: str, now: float) -> ModelProgress:
        recent = self._recent[model]
        while recent and recent[0][0] < now - RECENT_S:
            recent.popleft()
        itl = [itl_ms for _, _, itl_ms in recent if itl_ms is not None]
        return ModelProgress(
            sent=self._by_model[model]["sent"],
            completed=self._by_model[model]["completed"],
            ttft_ms=float(np.mean([ttft_ms for _, ttft_ms, _ in recent])) if recent else None,
            itl_ms=float(np.mean(itl)) if itl else None,
        )


def _read(asked: Asked, exchange: Exchange) -> Answer:
    """The answer, when it is what every right engine gives. Raises BadAnswer."""
    answer = (read_stream if asked.streamed else read_plain)(exchange.body)
    request = asked.request
    usage = (answer.prompt_tokens, answer.completion_tokens)
    if usage != (request.isl_tokens, request.osl_tokens):
        raise BadAnswer(f"usage is {usage} tokens in and out, asked were ({request.isl_tokens}, {request.osl_tokens})")
    if answer.text != expected_text(asked.prompt(), request.osl_tokens):
        raise BadAnswer(f"the text is not the answer to the prompt ({len(answer.text)} characters)")
    return answer


def _refusal(exchange: Exchange) -> str:
    return f"HTTP {exchange.status}: {bytes(exchange.body.content[:200]).decode(errors='replace')}"


def _seconds(retry_after: bytes | None) -> float:
    """Retry-After as seconds; its other form, a date, is not used by our servers and counts as none."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(retry_after or b"0"))
    return 0.0


# ---- the process ---------------------------------------------------------------------------------------------------


def end_with_parent(parent: int, call: asyncio.Event) -> None:
    """Set `call` once process `parent` has ended; on a running event loop."""
    if os.getppid() != parent:
        call.set()
        return
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(parent)

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        call.set()

    loop.add_reader(pidfd, ended)


@click.command(help="Play a workload file against an OpenAI-compatible endpoint of mock engines and write a record a request.")
@click.option("--workload", required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), help="JSONL requests.")
@click.option("--url", required=True, help="http://host:port of the public endpoint.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Records, JSONL.")
@click.option("--progress", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Rewritten twice a second.")
@click.option("--seed", default=1, show_default=True, help="Of prompts, and of who streams and who chats.")
@click.option(
    "--deadline", default=600.0, show_default=True, help="Model seconds until a request is given up, retries included."
)
def main(workload: Path, url: str, out: Path, progress: Path, seed: int, deadline: float) -> None:
    parent = os.getppid()
    try:
        requests = read_workload(workload)
    except ValueError as error:
        raise click.ClickException(str(error)) from error

    async def run() -> None:
        try:
            load = Load(
                requests, url=url, clock=clock_from_environment(), out=out, progress=progress, seed=seed, deadline_s=deadline
            )
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, load.stop)
        watch = asyncio.Event()
        end_with_parent(parent, watch)
        play, orphaned = asyncio.create_task(load.play()), asyncio.create_task(watch.wait())
        await asyncio.wait({play, orphaned}, return_when=asyncio.FIRST_COMPLETED)
        orphaned.cancel()
        if not play.done():  # nobody is left to read what we measure
            load.stop()
        await play

    uvloop.run(run())


if __name__ == "__main__":
    main()
