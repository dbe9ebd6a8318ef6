"""[I/O] The append-only memory of rounds: segments of framed msgpack records in one folder, one writer, any number of readers.

Durability: every record is handed to the operating system before `append` returns, so it survives the end of the process.
`Orders` and `Snapshot` are also forced to the disk (fsync, the folder's entry included) before anything that they announce is
sent, so that the memory of an order survives the end of the machine. A `Round` reaches the disk with the next `Orders`.

Rotation: a segment that has grown over its share of the size limit is followed by a new one, between two rounds; each starts
with a `Snapshot`, so the oldest can go (by total size, by age) and nothing that is needed is lost. A restart always starts a
new segment: a torn end stays where it is and is reported by whoever reads it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType

from global_planner.journal_format import (
    MAGIC,
    Frame,
    JournalCorrupt,
    SegmentHeader,
    Torn,
    frame_bytes,
    frames,
    header_bytes,
    read_header,
)
from global_planner.memory import Orders, PlannerMemory, Policies, Snapshot, after_round, memories
from global_planner.types import Round
from pool_planner import wire
from pool_planner.types import ClusterUnavailable

__all__ = [
    "Journal",
    "JournalCorrupt",
    "JournalTail",
    "Recovery",
    "Torn",
    "code_version",
    "last_memory",
    "read",
    "recover",
    "segments",
]

_SEGMENTS_IN_LIMIT = 8
_DECIDING = ("charge.py", "growth.py", "memory.py", "release.py", "rollout.py", "rollout_state.py", "types.py")


def code_version() -> str:
    """The version of the package and a digest of the modules that decide: two builds with the same one decide alike."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in [here / name for name in _DECIDING] + sorted((here / "arbiter").glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    try:
        version = metadata.version("global-planner")
    except metadata.PackageNotFoundError:
        version = "source"
    return f"{version}+{digest.hexdigest()[:12]}"


def segments(directory: Path) -> list[Path]:
    """The segment files of a journal, oldest first."""
    return sorted(directory.glob("segment-*.gpj"))


class Journal:
    """The writer. Implements the `Journal` port; raises ClusterUnavailable when the disk refuses."""

    def __init__(
        self,
        directory: Path,
        memory: PlannerMemory,
        policies: Policies,
        at_s: float,
        *,
        max_bytes: int,
        max_age_s: float | None,
    ) -> None:
        self._directory = directory
        self._memory = memory
        self._policies = policies
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._segment_bytes = max(4096, max_bytes // _SEGMENTS_IN_LIMIT)
        self._code_version = code_version()
        self._in_round = False
        self._at_s = at_s
        self._started: dict[Path, float] = {}
        self._size = 0
        self._lock = _lock(directory)
        self._fd = -1
        self._start_segment(at_s)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        at_s: float,
        memory: PlannerMemory | None = None,
        policies: Policies | None = None,
        max_bytes: int = 64 * 2**20,
        max_age_s: float | None = None,
    ) -> Journal:
        """Start a new segment in `directory` (made when absent), beginning with a snapshot of `memory` (default: what
        `last_memory` finds there). `max_age_s` (model seconds; None: unlimited) and `max_bytes` bound what is kept.

        Raises ClusterUnavailable when another process writes there or the disk refuses, JournalCorrupt.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(directory, error) from error
        if memory is None:
            memory = last_memory(directory) or PlannerMemory()
        return cls(directory, memory, policies or Policies(), at_s, max_bytes=max_bytes, max_age_s=max_age_s)

    @property
    def memory(self) -> PlannerMemory:
        """The memory after the last appended round: where a restart would go on."""
        return self._memory

    def append(self, record: object) -> None:
        """Append a registered record. Raises ClusterUnavailable (nothing is appended then) and wire.WireError."""
        payload = wire.encode(record)
        if len(payload) > wire.MAX_MESSAGE_BYTES:
            raise wire.WireError(f"{type(record).__name__} of {len(payload)} bytes is longer than {wire.MAX_MESSAGE_BYTES}")
        if isinstance(record, Orders):
            self._at_s = record.at_s
        if self._size >= self._segment_bytes and not self._in_round:
            self._start_segment(self._at_s)
        self._write(frame_bytes(payload), durable=isinstance(record, Orders | Snapshot))
        if isinstance(record, Orders):
            self._memory = record.memory
            self._in_round = True
        elif isinstance(record, Round):
            self._memory = after_round(self._memory, record)
            self._in_round = False

    def close(self) -> None:
        """End the writer; the folder may be written by another one then."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, content: bytes, *, durable: bool) -> None:
        """Append all of `content` or nothing: what a full disk took of it is cut off again."""
        try:
            _write_all(self._fd, content, durable=durable)
        except OSError as error:
            if self._fd >= 0:
                os.ftruncate(self._fd, self._size)
            raise _refused(self._directory, error) from error
        self._size += len(content)

    def _start_segment(self, at_s: float) -> None:
        """Go on in a new segment; the one before stays in use when the disk refuses."""
        existing = segments(self._directory)
        number = _number(existing[-1]) + 1 if existing else 1
        path = self._directory / f"segment-{number:08d}.gpj"
        snapshot = Snapshot(at_s=at_s, memory=self._memory, policies=self._policies)
        header = SegmentHeader(segment=number, code_version=self._code_version)
        content = header_bytes(header) + frame_bytes(wire.encode(snapshot))
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            try:
                _write_all(fd, content, durable=True)
                _sync_folder(self._directory)
            except OSError:
                os.close(fd)
                path.unlink()
                raise
        except OSError as error:
            raise _refused(self._directory, error) from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, len(content)
        self._started[path] = at_s
        self._drop_old(at_s)

    def _drop_old(self, now_s: float) -> None:
        """Drop the oldest segments while all together are too large, or the newest record in them is too old."""
        kept = segments(self._directory)
        total = sum(path.stat().st_size for path in kept)
        while len(kept) > 1:
            oldest, following = kept[0], kept[1]
            too_old = self._max_age_s is not None and now_s - self._start_of(following) > self._max_age_s
            if total + self._segment_bytes <= self._max_bytes and not too_old:
                return
            total -= oldest.stat().st_size
            oldest.unlink()
            kept.pop(0)

    def _start_of(self, path: Path) -> float:
        if path not in self._started:
            first = next(_read_segment(path), None)
            self._started[path] = first.at_s if isinstance(first, Snapshot) else 0.0
        return self._started[path]


