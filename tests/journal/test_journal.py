"""The journal keeps what was written, through restarts, full disks, rotation and damage; and says what it could not keep."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from global_planner import journal as journal_module
from global_planner.journal import Foreign, Journal, JournalCorrupt, JournalTail, Torn, last_memory, read, recover, segments
from global_planner.journal_format import Frame, frame_bytes, frames, read_header
from global_planner.memory import Orders, PlannerMemory, Snapshot
from global_planner.replay.check import OtherVersion, check
from global_planner.types import Round
from pool_planner.types import ClusterUnavailable, PlannerStatus
from tests.journal.records import orders, round_record


def write_rounds(journal: Journal, first: int, last: int, padding: int = 0) -> None:
    for number in range(first, last + 1):
        journal.append(orders(number))
        journal.append(round_record(number, padding))


def numbers(directory: Path) -> list[int]:
    return [record.inputs.round_no for record in read(directory) if isinstance(record, Round)]


def test_what_was_appended_is_read_back_in_order_with_the_status_records_of_the_planners(tmp_path: Path) -> None:
    status = PlannerStatus(pool="chat-decode", at_s=12.0, numbers={"mape": 0.1})
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 2)
        journal.append(status)
    records = list(read(tmp_path))
    assert [type(record) for record in records] == [Snapshot, Orders, Round, Orders, Round, PlannerStatus]
    assert records[4] == round_record(2)
    assert records[5] == status


def test_a_restart_goes_on_after_the_last_round(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 3)
    with Journal.open(tmp_path, at_s=40.0) as journal:
        assert journal.memory.round_no == 3
        assert journal.warning is None
        write_rounds(journal, 4, 4)
    assert numbers(tmp_path) == [1, 2, 3, 4]
    assert len(segments(tmp_path)) == 2


def test_orders_without_their_round_count_after_a_restart(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 1)
        journal.append(orders(2))
    memory = last_memory(tmp_path)
    assert memory is not None and memory.round_no == 2


def test_an_empty_folder_has_no_memory(tmp_path: Path) -> None:
    assert last_memory(tmp_path) is None
    assert recover(tmp_path).memory == PlannerMemory()


def test_rotation_bounds_the_size_and_every_segment_starts_with_a_snapshot(tmp_path: Path) -> None:
    limit = 256 * 1024
    with Journal.open(tmp_path, at_s=0.0, max_mb=limit / 2**20) as journal:
        write_rounds(journal, 1, 100, padding=10_000)
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= limit
    assert 3 <= len(segments(tmp_path)) <= 9
    kept = numbers(tmp_path)
    assert kept == list(range(kept[0], 101))
    before_first = next(iter(read(tmp_path)))
    assert isinstance(before_first, Snapshot) and before_first.memory.round_no == kept[0] - 1


def test_rotation_waits_for_the_end_of_a_round(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0, max_mb=0.03) as journal:
        write_rounds(journal, 1, 30, padding=3_000)
    for path in segments(tmp_path):
        kinds = [type(record).__name__ for record in journal_module.read_segment(path)]
        assert kinds[0] == "Snapshot" and kinds[1:] == ["Orders", "Round"] * (len(kinds) // 2)


def test_segments_that_are_too_old_go(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0, max_mb=0.25, max_age_s=60.0) as journal:
        write_rounds(journal, 1, 40, padding=10_000)  # ten seconds a round
    kept = numbers(tmp_path)
    assert kept[-1] == 40 and 40 - 6 - 5 <= kept[0] <= 40 - 5


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0), pytest.raises(ClusterUnavailable, match="another process writes it"):
        Journal.open(tmp_path, at_s=0.0)
    Journal.open(tmp_path, at_s=0.0).close()


def test_a_full_disk_refuses_the_record_and_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.write

    def no_space(fd: int, content: bytes) -> int:
        if len(content) > 100:
            return written(fd, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 1)
        monkeypatch.setattr(journal_module.os, "write", no_space)
        with pytest.raises(ClusterUnavailable, match=r"cannot be written: No space left on device \(ENOSPC\)"):
            journal.append(orders(2))
        monkeypatch.undo()
        write_rounds(journal, 2, 2)
    assert numbers(tmp_path) == [1, 2]
    assert not [record for record in read(tmp_path) if isinstance(record, Torn)]


def test_a_full_disk_at_rotation_stays_in_the_segment_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.open(tmp_path, at_s=0.0, max_mb=0.05) as journal:
        write_rounds(journal, 1, 1, padding=10_000)
        monkeypatch.setattr(journal_module.os, "fsync", no_space)
        with pytest.raises(ClusterUnavailable):
            journal.append(orders(2))
        monkeypatch.undo()
        assert len(segments(tmp_path)) == 1
        write_rounds(journal, 2, 2)
    assert numbers(tmp_path) == [1, 2]


def test_a_reader_follows_the_writer_over_rotations(tmp_path: Path) -> None:
    tail = JournalTail(tmp_path)
    assert tail.poll() == []
    seen: list[int] = []
    with Journal.open(tmp_path, at_s=0.0, max_mb=1.0) as journal:
        for number in range(1, 41):
            journal.append(orders(number))
            seen += [record.inputs.round_no for record in tail.poll() if isinstance(record, Round)]
            journal.append(round_record(number, padding=20_000))
    seen += [record.inputs.round_no for record in tail.poll() if isinstance(record, Round)]
    assert len(segments(tmp_path)) > 3
    assert seen == list(range(1, 41))


def test_a_reader_waits_for_the_rest_of_a_record(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 2)
    whole = segments(tmp_path)[0].read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    tail = JournalTail(other)
    records: list[object] = []
    for end in range(0, len(whole) + 1, 7):
        (other / "segment-00000001.gpj").write_bytes(whole[:end])
        records += tail.poll()
    (other / "segment-00000001.gpj").write_bytes(whole)
    assert records + tail.poll() == list(read(tmp_path))


def test_a_torn_end_is_dropped_and_told_and_the_next_start_goes_on_before_it(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 2)
    path = segments(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-3])
    *_, last = read(tmp_path)
    assert isinstance(last, Torn)
    assert "the last record is torn" in str(last) and path.name in str(last)
    with Journal.open(tmp_path, at_s=30.0) as journal:
        assert journal.memory.round_no == 2, "its orders were written; what became of them is open"
        write_rounds(journal, 3, 3)
    assert numbers(tmp_path) == [1, 3]


def test_damage_in_the_middle_is_refused_with_file_and_offset_and_a_start_says_what_is_lost(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 1)
        sound_until = segments(tmp_path)[0].stat().st_size
        write_rounds(journal, 2, 3)
    path = segments(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[sound_until + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalCorrupt, match=f"{path.name}: corrupt at byte {sound_until}: ") as refused:
        last_memory(tmp_path)
    assert refused.value.offset == sound_until
    with Journal.open(tmp_path, at_s=40.0) as journal:
        assert journal.memory.round_no == 1
        assert journal.warning is not None and "after round 1 is lost" in journal.warning


def test_something_else_in_the_folder_is_not_a_journal(tmp_path: Path) -> None:
    (tmp_path / "segment-00000001.gpj").write_bytes(b"PK\x03\x04 this is something else")
    with pytest.raises(JournalCorrupt, match="this is not a journal segment"):
        list(read(tmp_path))


WRITER = """
import sys
from pathlib import Path
from global_planner.journal import Journal
from tests.journal.records import orders, round_record
with Journal.open(Path(sys.argv[1]), at_s=0.0) as journal:
    for number in range(1, 100_000):
        journal.append(orders(number))
        journal.append(round_record(number))
        print(number, flush=True)
