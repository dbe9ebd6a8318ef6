"""[I/O] One request to one engine: what is sent to whom, and what becomes of the answer.

`Collected` keeps the whole answer (prefill calls, probes). `Relayed` writes the answer's bytes to a client as they come: the
body is passed on as it is framed, and nothing in it is parsed. A relayed answer is held back until its first body byte, so
that an engine which dies before that leaves nothing at the client and the request can be tried elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

from router.http1 import ClientConnection, Flow
from router.message import status_line

MAX_COLLECTED_BYTES = 64 * 1024 * 1024
_NOT_RETURNED = frozenset(
    [b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"upgrade", b"x-request-id"]
)
# What an engine says when it, not the request, is the problem: another replica may do better.
RETRIABLE = frozenset([429, 500, 502, 503, 504])


class EngineFailed(Exception):
    """A call that got no whole answer. `phase` says when: connect, send, first_byte, stream; `refused`: nobody listens there;
    `stale`: a pooled connection was closed before it carried a byte of the answer."""

    def __init__(self, phase: str, text: str, *, refused: bool = False, stale: bool = False, timed_out: bool = False) -> None:
        super().__init__(text)
        self.phase = phase
        self.refused = refused
        self.stale = stale
        self.timed_out = timed_out


class Exchange:
    """One request to one engine and what is known of its answer. Times are model seconds; None: not yet. At its end (whole: no
    error) `ended` is called once."""

    __slots__ = ("deadline_s", "ended", "first_s", "framed", "headers", "last_s", "now", "over", "status")

    def __init__(self, now: Callable[[], float], deadline_s: float) -> None:
        self.ended: Callable[[EngineFailed | None], None] | None = None
        self.over = False
        self.now = now
        self.deadline_s = deadline_s
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.framed = True
        self.first_s: float | None = None
        self.last_s: float | None = None

    def on_head(self) -> None:
        """Status and headers are complete."""

    def on_piece(self, piece: bytes) -> None:
        """A piece of the decoded body."""

    def on_raw(self, data: bytes, complete: bool) -> None:
        """The body's bytes as they came, after the pieces in them."""

    def on_start(self, flow: Flow) -> None:
        """The request goes out over `flow`, which the answer will come from."""

    def on_end(self) -> None:
        """The connection is free again, or lost."""

    def end(self, error: EngineFailed | None = None) -> None:
        """It was whole, or failed."""
        if not self.over:
            self.over = True
            if self.ended is not None:
                self.ended(error)


