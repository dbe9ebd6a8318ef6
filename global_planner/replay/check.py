"""[I/O: reads a journal] Decide every recorded round again, from its recorded inputs and the memory before it, and compare.

Equal inputs must give equal outputs, so any difference is a defect: a decision that depended on something that the record
does not hold. Each round starts from the recorded memory, so that the first difference is the first one in truth and, where
another code version is asked what it would have done, each round is judged by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from global_planner.journal import Torn, code_version
from global_planner.journal_reader import Foreign, read, segment_header, segments
from global_planner.memory import Orders, PlannerMemory, Policies, decide, decided
from global_planner.replay.changes import changes
from global_planner.types import Allocation, Round, Step


class OtherVersion(ValueError):
    """The journal was decided by other code than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where what was recorded and what is decided now part: round, pool (or group; None: neither), field, both values."""

    round_no: int
    pool: str | None
    field: str
    recorded: str
    computed: str

    def __str__(self) -> str:
        about = "" if self.pool is None else f", {self.pool}"
        return f"round {self.round_no}{about}: {self.field} was {self.recorded}, and is now {self.computed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """`differences` are the first one of every round that differs (one only, unless all were asked for). `changes`, where they
    were: sentences on everything that this code would decide differently. `changed`: rounds of which it would do so. `notes`
    are sentences about the journal itself: torn ends, restarts that lost memory."""

    rounds: int
    segments: int
    differences: tuple[Difference, ...] = ()
    changes: tuple[str, ...] = ()
    changed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def reproduced(self) -> bool:
        return not self.differences


def check(directory: Path, *, other_version: bool = False) -> CheckResult:
    """Decide the journal's rounds again. Stops at the first difference; with `other_version` journals of other code are taken
    too, every round that would come out differently is listed, and all that would be decided otherwise in it is told.

    Raises OtherVersion (even then, where a record is in a shape that this code cannot read), JournalCorrupt, FileNotFoundError
    when there is no journal in `directory`.
    """
    files = segments(directory)
    if not files:
        raise FileNotFoundError(f"{directory}: there is no journal here")
    if not other_version:
        _same_code(files)
    notes: list[str] = []
    differences: list[Difference] = []
    told: list[str] = []
    rounds = changed = 0
    for item in decided(_noting(read(directory), notes)):
        rounds += 1
        if not item.continues:
            notes.append(f"round {item.done.inputs.round_no} starts from another memory than the rounds before it left")
        after, allocation, steps = decide(item.memory, item.done.inputs, item.policies)
        found = _first_difference(item.orders, item.done, after, allocation, steps)
        if found is not None:
            differences.append(found)
            if not other_version:
                break
            other = list(changes(item.done, allocation, steps))
            changed += bool(other)
            told += other or [f"{found} (the same grants, rates and steps)"]
    return CheckResult(
        rounds=rounds,
        segments=len(files),
        differences=tuple(differences),
        changes=tuple(told),
        changed=changed,
        notes=tuple(notes),
    )


def _noting(records: Iterator[object], notes: list[str]) -> Iterator[object]:
    for record in records:
        if isinstance(record, Torn):
            notes.append(str(record))
        elif isinstance(record, Foreign) and record.kind in (None, "Snapshot", "Orders", "Round"):
            raise OtherVersion(f"{record}; without it the rounds cannot be decided again")
        yield record


def decided_again(memory: PlannerMemory, orders: Orders, done: Round, policies: Policies) -> Difference | None:
    """The first difference between a recorded round and the same decision made now, or None."""
    after, allocation, steps = decide(memory, done.inputs, policies)
    return _first_difference(orders, done, after, allocation, steps)


def _first_difference(
    orders: Orders, done: Round, after: PlannerMemory, allocation: Allocation, steps: tuple[Step, ...]
) -> Difference | None:
    pairs = (
        ("allocation", done.allocation, allocation),
        ("steps", done.steps, steps),
        ("memory", orders.memory, after),
    )
    for name, recorded, computed in pairs:
        for difference in _differences(recorded, computed, name, None, done.inputs.round_no):
            return difference
    return None


def _same_code(files: list[Path]) -> None:
    mine = code_version()
    for path in files:
        header = segment_header(path)
        if header is not None and header.code_version != mine:
            raise OtherVersion(
                f"{path}: decided by code version {header.code_version}; this is {mine}. "
                "Ask for what would change to compare them all the same"
            )


def _differences(recorded: object, computed: object, path: str, about: str | None, round_no: int) -> Iterator[Difference]:
    """Depth first, in the order of the fields; the name of the innermost pool or group on the way goes with it."""
    if recorded == computed:
        return
    children: list[tuple[str, object, object]] | None = None
    if dataclasses.is_dataclass(recorded) and type(recorded) is type(computed):
        about = getattr(recorded, "pool", None) or getattr(recorded, "group", None) or about
        names = [item.name for item in dataclasses.fields(recorded)]
        children = [(f"{path}.{name}", getattr(recorded, name), getattr(computed, name)) for name in names]
    elif isinstance(recorded, Mapping) and isinstance(computed, Mapping):
        keys = sorted({*recorded, *computed}, key=str)
        children = [(f"{path}.{key}", recorded.get(key, "nothing"), computed.get(key, "nothing")) for key in keys]
    elif isinstance(recorded, tuple) and isinstance(computed, tuple):
        longest = max(len(recorded), len(computed))
        both = [(_at(recorded, index), _at(computed, index)) for index in range(longest)]
        children = [(f"{path}[{index}]", before, now) for index, (before, now) in enumerate(both)]
    found = False
    for name, before, now in children or ():
        for difference in _differences(before, now, name, about, round_no):
            found = True
            yield difference
    if not found:
        owner = about or getattr(recorded, "pool", None) or getattr(computed, "pool", None)
        yield Difference(round_no=round_no, pool=owner, field=path, recorded=repr(recorded), computed=repr(computed))


def _at(items: tuple[object, ...], index: int) -> object:
    return items[index] if index < len(items) else "nothing"
