"""How the arbiter decides, and what it remembers between rounds. Pure; every record can be sent and journaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from global_planner.types import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterPolicy:
    """`hold_s`: a pool is lowered only to a number that would have carried 1.1 x its load during this long. `move_horizon_s`:
    GPUs that a group still uses are taken from it only when the gain over this time exceeds what the move costs.
    `move_cost_s`: how long both sides of a move are without the replica where no cold start was measured.
    """

    objective: Objective = "goodput"
    hold_s: float = 60.0
    move_horizon_s: float = 300.0
    move_cost_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """`replicas` would have carried 1.1 x the load that was reported at `at_s`."""

    at_s: float
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArbiterState:
    """`needs` by pool: the needs of the last `hold_s`, reduced to those that can still be the largest (falling in `replicas`,
    oldest first). `since_s` by pool: since when the pool has been watched without a gap. `turns`: pools that the baseline
    `first_come` served, in the order in which they came."""

    needs: Mapping[str, tuple[Need, ...]] = field(default_factory=dict)
    since_s: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[str, ...] = ()
