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
from importlib import metadata
from pathlib import Path
from types import TracebackType

import pool_planner.performance.door
import pool_planner.types
from global_planner.journal_format import JournalCorrupt, SegmentHeader, Torn, frame_bytes, header_bytes
from global_planner.journal_reader import (
    Foreign,
    JournalTail,
    Recovery,
    last_memory,
    read,
    read_segment,
    recover,
    segment_number,
    segments,
)
from global_planner.memory import Orders, PlannerMemory, Policies, Snapshot, after_round
from global_planner.types import Round
from pool_planner import wire
from pool_planner.types import ClusterUnavailable

__all__ = [
    "Foreign",
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
_DECIDING = (
    "charge.py",
    "growth.py",
    "memory.py",
    "release.py",
    "rollout.py",
    "rollout_observed.py",
    "rollout_state.py",
    "types.py",
)


def deciding_sources() -> tuple[Path, ...]:
    """The sources of what decides a round, and of the records that it decides on."""
    here = Path(__file__).parent
    reports = (Path(pool_planner.types.__file__), Path(pool_planner.performance.door.__file__))
    return (*(here / name for name in _DECIDING), *reports, *sorted((here / "arbiter").glob("*.py")))


def code_version() -> str:
    """The version of the package and a digest of the modules that decide: two builds with the same one decide alike."""
    digest = hashlib.sha256()
    for path in deciding_sources():
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    try:
        version = metadata.version("global-planner")
    except metadata.PackageNotFoundError:
        version = "source"
    return f"{version}+{digest.hexdigest()[:12]}"


class Journal:
    """The writer. Implements the `Journal` port; raises ClusterUnavailable when the disk refuses."""

    def __init__(
        self,
        directory: Path,
        memory: PlannerMemory,
        policies: Policies,
        at_s: float,
        max_bytes: int,
        max_age_s: float | None,
        forced: bool = True,
    ) -> None:
        self._directory = directory
        self._memory = memory
        self._policies = policies
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._forced = forced
        self._segment_bytes = max(4096, max_bytes // _SEGMENTS_IN_LIMIT)
        self._code_version = code_version()
        self._in_round = False
        self._at_s = at_s
        self._started: dict[Path, float] = {}
        self._size = 0
        self._fd = -1
        self.warning: str | None = None
        self._lock = _lock(directory)
        try:
            self._start_segment(at_s)
        except ClusterUnavailable:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        at_s: float,
        policies: Policies | None = None,
        memory: PlannerMemory | None = None,
        max_mb: float = 64.0,
        max_age_s: float | None = None,
        forced: bool = True,
    ) -> Journal:
        """Start a new segment in `directory` (made when absent), beginning with a snapshot of `memory` and of the `policies`
        that decide from now on. Without a `memory` it goes on with the one that the folder holds: see `memory`, and `warning`
        where part of the journal could not be read. `at_s` is the time now; `max_mb` and `max_age_s` (model seconds; None:
        unlimited) bound what is kept. `forced` false: orders are not forced to the disk, for journals of what never happened
        (replays), which the end of the machine may take with it.

        Raises ClusterUnavailable when another process writes there or the disk refuses.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(directory, error) from error
        found = recover(directory) if memory is None else Recovery(memory=memory)
        journal = cls(directory, found.memory, policies or Policies(), at_s, int(max_mb * 2**20), max_age_s, forced)
        journal.warning = found.warning
        return journal

    @property
    def memory(self) -> PlannerMemory:
        """The memory after the last appended round (`round_no` 0: there was none): where a restart goes on."""
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
        self._write(frame_bytes(payload), durable=self._forced and isinstance(record, Orders | Snapshot))
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
        number = segment_number(existing[-1]) + 1 if existing else 1
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
            first = next(read_segment(path), None)
            self._started[path] = first.at_s if isinstance(first, Snapshot) else 0.0
        return self._started[path]


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
