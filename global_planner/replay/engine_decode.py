"""Sequences, those that decode together, and those whose blocks are held for another engine. Pure.

Every decoding sequence gets one token a step, so all of them progress together: a sequence that joins at clock c with r
tokens to go finishes at c + r, whoever else comes and goes. Two heaps of positions replace all work per token. Entries of
sequences that left are stale and skipped when they surface.
"""

from __future__ import annotations

import math
from collections import deque
from heapq import heappop, heappush

from global_planner.replay.engine_cost import DecodeCost, KvBlocks, blocks
from global_planner.replay.engine_spec import EngineRequest

WAITING, LOADING, PREFILLING, DECODING, HELD, GONE, ARRIVING = range(7)


class Sequence:
    """A request in an engine. `done` output tokens had come out when it began to decode (else: until now); `computed` of its
    `known` tokens are in the KV cache, -1: they come from a prefill engine. `next_count` is the count to report next."""

    __slots__ = (
        "begun",
        "cancelled",
        "computed",
        "done",
        "finish_at",
        "id",
        "isl",
        "joined_at",
        "leaving",
        "mark_at",
        "next_count",
        "osl",
        "request",
        "state",
    )

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.id = request.id
        self.isl = request.isl
        self.osl = request.osl
        self.state = WAITING
        self.begun = self.cancelled = self.leaving = False
        self.computed = -1 if request.kv_transferred else min(request.cached_tokens, request.isl - 1)
        self.done = 0
        self.next_count = 1
        self.joined_at = self.finish_at = self.mark_at = 0

    @property
    def known(self) -> int:
        """Tokens that must be in the KV cache before it decodes: the prompt, and what came out before a preemption. The last
        token of a transferred prompt is computed by its first decode step."""
        return self.isl - 1 if self.computed < 0 else self.isl + self.done

    @property
    def held_tokens(self) -> int:
        """Tokens in the KV cache once `done` tokens came out; the newest of them is not in it yet."""
        return self.isl - 1 + self.done


class HeldBlocks:
    """Finished prefills whose blocks stay in `kv` until a decode engine fetched them, or their time is over. All are held for
    the same time, so the first to come is the first to go; those that were fetched before are skipped."""

    __slots__ = ("_kv", "_queue", "count")

    def __init__(self, kv: KvBlocks) -> None:
        self._kv = kv
        self._queue: deque[tuple[float, Sequence]] = deque()
        self.count = 0

    def hold(self, sequence: Sequence, until_s: float) -> None:
        sequence.state = HELD
        self.count += 1
        self._queue.append((until_s, sequence))

    def release(self, sequence: Sequence) -> None:
        """Free the blocks of a sequence that is held."""
        sequence.state = GONE
        self.count -= 1
        self._kv.used -= blocks(sequence.held_tokens)
        while self._queue and self._queue[0][1].state == GONE:
            self._queue.popleft()

    @property
    def next_expiry_s(self) -> float:
        return self._queue[0][0] if self._queue else math.inf

    def pop_expired(self) -> Sequence:
        """The sequence whose time is over first, its blocks freed. There must be one."""
        sequence = self._queue[0][1]
        self.release(sequence)
        return sequence


class DecodeBatch:
    """Who decodes, on one token clock. `kv` is shared with the sequences of the engine that do not decode."""

    __slots__ = ("_cost", "_finishes", "_marks", "_serial", "clock", "kv", "sequences", "tokens")

    def __init__(self, cost: DecodeCost | None, kv: KvBlocks) -> None:
        self.kv = kv
        self.clock = 0
        self.sequences = 0
        self.tokens = 0
        self._cost = cost
        self._serial = 0
        self._finishes: list[tuple[int, int, Sequence]] = []
        self._marks: list[tuple[int, int, Sequence]] = []

    def join(self, sequence: Sequence) -> None:
        """Decode from this position on; the blocks of its tokens are taken already."""
        sequence.state = DECODING
        tokens = sequence.held_tokens
        self.kv.join(tokens, self.clock)
        self.tokens += tokens
        self.sequences += 1
        sequence.joined_at = self.clock
        sequence.finish_at = self.clock + sequence.osl - sequence.done
        self._serial += 1
        heappush(self._finishes, (sequence.finish_at, self._serial, sequence))
        self.mark(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Decode no longer; `done` is brought up to date, and the blocks stay taken."""
        sequence.done += self.clock - sequence.joined_at
        sequence.finish_at = sequence.mark_at = -1
        tokens = sequence.held_tokens
        self.kv.leave(tokens, self.clock)
        self.tokens -= tokens
        self.sequences -= 1

    def mark(self, sequence: Sequence) -> None:
        """Put the position at which `next_count` tokens are out among the marks, unless that is the sequence's end."""
        if sequence.next_count < sequence.osl or sequence.next_count == 1:
            sequence.mark_at = sequence.joined_at + sequence.next_count - sequence.done
            self._serial += 1
            heappush(self._marks, (sequence.mark_at, self._serial, sequence))
        else:
            sequence.mark_at = -1

    @property
    def marked(self) -> bool:
        """False: there is no mark, not even a stale one."""
        return bool(self._marks)

    def run(self, steps: int) -> list[Sequence]:
        """Move the clock on: who has finished has left. Blocks for `steps` steps must be free."""
        self.kv.grow(self.clock, steps)
        self.clock += steps
        self.tokens += self.sequences * steps
        finished = []
        finishes = self._finishes
        while finishes and finishes[0][0] <= self.clock:
            position, _, sequence = heappop(finishes)
            if sequence.state == DECODING and sequence.finish_at == position:
                self.leave(sequence)
                finished.append(sequence)
        return finished

    def steps_to_finish(self) -> int:
        """Steps until the first sequence finishes. There must be one."""
        finishes = self._finishes
        while finishes[0][2].finish_at != finishes[0][0] or finishes[0][2].state != DECODING:
            heappop(finishes)
        return finishes[0][0] - self.clock

    def steps_to_mark(self) -> int | None:
        """Steps until the first mark, or None."""
        marks = self._marks
        while marks and (marks[0][2].mark_at != marks[0][0] or marks[0][2].state != DECODING):
            heappop(marks)
        return marks[0][0] - self.clock if marks else None

    def pop_mark(self) -> Sequence:
        """The sequence of the first mark, after `steps_to_mark` said that there is one."""
        return heappop(self._marks)[2]

    def step_s(self, steps: int) -> float:
        """Seconds of a step, at the middle of the next `steps` steps; 0 when nobody decodes."""
        if self._cost is None or not self.sequences:
            return 0.0
        return self._cost.step_s(self.sequences, self.tokens + self.sequences * (steps + 1) / 2)
