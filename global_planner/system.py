"""[I/O] A whole system on one machine: virtual cluster, router, Ray with the arbiter and the planners; started and ended here.

    System.start(topology) ─► cluster process ─► router process ─► Ray: GlobalPlanner ─► PoolPlanners

`demo` and `run` both use it. Everything listens on loopback, on free ports; files are under one folder; and everything ends
with `stop`, or with this process however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from global_planner.config import Topology
from global_planner.mocker.cluster_api import EventsAnswer, PoolsAnswer
from global_planner.mocker.cluster_records import ClusterEvent
from global_planner.processes import ProcessFailed
from global_planner.ray_environment import prepare
from global_planner.site import Site, begin_site, prepare_folder, router_token, written_down
from global_planner.stopping import go_on
from global_planner.system_clock import start_clock
from global_planner.turns import give_turn, turn
from global_planner.types import ArbiterSnapshot
from pool_planner.clock import SpeedClock

if TYPE_CHECKING:  # imported for real only after the environment that Ray reads on import is prepared
    from global_planner.actor import ArbiterClient
    from global_planner.ray_local import LocalRay

READY_TIMEOUT_WALL_S = 60.0
STOP_GRACE_WALL_S = 5.0
# Numerical libraries start a thread per core for matrices that we do not have.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(slots=True)
class System:
    """A running system. `folder` holds logs, the journal and what processes tell each other; see `start_system`. `_site`: the
    virtual cluster and the router, which a deployment in Kubernetes does not start."""

    topology: Topology
    clock: SpeedClock
    folder: Path
    _site: Site | None
    arbiter: ArbiterClient
    _ray: LocalRay
    _ray_folder: Path

    @property
    def site(self) -> Site:
        if self._site is None:
            raise ProcessFailed(f"{self.topology.name} runs in Kubernetes: no cluster and no router were started here")
        return self._site

    @property
    def public_url(self) -> str:
        return f"http://{self.topology.router.host}:{self.site.router.port()}"

    @property
    def admin_url(self) -> str:
        return self.site.admin_url

    @property
    def cluster_url(self) -> str:
        return self.site.cluster_url

    @property
    def journal_folder(self) -> Path:
        return self.folder / "journal"

    def snapshot(self, timeout_s: float = 1.0) -> ArbiterSnapshot | None:
        """What the arbiter shows of itself; None while it is starting or restarting."""
        return self.arbiter.snapshot(timeout_s)

    def failed(self) -> str | None:
        """Why the system cannot go on, or None: the cluster and the router are not restarted by anybody."""
        for child in () if self._site is None else (self._site.cluster, self._site.router):
            if not child.running():
                return f"the {child.name} ended with status {child.popen.returncode}; its log says:\n{child.log_tail()}"
        return None

    def cluster_events(self, after: int) -> tuple[ClusterEvent, ...]:
        """What happened in the virtual cluster after event number `after`; empty when it does not answer now."""
        if self._site is None:
            return ()
        try:
            with urllib.request.urlopen(f"{self.cluster_url}/v1/events?after={after}", timeout=2.0) as answer:
                return EventsAnswer.model_validate_json(answer.read()).events
        except OSError:
            return ()

    def peak_gpus(self) -> Mapping[str, int] | None:
        """The most GPUs of each type that the cluster itself ever held at once, ending ones included; None: no answer. It is
        evidence beside the arbiter's own account."""
        if self._site is None:
            return None
        try:
            with urllib.request.urlopen(f"{self.cluster_url}/v1/pools", timeout=2.0) as answer:
                return PoolsAnswer.model_validate_json(answer.read()).peak_gpus
        except OSError:
            return None

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_WALL_S) -> None:
        """Wait until every model can be asked at the public endpoint. Raises ProcessFailed."""
        deadline = time.monotonic() + timeout_s
        said = "no answer"
        while time.monotonic() < deadline:
            go_on()
            wrong = self.failed()
            if wrong is not None:
                raise ProcessFailed(wrong)
            try:
                with urllib.request.urlopen(f"{self.public_url}/ready", timeout=2.0) as answer:
                    if answer.status == 200:
                        return
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:300]
            except OSError as error:
                said = str(error)
            time.sleep(0.05)
        raise ProcessFailed(f"the endpoint was not ready after {timeout_s:.0f} s: {said}; logs are in {self.folder}")

    def stop(self) -> None:
        """End everything, in the order that loses nothing: planners, then the router, then the engines."""
        self._ray.stop()
        if self._site is not None:
            self._site.stop()
        shutil.rmtree(self._ray_folder, ignore_errors=True)


def start_system(topology: Topology, *, folder: Path, speed: float) -> System:
    """Start everything; returns when the arbiter was launched (the endpoint may not be ready yet: `wait_ready`).

    Raises ProcessFailed; nothing that was started is left behind then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    system_clock = start_clock(
        folder,
        speed=speed,
        wall_s=time.time(),
        calendar_start=topology.arbiter.calendar_start,
        real=topology.cluster.kind != "virtual",
    )
    clock = system_clock.clock
    os.environ.update(_ONE_THREAD)
    os.environ.update(clock.environment())
    here = topology.cluster.kind == "virtual"
    topology = prepare_folder(topology, folder) if here else written_down(topology, folder)
    with contextlib.ExitStack() as undo:
        ray_folder = prepare()
        undo.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        # They start beside Ray, whose import alone takes seconds.
        site = begin_site(topology, folder) if here else None
        if site is not None:
            undo.callback(site.stop)
        from global_planner.actor import ArbiterClient, arbiter_spec
        from global_planner.ray_local import LocalRay

        ray = LocalRay(ray_folder)
        undo.callback(ray.stop)
        ray.start()
        if site is not None:
            site.wait()
        generation = turn(folder) + 1
        give_turn(folder, generation)
        arbiter = ArbiterClient.launch(
            arbiter_spec(
                topology,
                folder=folder,
                system_clock=system_clock,
                generation=generation,
                cluster_url="" if site is None else site.cluster_url,
                router_urls=topology.router.admin_urls if site is None else (site.admin_url,),
                router_token=router_token(topology, folder),
            )
        )
        undo.pop_all()
    return System(
        topology=topology,
        clock=clock,
        folder=folder,
        _site=site,
        arbiter=arbiter,
        _ray=ray,
        _ray_folder=ray_folder,
    )
