"""Engines with curves that can be computed in the head, and a dumb twin of the engine model that takes every step."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from global_planner.replay.engine import Replica
from global_planner.replay.engine_spec import EngineEvent, EngineRequest, EngineSpec
from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve
from pool_planner.performance.profile import Profile


def profile(
    *,
    start_ms: float = 100.0,
    token_ms: float = 1.0,
    step_ms: float = 10.0,
    sequence_ms: float = 0.0,
    kv_ms: float = 0.0,
    max_kv: int = 16_000,
) -> Profile:
    """TTFT = start + token x ISL; ITL = step + sequence x batch + kv x tokens in KV."""
    lengths = (100, 1000, 10_000)
    ttft = [start_ms + token_ms * isl for isl in lengths]
    rows = [(context, batch) for context in (50, 500, 5000) for batch in (1, 2, 8, 32, 128) if context * batch <= max_kv]
    itl = [step_ms + sequence_ms * batch + kv_ms * batch * context for context, batch in rows]
    return Profile(
        prefill=PrefillCurve(
            isl_tokens=lengths, ttft_ms=ttft, thpt_per_gpu=[1e3 * n / t for n, t in zip(lengths, ttft, strict=True)]
        ),
        decode=DecodeCurve(
            kv_usage=[context * batch / max_kv for context, batch in rows],
            context_tokens=[context for context, _ in rows],
            itl_ms=itl,
            thpt_per_gpu=[1e3 * batch / ms for (_, batch), ms in zip(rows, itl, strict=True)],
            max_kv_tokens=max_kv,
        ),
    )  # fmt: skip


SIMPLE = EngineSpec(
    role="agg", profile=profile(), prefill_chunk_tokens=1000, max_model_len=12_000, kv_transfer_ms=50, kv_hold_s=5
)


def spec(**changes: object) -> EngineSpec:
    """Prefill 100 ms + 1 ms a token; decode 10 ms a step whatever runs; 1,000 blocks; 1,000 tokens a step."""
    return replace(SIMPLE, **changes)  # type: ignore[arg-type]


def drive(replica: Replica, arrivals: list[tuple[float, EngineRequest]], *, until: float = math.inf) -> list[EngineEvent]:
    """Submit at the given times and follow every event, as an event loop would."""
    events: list[EngineEvent] = []
    queue = deque(sorted(arrivals, key=lambda arrival: arrival[0]))
    while True:
        due = replica.next_event_at()
        if queue and queue[0][0] <= due:
            at, request = queue.popleft()
            assert replica.submit(at, request) is None
        elif due == math.inf or due > until:
            return events
        else:
            events += replica.advance(due)


def times(events: list[EngineEvent], kind: str) -> dict[str, float]:
    return {event.id: round(event.at_s, 9) for event in events if event.kind == kind}


@dataclass
class _Job:
    request: EngineRequest
    at: float
    computed: int
    done: int = 0
    kv: int = 0
    begun: bool = False
    load_until: float | None = None


class StepTwin:
    """The same engine, one step after the other, with nothing clever: lists, sums over everybody, no token clock."""

    def __init__(self, spec: EngineSpec) -> None:
        assert spec.profile.prefill is not None and spec.profile.decode is not None
        self.spec, self.prefill, self.decode = spec, spec.profile.prefill, spec.profile.decode
        first, second = self.prefill.isl_tokens[:2]
        slope = (self.prefill.ttft_ms(second) - self.prefill.ttft_ms(first)) / (second - first)
        self.start = max(0.0, self.prefill.ttft_ms(first) - slope * first)
        self.blocks = (spec.kv_capacity_tokens or 1 << 60) // 16
        self.first_token: dict[str, float] = {}
        self.finished: dict[str, float] = {}
        self.preemptions = 0

    def _work(self, tokens: int) -> float:
        shortest = self.prefill.isl_tokens[0]
        if tokens < shortest:
            return (self.prefill.ttft_ms(shortest) - self.start) * tokens / shortest
        return self.prefill.ttft_ms(tokens) - self.start

    def _free(self, admitted: list[_Job]) -> int:
        return self.blocks - sum(math.ceil(job.kv / 16) for job in admitted)

    def run(self, arrivals: list[tuple[float, EngineRequest]]) -> None:
        future = deque(
            _Job(request, at, -1 if request.kv_transferred else min(request.cached_tokens, request.isl - 1))
            for at, request in sorted(arrivals, key=lambda arrival: arrival[0])
        )
        waiting: list[_Job] = []
        admitted: list[_Job] = []
        t = 0.0
        while future or waiting or admitted:
            while future and future[0].at <= t:
                waiting.append(future.popleft())
            decoding = [job for job in admitted if self._decodes(job, t)]
            preempted = False
            while sum(job.kv % 16 == 0 for job in decoding) > self._free(admitted):
                victim = [job for job in admitted if job in decoding or job.computed >= 0][-1]
                admitted.remove(victim)
                decoding = [job for job in decoding if job is not victim]
                victim.computed, victim.kv, victim.begun = 0, 0, False
                waiting.insert(0, victim)
                self.preemptions += 1
                preempted = True
            if not preempted:
                reserve = sum(job.kv % 16 == 0 for job in decoding)
                while waiting and len(admitted) < self.spec.max_num_seqs:
                    job = waiting[0]
                    need = job.request.isl - 1 if job.computed < 0 else job.request.isl + job.done
                    if math.ceil(need / 16) > self._free(admitted) - reserve:
                        break
                    job.kv = need
                    if job.computed < 0:
                        asked = job.at if job.at > t - 1e-3 * self.spec.kv_transfer_ms or job.load_until is None else t
                        job.load_until = asked + self.spec.kv_transfer_ms / 1e3
                    admitted.append(waiting.pop(0))
                decoding = [job for job in admitted if self._decodes(job, t)]
            budget = self.spec.prefill_chunk_tokens - len(decoding)
            chunks: list[tuple[_Job, int]] = []
            step_ms, starts = 0.0, False
            for job in admitted:
                if job in decoding or job.computed < 0 or budget <= 0:
                    continue
                end = min(job.request.isl + job.done, job.computed + budget)
                step_ms += self._work(end) - self._work(job.computed)
                starts, job.begun = starts or not job.begun, True
                budget -= end - job.computed
                chunks.append((job, end))
            step_ms += self.start if starts and not decoding else 0.0
            if decoding:
                tokens = sum(job.kv + 1 for job in decoding)
                step_ms += self.decode.itl_ms(tokens / self.decode.max_kv_tokens, tokens / len(decoding))
            if not decoding and not chunks:
                dues = [job.load_until for job in admitted if job.load_until is not None]
                t = min([job.at for job in future] + [due for due in dues if due > t])
                continue
            t += step_ms / 1e3
            for job in decoding:
                job.kv += 1
                self._token(job, t, admitted)
            for job, end in chunks:
                job.computed = end
                if end == job.request.isl + job.done:
                    job.computed = -2
                    self._token(job, t, admitted)

    def _decodes(self, job: _Job, t: float) -> bool:
        return job.computed == -2 or (job.computed == -1 and job.load_until is not None and job.load_until <= t + 1e-9)

    def _token(self, job: _Job, t: float, admitted: list[_Job]) -> None:
        job.done += 1
        self.first_token.setdefault(job.request.id, t)
        if job.done == job.request.osl:
            self.finished[job.request.id] = t
            admitted.remove(job)
