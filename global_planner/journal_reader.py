"""[I/O: reads files] The journal as its readers see it, also while another process writes it.

Readers take no lock and change nothing. A torn end of a segment is data (`Torn`), not an error: whoever stopped in the middle
of a record has said nothing with it. A whole record that this build cannot understand, because another version wrote it, is
data too (`Foreign`): whoever needs the rounds is not stopped by a memory in another shape. Everything else that is not what
was written raises JournalCorrupt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgpack

from global_planner.journal_format import MAGIC, Frame, JournalCorrupt, SegmentHeader, Torn, frames, read_header
from global_planner.memory import PlannerMemory, memories
from pool_planner import wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """A record of another version: whole, but not one that this build knows. `kind` is its name there (None: not even that)."""

    file: str
    offset: int
    kind: str | None
    why: str

    def __str__(self) -> str:
        return f"{self.file}: the {self.kind or 'record'} at byte {self.offset} is of another version: {self.why}"


def segments(directory: Path) -> list[Path]:
    """The segment files of a journal, oldest first."""
    return sorted(directory.glob("segment-*.gpj"))


def read(directory: Path) -> Iterator[object]:
    """Every record, oldest first, also while another process appends; a torn end of a segment comes as `Torn` and a record of
    another version as `Foreign`, in their places.

    Raises JournalCorrupt for anything else that is not what was written, with file and offset.
    """
    for path in segments(directory):
        try:
            yield from read_segment(path)
        except FileNotFoundError:  # dropped by the writer since it was listed
            continue


def read_segment(path: Path) -> Iterator[object]:
    """The records of one segment, `Torn` and `Foreign` among them. Raises JournalCorrupt, FileNotFoundError."""
    content = path.read_bytes()
    found = read_header(content, str(path))
    if found is None:
        yield Torn(file=str(path), offset=min(len(content), len(MAGIC)), dropped_bytes=max(0, len(content) - len(MAGIC)))
        return
    for frame in frames(content, found[1], str(path)):
        yield frame if isinstance(frame, Torn) else _decode(frame, path)


def last_memory(directory: Path) -> PlannerMemory | None:
    """The memory to go on with after a restart; None when the folder holds no journal. Raises JournalCorrupt, also for a memory
    of another version."""
    for path in reversed(segments(directory)):
        newest: PlannerMemory | None = None
        for memory in memories(_own(read_segment(path))):
            newest = memory
        if newest is not None:
            return newest
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What a start goes on with. `warning` says what of the journal could not be read, and what that costs."""

    memory: PlannerMemory
    warning: str | None = None


def recover(directory: Path) -> Recovery:
    """The memory to start with, whatever state the journal is in: where `last_memory` refuses, the newest memory before the
    damage. It is older, so holds and debts have gaps; what it counts too much is put right by the first observation."""
    newest: PlannerMemory | None = None
    try:
        return Recovery(memory=last_memory(directory) or PlannerMemory())
    except JournalCorrupt as error:
        for path in reversed(segments(directory)):
            try:
                for memory in memories(_own(read_segment(path))):
                    newest = memory
            except JournalCorrupt:
                pass
            if newest is not None:
                break
        lost = "everything remembered is" if newest is None else f"what was remembered after round {newest.round_no} is"
        return Recovery(memory=newest or PlannerMemory(), warning=f"{error}; {lost} lost: holds, debts and back-offs since")


def _own(records: Iterator[object]) -> Iterator[object]:
    """The records as they come; one of another version that belongs to the memory is an error."""
    for record in records:
        if isinstance(record, Foreign) and record.kind in (None, "Snapshot", "Orders", "Round"):
            raise JournalCorrupt(record.file, record.offset, f"not a record that this build knows: {record.why}")
        yield record


def segment_header(path: Path) -> SegmentHeader | None:
    """The header of a segment; None when it was torn within it."""
    found = read_header(path.read_bytes(), str(path))
    return None if found is None else found[0]


class JournalTail:
    """A reader that follows the writer: every `poll` gives the complete records since the one before."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segment = 0
        self._offset = 0

    def poll(self) -> list[object]:
        """New records, oldest first; one that is still being written comes with a later poll. Raises JournalCorrupt."""
        records: list[object] = []
        for path in segments(self._directory):
            number = segment_number(path)
            if number < self._segment:
                continue
            if number > self._segment:
                self._segment, self._offset = number, 0
            try:
                with path.open("rb") as file:
                    file.seek(self._offset)
                    content = file.read()
            except FileNotFoundError:
                continue
            start = 0
            if self._offset == 0:
                found = read_header(content, str(path))
                if found is None:
                    continue
                start = found[1]
            end = start
            for frame in frames(content, start, str(path), self._offset):
                if isinstance(frame, Frame):
                    records.append(_decode(frame, path))
                    end = frame.end
            self._offset += end
        return records


def _decode(frame: Frame, path: Path) -> object:
    try:
        record: object = wire.decode(frame.payload)
    except wire.WireError as error:
        return Foreign(file=str(path), offset=frame.offset, kind=_kind(frame.payload), why=str(error))
    return record


def _kind(payload: bytes) -> str | None:
    try:
        envelope = msgpack.unpackb(payload, raw=False)
    except (ValueError, msgpack.UnpackException):
        return None
    kind = envelope.get("k") if isinstance(envelope, dict) else None
    return kind if isinstance(kind, str) else None


def segment_number(path: Path) -> int:
    return int(path.stem.removeprefix("segment-"))
