"""Who computes next in an engine: the line that waits, who holds KV blocks, chunks of prompts, preemption. Pure.

Nothing here knows of spans: `engine` asks at the boundary of a step, and tells the time where one is noted.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush

from global_planner.replay.engine_cost import KvBlocks, PrefillCost, blocks
from global_planner.replay.engine_decode import DECODING, LOADING, PREFILLING, WAITING, DecodeBatch, Sequence
from global_planner.replay.engine_spec import EngineSpec


class Schedule:
    """The sequences of an engine between its front and its decode batch. `admitted` are those that hold KV blocks to compute
    with, in the order of admission; of these `prefilling` compute their prompts, and `loading` fetch blocks until the time
    that stands with them. `prefill_tokens` are those that are still to be computed."""

    __slots__ = (
        "_batch",
        "_cost",
        "_kv",
        "_most_sequences",
        "_serial",
        "_step_tokens",
        "_transfer_s",
        "admitted",
        "chunks",
        "loaded",
        "loading",
        "preemptions",
        "prefill_tokens",
        "prefilling",
        "waiting",
    )

    def __init__(self, spec: EngineSpec, cost: PrefillCost, kv: KvBlocks, batch: DecodeBatch) -> None:
        self._cost = cost
        self._kv = kv
        self._batch = batch
        # What is asked for at every step stands here; the specification never changes.
        self._most_sequences = spec.max_num_seqs
        self._step_tokens = spec.prefill_chunk_tokens
        self._transfer_s = spec.kv_transfer_ms / 1e3
        self._serial = 0
        self.waiting: deque[Sequence] = deque()
        self.admitted: dict[str, Sequence] = {}
        self.prefilling: deque[Sequence] = deque()
        self.prefill_tokens = 0
        self.loading: list[tuple[float, int, Sequence]] = []
        self.loaded: list[Sequence] = []
        self.chunks: list[tuple[Sequence, int]] = []
        self.preemptions = 0

    @property
    def admissible(self) -> bool:
        """Whether the first that waits could be admitted now."""
        slots = len(self.admitted) < self._most_sequences
        return slots and bool(self.waiting) and self._kv.used + blocks(self.waiting[0].known) <= self._kv.total

    def admit(self, at: float, *, reserve: int, fetches_only: bool = False) -> None:
        """Give blocks to those that wait, first come first served, and leave `reserve` free. `fetches_only`: up to the first
        that has a prompt to compute."""
        free = self._kv.total - self._kv.used - reserve
        while self.waiting and len(self.admitted) < self._most_sequences:
            sequence = self.waiting[0]
            need = blocks(sequence.known)
            if need > free or (fetches_only and sequence.computed >= 0):
                return
            self.waiting.popleft()
            free -= need
            self._kv.used += need
            self.admitted[sequence.id] = sequence
            if sequence.computed < 0:
                sequence.state = LOADING
                self._serial += 1
                heappush(self.loading, (at + self._transfer_s, self._serial, sequence))
            else:
                sequence.state = PREFILLING
                self.prefilling.append(sequence)

    def arrived(self, at: float) -> bool:
        """Note whose blocks have come by `at`; whether one of them is still wanted."""
        wanted = False
        while self.loading and self.loading[0][0] <= at:
            sequence = heappop(self.loading)[2]
            if sequence.state == LOADING:
                self.loaded.append(sequence)
                wanted = True
        return wanted

    def at_boundary(self, at: float) -> None:
        """Between two steps: 1. What was loaded joins. 2. Blocks for the next step, if need be by preempting. 3. Admission."""
        batch, kv = self._batch, self._kv
        if self.loaded:
            for sequence in self.loaded:
                if sequence.state == LOADING:
                    batch.join(sequence)
            self.loaded.clear()
        if (growth := kv.growth(batch.clock, 1)) <= kv.total - kv.used:
            if self.waiting:
                self.admit(at, reserve=growth)
        else:
            while kv.growth(batch.clock, 1) > kv.total - kv.used:
                self._preempt_youngest()
            if not batch.sequences and not self.prefilling:
                self.admit(at, reserve=0)

    def prefill_s(self) -> float:
        """Choose the next step's chunks, in order of admission, beside the decoding sequences; the seconds that they take. A
        step without a chunk: -1."""
        budget = self._step_tokens - self._batch.sequences
        if not self.prefilling or (budget <= 0 and self._batch.sequences):
            return -1.0
        pieces: list[tuple[int, int]] = []
        starts = False
        for sequence in self.prefilling:
            if budget <= 0:
                break
            end = min(sequence.known, sequence.computed + budget)
            budget -= end - sequence.computed
            starts = starts or not sequence.begun
            sequence.begun = True
            pieces.append((sequence.computed, end))
            self.chunks.append((sequence, end))
        return self._cost.step_s(pieces, starts=starts and not self._batch.sequences)

    def requeue(self, sequence: Sequence) -> None:
        """Wait, before all others, to be computed again: the prompt and the tokens that came out."""
        self.give_up(sequence)
        sequence.state = WAITING
        sequence.begun = False
        sequence.computed = min(sequence.request.cached_tokens, sequence.isl - 1)
        self.prefill_tokens += sequence.known - sequence.computed
        self.waiting.appendleft(sequence)

    def give_up(self, sequence: Sequence) -> None:
        """Free the blocks of an admitted sequence."""
        del self.admitted[sequence.id]
        if sequence.state == DECODING:
            self._batch.leave(sequence)
            self._kv.used -= blocks(sequence.held_tokens)
            return
        self._kv.used -= blocks(sequence.known)
        if sequence.state == PREFILLING:
            self.prefilling.remove(sequence)
            self.prefill_tokens -= sequence.known - sequence.computed

    def _preempt_youngest(self) -> None:
        """Take back the blocks of the sequence that was admitted last; it is computed again, before all that wait."""
        youngest = next(s for s in reversed(self.admitted.values()) if s.state in (DECODING, PREFILLING))
        self.preemptions += 1
        self.requeue(youngest)
