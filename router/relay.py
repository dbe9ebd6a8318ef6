"""What one call to an engine holds, and how it may end: places and tokens of its endpoint, a prompt without a token yet, an
answer to pass on, a failure to try again after. The order of calls is in `router.attempt`.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.endpoints import Endpoint, Pool
from router.exchange import Collected, Relayed
from router.http1 import ClientConnection
from router.message import Request


@dataclass(slots=True)
class Failure:
    """Why an attempt must be repeated. `free`: it cost nobody anything, and is not counted as a retry. `kept`, `collected`:
    an engine's own refusal, to be passed on if nothing better comes."""

    text: str
    free: bool = False
    kept: Relayed | None = None
    collected: Collected | None = None
    timed_out: bool = False


class Starts:
    """A prompt that an aggregated engine has not answered with a token yet."""

    __slots__ = ("_endpoint", "_open", "_tokens")

    def __init__(self, endpoint: Endpoint, tokens: float) -> None:
        self._endpoint, self._tokens, self._open = endpoint, tokens, True
        endpoint.unstarted += 1
        endpoint.unstarted_tokens += tokens

    def end(self) -> None:
        if self._open:
            self._open = False
            self._endpoint.unstarted -= 1
            self._endpoint.unstarted_tokens -= self._tokens


class Relay:
    """A call whose answer goes to the client, and what it takes of its endpoint meanwhile."""

    __slots__ = ("endpoint", "exchange", "open", "payload", "pool", "starts", "tokens")

    def __init__(
        self, pool: Pool, endpoint: Endpoint, exchange: Relayed, payload: bytes, tokens: float, starts: Starts | None
    ) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.exchange = exchange
        self.payload = payload
        self.tokens = tokens
        self.starts = starts
        self.open = True
        endpoint.in_flight += 1
        endpoint.outstanding_tokens += tokens


class Refused(Exception):
    """The prefill engine refused the request itself: its answer is the client's."""

    def __init__(self, answer: Collected) -> None:
        super().__init__()
        self.answer = answer


def pass_on(client: ClientConnection, request: Request, exchange: Collected) -> None:
    """Give the client an engine's own words."""
    fields = dict(exchange.headers)
    kind = fields.get(b"content-type", b"application/json")
    after = fields.get(b"retry-after")
    extra = b"x-request-id: %b\r\n" % request.request_id
    if after:
        extra += b"retry-after: %b\r\n" % after
    client.respond(exchange.status, exchange.body, content_type=kind, extra=extra)
