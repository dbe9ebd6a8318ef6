"""[I/O] Reports to the arbiter, in msgpack: by HTTP from anywhere, or over whatever transport a shell brings (a Ray actor).

The arbiter's absence is no error of the planner's: it goes on with the grants that it has, and reports when it is back; the
arbiter holds what it does not hear of. A rejection is a normal answer.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp

from pool_planner import wire
from pool_planner.types import ClusterUnavailable, Grant, GrantBatch, PlannerStatus, Report, ReportBatch

MSGPACK = "application/msgpack"
ARBITER_TIMEOUT_WALL_S = 2.0

Send = Callable[[bytes], Awaitable[bytes]]
"""Takes an encoded ReportBatch to the arbiter and brings its encoded GrantBatch. Raises ClusterUnavailable."""


class ArbiterConnector:
    """The pools of `dgd` under an arbiter that `send` reaches."""

    def __init__(
        self, send: Send, *, dgd: str, started_at_s: float, close: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._send = send
        self._dgd = dgd
        self._started_at_s = started_at_s
        self._close = close
        self._grants: Mapping[str, Grant] = {}

    async def grants(self, now_s: float) -> Mapping[str, Grant]:
        """Those of the arbiter's last answer."""
        return self._grants

    async def carry_out(self, reports: Sequence[Report], statuses: Sequence[PlannerStatus], now_s: float) -> None:
        batch = ReportBatch(
            dgd=self._dgd,
            pid=os.getpid(),
            started_at_s=self._started_at_s,
            reports=tuple(reports),
            statuses=tuple(statuses),
        )
        message = await self._send(wire.encode(batch))
        try:
            answer: GrantBatch = wire.decode(message, expect=GrantBatch)
        except wire.WireError as error:
            raise ClusterUnavailable(f"the arbiter's answer is not ours: {error}") from error
        if answer.grants:  # an arbiter that is taking over from another knows of none yet: go on with what we have
            # Its clock is not ours; a grant is as old as the answer that brought it.
            self._grants = {grant.pool: replace(grant, at_s=now_s) for grant in answer.grants}

    async def close(self) -> None:
        if self._close is not None:
            await self._close()


class HttpArbiter:
    """`Send` by `POST /v1/proposals` at `url`. The token file is read for every call, because tokens are rotated."""

    def __init__(self, url: str, *, token_file: Path | None, timeout_s: float = ARBITER_TIMEOUT_WALL_S) -> None:
        self._url = url.rstrip("/") + "/v1/proposals"
        self._token_file = token_file
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, message: bytes) -> bytes:
        headers = {"Content-Type": MSGPACK}
        if self._token_file is not None:
            try:
                headers["Authorization"] = f"Bearer {self._token_file.read_text(encoding='utf-8').strip()}"
            except OSError as error:
                raise ClusterUnavailable(f"{self._token_file}: the token cannot be read: {error.strerror}") from error
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.post(self._url, data=message, headers=headers) as answer:
                body = await answer.content.read(wire.MAX_MESSAGE_BYTES)
                if answer.status != 200:
                    raise ClusterUnavailable(
                        f"{self._url}: the arbiter refused: HTTP {answer.status}: {body[:300].decode(errors='replace')}"
                    )
                return body
        except TimeoutError as error:
            raise ClusterUnavailable(f"{self._url}: the arbiter did not answer within {self._timeout.total:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ClusterUnavailable(f"{self._url}: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
