"""[I/O] Estimates kept on disk between runs: one JSON file for each identity, written whole, read once.

A file that is torn or is no such file is as good as none: estimates can be made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from pool_planner.profiler.shapes import EngineShape, EstimateError, Estimator

FORMAT = 1


def default_folder() -> Path:
    """$XDG_CACHE_HOME or ~/.cache, in a folder of our own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "global-planner" / "estimates"


class VersionedEstimator(Estimator, Protocol):
    """An estimator that knows which version of a backend its numbers are of."""

    def version(self, backend: str) -> str: ...


class CachedEstimator:
    """An estimator that asks `source` only for what it was never asked before under this `identity`. What could not be
    estimated is remembered too. `asked` counts calls of the source. `save` writes; nothing is written before."""

    def __init__(self, source: VersionedEstimator, *, identity: str, folder: Path) -> None:
        self._source = source
        self._identity = identity
        self._file = folder / f"{sha256(identity.encode()).hexdigest()[:24]}.json"
        self._known: dict[str, float | str] = self._read()
        self.asked = 0

    def prefill_ms(self, shape: EngineShape, isl: int) -> float:
        return self._value(f"{shape}|prefill|{isl}", lambda: self._source.prefill_ms(shape, isl))

    def decode_ms(self, shape: EngineShape, context: int, batch: int) -> float:
        return self._value(f"{shape}|decode|{context}|{batch}", lambda: self._source.decode_ms(shape, context, batch))

    def kv_tokens(self, shape: EngineShape) -> int:
        return int(self._value(f"{shape}|kv", lambda: self._source.kv_tokens(shape)))

    def version(self, backend: str) -> str:
        """The version of a backend that estimates are of. Raises what the source does (Unsupported), which is not kept."""
        known = self._known.get(f"{backend}|version")
        if not isinstance(known, str):
            self.asked += 1
            known = self._known[f"{backend}|version"] = self._source.version(backend)
        return known

    def save(self) -> None:
        """Raises OSError."""
        if not self.asked:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_name(f"{self._file.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"format": FORMAT, "identity": self._identity, "values": self._known}))
        part.replace(self._file)

    def _value(self, key: str, ask: Callable[[], float]) -> float:
        known = self._known.get(key)
        if isinstance(known, str):
            raise EstimateError(known)
        if known is not None:
            return known
        self.asked += 1
        try:
            value = float(ask())
        except EstimateError as error:
            self._known[key] = str(error)
            raise
        self._known[key] = value
        return value

    def _read(self) -> dict[str, float | str]:
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("identity") != self._identity:
            return {}
        values = content.get("values")
        if not isinstance(values, dict):
            return {}
        return {key: value for key, value in values.items() if isinstance(value, int | float | str)}
