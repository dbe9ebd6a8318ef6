"""[I/O] The short way of a request: let in at once, one call over a connection that is there, and no task for it.

Most requests to aggregated pools go so. A task with its coroutines costs as much as everything else that the router does for
a request, and two more turns of the loop. Whatever is not as usual (a call that failed, a status that another replica may
better) goes on as a task on the long way, with all that has happened so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from router.accounting import Progress
from router.admission import Ticket
from router.exchange import EngineFailed
from router.http1 import ClientConnection
from router.policy import Path
from router.relay import Relay

if TYPE_CHECKING:
    from router.dispatch import Dispatch


class Lane:
    """One such request, from admission to its last byte."""

    __slots__ = ("_client", "_dispatch", "_progress", "_relay", "_span", "_task", "_ticket", "_tried")

    def __init__(self, dispatch: Dispatch, progress: Progress, ticket: Ticket, client: ClientConnection, span: Any) -> None:
        self._dispatch = dispatch
        self._progress = progress
        self._ticket = ticket
        self._client = client
        self._span = span
        self._relay: Relay | None = None
        self._tried: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self, path: Path) -> None:
        """Call the engine whose turn it is on this way."""
        dispatch, progress = self._dispatch, self._progress
        chosen = dispatch.attempts.pick(path.serve, progress.ask, self._tried)
        if chosen is None:
            self._later(dispatch.persist(progress, self._ticket, self._client, self._tried, None))
            return
        pool, endpoint = chosen
        self._relay = relay = dispatch.attempts.relay(progress, pool, endpoint, progress.call.raw, self._client)
        connection = endpoint.link.idle()
        if connection is None:
            self._later(self._call(relay))
            return
        relay.exchange.ended = self._ended
        dispatch.upstream.begin(connection, relay.payload, relay.exchange)

    def cancel(self) -> None:
        """The client has gone: so has the work."""
        if self._task is not None:
            self._task.cancel()
            return
        relay, dispatch = self._relay, self._dispatch
        if relay is not None:
            relay.exchange.over = True
            connection = dispatch.upstream.forget(relay.exchange)
            if connection is not None:
                connection.abort()
        self._end("cancelled")

    def _ended(self, error: EngineFailed | None) -> None:
        """Of the call without a task."""
        relay, dispatch = self._relay, self._dispatch
        assert relay is not None
        dispatch.upstream.forget(relay.exchange)
        if error is not None and error.stale:
            # The engine closed an idle connection just as it was used: the same call on a new one is no retry.
            self._later(self._call(relay))
            return
        failure = dispatch.attempts.relayed(self._progress, relay, error, self._tried, self._client)
        if failure is None:
            self._end("failed")
        else:
            self._later(dispatch.persist(self._progress, self._ticket, self._client, self._tried, failure))

    async def _call(self, relay: Relay) -> None:
        """On a new connection."""
        dispatch = self._dispatch
        error: EngineFailed | None = None
        try:
            await dispatch.upstream.run(relay.endpoint.link, relay.payload, relay.exchange, fresh=True)
        except EngineFailed as failed:
            error = failed
        failure = dispatch.attempts.relayed(self._progress, relay, error, self._tried, self._client)
        if failure is not None:
            await dispatch.persist(self._progress, self._ticket, self._client, self._tried, failure)

    def _later(self, rest: Coroutine[Any, Any, None]) -> None:
        """What is not as usual goes on as a task."""
        self._task = self._dispatch.loop.create_task(rest)
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._end("cancelled" if task.cancelled() else "failed")

    def _end(self, outcome: str) -> None:
        """`outcome` counts where none was told yet."""
        dispatch = self._dispatch
        if self._relay is not None:
            dispatch.attempts.release(self._relay)
        self._progress.end(outcome, 0.0)
        dispatch.end(self._progress, self._span)
        self._client.served()
