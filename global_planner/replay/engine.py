"""One engine replica, driven by `now`: chunked prefill, continuous-batching decode, KV blocks, hand-off, drain. Pure.

Time goes in *spans*: one step that computes chunks of prompts (and a token for every decoding sequence), or, while there is
nothing to compute, many equal decode steps at once. A span is cut at its next step boundary when a request comes that could
join. Nothing happens between events: the caller asks `next_event_at` and calls `advance` then (or later: what was due is done
in order, at its exact time).
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush

from global_planner.replay.engine_cost import UNLIMITED, DecodeCost, KvBlocks, PrefillCost, blocks
from global_planner.replay.engine_decode import (
    ARRIVING,
    DECODING,
    GONE,
    HELD,
    LOADING,
    PREFILLING,
    WAITING,
    DecodeBatch,
    HeldBlocks,
    Sequence,
)
from global_planner.replay.engine_spec import EngineEvent, EngineLoad, EngineRequest, EngineSpec, EventKind, Refusal

# Decode steps in one span at most. ITL is taken at the middle of the span; over 64 tokens its change is linear enough.
SPAN_STEPS = 64
_NEVER = math.inf


class Replica:
    """The model of one engine. Times are model seconds and must not go back; ids must be unique while in the engine.

    With `stream`, a `tokens` event comes with every `spec.tokens_per_chunk` tokens after the first. Every accepted request
    ends in exactly one `finished` event, unless it is cancelled.
    """

    def __init__(self, spec: EngineSpec, *, ready_at_s: float = 0.0, stream: bool = False) -> None:
        prefill, decode = spec.profile.prefill, spec.profile.decode
        if prefill is None:
            raise ValueError("an engine needs a prefill curve")
        self.spec = spec
        self.ready_at_s = ready_at_s
        self.draining = False
        self.preemptions = 0
        self._prefill = PrefillCost(prefill)
        self._kv = KvBlocks(spec.kv_capacity_tokens)
        self._batch = DecodeBatch(None if decode is None else DecodeCost(decode), self._kv)
        self._chunk_tokens = spec.tokens_per_chunk if stream else None
        self._events: list[EngineEvent] = []
        # Who is where. `_admitted` are those that hold KV blocks to compute with, in the order of admission.
        self._sequences: dict[str, Sequence] = {}
        # What is asked for at every step stands here; the specification never changes.
        self._most_sequences = spec.max_num_seqs
        self._step_tokens = spec.prefill_chunk_tokens
        self._longest = spec.max_model_len
        self._generates = decode is not None
        self._transfer_s = spec.kv_transfer_ms / 1e3
        self._hold_s = spec.kv_hold_s
        self._front_s = spec.front_ms / 1e3
        self._front: deque[tuple[float, Sequence]] = deque()
        self._waiting: deque[Sequence] = deque()
        self._admitted: dict[str, Sequence] = {}
        self._prefilling: deque[Sequence] = deque()
        self._prefill_tokens = 0
        self._loading: list[tuple[float, int, Sequence]] = []
        self._loaded: list[Sequence] = []
        self._leaving: list[Sequence] = []
        self._held = HeldBlocks(self._kv)
        self._serial = 0
        # The span that runs: `_steps` steps of `_step_s` from `_begun`, or none (`_end` never).
        self._begun = self._step_s = 0.0
        self._steps = 0
        self._end = self._wake = _NEVER
        # When something is due next: reckoned after every change, because it is asked for far more often than it changes.
        self._due = _NEVER
        self._chunks: list[tuple[Sequence, int]] = []

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
            self._prefill_tokens += sequence.isl - sequence.computed
        if self._front_s > 0.0:
            sequence.state = ARRIVING
            self._front.append((now + self._front_s, sequence))
        else:
            self._queue(now, sequence)
        self._reckon()
        return None

    def _queue(self, now: float, sequence: Sequence) -> None:
        """The scheduler sees a request: behind those that wait."""
        self._waiting.append(sequence)
        if sequence.computed < 0 and self._end != _NEVER:
            # Blocks are fetched beside the steps: begin now if room is left after this span's growth.
            self._admit(now, reserve=self._kv.growth(self._batch.clock, self._steps), fetches_only=True)
        self._hurry(now)

    def next_event_at(self) -> float:
        """When to call `advance` next (model seconds); infinity when there is nothing to do."""
        return self._due

    def _reckon(self) -> None:
        due = self._end if self._end < self._wake else self._wake
        if self._loading and self._loading[0][0] < due:
            due = self._loading[0][0]
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
                self._waiting.remove(sequence)
            else:
                self._front = deque(entry for entry in self._front if entry[1] is not sequence)
            sequence.state = GONE
            if sequence.computed >= 0:
                self._prefill_tokens -= sequence.known - sequence.computed
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
            self._prefill_tokens += sequence.known
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
        return EngineLoad(
            running=len(self._admitted),
            waiting=len(self._waiting) + len(self._front),
            pending_kv=self._held.count,
            kv_usage=self._kv.used / self._kv.total if self._kv.total < UNLIMITED else 0.0,
            active_prefill_tokens=self._prefill_tokens,
            active_decode_blocks=self._kv.decoding,
            preemptions=self.preemptions,
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
        while self._loading and self._loading[0][0] <= at:
            sequence = heappop(self._loading)[2]
            if sequence.state == LOADING:
                self._loaded.append(sequence)
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
            if now < self._wake and (self._waiting or self._loaded or self._prefilling or self._batch.sequences):
                self._wake = now
        elif self._steps > 1 and (cut or self._admissible()):
            steps = max(1, math.ceil((now - self._begun) / self._step_s - 1e-9))
            if steps < self._steps:
                self._steps = steps
                self._end = self._begun + steps * self._step_s

    def _admissible(self) -> bool:
        slots = len(self._admitted) < self._most_sequences
        return slots and bool(self._waiting) and self._kv.used + blocks(self._waiting[0].known) <= self._kv.total

    def _end_span(self, at: float) -> None:
        self._end = _NEVER
        self._wake = at
        if self._batch.sequences:
            for sequence in self._batch.run(self._steps):
                self._finish(sequence, at)
        for sequence, end in self._chunks:
            self._prefill_tokens -= end - sequence.computed
            sequence.computed = end
            if end == sequence.known:
                self._prefilling.popleft()
                self._prefilled(sequence, at)
        self._chunks.clear()
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
        del self._admitted[sequence.id]
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
        """1. What was loaded joins. 2. Blocks for the next step, if need be by preempting. 3. Admission, first come first
        served. 4. Chunks of prompts up to the token budget, else as many decode steps as nothing interrupts."""
        batch, kv = self._batch, self._kv
        if self._loaded:
            for sequence in self._loaded:
                if sequence.state == LOADING:
                    batch.join(sequence)
            self._loaded.clear()
        if (growth := kv.growth(batch.clock, 1)) <= kv.total - kv.used:
            if self._waiting:
                self._admit(at, reserve=growth)
        else:
            while kv.growth(batch.clock, 1) > kv.total - kv.used:
                self._preempt_youngest()
            if not batch.sequences and not self._prefilling:
                self._admit(at, reserve=0)
        budget = self._step_tokens - batch.sequences
        if self._prefilling and (budget > 0 or not batch.sequences):
            self._steps = 1
            self._step_s = self._take_chunks(budget) + batch.step_s(1)
        elif batch.sequences:
            self._steps = kv.steps_that_fit(batch.clock, min(SPAN_STEPS, batch.steps_to_finish()))
            self._step_s = batch.step_s(self._steps)
        else:
            return
        self._begun = at
        self._end = at + self._steps * self._step_s

    def _admit(self, at: float, *, reserve: int, fetches_only: bool = False) -> None:
        free = self._kv.total - self._kv.used - reserve
        while self._waiting and len(self._admitted) < self._most_sequences:
            sequence = self._waiting[0]
            need = blocks(sequence.known)
            if need > free or (fetches_only and sequence.computed >= 0):
                return
            self._waiting.popleft()
            free -= need
            self._kv.used += need
            self._admitted[sequence.id] = sequence
            if sequence.computed < 0:
                sequence.state = LOADING
                self._serial += 1
                heappush(self._loading, (at + self._transfer_s, self._serial, sequence))
            else:
                sequence.state = PREFILLING
                self._prefilling.append(sequence)

    def _take_chunks(self, budget: int) -> float:
        """Choose this step's chunks, in order of admission; the seconds that they take."""
        pieces: list[tuple[int, int]] = []
        starts = False
        for sequence in self._prefilling:
            if budget <= 0:
                break
            end = min(sequence.known, sequence.computed + budget)
            budget -= end - sequence.computed
            starts = starts or not sequence.begun
            sequence.begun = True
            pieces.append((sequence.computed, end))
            self._chunks.append((sequence, end))
        return self._prefill.step_s(pieces, starts=starts and not self._batch.sequences)

    # ---- going before the end --------------------------------------------------------------------------------------

    def _preempt_youngest(self) -> None:
        """Take back the blocks of the sequence that was admitted last; it is computed again, before all that wait."""
        youngest = next(s for s in reversed(self._admitted.values()) if s.state in (DECODING, PREFILLING))
        self.preemptions += 1
        self._requeue(youngest)

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
            self._give_up(sequence)
            sequence.state = GONE
        else:
            self._requeue(sequence)

    def _requeue(self, sequence: Sequence) -> None:
        """Wait, before all others, to be computed again: the prompt and the tokens that came out."""
        self._give_up(sequence)
        sequence.state = WAITING
        sequence.begun = False
        sequence.computed = min(sequence.request.cached_tokens, sequence.isl - 1)
        self._prefill_tokens += sequence.known - sequence.computed
        self._waiting.appendleft(sequence)

    def _give_up(self, sequence: Sequence) -> None:
        """Free the blocks of an admitted sequence."""
        del self._admitted[sequence.id]
        if sequence.state == DECODING:
            self._batch.leave(sequence)
            self._kv.used -= blocks(sequence.held_tokens)
            return
        self._kv.used -= blocks(sequence.known)
        if sequence.state == PREFILLING:
            self._prefilling.remove(sequence)
            self._prefill_tokens -= sequence.known - sequence.computed

    def _emit(self, kind: EventKind, sequence: Sequence, at: float, tokens: int) -> None:
        if not sequence.cancelled:
            self._events.append(EngineEvent(kind=kind, id=sequence.id, at_s=at, tokens=tokens))
