"""What a step of an engine costs, and the KV blocks that its sequences take. Pure."""

from __future__ import annotations

from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve

BLOCK_TOKENS = 16
UNLIMITED = 1 << 60


class PrefillCost:
    """Seconds of compute for pieces of prompts, from the TTFT of whole prompts that were measured alone.

    TTFT(isl) = start + work(isl): `start` is the curve's intercept (reading the weights, launching a step), paid once by a
    step in which a prompt begins, however many begin; a chunk [a, b) of a prompt costs work(b) - work(a), attention to the
    tokens before it included. So a prompt alone takes exactly its measured TTFT, in however many chunks, and short prompts in
    one step share the start. Beside decoding sequences nobody pays it: their step has read the weights already.
    """

    __slots__ = ("_curve", "_per_token_s", "_shortest", "start_s")

    def __init__(self, curve: PrefillCurve) -> None:
        lengths = curve.isl_tokens
        first, shortest = curve.ttft_ms(lengths[0]), lengths[0]
        slope = (curve.ttft_ms(lengths[1]) - first) / (lengths[1] - shortest) if len(lengths) > 1 else first / shortest
        start_ms = max(0.0, first - slope * shortest)
        self._curve = curve
        self._shortest = shortest
        self._per_token_s = (first - start_ms) / shortest / 1e3
        self.start_s = start_ms / 1e3

    def work_s(self, tokens: int) -> float:
        """Compute for the first `tokens` tokens of a prompt, without the start."""
        if tokens < self._shortest:
            return tokens * self._per_token_s
        return self._curve.ttft_ms(tokens) / 1e3 - self.start_s

    def step_s(self, chunks: list[tuple[int, int]], *, starts: bool) -> float:
        """One step over chunks (first token, one past the last); `starts`: a prompt begins in it."""
        total = self.start_s if starts else 0.0
        for begin, end in chunks:
            total += self.work_s(end) - self.work_s(begin)
        return total


class DecodeCost:
    """Seconds of one decode step over `sequences` that hold `tokens` in the KV cache together."""

    __slots__ = ("_curve", "_max_kv_tokens")

    def __init__(self, curve: DecodeCurve) -> None:
        self._curve = curve
        self._max_kv_tokens = curve.max_kv_tokens

    def step_s(self, sequences: int, tokens: float) -> float:
        return self._curve.itl_ms(tokens / self._max_kv_tokens, tokens / sequences) / 1e3


class KvBlocks:
    """How many KV blocks are taken, and how many the decoding sequences will take in the next steps.

    All decoding sequences take a token each a step, so whether one needs a new block at a step depends only on (its tokens -
    the token clock) modulo the block: counting sequences by that phase makes growth exact without visiting any of them.
    """

    __slots__ = ("_phases", "decoding", "sequences", "total", "used")

    def __init__(self, capacity_tokens: int | None) -> None:
        self.total = UNLIMITED if capacity_tokens is None else capacity_tokens // BLOCK_TOKENS
        self.used = 0
        self.decoding = 0
        self.sequences = 0
        self._phases = [0] * BLOCK_TOKENS

    def join(self, tokens: int, clock: int) -> None:
        """A sequence that holds the blocks of `tokens` already begins to decode at `clock`."""
        self._phases[(tokens - clock) % BLOCK_TOKENS] += 1
        self.decoding += blocks(tokens)
        self.sequences += 1

    def leave(self, tokens: int, clock: int) -> None:
        """The sequence, now at `tokens`, decodes no longer; its blocks are still taken."""
        self._phases[(tokens - clock) % BLOCK_TOKENS] -= 1
        self.decoding -= blocks(tokens)
        self.sequences -= 1

    def growth(self, clock: int, steps: int) -> int:
        """Blocks that the decoding sequences take while the clock goes from `clock` to `clock + steps`."""
        if not self.sequences:
            return 0
        phases = self._phases
        if steps == 1:
            return phases[-clock % BLOCK_TOKENS]
        rounds, rest = divmod(steps, BLOCK_TOKENS)
        grown = rounds * self.sequences
        for step in range(clock + 1, clock + rest + 1):
            grown += phases[(1 - step) % BLOCK_TOKENS]
        return grown

    def grow(self, clock: int, steps: int) -> None:
        grown = self.growth(clock, steps)
        self.used += grown
        self.decoding += grown

    def steps_that_fit(self, clock: int, limit: int) -> int:
        """The most steps, up to `limit`, whose growth fits into the free blocks."""
        free = self.total - self.used
        if self.sequences * (limit // BLOCK_TOKENS + 1) <= free or self.growth(clock, limit) <= free:
            return limit
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            if self.growth(clock, middle) <= free:
                low = middle
            else:
                high = middle
        return low


def blocks(tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // BLOCK_TOKENS)
