"""[I/O] `global-planner run` in a Ray cluster that runs already: start or update the detached actors, report, and leave.

    ray job submit --address http://… --working-dir . -- python -m global_planner run --topology topology.yaml

It may be submitted again at any time, with another topology or other code. The new arbiter is started beside the one that
decides, and gets the turn between two of its rounds, so that no round is left out; planners go on with what they learned where
their pools and configuration stay what they were. When the new one does not come to decide, the one before gets its turn back.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import ray

from global_planner.actor import ArbiterClient, arbiter_spec
from global_planner.config import Topology
from global_planner.site import SiteActor, prepare_folder, router_token, written_down
from global_planner.system_clock import read_clock, start_clock
from global_planner.turns import give_turn, turn
from global_planner.types import ArbiterSnapshot
from pool_planner.actor import NAMESPACE, arbiter_generations
from pool_planner.types import ClusterUnavailable, WorldError

SITE_NAME = "global-planner-site"
SITE_WITHIN_WALL_S = 90.0
DECIDES_WITHIN_WALL_S = 90.0
ANSWER_WITHIN_WALL_S = 5.0


class JobFailed(RuntimeError):
    """The deployment could not be started or updated; whoever decided before does so again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Who decided before: its generation (0: nobody), and its last round."""

    generation: int = 0
    snapshot: ArbiterSnapshot | None = None


def submit(topology: Topology, *, folder: Path, speed: float, address: str) -> int:
    """Start or update the deployment of `topology` in the Ray cluster at `address`; the exit status."""
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        click.echo(f"error: no Ray cluster at {address}: {error}", err=True)
        return 1
    try:
        _submit(topology, folder.absolute(), speed)
    except (JobFailed, WorldError, ray.exceptions.RayError) as error:
        click.echo(f"error: {error}", err=True)
        return 1
    finally:
        ray.shutdown()
    return 0


def _submit(topology: Topology, folder: Path, speed: float) -> None:
    before = _before(topology, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = (folder / "topology.json").read_bytes() if (folder / "topology.json").exists() else None
    clock = start_clock(
        folder,
        speed=speed,
        wall_s=time.time(),
        calendar_start=topology.arbiter.calendar_start,
        real=topology.cluster.kind != "virtual",
    )
    generation = max([turn(folder), before.generation, *arbiter_generations()]) + 1
    try:
        topology, urls, token = _surroundings(topology, folder, again=before.generation > 0)
        click.echo(f"starting arbiter {generation} of {topology.name} in {folder} …")
        spec = arbiter_spec(
            topology,
            folder=folder,
            system_clock=clock,
            generation=generation,
            cluster_url=urls[0],
            router_urls=urls[1:],
            router_token=token,
        )
        successor = ArbiterClient.launch(spec, on_head=True)
        _wait_until_it_answers(successor)
        give_turn(folder, generation)
        done = _wait_until_it_decides(successor, before, folder)
    except (JobFailed, ClusterUnavailable, ray.exceptions.RayError) as error:
        if before.generation:
            give_turn(folder, before.generation)
            if kept is not None:
                (folder / "topology.json").write_bytes(kept)
            raise JobFailed(f"{error}\nArbiter {before.generation} decides as before.") from error
        raise
    for older in arbiter_generations():
        if older < generation:
            ArbiterClient.find(older).end()
    _report(topology, before, generation, done, folder)


def _before(topology: Topology, folder: Path) -> Before:
    """Whoever decides in this Ray cluster now. Raises JobFailed when that is another deployment."""
    for generation in reversed(arbiter_generations()):
        arbiter = ArbiterClient.find(generation)
        standing = arbiter.standing(ANSWER_WITHIN_WALL_S)
        if standing is None:
            continue
        if (standing.deployment, standing.folder) != (topology.name, str(folder)):
            raise JobFailed(
                f"this Ray cluster runs the deployment {standing.deployment} in {standing.folder}, and {topology.name} would "
                f"be in {folder}: one Ray cluster has one arbiter. Give the topology the same name and --folder to replace it."
            )
        if standing.leading:
            return Before(generation=generation, snapshot=arbiter.snapshot(ANSWER_WITHIN_WALL_S))
    return Before()


def _surroundings(topology: Topology, folder: Path, *, again: bool) -> tuple[Topology, tuple[str, ...], str | None]:
    """Where replicas run and where the routers are: (the topology as it will run, cluster URL and routers' admin URLs, the
    routers' token). On mock engines both are started here, on the head node."""
    if topology.cluster.kind != "virtual":
        written_down(topology, folder)
        return topology, ("", *topology.router.admin_urls), router_token(topology, folder)
    topology = prepare_folder(topology, folder, fresh_ports=not again)
    options: dict[str, Any] = {
        "name": SITE_NAME,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},
        "runtime_env": {"env_vars": read_clock(folder).clock.environment()},
    }
    site: Any = ray.remote(SiteActor).options(**options).remote(str(folder))
    try:
        cluster_url, admin_url, restarted = ray.get(site.ensure.remote(), timeout=SITE_WITHIN_WALL_S)
    except ray.exceptions.GetTimeoutError as error:
        raise JobFailed(f"the mock engines' cluster and the router were not ready after {SITE_WITHIN_WALL_S:.0f} s") from error
    if restarted:
        click.echo("the mock engines' cluster and the router were started again: their pools or settings have changed")
    return topology, (cluster_url, admin_url), router_token(topology, folder)


