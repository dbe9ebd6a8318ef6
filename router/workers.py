"""[I/O] Several router processes on one public port: started, restarted, ended together.

The kernel spreads connections over the processes (SO_REUSEPORT). Each has an admin listener of its own, and each is told by
the planner and scraped by itself: a drain is acknowledged by every process, rates are split by the planner, and series add up
as they do over any instances; one more port can show them added up (`router.merged`). What the configuration limits for the
whole router is split evenly here; each process balances what it has sent itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from router.config import ConfigError, RouterConfig
from router.merged import MergedMetrics

START_S = 30.0
RESTART_S = 1.0


def share(config: RouterConfig, workers: int) -> RouterConfig:
    """The part of the configuration's limits that one of several processes may use. Raises ConfigError where a limit is too
    small to be shared."""
    for model in config.models:
        for pool in model.pools:
            if pool.max_in_flight is not None and pool.max_in_flight < workers:
                raise ConfigError(
                    f"pool {pool.name!r}: max_in_flight {pool.max_in_flight} cannot be shared by {workers} processes; raise "
                    f"it, or run at most {pool.max_in_flight}"
                )
    models = tuple(
        model.model_copy(
            update={
                "own_admitted_rps": None if model.own_admitted_rps is None else model.own_admitted_rps / workers,
                "own_burst": None if model.own_burst is None else model.own_burst / workers,
                "pools": tuple(
                    pool.model_copy(
                        update={"max_in_flight": None if pool.max_in_flight is None else pool.max_in_flight // workers}
                    )
                    for pool in model.pools
                ),
            }
        )
        for model in config.models
    )
    return config.model_copy(
        update={
            "models": models,
            "queue": config.queue.model_copy(update={"limit": -(-config.queue.limit // workers)}),
            "limits": config.limits.model_copy(update={"max_connections": -(-config.limits.max_connections // workers)}),
            "retry": config.retry.model_copy(update={"burst": config.retry.burst / workers}),
        }
    )


class Workers:
    """`count` processes that run `command` (which must listen with SO_REUSEPORT) on the port of `reserved`."""

    def __init__(self, command: Sequence[str], count: int, folder: Path) -> None:
        self._command = tuple(command)
        self._count = count
        self._folder = folder
        self._stopping = False
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self.failed = False

    async def start(self, port: int, first_admin_port: int) -> list[int]:
        """All admin ports; the first as asked for, the others next to it (any free ones for 0). Raises OSError."""
        asked = [first_admin_port + i if first_admin_port else 0 for i in range(self._count)]
        return list(await asyncio.gather(*(self._begin(i, port, asked[i]) for i in range(self._count))))

    async def _begin(self, number: int, port: int, admin_port: int) -> int:
        told = self._folder / f"worker-{number}.json"
        told.unlink(missing_ok=True)
        options = ["--port", str(port), "--admin-port", str(admin_port), "--port-file", str(told), "--die-with-parent"]
        process = await asyncio.create_subprocess_exec(*self._command, *options)
        self._processes[number] = process
        try:
            async with asyncio.timeout(START_S):
                while not told.exists() and process.returncode is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            process.kill()
        if not told.exists():
            await process.wait()
            raise OSError(f"worker {number} did not start (exit status {process.returncode})")
        bound: int = json.loads(told.read_text(encoding="utf-8"))["admin_port"]
        return bound

    async def watch(self, port: int, admin_ports: Sequence[int]) -> None:
        """Restart whatever ends by itself, on the same admin port, until `stop`."""
        await asyncio.gather(*(self._keep(i, port, admin_ports[i]) for i in range(self._count)))

    async def _keep(self, number: int, port: int, admin_port: int) -> None:
        while True:
            status = await self._processes[number].wait()
            if self._stopping:
                self.failed = self.failed or status != 0
                return
            click.echo(f"worker {number} ended with exit status {status}; it is started again", err=True)
            await asyncio.sleep(RESTART_S)
            if self._stopping:
                return
            try:
                await self._begin(number, port, admin_port)
            except OSError as error:
                click.echo(str(error), err=True)

    def stop(self) -> None:
        """Ask all to finish what they have."""
        self._stopping = True
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)


async def run_workers(
    config: RouterConfig,
    config_path: Path,
    options: Sequence[str],
    count: int,
    port_file: Path | None,
    metrics_port: int | None = None,
) -> bool:
    """Serve with `count` processes until SIGTERM or SIGINT; whether every running request ended. On `metrics_port` this
    process shows the metrics of all of them as one. Raises ConfigError and OSError."""
    share(config, count)
    loop = asyncio.get_running_loop()
    # Bound but never listening: it only makes sure that all processes get the same port, and nobody else does.
    family = socket.AF_INET6 if ":" in config.listen.host else socket.AF_INET
    with socket.socket(family) as reserved, tempfile.TemporaryDirectory(prefix="pool-router-") as folder:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((config.listen.host, config.listen.port))
        port: int = reserved.getsockname()[1]
        command = [sys.executable, "-m", "router", "--config", str(config_path), "--one-of", str(count), *options]
        workers = Workers(command, count, Path(folder))
        try:
            admin_ports = await workers.start(port, config.admin.port)
        except OSError:
            workers.stop()
            raise
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, workers.stop)
        merged = MergedMetrics(config.admin.host, admin_ports, config.limits, loop)
        try:
            shown = None if metrics_port is None else await merged.listen(metrics_port)
            tell(port_file, port, admin_ports, shown)
            also = "" if shown is None else f"  metrics of all: port {shown}"
            click.echo(f"clients: port {port}  planner, metrics: ports {', '.join(map(str, admin_ports))}{also}", err=True)
            await workers.watch(port, admin_ports)
        finally:
            workers.stop()
            await merged.close()
        return not workers.failed


def tell(port_file: Path | None, port: int, admin_ports: Sequence[int], metrics_port: int | None = None) -> None:
    """Write where the router listens, whole or not at all."""
    if port_file is None:
        return
    described: dict[str, Any] = {"port": port, "admin_port": admin_ports[0], "admin_ports": list(admin_ports)}
    described["pid"] = os.getpid()
    if metrics_port is not None:
        described["metrics_port"] = metrics_port
    whole = port_file.with_suffix(port_file.suffix + ".tmp")
    whole.write_text(json.dumps(described), encoding="utf-8")
    whole.replace(port_file)
