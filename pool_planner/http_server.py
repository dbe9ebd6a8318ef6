"""[I/O] An aiohttp application that listens, for every server of the packages but the router's."""

from __future__ import annotations

from aiohttp import web


async def listen(
    app: web.Application, host: str, port: int, *, reuse_port: bool = False, shutdown_timeout_s: float = 1.0
) -> tuple[web.AppRunner, int]:
    """(what is cleaned up to end it, the port). Port 0: any free one. Raises OSError when the port is taken; nothing is left
    behind then."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=shutdown_timeout_s)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_port=reuse_port or None).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, int(runner.addresses[0][1])
