"""A system's folder with everything that commands read, made by real rounds in a virtual world: no process is started."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner, Result

from global_planner.__main__ import main
from global_planner.config import Topology
from global_planner.control_folder import ControlFolder
from global_planner.journal import Journal
from global_planner.memory import PlannerMemory
from global_planner.round import Ports, RoundConfig, run_round
from global_planner.system_clock import start_clock
from global_planner.types import Round
from tests.arbiter.builders import proposal
from tests.operations.scene import ROUND_S
from tests.rollout.play import finish
from tests.rollout.world import World


@dataclass(slots=True)
class Operated:
    """A planner at work, whose people use the command line. `crash` is a restart from what is on disk. The clock of the folder
    stands at the world's time, so that commands and rounds agree on it."""

    folder: Path
    topology: Topology
    world: World = field(init=False)
    config: RoundConfig = field(init=False)
    journal: Journal = field(init=False)
    memory: PlannerMemory = field(init=False)
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "topology.json").write_text(self.topology.model_dump_json(indent=1))
        self.config = RoundConfig.of(self.topology, unix_at_zero_s=0.0)
        self.world = World(specs=self.config.pools, budget=self.config.budget)
        self._set_clock()
        self._open()

    def _set_clock(self) -> None:
        (self.folder / "clock.json").unlink(missing_ok=True)
        start_clock(self.folder, speed=1.0, wall_s=time.time() - self.world.now_s)

    def _open(self) -> None:
        self.journal = Journal.open(self.folder / "journal", at_s=self.world.now_s, policies=self.config.policies)
        self.memory = self.journal.memory

    def crash(self) -> None:
        self.journal.close()
        self._open()

    def run(self, loads: Mapping[str, float], rounds: int = 1) -> Round:
        """Rounds in which the pools report these loads, of which one replica carries one."""
        for _ in range(rounds):
            for pool, load in loads.items():
                self.world.reports_now[pool] = proposal(pool, load, 1.0, at_s=self.world.now_s)
            self.world.operation = 0
            ports = Ports(
                cluster=self.world,
                router=self.world,
                pools=self.world,
                journal=self.journal,
                clock=self.world,
                operators=ControlFolder(self.folder / "control"),
            )
            self.memory, done = finish(run_round(ports, self.memory, self.config, timer=lambda: 0.0))
            self.rounds.append(done)
            self.world.pass_time(ROUND_S)
            self._set_clock()
        return self.rounds[-1]

    def ordered(self, pool: str) -> int:
        return self.world.pools[pool].ordered

    def command(self, *arguments: str, status: int = 0) -> str:
        """What `global-planner ARGUMENTS` about this folder prints."""
        result = self.result(*arguments, "--folder", str(self.folder))
        assert result.exit_code == status, (result.output, result.exception)
        return result.output

    def result(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)
