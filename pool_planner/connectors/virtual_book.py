"""The books of decisions that an outside system executes: published, executed, completed, or given up. Pure.

One decision is open at a time. The next is published when the open one was completed, or `timeout_s` after it was published:
whoever was to execute it has gone, and a planner that waits for ever would be worse. Ids rise and never repeat, also over a
restart, because they begin at the milliseconds of the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from pool_planner.types import Grant

DECISION_TIMEOUT_S = 1800.0

Outcome = Literal["published", "unchanged", "waiting", "gave up on the last one"]


class Superseded(ValueError):
    """A decision that is not the open one; the text says which is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`replicas` by pool: what the outside system is to bring about. `reasons` by pool."""

    id: int
    at_s: float
    replicas: Mapping[str, int]
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """`ready` by pool: what the outside system last said it has (absent: it never said). `last`: the newest decision;
    `open`: it is neither completed nor given up. `given_up` counts those that timed out."""

    timeout_s: float = DECISION_TIMEOUT_S
    ready: Mapping[str, int] = field(default_factory=dict)
    last: Decision | None = None
    open: bool = False
    given_up: int = 0


def decide(
    book: Book, wanted: Mapping[str, int], now_s: float, *, reasons: Mapping[str, str] | None = None
) -> tuple[Book, Outcome]:
    """What becomes of the wish for `wanted` replicas by pool; pools that are not named keep what was decided for them."""
    target = {**(book.last.replicas if book.last is not None else book.ready), **wanted}
    overdue = book.open and book.last is not None and now_s - book.last.at_s >= book.timeout_s
    if book.open and not overdue:
        same = book.last is not None and target == book.last.replicas
        return book, "unchanged" if same else "waiting"
    # After one that nobody completed it is not known what was brought about: decided again, even if it is the same.
    have = {**book.ready} if overdue or book.last is None else {**book.last.replicas}
    if target == have:
        return replace(book, open=False, given_up=book.given_up + overdue), "unchanged"
    first = int(now_s * 1000.0)
    made = Decision(
        id=max(first, book.last.id + 1) if book.last is not None else max(first, 1),
        at_s=now_s,
        replicas=target,
        reasons={pool: text for pool, text in (reasons or {}).items() if pool in wanted},
    )
    made_book = replace(book, last=made, open=True, given_up=book.given_up + overdue)
    return made_book, "gave up on the last one" if overdue else "published"


def complete(book: Book, decision_id: int, replicas: Mapping[str, int] | None) -> Book:
    """The outside system has executed a decision; `replicas` by pool: what it has now, where that is not what was decided.
    Completing it again changes nothing. Raises Superseded."""
    if book.last is None or decision_id != book.last.id:
        current = "none is open" if book.last is None else f"the newest is {book.last.id}"
        raise Superseded(f"decision {decision_id} is not the newest: {current}")
    if not book.open and replicas is None:
        return book
    return replace(book, open=False, ready={**book.ready, **book.last.replicas, **(replicas or {})})


def told(book: Book, replicas: Mapping[str, int]) -> Book:
    """What the outside system says it has now."""
    return replace(book, ready={**book.ready, **replicas})


def grants(book: Book, now_s: float) -> dict[str, Grant]:
    """What the pools have, as far as it was told: ordered by the open decision, ready as last said."""
    ordered = {**book.ready, **(book.last.replicas if book.open and book.last is not None else {})}
    return {
        pool: Grant(
            pool=pool,
            at_s=now_s,
            replicas_spec=ordered[pool],
            replicas_ready=min(ready, ordered[pool]),
            replicas_starting=max(0, ordered[pool] - ready),
            replicas_draining=max(0, ready - ordered[pool]),
        )
        for pool, ready in book.ready.items()
    }
