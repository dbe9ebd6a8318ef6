"""The bytes of a journal segment: a header, then frames of length, checksum and payload. Pure.

    segment = magic "GPJ1" | frame whose payload is the header (msgpack) | frames
    frame   = u32 payload length | u32 crc32(payload) | u32 crc32(the 8 bytes before) | payload       all little-endian

The checksum over the frame's own head tells a frame that is cut short (its head is sound, its bytes are missing) from a
corrupt one, whose length cannot be believed. A cut can only be at the end: that is a torn last record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgpack

MAGIC = b"GPJ1"
FORMAT_VERSION = 1
_FRAME = struct.Struct("<III")


class JournalCorrupt(ValueError):
    """Bytes inside a segment that cannot be what was written. The text says which file, at which offset, and why."""

    def __init__(self, file: str, offset: int, why: str) -> None:
        super().__init__(f"{file}: corrupt at byte {offset}: {why}")
        self.file = file
        self.offset = offset


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """`code_version` is that of the code that decided what the segment records."""

    segment: int
    code_version: str
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One payload, and where its frame starts and ends in the segment."""

    offset: int
    end: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """The end of a segment that was being written when its writer stopped (or that is being written now): dropped."""

    file: str
    offset: int
    dropped_bytes: int

    def __str__(self) -> str:
        return f"{self.file}: the last record is torn; {self.dropped_bytes} bytes from byte {self.offset} on were dropped"


def header_bytes(header: SegmentHeader) -> bytes:
    body = {"format": header.format_version, "segment": header.segment, "code": header.code_version}
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return MAGIC + frame_bytes(packed)


def read_header(content: bytes, file: str) -> tuple[SegmentHeader, int] | None:
    """The header and the offset of the first frame; None when the segment ends within its header. Raises JournalCorrupt."""
    if not MAGIC.startswith(content[: len(MAGIC)]):
        raise JournalCorrupt(file, 0, "this is not a journal segment")
    first = next(frames(content, len(MAGIC), file), None)
    if first is None or isinstance(first, Torn):
        return None
    try:
        body = msgpack.unpackb(first.payload, raw=False)
        header = SegmentHeader(segment=body["segment"], code_version=body["code"], format_version=body["format"])
    except (ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
        raise JournalCorrupt(file, first.offset, f"the header cannot be read: {error}") from error
    if header.format_version != FORMAT_VERSION:
        why = f"format version {header.format_version!r}; this build reads {FORMAT_VERSION}"
        raise JournalCorrupt(file, first.offset, why)
    return header, first.end


def frame_bytes(payload: bytes) -> bytes:
    head = struct.pack("<II", len(payload), zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def frames(content: bytes, offset: int, file: str, base: int = 0) -> Iterator[Frame | Torn]:
    """The frames from `offset` on; a torn end comes last, as data. `base`: where `content` starts in the file (offsets in
    `Frame` count from `content`'s start, those told to people from the file's). Raises JournalCorrupt where the bytes before
    the end are not what was written."""
    view = memoryview(content)
    while offset < len(content):
        rest = len(content) - offset
        torn = Torn(file=file, offset=base + offset, dropped_bytes=rest)
        if rest < _FRAME.size:
            yield torn
            return
        length, checksum, head_checksum = _FRAME.unpack_from(content, offset)
        if zlib.crc32(view[offset : offset + 8]) != head_checksum:
            if not any(view[offset:]):  # a file system may have kept the new length and lost the bytes
                yield torn
                return
            raise JournalCorrupt(file, base + offset, "the head of a record is damaged")
        end = offset + _FRAME.size + length
        if end > len(content):
            yield torn
            return
        payload = bytes(view[offset + _FRAME.size : end])
        if zlib.crc32(payload) != checksum:
            if end == len(content):
                yield torn
                return
            raise JournalCorrupt(file, base + offset, "the checksum of a record is wrong")
        yield Frame(offset=offset, end=end, payload=payload)
        offset = end
