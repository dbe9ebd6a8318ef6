"""What is compiled where speed is wanted: the sets of this program, for `pool_planner.compiled`. Pure: names only."""

from pool_planner.compiled import CompiledSet
from router.compiled_set import ROUTER

ARBITER = CompiledSet(
    name="arbiter",
    modules=(
        "global_planner.arbiter.settle",
        "global_planner.arbiter.demand",
        "global_planner.arbiter.effective",
        "global_planner.arbiter.expected",
        "global_planner.arbiter.view",
        "global_planner.arbiter.flat",
        "global_planner.arbiter.limits",
        "global_planner.arbiter.plan",
        "global_planner.arbiter.frontier",
        "global_planner.arbiter.menu",
        "global_planner.arbiter.judge",
        "global_planner.arbiter.goodput",
        "global_planner.arbiter.knapsack",
        "global_planner.arbiter.lagrange",
        "global_planner.arbiter.leftovers",
        "global_planner.arbiter.grants",
        "global_planner.arbiter.admission",
        "global_planner.arbiter.remember",
        "global_planner.arbiter.placement",
        "global_planner.arbiter.maxmin",
        "global_planner.arbiter.baselines",
        "global_planner.arbiter.solve",
        "global_planner.charge",
        "pool_planner.performance.door",
    ),
)
REPLAY = CompiledSet(
    name="replay",
    modules=(
        "global_planner.replay.engine",
        "global_planner.replay.engine_cost",
        "global_planner.replay.engine_decode",
        "global_planner.replay.engine_schedule",
        "global_planner.replay.engine_spec",
        "global_planner.replay.least_loaded",
        "global_planner.replay.stations",
        "global_planner.replay.lanes",
        "global_planner.replay.ways",
        "global_planner.replay.dispatch",
        "global_planner.replay.scores",
        "global_planner.replay.simulator",
        "pool_planner.performance.interpolation",
        "router.admission",
        "router.crowds",
        "router.ejection",
        "router.limits",
        "router.openings",
        "router.outliers",
        "router.policy",
    ),
)
SETS = (ROUTER, ARBITER, REPLAY)

__all__ = ["ARBITER", "REPLAY", "ROUTER", "SETS"]