"""


def test_what_append_returned_for_survives_a_kill(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    )
    try:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(20)]
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert numbers(tmp_path)[:20] == list(range(1, 21)), told
    with Journal.open(tmp_path, at_s=0.0) as journal:
        assert journal.memory.round_no >= 20


def test_a_record_of_another_version_stops_no_reader_but_is_no_memory(tmp_path: Path) -> None:
    with Journal.open(tmp_path, at_s=0.0) as journal:
        write_rounds(journal, 1, 2)
    path = segments(tmp_path)[0]
    content = path.read_bytes()
    found = read_header(content, "")
    assert found is not None
    out = bytearray(content[: found[1]])
    for frame in frames(content, found[1], ""):
        assert isinstance(frame, Frame)
        envelope = msgpack.unpackb(frame.payload)
        if envelope["k"] == "Orders":
            envelope["d"]["mood"] = "good"  # a field that later versions have
        out += frame_bytes(msgpack.packb(envelope))
    path.write_bytes(out)

    foreign = [record for record in read(tmp_path) if isinstance(record, Foreign)]
    assert [record.kind for record in foreign] == ["Orders", "Orders"]
    assert "is of another version: Orders.mood: Unexpected keyword argument" in str(foreign[0])
    assert numbers(tmp_path) == [1, 2]
    with pytest.raises(JournalCorrupt, match="not a record that this build knows"):
        last_memory(tmp_path)
    with pytest.raises(OtherVersion, match="cannot be decided again"):
        check(tmp_path, other_version=True)
    with Journal.open(tmp_path, at_s=30.0) as journal:
        assert journal.memory.round_no == 0
        assert journal.warning is not None and "not a record that this build knows" in journal.warning
