"""[I/O] What a deployment on mock engines needs beside Ray: the virtual cluster and the router, as child processes.

Their ports are kept in the folder, so that whoever starts them again there finds the same addresses. `SiteActor` keeps them
running in a Ray cluster that outlives the driver; a local system starts them itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from global_planner.compile import router_config_of
from global_planner.config import CredentialConfig, Topology
from global_planner.processes import ChildProcess, ProcessFailed, begin
from global_planner.topology_file import load_profiles, parse_topology

STOP_GRACE_WALL_S = 5.0
WATCH_WALL_S = 0.5
EXIT_CHILD_ENDED = 71
TOPOLOGY_FILE = "topology.json"
_PORTS_FILE = "ports.json"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 15_000


@dataclass(frozen=True, slots=True)
class Site:
    """Running children of a virtual deployment."""

    cluster: ChildProcess
    router: ChildProcess

    @property
    def cluster_url(self) -> str:
        return f"http://127.0.0.1:{self.cluster.port()}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.router.port('admin_port')}"

    def wait(self) -> None:
        """Until both listen. Raises ProcessFailed; none is left behind then."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.cluster.wait()
            self.router.wait()
            undo.pop_all()

    def ended(self) -> str | None:
        """The name of a child that is gone; None: all run."""
        return next((child.name for child in (self.cluster, self.router) if not child.running()), None)

    def stop(self) -> None:
        self.router.stop(STOP_GRACE_WALL_S)
        self.cluster.stop(STOP_GRACE_WALL_S)


def prepare_folder(topology: Topology, folder: Path, *, fresh_ports: bool = True) -> Topology:
    """Write the folder's topology and tokens. The topology as it is then: every port is known before anything is started, and
    the router has a credential of its own to wake models with. `fresh_ports` false: those of whoever runs there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if fresh_ports:
        (folder / _PORTS_FILE).unlink(missing_ok=True)
    for name in ("admin-token", "wake-token"):
        if not (folder / name).exists():
            private_file(folder / name, secrets.token_urlsafe(32))
    topology = _with_own_router(topology, folder)
    private_file(folder / TOPOLOGY_FILE, topology.model_dump_json(indent=1))
    return topology


def written_down(topology: Topology, folder: Path) -> Topology:
    """Write the folder's topology, of a deployment whose cluster and routers run elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    private_file(folder / TOPOLOGY_FILE, topology.model_dump_json(indent=1))
    return topology


def router_token(topology: Topology, folder: Path) -> str | None:
    """What the routers' admin listeners ask for: the token of our own, or that of routers that run elsewhere. Raises
    ProcessFailed when its file cannot be read."""
    named = topology.router.admin_token_file
    if topology.cluster.kind != "virtual" and named is None:
        return None
    path = Path(named) if topology.cluster.kind != "virtual" and named is not None else folder / "admin-token"
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ProcessFailed(f"router.admin_token_file: {path} cannot be read: {error}") from error


def start_site(topology: Topology, folder: Path) -> Site:
    """Start the children of a folder that was prepared for `topology`. Raises ProcessFailed; none is left behind then."""
    site = begin_site(topology, folder)
    site.wait()
    return site


def begin_site(topology: Topology, folder: Path) -> Site:
    """The same, but the caller waits for them (`Site.wait`) when it has begun what else takes time."""
    with contextlib.ExitStack() as undo:
        cluster = begin(
            "cluster",
            "global_planner.mocker.cluster",
            [
                *("--topology", str(folder / TOPOLOGY_FILE), "--run-dir", str(folder / "engines")),
                *("--port", str(_ports(folder)["cluster"])),
            ],
            folder=folder,
            environment={},
        )
        undo.callback(cluster.stop, STOP_GRACE_WALL_S)
        config = router_config_of(
            topology,
            profiles=load_profiles(topology),
            admin_token_file=str(folder / "admin-token"),
            planner_url=f"http://127.0.0.1:{topology.api.port}",
            planner_token_file=str(folder / "wake-token"),
        )
        router_file = private_file(folder / "router.json", config.model_dump_json(indent=1))
        router = begin("router", "router", ["--config", str(router_file), "--die-with-parent"], folder=folder, environment={})
        undo.pop_all()
    return Site(cluster, router)


