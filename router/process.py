"""[I/O] One router process: it serves until it is told to stop."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

import click

from pool_planner.clock import clock_from_environment
from router.app import RouterApp
from router.config import RouterConfig
from router.workers import tell

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent ends (Linux); an orphan would keep the port."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        # The parent ended before the request was in place.
        sys.exit(1)


async def run(config: RouterConfig, port_file: Path | None, *, reuse_port: bool = False) -> bool:
    """Serve until SIGTERM or SIGINT; whether every running request ended."""
    loop = asyncio.get_running_loop()
    app = RouterApp(config, clock_from_environment(), loop, say=lambda text: click.echo(text, err=True))
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    port, admin_port = await app.start(reuse_port=reuse_port)
    # Everything made so far lives for ever: looking at it in every collection costs latency and finds nothing.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    tell(port_file, port, [admin_port])
    public, admin = config.listen.host, config.admin.host
    click.echo(f"clients: http://{public}:{port}/v1  planner, metrics: http://{admin}:{admin_port}", err=True)
    await stop.wait()
    return await app.stop()
