"""What the load writes down: one record a request, and its progress while it runs. Pure.

Every time is in model time; `*_ms` are durations as the client saw them, retries and their waits included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# completed: answered in full and right. rejected: 429 or 503 to the last attempt. lost: anything else that was offered.
# abandoned: the load itself was stopped before the answer was complete.
Outcome = Literal["completed", "rejected", "lost", "abandoned"]
OUTCOMES: tuple[Outcome, ...] = ("completed", "rejected", "lost", "abandoned")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    """One request. `at_s` is its time in the workload, `sent_s` the model time of its first attempt on the system's clock,
    `late_ms` how much later than planned the generator itself was.

    `ttft_ms` and `itl_ms` ((last - first) / (tokens - 1), two tokens or more) are known of completed streams only.
    `engine_model_ms` is what the engines say that they took; the rest of `duration_ms` is waiting and overhead.
    """

    index: int
    model: str
    at_s: float
    isl_tokens: int
    osl_tokens: int
    priority: int
    chat: bool
    streamed: bool
    sent_s: float
    late_ms: float
    outcome: Outcome
    duration_ms: float
    ttft_ms: float | None = None
    itl_ms: float | None = None
    engine_model_ms: float | None = None
    http_status: int | None = None
    retries: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProgress:
    """Counts of one model so far; `ttft_ms` and `itl_ms` are means over what completed in the last model minute."""

    sent: int = 0
    completed: int = 0
    ttft_ms: float | None = None
    itl_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """How far the load is. `started_s` is the model time at which the workload's second 0 was played; `retried` counts
    attempts beyond the first; `reasons` the most frequent reasons for lost and rejected requests."""

    pid: int
    started_s: float
    now_s: float
    total: int
    sent: int = 0
    in_flight: int = 0
    completed: int = 0
    rejected: int = 0
    lost: int = 0
    abandoned: int = 0
    retried: int = 0
    late_ms_p50: float = 0.0
    late_ms_max: float = 0.0
    models: Mapping[str, ModelProgress] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    done: bool = False