class Collected(Exchange):
    """Keeps the answer's body."""

    __slots__ = ("_bytes", "parts")

    def __init__(self, now: Callable[[], float], deadline_s: float) -> None:
        super().__init__(now, deadline_s)
        self.parts: list[bytes] = []
        self._bytes = 0

    def on_piece(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > MAX_COLLECTED_BYTES:
            self.end(EngineFailed("stream", f"the answer is longer than {MAX_COLLECTED_BYTES} bytes"))
        else:
            self.parts.append(piece)

    @property
    def body(self) -> bytes:
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


class Relayed(Exchange):
    """Passes the answer on to a client. `on_first` is called at the first body byte. An `old_client` speaks
    HTTP/1.0 and is sent the body without chunks. `events` counts server-sent events;
    `tail` is the end of the body, for its usage.

    Statuses in `RETRIABLE` are kept back (`kept`), so that another replica can be tried; `pass_on` sends the kept answer
    after all.
    """

    __slots__ = (
        "_before",
        "_chunked",
        "_held",
        "_idle_s",
        "_old_client",
        "_piece",
        "_raw",
        "_total_s",
        "_unchunk",
        "_unchunked",
        "client",
        "events",
        "is_stream",
        "kept",
        "on_first",
        "request_id",
        "started",
    )

    def __init__(
        self,
        now: Callable[[], float],
        deadline_s: float,
        *,
        client: ClientConnection,
        request_id: bytes,
        idle_s: float,
        total_s: float,
        on_first: Callable[[], None] | None = None,
        old_client: bool = False,
    ) -> None:
        super().__init__(now, deadline_s)
        self.client = client
        self.request_id = request_id
        self.started = False
        self.events = 0
        self.is_stream = False
        self.kept: list[bytes] | None = None
        self.on_first = on_first
        self._chunked = False
        self._idle_s = idle_s
        self._total_s = total_s
        self._held: list[bytes] = []
        self._raw = b""
        self._old_client = old_client
        self._unchunk = False
        self._unchunked: list[bytes] = []
        self._piece = b""
        self._before = b""

    @property
    def tail(self) -> bytes:
        """The end of the body, at least the last event but one: usage comes right before `[DONE]`."""
        return self._before[-2048:] + self._piece[-4096:]

    def on_head(self) -> None:
        if self.status in RETRIABLE:
            self.kept = []
            return
        for name, value in self.headers:
            if name == b"content-type":
                self.is_stream = value.startswith(b"text/event-stream")
            elif name == b"transfer-encoding":
                self._chunked = True
                self._unchunk = self._old_client

    def on_piece(self, piece: bytes) -> None:
        if self.kept is not None:
            self.kept.append(piece)
            return
        self.last_s = time = self.now()
        if self.first_s is None:
            self.first_s = time
            if self.on_first is not None:
                self.on_first()
        if self.is_stream:
            self.events += piece.count(b"data:")
        self._before = self._piece
        self._piece = piece
        if self._unchunk:
            self._unchunked.append(piece)

    def on_raw(self, data: bytes, complete: bool) -> None:
        if self.kept is not None:
            return
        if self._unchunk:
            data = b"".join(self._unchunked)
            self._unchunked.clear()
        if self.started:
            self.client.write(data)
        elif self.first_s is None and not complete:
            self._held.append(data)
            return
        else:
            self._start(data)
        self._raw = data
        self.deadline_s = min((self.last_s or self.now()) + self._idle_s, self._total_s)

    def on_start(self, flow: Flow) -> None:
        self.client.fill_from(flow)

    def on_end(self) -> None:
        self.client.fill_from(None)

    def _start(self, data: bytes) -> None:
        self.started = True
        client = self.client
        if self._unchunk:
            self.headers = [header for header in self.headers if header[0] != b"transfer-encoding"]
        if self._unchunk or not self.framed:
            client.close_after()
        lines = [status_line(self.status)]
        if client.extra:
            # Who may read the answer is decided here, not by an engine that is not asked by web pages.
            self.headers = [header for header in self.headers if not header[0].startswith(b"access-control-")]
        lines += [b"%b: %b\r\n" % header for header in self.headers if header[0] not in _NOT_RETURNED]
        lines.append(b"x-request-id: %b\r\n%b" % (self.request_id, client.extra))
        if client.will_close:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        lines += self._held
        lines.append(data)
        client.write(b"".join(lines))

    def pass_on(self) -> None:
        """Send an answer that was kept back for a retry which did not come."""
        body = b"".join(self.kept or ())
        extra = b"".join(
            b"%b: %b\r\n" % header for header in self.headers if header[0] in (b"retry-after", b"content-encoding")
        )
        kind = next((value for name, value in self.headers if name == b"content-type"), b"application/json")
        self.client.respond(self.status, body, content_type=kind, extra=extra + b"x-request-id: %b\r\n" % self.request_id)

    def break_off(self, event: bytes) -> None:
        """The engine died after bytes were passed on. A streaming client is told by a last event where one can stand (between
        two whole events); the answer is then cut without its end, so that nobody takes it for complete."""
        if self.is_stream and self._chunked and not self._unchunk and self._raw.endswith(b"\n\n\r\n"):
            self.client.write(b"%x\r\n%b\r\n" % (len(event), event))
