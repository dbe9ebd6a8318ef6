"""What of the router is compiled where speed is wanted, for `pool_planner.compiled`. Pure: names only."""

from pool_planner.compiled import CompiledSet

ROUTER = CompiledSet(
    name="router",
    modules=("router.policy", "router.admission", "router.openai", "router.fairness", "router.outliers"),
)