def _wait_until_it_answers(successor: ArbiterClient) -> None:
    if successor.standing(DECIDES_WITHIN_WALL_S) is None:
        raise JobFailed(f"the new arbiter did not start within {DECIDES_WITHIN_WALL_S:.0f} s")


def _wait_until_it_decides(successor: ArbiterClient, before: Before, folder: Path) -> ArbiterSnapshot:
    """Its first round. Raises JobFailed."""
    ends = time.monotonic() + DECIDES_WITHIN_WALL_S
    standing = None
    while time.monotonic() < ends:
        standing, found = successor.standing(ANSWER_WITHIN_WALL_S), successor.snapshot(ANSWER_WITHIN_WALL_S)
        if standing is not None and standing.leading and found is not None and found.last_round is not None:
            return found
        time.sleep(0.1)
    log = folder / "arbiter.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else "(no log)"
    who = "" if standing is None else f" ({standing.note})"
    raise JobFailed(f"the new arbiter decided nothing within {DECIDES_WITHIN_WALL_S:.0f} s{who}; its log says:\n{tail}")


def _report(topology: Topology, before: Before, generation: int, done: ArbiterSnapshot, folder: Path) -> None:
    last = done.last_round
    assert last is not None
    old = before.snapshot.last_round if before.snapshot is not None else None
    if old is None:
        click.echo(f"arbiter {generation} decides since round {last.inputs.round_no}")
    else:
        gap_s = last.inputs.at_s - old.inputs.at_s
        rounds = max(1, last.inputs.round_no - old.inputs.round_no)
        click.echo(
            f"arbiter {generation} took over from {before.generation}: round {last.inputs.round_no} came {gap_s:.1f} s after "
            f"round {old.inputs.round_no} ({rounds} of them; one is due every {topology.arbiter.round_interval_s:g} s)"
        )
    for grant in last.allocation.pools:
        has = "unknown" if grant.before is None else str(grant.before)
        click.echo(f"  {grant.pool}: has {has}, granted {grant.granted}{' (held)' if grant.held else ''}: {grant.reason}")
    for condition in last.conditions:
        click.echo(f"  to know: {condition}")
    if topology.cluster.kind == "virtual":
        click.echo(f"clients: http://{topology.router.host}:{topology.router.port}/v1")
    click.echo(f"api: http://{topology.api.host}:{_api_port(folder)}; journal, logs and operators' orders: {folder}")


def _api_port(folder: Path) -> str:
    try:
        return str(json.loads((folder / "api.json").read_text())["port"])
    except (OSError, ValueError, KeyError):
        return "(none: see the status)"