def site_key(topology: Topology) -> str:
    """What the children were started with: while this stays the same they need not be started again."""
    pools = [
        (pool.name, pool.role, pool.gpu_type, pool.gpus_per_replica, pool.profile, group.engine.model_dump())
        for group, pool in topology.placed_pools()
    ]
    config = router_config_of(topology, profiles=load_profiles(topology), planner_url=f"http://127.0.0.1:{topology.api.port}")
    return json.dumps([pools, topology.cluster.model_dump(), config.model_dump(mode="json")], sort_keys=True)


class SiteActor:
    """Keeps the children of `folder` running; as a Ray actor that is restarted, it starts them again from the folder's files.
    A child that ends by itself ends this process, and Ray starts both again."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._key = ""
        self._site: Site | None = None
        self._start(self._read())
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def ensure(self) -> tuple[str, str, bool]:
        """(cluster URL, router's admin URL, whether the children were started again because the folder's topology asks for
        others)."""
        topology = self._read()
        again = site_key(topology) != self._key
        if again and self._site is not None:
            site, self._site = self._site, None
            site.stop()
            self._start(topology)
        assert self._site is not None
        return self._site.cluster_url, self._site.admin_url, again

    def _read(self) -> Topology:
        path = self._folder / TOPOLOGY_FILE
        return parse_topology(path.read_text(), source=str(path), folder=self._folder)

    def _start(self, topology: Topology) -> None:
        self._site = start_site(topology, self._folder)
        self._key = site_key(topology)

    def _watch(self) -> None:
        while True:
            time.sleep(WATCH_WALL_S)
            site = self._site
            if site is not None and site.ended() is not None:
                os._exit(EXIT_CHILD_ENDED)


def private_file(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _with_own_router(topology: Topology, folder: Path) -> Topology:
    api, router = topology.api, topology.router
    ports = _ports(folder)
    own = CredentialConfig(name=_free_name(api.credentials), token_file=str(folder / "wake-token"), wake=True)
    api = api.model_copy(update={"port": api.port or ports["api"], "credentials": (*api.credentials, own)})
    router = router.model_copy(
        update={"port": router.port or ports["public"], "admin_port": router.admin_port or ports["admin"]}
    )
    return topology.model_copy(update={"api": api, "router": router})


def _ports(folder: Path) -> dict[str, int]:
    """Ports that were free when they were first asked for in this folder, and are kept for it."""
    path = folder / _PORTS_FILE
    if path.exists():
        found: dict[str, int] = json.loads(path.read_text())
        return found
    with contextlib.ExitStack() as held:
        ports = {name: _free_port(held) for name in ("public", "admin", "api", "cluster")}
    path.write_text(json.dumps(ports) + "\n")
    return ports


def _free_port(held: contextlib.ExitStack) -> int:
    """A port that is free now and that the kernel gives to no connection: it is bound only once Ray has started, and by then
    one of the ephemeral range may be in use by a connection. Held until `held` ends, so that none comes twice."""
    try:
        first_ephemeral = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # not Linux, or hidden: any free port then
        first_ephemeral = 0
    drawn = secrets.SystemRandom()
    for port in [drawn.randrange(_FIRST_PORT, first_ephemeral) for _ in range(50) if first_ephemeral > _FIRST_PORT] + [0]:
        sock = held.enter_context(socket.socket())
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        return int(sock.getsockname()[1])
    raise ProcessFailed("no free port on 127.0.0.1")


def _free_name(credentials: Sequence[CredentialConfig]) -> str:
    taken = {credential.name for credential in credentials}
    return next(name for n in itertools.count() if (name := f"own-router{'' if n == 0 else f'-{n}'}") not in taken)
