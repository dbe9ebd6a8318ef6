"""One engine replica, driven by `now`: chunked prefill, continuous-batching decode, KV blocks, hand-off, drain. Pure.

Here is when things happen; who computes next is decided in `engine_schedule`, and who decodes stands in `engine_decode`.

Time goes in *spans*: one step that computes chunks of prompts (and a token for every decoding sequence), or, while there is
nothing to compute, many equal decode steps at once. A span is cut at its next step boundary when a request comes that could
join. Nothing happens between events: the caller asks `next_event_at` and calls `advance` then (or later: what was due is done
in order, at its exact time).
"""

from __future__ import annotations

import math
from collections import deque

from global_planner.replay.engine_cost import UNLIMITED, DecodeCost, KvBlocks, PrefillCost, blocks
from global_planner.replay.engine_decode import (
    ARRIVING,
    DECODING,
    GONE,
    HELD,
    WAITING,
    DecodeBatch,
    HeldBlocks,
    Sequence,
)
from global_planner.replay.engine_schedule import Schedule
from global_planner.replay.engine_spec import EngineEvent, EngineLoad, EngineRequest, EngineSpec, EventKind, Refusal

# Decode steps in one span at most. ITL is taken at the middle of the span; over 64 tokens its change is linear enough.
SPAN_STEPS = 64
_NEVER = math.inf


