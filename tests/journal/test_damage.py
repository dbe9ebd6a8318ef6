"""Whatever happens to the bytes of a journal, a reader gives a prefix of what was written, or refuses: never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from global_planner.journal import Journal, JournalCorrupt, Torn, read, segments
from global_planner.journal_format import MAGIC, Frame, frame_bytes, frames, read_header
from tests.journal.records import orders, round_record


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("journal")
    with Journal.open(directory, at_s=0.0) as journal:
        for number in (1, 2):
            journal.append(orders(number))
            journal.append(round_record(number))
    return segments(directory)[0].read_bytes()


def payloads(content: bytes) -> tuple[list[bytes], Torn | None]:
    found = read_header(content, "segment")
    if found is None:
        return [], Torn(file="segment", offset=0, dropped_bytes=len(content))
    good, torn = [], None
    for frame in frames(content, found[1], "segment"):
        if isinstance(frame, Frame):
            good.append(frame.payload)
        else:
            torn = frame
    return good, torn


def test_cut_at_any_byte_it_is_a_prefix_with_the_rest_told(segment: bytes) -> None:
    whole, torn = payloads(segment)
    assert torn is None and len(whole) == 5
    ends = []
    for end in range(len(segment)):
        good, torn = payloads(segment[:end])
        assert good == whole[: len(good)]
        assert torn is None or torn.dropped_bytes > 0 or end < len(MAGIC)
        if torn is None:
            ends.append(end)
    assert len(ends) == 5, "whole only where a record ends"


def test_any_flipped_bit_is_noticed(segment: bytes) -> None:
    """Refused, or (in the last record, which could have been torn) dropped and told."""
    whole, _ = payloads(segment)
    refused = dropped = 0
    for position in range(len(segment)):
        damaged = bytearray(segment)
        damaged[position] ^= 1 << (position % 8)
        try:
            good, torn = payloads(bytes(damaged))
        except JournalCorrupt as error:
            refused += 1
            assert error.offset <= position
            continue
        dropped += 1
        assert torn is not None and good == whole[:-1]
    assert refused > dropped > 0


def test_zeros_where_the_last_record_should_be_are_a_torn_end(segment: bytes) -> None:
    whole, _ = payloads(segment)
    good, torn = payloads(segment + bytes(500))
    assert good == whole and torn is not None and torn.dropped_bytes == 500


@given(st.binary(max_size=200))
def test_rubbish_is_never_taken_for_records(rubbish: bytes) -> None:
    start = MAGIC + frame_bytes(b"\x83\xa6format\x01\xa7segment\x01\xa4code\xa1x")
    try:
        good, _ = payloads(start + rubbish)
    except JournalCorrupt:
        return
    assert good == []


def test_a_segment_that_vanishes_while_it_is_read_is_passed_over(tmp_path: Path, segment: bytes) -> None:
    for number in (1, 2):
        (tmp_path / f"segment-0000000{number}.gpj").write_bytes(segment)
    records = read(tmp_path)
    next(records)
    (tmp_path / "segment-00000002.gpj").unlink()
    assert len(list(records)) == 4
