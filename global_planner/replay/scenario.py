"""What a replay plays, and what comes of it: the records of `simulator`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from global_planner.config import Topology
from global_planner.replay.arrivals import Workload
from global_planner.replay.engine_spec import EngineSpec
from global_planner.replay.scores import OverTime, Score
from global_planner.replay.timeline import Timeline
from global_planner.replay.world import Fault
from pool_planner.performance.profile import Profile
from router.config_pools import Pick


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Seconds from launch to ready: `mean_s`, with a coefficient of variation `cv` (log-normal; 0: always the same)."""

    mean_s: float
    cv: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is played. `profiles` by pool. `window_s`: what is accounted for (None: to the last arrival). `start`: replicas
    that are ready at 0, by pool (absent: its minimum). `cold_start` None: the topology's. `engines`: instead of those that
    topology and profiles give, by pool. `pick`: the router's picker in every pool (None: as the topology has it).
    `prefix_cache`: prompts find beginnings that their engine has computed before. `bin_s`: of what is told over time (None:
    some 80 bins, 15 s at least). `told_lengths`: clients name the length of their answers (`max_tokens`), so that the router
    knows it; else it goes by what earlier answers had."""

    topology: Topology
    profiles: Mapping[str, Profile]
    workload: Workload
    seed: int = 0
    window_s: float | None = None
    start: Mapping[str, int] = field(default_factory=dict)
    cold_start: ColdStart | None = None
    faults: tuple[Fault, ...] = ()
    engines: Mapping[str, EngineSpec] = field(default_factory=dict)
    pick: Pick | None = None
    prefix_cache: bool = True
    bin_s: float | None = None
    unix_at_zero_s: float = 0.0
    told_lengths: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a replay. `scores` by model and priority; `over_time` by model; `gpu_hours` by GPU type over the window.

    `moves`: applied orders that changed a number; `most_held`: the most GPUs that the cluster ever held at once, by type.
    `budget_violations`: rounds that found a type charged above its budget, and types that the cluster ever held more of.
    `ejections`: how often the router left an endpoint of a pool alone because it was slower than its siblings.
    `topology` is what was deployed (a contender may change it), `events` counts what the simulator handled."""

    policy: str
    topology: Topology
    window_s: float
    scores: Mapping[str, Mapping[int, Score]]
    over_time: Mapping[str, OverTime]
    timeline: Timeline
    gpu_hours: Mapping[str, float]
    most_held: Mapping[str, int]
    rounds: int
    moves: int
    grown: int
    shrunk: int
    budget_violations: int
    ejections: Mapping[str, int]
    events: int

    def total(self) -> Score:
        """Over all models and priorities."""
        whole = Score()
        for by_priority in self.scores.values():
            for score in by_priority.values():
                whole = whole.plus(score)
        return whole

    def of_model(self, model: str) -> Score:
        whole = Score()
        for score in self.scores[model].values():
            whole = whole.plus(score)
        return whole
