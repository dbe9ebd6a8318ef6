"""[I/O] Endpoints from elsewhere than the planner: a file, DNS, or the EndpointSlices of a Kubernetes service.

One task a pool. What is found replaces what was found before, and nothing that runs is cut; where a source cannot be asked,
the last answer holds, and a metric says so: unknown is not zero. The planner's word about a pool ends its discovery.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from router.config_pools import DiscoveryConfig, HttpUrl
from router.endpoints import Endpoints, Pool
from router.types import EndpointSpec

NOBODY_AFTER = 3


class SourceFailed(Exception):
    """A source could not be asked, or said something that is no list of endpoints."""


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str | None = Field(default=None, min_length=1, max_length=256)
    url: HttpUrl
    state: Literal["starting", "ready", "draining"] = "ready"
    bootstrap_port: int | None = Field(default=None, gt=0, le=65535)


_FILE: TypeAdapter[list[HttpUrl | _Written]] = TypeAdapter(list[HttpUrl | _Written])


class FileSource:
    """A list of URLs, or of {id, url, state, bootstrap_port}, as JSON or YAML; read again when it has changed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def ask(self) -> Sequence[EndpointSpec]:
        try:
            text = self._path.read_text(encoding="utf-8")
            written = _FILE.validate_python(json.loads(text) if self._path.suffix == ".json" else yaml.safe_load(text) or [])
        except (OSError, ValueError, yaml.YAMLError) as error:
            told = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise SourceFailed(f"{self._path}: {told}") from error
        specs = []
        for one in written:
            if isinstance(one, str):
                specs.append(EndpointSpec(id=name_of(one), url=one))
            else:
                specs.append(EndpointSpec(**{**one.model_dump(), "id": one.id or name_of(one.url)}))
        return specs


class DnsSource:
    """Every address of a name (a headless service, say) with a port."""

    def __init__(self, name: str, scheme: str, loop: asyncio.AbstractEventLoop) -> None:
        self._host, _, self._port = name.rpartition(":")
        self._scheme = scheme
        self._loop = loop
        self._nobody = 0

    async def ask(self) -> Sequence[EndpointSpec]:
        try:
            found = await self._loop.getaddrinfo(self._host, int(self._port), type=socket.SOCK_STREAM)
        except OSError as error:
            # A name without an address is an answer, but also what a name server says that has just lost its data.
            self._nobody = self._nobody + 1 if getattr(error, "errno", None) in (socket.EAI_NONAME, socket.EAI_NODATA) else 0
            if self._nobody >= NOBODY_AFTER:
                return ()
            raise SourceFailed(f"{self._host}: {error}") from error
        self._nobody = 0
        hosts = sorted({str(address[4][0]) for address in found})
        urls = [
            f"{self._scheme}://[{host}]:{self._port}" if ":" in host else f"{self._scheme}://{host}:{self._port}"
            for host in hosts
        ]
        return [EndpointSpec(id=name_of(url), url=url) for url in urls]


def name_of(url: str) -> str:
    """What an endpoint is called that has no name of its own."""
    return url.split("://", 1)[1].rstrip("/")


class Discovery:
    """Keeps the pools' endpoints as their sources say. Intervals are wall seconds: sources live in the real world."""

    def __init__(self, endpoints: Endpoints, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoints = endpoints
        self._loop = loop
        self._tasks: list[asyncio.Task[None]] = []
        self.troubles: dict[str, str | None] = {}

    def start(self) -> None:
        for pool in self._endpoints.pools.values():
            config = pool.config.discovery
            if config is not None:
                self.troubles[pool.name] = "not asked yet"
                self._tasks.append(self._loop.create_task(self._keep(pool, config)))

    async def _keep(self, pool: Pool, config: DiscoveryConfig) -> None:
        if config.service is not None:
            # Only who asks Kubernetes pays for what it takes to ask it.
            from router.kubernetes_watch import watch

            await watch(
                config,
                found=lambda specs: self._found(pool, specs),
                failed=lambda text: self._failed(pool, text),
                wanted=lambda: not pool.by_planner,
            )
            return
        source: Any = FileSource(config.file) if config.file else DnsSource(config.dns or "", config.scheme, self._loop)
        while not pool.by_planner:
            try:
                self._found(pool, await source.ask())
            except SourceFailed as error:
                self._failed(pool, str(error))
            await asyncio.sleep(config.every_s)

    def _found(self, pool: Pool, specs: Sequence[EndpointSpec]) -> None:
        self.troubles[pool.name] = None
        self._endpoints.discovered(pool, specs)

    def _failed(self, pool: Pool, text: str) -> None:
        self.troubles[pool.name] = text

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
