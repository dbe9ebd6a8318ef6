"""[I/O] The system that a command is about, as its folder shows it: topology, clock, last round, what operators set."""

from __future__ import annotations

import getpass
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from global_planner.commands.options import HOME
from global_planner.compile import budget_of, pool_specs
from global_planner.config import Topology
from global_planner.control_folder import ControlFolder
from global_planner.control_store import ControlStore
from global_planner.journal_reader import read_segment, segments
from global_planner.operator_orders import OrderRefused
from global_planner.policies import overrides_in_force, overrides_of
from global_planner.ports import Controls
from global_planner.system_clock import REAL_TIME, NoSystem, SystemClock, read_clock
from global_planner.topology_file import TopologyError, parse_topology
from global_planner.types import Budget, PoolSpec, Round


@dataclass(frozen=True, slots=True)
class System:
    """A system that runs, or ran, in `folder`."""

    folder: Path
    topology: Topology
    clock: SystemClock

    @property
    def now_s(self) -> float:
        return (time.time() - self.clock.origin) * self.clock.speed

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        return pool_specs(self.topology)

    @property
    def budget(self) -> Budget:
        return budget_of(self.topology)

    @property
    def controls(self) -> ControlStore:
        """Where orders are kept: in the folder, or in the cluster where there is one. Raises ClusterUnavailable."""
        if self.topology.cluster.kind == "virtual":
            return ControlFolder(self.folder / "control")
        from global_planner.kubernetes_world import api_of, orders_of  # the client takes a while to import

        return orders_of(self.topology, api_of(self.topology))

    def orders(self) -> Controls:
        """What operators set, with the overrides that stand in the topology. Raises ClusterUnavailable."""
        found = self.controls.read()
        configured = overrides_of(self.topology, unix_at_zero_s=self.clock.unix_at_zero_s)
        return replace(found, overrides=overrides_in_force(configured, found.overrides))

    def calendar(self, at_s: float) -> str:
        """A model time in words; the day only where it is another one."""
        moment = self.clock.calendar(at_s)
        same = moment.date() == self.clock.calendar(self.now_s).date()
        return f"{moment:%H:%M:%S}" if same else f"{moment:%Y-%m-%d %H:%M}"

    def expiry(self, for_s: float | None, until: datetime | None, default_s: float | None = None) -> float | None:
        """The model time at which an order ends. Raises OrderRefused when that is not in the future, or both are said."""
        if for_s is not None and until is not None:
            raise OrderRefused("say either --for or --until, not both")
        now_s = self.now_s
        if until is not None:
            ends_s = self.clock.model_s(until)
            if ends_s <= now_s:
                raise OrderRefused(f"--until {until.isoformat()} is over: it is {self.clock.calendar(now_s):%Y-%m-%d %H:%M:%S}")
            return ends_s
        lasts_s = default_s if for_s is None else for_s
        return None if lasts_s is None else now_s + lasts_s

    def last_round(self) -> Round | None:
        """The newest recorded round. Raises JournalCorrupt."""
        for path in reversed(segments(self.folder / "journal")):
            try:
                rounds = [record for record in read_segment(path) if isinstance(record, Round)]
            except FileNotFoundError:  # dropped since it was listed
                continue
            if rounds:
                return rounds[-1]
        return None


def open_system(folder: Path | None) -> System:
    """The system in `folder`, or the only one under .global-planner; of a deployment in a cluster, whose folder is there, its
    topology file. Raises NoSystem with what there is instead."""
    folder = folder or _only_one()
    if folder.is_file():
        return _in_cluster(folder)
    clock = read_clock(folder)
    path = folder / "topology.json"
    try:
        topology = parse_topology(path.read_text(), source=str(path), folder=folder)
    except (OSError, TopologyError) as error:
        raise NoSystem(f"{path} cannot be read: {error}") from error
    return System(folder, topology, clock)


def _in_cluster(path: Path) -> System:
    try:
        topology = parse_topology(path.read_text(), source=str(path), folder=path.parent, with_profiles=False)
    except (OSError, TopologyError) as error:
        raise NoSystem(f"{path} cannot be read: {error}") from error
    if topology.cluster.kind == "virtual":
        raise NoSystem(f"{path}: cluster.kind is virtual: name the folder that it runs in")
    return System(path.parent, topology, REAL_TIME)


def _only_one() -> Path:
    systems = sorted(path.parent for path in HOME.glob("*/clock.json"))
    if len(systems) == 1:
        return systems[0]
    if not systems:
        raise NoSystem(f"no system was started under {HOME} here: name its folder with --folder")
    raise NoSystem(f"which system? Name it with --folder: {', '.join(str(path) for path in systems)}")


def journal_of(journal: Path | None) -> Path:
    """The folder of a journal: what was named, the journal in a system's folder that was named, or that of the only system."""
    if journal is None:
        return _only_one() / "journal"
    return journal / "journal" if not segments(journal) and segments(journal / "journal") else journal


def somebody(by: str | None) -> str:
    """Who gives an order: as said, else the user of this process, else nobody by name."""
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return ""