# ---- reading -----------------------------------------------------------------------------------------------------------


def read(directory: Path) -> Iterator[object]:
    """Every record, oldest first, also while another process appends; a torn end of a segment comes as `Torn`, in its place.

    Raises JournalCorrupt for anything else that is not what was written, with file and offset.
    """
    for path in segments(directory):
        try:
            yield from _read_segment(path)
        except FileNotFoundError:  # dropped by the writer since it was listed
            continue


def last_memory(directory: Path) -> PlannerMemory | None:
    """The memory to go on with after a restart; None when the folder holds no journal. Raises JournalCorrupt."""
    for path in reversed(segments(directory)):
        newest: PlannerMemory | None = None
        for memory in memories(_read_segment(path)):
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
                for memory in memories(_read_segment(path)):
                    newest = memory
            except JournalCorrupt:
                pass
            if newest is not None:
                break
        lost = "everything remembered is" if newest is None else f"what was remembered after round {newest.round_no} is"
        return Recovery(memory=newest or PlannerMemory(), warning=f"{error}; {lost} lost: holds, debts and back-offs since")


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
            number = _number(path)
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


def _read_segment(path: Path) -> Iterator[object]:
    content = path.read_bytes()
    found = read_header(content, str(path))
    if found is None:
        yield Torn(file=str(path), offset=min(len(content), len(MAGIC)), dropped_bytes=max(0, len(content) - len(MAGIC)))
        return
    for frame in frames(content, found[1], str(path)):
        yield frame if isinstance(frame, Torn) else _decode(frame, path)


def _decode(frame: Frame, path: Path) -> object:
    try:
        record: object = wire.decode(frame.payload)
    except wire.WireError as error:
        raise JournalCorrupt(str(path), frame.offset, f"not a record that this build knows: {error}") from error
    return record


def _write_all(fd: int, content: bytes, *, durable: bool) -> None:
    written = 0
    while written < len(content):
        written += os.write(fd, content[written:])
    if durable:
        os.fsync(fd)


def _sync_folder(directory: Path) -> None:
    """Force the folder's entry of a new file to the disk."""
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("segment-"))


def _lock(directory: Path) -> int:
    """An exclusive lock on the folder, for as long as the descriptor is open: two writers would interleave memories."""
    try:
        fd = os.open(directory / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _refused(directory, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ClusterUnavailable(f"journal {directory}: another process writes it") from error
    return fd


def _refused(directory: Path, error: OSError) -> ClusterUnavailable:
    name = errno.errorcode.get(error.errno or 0, "?")
    return ClusterUnavailable(f"journal {directory} cannot be written: {error.strerror or error} ({name})")
