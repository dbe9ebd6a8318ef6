"""What a replay plays: the requests of all models as columns, sorted by time. Pure.

Columns (numpy) instead of objects: a request takes 22 bytes, so that ten million of them fit beside everything else, and what
knows the whole trace (static fleets, the oracle) can count it at once. Sources make one `Arrivals` a model (see `sources`);
`merge` lays them into one `Workload`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
# (arrival s, index of the model, prompt tokens, answer tokens, priority, hashes of ever longer beginnings of the prompt)
Row = tuple[float, int, int, int, int, tuple[int, ...]]

BLOCK_TOKENS = 512  # of a prefix block, as Mooncake's traces have them
CHUNK = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """The requests of one model. Columns of one length: `at_s` (s, any order), `isl`, `osl` (tokens, at least 1), `priority`.

    `blocks`: of each request the ids of its prompt's blocks of `BLOCK_TOKENS` tokens, each id telling the whole beginning of
    the prompt up to its block (None: nothing is known of prefixes)."""

    model: str
    at_s: Floats
    isl: Ints
    osl: Ints
    priority: Ints
    blocks: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return int(self.at_s.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of all `models`, sorted by time; equal times in the order of the models."""

    models: tuple[str, ...]
    at_s: Floats
    model: Ints
    isl: Ints
    osl: Ints
    priority: Ints
    blocks: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return int(self.at_s.size)

    @property
    def span_s(self) -> float:
        """From 0 to the last arrival."""
        return float(self.at_s[-1]) if self.at_s.size else 0.0

    def of_model(self, model: str) -> NDArray[np.bool_]:
        """Which rows are of `model`; none when it is not among `models`."""
        return np.asarray(self.model == (self.models.index(model) if model in self.models else -1))

    def rows(self) -> Iterator[Row]:
        """The requests one by one, in chunks that keep the memory small."""
        nothing: tuple[int, ...] = ()
        for begin in range(0, len(self), CHUNK):
            end = begin + CHUNK
            blocks = [nothing] * (min(end, len(self)) - begin) if self.blocks is None else self.blocks[begin:end]
            yield from zip(
                self.at_s[begin:end].tolist(),
                self.model[begin:end].tolist(),
                self.isl[begin:end].tolist(),
                self.osl[begin:end].tolist(),
                self.priority[begin:end].tolist(),
                blocks,
                strict=True,
            )


def arrivals(
    model: str,
    at_s: Sequence[float] | Floats,
    isl: Sequence[int] | Ints,
    osl: Sequence[int] | Ints,
    *,
    priority: int | Sequence[int] | Ints = 0,
    blocks: tuple[tuple[int, ...], ...] | None = None,
) -> Arrivals:
    """Columns from whatever holds them; lengths below 1 become 1, since no request is without a token."""
    times = np.asarray(at_s, dtype=np.float64)
    return Arrivals(
        model=model,
        at_s=times,
        isl=np.maximum(1, np.asarray(isl)).astype(np.int32),
        osl=np.maximum(1, np.asarray(osl)).astype(np.int32),
        priority=np.broadcast_to(np.asarray(priority, dtype=np.int32), times.shape).astype(np.int32),
        blocks=blocks,
    )


def merge(parts: Sequence[Arrivals]) -> Workload:
    """One workload of several; the same model may come in several parts."""
    models = tuple(dict.fromkeys(part.model for part in parts))
    at_s = np.concatenate([part.at_s for part in parts]) if parts else np.zeros(0)
    model = np.concatenate([np.full(len(part), models.index(part.model), np.int32) for part in parts]) if parts else _none()
    order = np.lexsort((model, at_s))
    blocks = None
    if any(part.blocks is not None for part in parts):
        every = [block for part in parts for block in (part.blocks if part.blocks is not None else ((),) * len(part))]
        blocks = tuple(every[index] for index in order)
    return Workload(
        models=models,
        at_s=at_s[order],
        model=model[order],
        isl=np.concatenate([part.isl for part in parts])[order] if parts else _none(),
        osl=np.concatenate([part.osl for part in parts])[order] if parts else _none(),
        priority=np.concatenate([part.priority for part in parts])[order] if parts else _none(),
        blocks=blocks,
    )


def _none() -> Ints:
    return np.zeros(0, dtype=np.int32)
