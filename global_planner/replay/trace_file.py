"""[I/O] Trace files on disk, plain or gzip (told by their first bytes), and the workload file that the load process plays."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import orjson

from global_planner.replay.trace import Trace, TraceError, parse_trace
from global_planner.replay.workload import Request

GZIP_MAGIC = b"\x1f\x8b"
MAX_LINE_BYTES = 16 * 2**20


def load_trace(path: Path, *, minutes: float | None = None) -> Trace:
    """Read and check the whole file; keep the first `minutes` (None: all). Raises TraceError with file, line and reason."""
    with lines_of(path) as lines:
        return parse_trace(lines, name=str(path), span_s=float("inf") if minutes is None else minutes * 60.0)


@contextmanager
def lines_of(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a text file, plain or gzip. Raises TraceError with file, line and reason, also while they are read."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield _lines(stream, str(path))
            else:
                yield _lines(raw, str(path))
    except OSError as error:
        raise TraceError(str(path), None, f"cannot be read: {error.strerror or error}") from error


def _lines(stream: IO[bytes] | gzip.GzipFile, name: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_LINE_BYTES + 1)
        except EOFError:
            raise TraceError(name, number, "the gzip file is truncated: it ends before its end mark") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise TraceError(name, number, f"the gzip file is damaged: {error}") from error
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise TraceError(name, number, f"is longer than {MAX_LINE_BYTES // 2**20} MiB; this is no trace")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TraceError(
                name, number, f"is not text (byte 0x{line[error.start]:02x} at column {error.start + 1})"
            ) from None
        if "\0" in text:
            raise TraceError(name, number, "is not text (a zero byte)")
        yield text


def write_workload(path: Path, requests: Sequence[Request]) -> None:
    """One JSON object a line; appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as out:
        out.writelines(orjson.dumps(request) + b"\n" for request in requests)
    os.replace(part, path)


def read_workload(path: Path) -> tuple[Request, ...]:
    """What `write_workload` wrote. Raises ValueError with file and line."""
    requests: list[Request] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                requests.append(Request(**orjson.loads(line)))
            except (orjson.JSONDecodeError, TypeError) as error:
                raise ValueError(f"{path}: line {number}: not a request: {error}") from error
    return tuple(requests)
