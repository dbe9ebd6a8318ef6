"""What of the router is compiled where speed is wanted, for `pool_planner.compiled`. Pure: names only."""

from pool_planner.compiled import CompiledSet

ROUTER = CompiledSet(
    name="router",
    modules=(
        "router.http1",
        "router.message",
        "router.exchange",
        "router.upstream",
        "router.openai",
        "router.dispatch",
        "router.lane",
        "router.attempt",
        "router.relay",
        "router.handoff",
        "router.door",
        "router.admission",
        "router.crowds",
        "router.limits",
        "router.openings",
        "router.fairness",
        "router.policy",
        "router.endpoints",
        "router.outliers",
        "router.ejection",
        "router.accounting",
        "router.metrics",
    ),
)