class Replica:
    """The model of one engine. Times are model seconds and must not go back; ids must be unique while in the engine.

    With `stream`, a `tokens` event comes with every `spec.tokens_per_chunk` tokens after the first. Every accepted request
    ends in exactly one `finished` event, unless it is cancelled. `slowness`: every step from the next on takes so many times as
    long as the curves say (a hot card, a bad link).
    """

    def __init__(self, spec: EngineSpec, *, ready_at_s: float = 0.0, stream: bool = False) -> None:
        prefill, decode = spec.profile.prefill, spec.profile.decode
        if prefill is None:
            raise ValueError("an engine needs a prefill curve")
        self.spec = spec
        self.ready_at_s = ready_at_s
        self.draining = False
        self.slowness = 1.0
        self._kv = KvBlocks(spec.kv_capacity_tokens)
        self._batch = DecodeBatch(None if decode is None else DecodeCost(decode), self._kv)
        self._schedule = Schedule(spec, PrefillCost(prefill), self._kv, self._batch)
        self._chunk_tokens = spec.tokens_per_chunk if stream else None
        self._events: list[EngineEvent] = []
        self._sequences: dict[str, Sequence] = {}
        self._longest = spec.max_model_len
        self._generates = decode is not None
        self._hold_s = spec.kv_hold_s
        self._front_s = spec.front_ms / 1e3
        self._front: deque[tuple[float, Sequence]] = deque()
        self._leaving: list[Sequence] = []
        self._held = HeldBlocks(self._kv)
        # The span that runs: `_steps` steps of `_step_s` from `_begun`, or none (`_end` never).
        self._begun = self._step_s = 0.0
        self._steps = 0
        self._end = self._wake = _NEVER
        # When something is due next: reckoned after every change, because it is asked for far more often than it changes.
        self._due = _NEVER

    # ---- what the caller does ------------------------------------------------------------------------------------

    def refusal(self, now: float, request: EngineRequest) -> Refusal | None:
        """Why `submit` would refuse the request now, or None."""
        if now < self.ready_at_s:
            return "starting"
        if self.draining:
            return "draining"
        isl, osl = request.isl, request.osl
        if isl + osl <= self._longest and (osl == 1 or self._generates) and blocks(isl - 1 + osl) <= self._kv.total:
            return None  # as the specification would say, which knows the reasons
        return self.spec.refusal(request)

    def submit(self, now: float, request: EngineRequest) -> Refusal | None:
        """Take a request, or say why not. Raises ValueError for an id that is in the engine or lengths below 1."""
        if request.isl < 1 or request.osl < 1:
            raise ValueError(f"request {request.id!r}: isl {request.isl} and osl {request.osl} must be >= 1")
        if request.id in self._sequences:
            raise ValueError(f"request {request.id!r} is already in the engine")
        refusal = self.refusal(now, request)
        if refusal is not None:
            return refusal
        self._run_before(now)
        sequence = Sequence(request)
        self._sequences[request.id] = sequence
        if sequence.computed >= 0:
            self._schedule.prefill_tokens += sequence.isl - sequence.computed
        if self._front_s > 0.0:
            sequence.state = ARRIVING
            self._front.append((now + self._front_s, sequence))
        else:
            self._queue(now, sequence)
        self._reckon()
        return None

    def _queue(self, now: float, sequence: Sequence) -> None:
        """The scheduler sees a request: behind those that wait."""
        self._schedule.waiting.append(sequence)
        if sequence.computed < 0 and self._end != _NEVER:
            # Blocks are fetched beside the steps: begin now if room is left after this span's growth.
            self._schedule.admit(now, reserve=self._kv.growth(self._batch.clock, self._steps), fetches_only=True)
        self._hurry(now)

    def next_event_at(self) -> float:
        """When to call `advance` next (model seconds); infinity when there is nothing to do."""
        return self._due

    def _reckon(self) -> None:
        due = self._end if self._end < self._wake else self._wake
        loading = self._schedule.loading
        if loading and loading[0][0] < due:
            due = loading[0][0]
        if self._front and self._front[0][0] < due:
            due = self._front[0][0]
        if self._held.count and self._held.next_expiry_s < due:
            due = self._held.next_expiry_s
        if self._batch.marked:
            mark = self._mark_time()
            if mark < due:
                due = mark
        self._due = due

    def advance(self, now: float) -> list[EngineEvent]:
        """Do everything that is due until `now`; what happened since the last call, in order of time."""
        while self._due <= now:
            self._step(self._due)
        events, self._events = self._events, []
        return events

    def cancel(self, now: float, request_id: str) -> bool:
        """Forget a request: no event comes for it any more. What it holds is free at the next step boundary. False: the
        engine does not have it."""
        self._run_before(now)
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        if sequence.state == HELD:
            self._held.release(sequence)
            self._hurry(now)
        elif sequence.state in (WAITING, ARRIVING):
            if sequence.state == WAITING:
                self._schedule.waiting.remove(sequence)
            else:
                self._front = deque(entry for entry in self._front if entry[1] is not sequence)
            sequence.state = GONE
            if sequence.computed >= 0:
                self._schedule.prefill_tokens -= sequence.known - sequence.computed
            self._hurry(now)
        else:
            sequence.cancelled = True
            self._leave_at_boundary(now, sequence)
        self._reckon()
        return True

    def pull(self, now: float, request_id: str) -> bool:
        """A decode engine fetched the blocks of a finished prefill: they are free now. False: they are not held any more."""
        self._run_before(now)
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.state != HELD:
            return False
        del self._sequences[request_id]
        self._held.release(sequence)
        self._hurry(now)
        self._reckon()
        return True

    def kv_lost(self, now: float, request_id: str) -> bool:
        """The blocks that a transferred request counted on are gone: this engine computes its prompt itself. Tokens that
        came out stay. False: the engine has no such request."""
        self._run_before(now)
        sequence = self._sequences.get(request_id)
        if sequence is None or sequence.computed >= 0 or sequence.state == HELD:
            return False
        if sequence.state in (WAITING, ARRIVING):
            sequence.computed = 0
            self._schedule.prefill_tokens += sequence.known
        else:
            self._leave_at_boundary(now, sequence)
        self._reckon()
        return True

    def drain(self) -> None:
        """Take nothing new; what is in the engine is finished."""
        self.draining = True

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or is held for a decode engine."""
        return not self._sequences and not self._leaving

    @property
    def preemptions(self) -> int:
        """How often a sequence had to give its blocks back, and was computed again."""
        return self._schedule.preemptions

    def tokens_done(self, now: float, request_id: str) -> int:
        """Output tokens of a request that is in the engine, at `now`. Raises KeyError."""
        sequence = self._sequences[request_id]
        if sequence.state != DECODING:
            return sequence.done
        running = self._begun <= now and self._end != _NEVER and self._step_s > 0
        steps = min(self._steps, int((now - self._begun) / self._step_s + 1e-9)) if running else 0
        return min(sequence.osl, sequence.done + self._batch.clock + steps - sequence.joined_at)

    def load(self) -> EngineLoad:
        """Gauges as of the last event."""
        schedule = self._schedule
        return EngineLoad(
            running=len(schedule.admitted),
            waiting=len(schedule.waiting) + len(self._front),
            pending_kv=self._held.count,
            kv_usage=self._kv.used / self._kv.total if self._kv.total < UNLIMITED else 0.0,
            active_prefill_tokens=schedule.prefill_tokens,
            active_decode_blocks=self._kv.decoding,
            preemptions=schedule.preemptions,
            draining=self.draining,
        )

    # ---- what happens at a time ------------------------------------------------------------------------------------

    def _run_before(self, now: float) -> None:
        """What is due strictly before `now`: requests that come at one instant are planned together."""
        while self._due < now:
            self._step(self._due)

    def _mark_time(self) -> float:
        """When the first mark is reached; infinity when not within this span."""
        if self._end == _NEVER:
            return _NEVER
        steps = self._batch.steps_to_mark()
        return _NEVER if steps is None or steps > self._steps else self._begun + steps * self._step_s

    def _step(self, at: float) -> None:
        """Do what is due at `at`: tokens first, then the end of the span, arrivals of KV, and a new span."""
        batch, held = self._batch, self._held
        while batch.marked and self._mark_time() <= at:
            sequence = batch.pop_mark()
            self._tokens_out(sequence, at)
            batch.mark(sequence)
        if self._end <= at:
            self._end_span(at)
        while self._front and self._front[0][0] <= at:
            sequence = self._front.popleft()[1]
            sequence.state = WAITING
            self._queue(at, sequence)
        if self._schedule.arrived(at):
            self._hurry(at, cut=True)
        while held.count and held.next_expiry_s <= at:
            sequence = held.pop_expired()
            del self._sequences[sequence.id]
            self._emit("kv_expired", sequence, at, sequence.osl)
            self._hurry(at)
        if self._wake <= at:
            self._wake = _NEVER
            self._begin_span(at)
        self._reckon()

    def _hurry(self, now: float, *, cut: bool = False) -> None:
        """Something changed: plan at once when nothing runs, else cut the span at its next step boundary, if someone can
        join there or `cut`."""
        if self._end == _NEVER:
            schedule = self._schedule
            if now < self._wake and (schedule.waiting or schedule.loaded or schedule.prefilling or self._batch.sequences):
                self._wake = now
        elif self._steps > 1 and (cut or self._schedule.admissible):
            steps = max(1, math.ceil((now - self._begun) / self._step_s - 1e-9))
            if steps < self._steps:
                self._steps = steps
                self._end = self._begun + steps * self._step_s

    def _end_span(self, at: float) -> None:
        self._end = _NEVER
        self._wake = at
        if self._batch.sequences:
            for sequence in self._batch.run(self._steps):
                self._finish(sequence, at)
        schedule = self._schedule
        for sequence, end in schedule.chunks:
            schedule.prefill_tokens -= end - sequence.computed
            sequence.computed = end
            if end == sequence.known:
                schedule.prefilling.popleft()
                self._prefilled(sequence, at)
        schedule.chunks.clear()
        while self._leaving:
            self._leave(self._leaving.pop())

    def _prefilled(self, sequence: Sequence, at: float) -> None:
        """Everything known is computed: that gives a token."""
        sequence.done += 1
        if sequence.done == 1 or sequence.done == sequence.next_count < sequence.osl:
            self._tokens_out(sequence, at)
        if sequence.done == sequence.osl:
            self._finish(sequence, at)
        else:
            self._batch.join(sequence)

    def _tokens_out(self, sequence: Sequence, at: float) -> None:
        tokens = sequence.next_count
        self._emit("first_token" if tokens == 1 else "tokens", sequence, at, tokens)
        sequence.next_count = sequence.osl + 1 if self._chunk_tokens is None else tokens + self._chunk_tokens

    def _finish(self, sequence: Sequence, at: float) -> None:
        """The last token came out: free the blocks, or hold them for a decode engine."""
        del self._schedule.admitted[sequence.id]
        self._emit("finished", sequence, at, sequence.osl)
        if sequence.request.hold_kv and not sequence.cancelled:
            self._held.hold(sequence, at + self._hold_s)
            return
        sequence.state = GONE
        self._kv.used -= blocks(sequence.held_tokens)
        if not sequence.cancelled:
            del self._sequences[sequence.id]

    # ---- a new span ------------------------------------------------------------------------------------------------

    def _begin_span(self, at: float) -> None:
        """One step with chunks of prompts up to the token budget, else as many decode steps as nothing interrupts."""
        batch, schedule = self._batch, self._schedule
        schedule.at_boundary(at)
        prefill_s = schedule.prefill_s() if schedule.prefilling else -1.0
        if prefill_s >= 0.0:
            self._steps = 1
            self._step_s = (prefill_s + batch.step_s(1)) * self.slowness
        elif batch.sequences:
            self._steps = self._kv.steps_that_fit(batch.clock, min(SPAN_STEPS, batch.steps_to_finish()))
            self._step_s = batch.step_s(self._steps) * self.slowness
        else:
            return
        self._begun = at
        self._end = at + self._steps * self._step_s

    # ---- going before the end --------------------------------------------------------------------------------------

    def _leave_at_boundary(self, now: float, sequence: Sequence) -> None:
        """Take an admitted sequence out when the step that runs is over: to be forgotten, or computed again."""
        if sequence.leaving:
            return
        sequence.leaving = True
        if self._end == _NEVER:
            self._leave(sequence)
        else:
            self._leaving.append(sequence)
        self._hurry(now, cut=True)

    def _leave(self, sequence: Sequence) -> None:
        sequence.leaving = False
        if sequence.state in (HELD, GONE):
            return
        if sequence.cancelled:
            self._schedule.give_up(sequence)
            sequence.state = GONE
        else:
            self._schedule.requeue(sequence)

    def _emit(self, kind: EventKind, sequence: Sequence, at: float, tokens: int) -> None:
        if not sequence.cancelled:
            self._events.append(EngineEvent(kind=kind, id=sequence.id, at_s=at, tokens=tokens))
