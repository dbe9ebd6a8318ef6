"""What a topology means to each part: the arbiter's records, the cluster's pools, engines, router configuration. Pure.

The topology is the one place where these are written down; nothing here adds a value of its own except where the reason is
given.
"""

from __future__ import annotations

from collections.abc import Mapping

from global_planner.arbiter.effective import PoolRules
from global_planner.config import GroupConfig, PoolConfig, Topology
from global_planner.mocker.cluster_records import VirtualNode, VirtualPool
from global_planner.planner_settings import dgds_of, planner_config_of
from global_planner.replay.engine_spec import EngineSpec
from global_planner.rule_checks import rules_of
from global_planner.topology_draft import draft_of
from global_planner.types import Budget, GroupSpec, Mode, PoolSpec
from pool_planner.performance.profile import Profile
from pool_planner.setup import PlannerSetup, PoolSetup
from router import config as router

# A plan that was not renewed for this many rounds is no longer in force at the router (interfaces: admission).
PLAN_VALID_ROUNDS = 3
# Of a TTFT that is kept with `admission: sla`: half for the turn at the router, and of what hand-off and decode leave a third
# for the prompts before it at the engine. That counts nearly twice, because a newcomer waits for the end of the step that runs,
# and is computed in one step with whoever waits beside it; the rest is for its own prefill, which may be long. Hardly anybody
# needs the whole of both: who has waited long finds an engine that has just got room. In the outcome scenarios a fifth for the
# turn turned away three times as many at normal load, and three quarters made the first ones late. Among those that wait for
# their turn the shortest prompt comes first: when not all can be in time, that keeps the most.
PATIENCE = 0.5
BEGIN_BY = 0.35
MOST_TOKENS = 10_000_000
MOST_REPLICAS = 64  # how far a demand curve goes where neither the pool nor the budget has a limit


def budget_of(topology: Topology) -> Budget:
    gpus = topology.budget.gpus
    return Budget(
        max_gpus={name: budget.max for name, budget in gpus.items() if budget.max is not None},
        min_total_gpus={name: budget.min_total for name, budget in gpus.items() if budget.min_total},
    )


def group_specs(topology: Topology) -> tuple[GroupSpec, ...]:
    return tuple(
        GroupSpec(
            name=group.name,
            model=group.model,
            priority_class=group.priority,
            weight=group.weight,
            ttft_ms=group.sla.ttft_ms,
            itl_ms=group.sla.itl_ms,
            pools=tuple(pool.name for pool in group.pools),
        )
        for group in topology.groups
    )


def rules_in_force(topology: Topology) -> Mapping[str, PoolRules]:
    """By pool: minimum, maximum and guarantee as the selectors set them; schedules and people come on top at run time."""
    draft = draft_of(topology)
    return {pool.config.name: rules_of(draft, group, pool) for group, pool in draft.pools()}


def pool_specs(topology: Topology) -> tuple[PoolSpec, ...]:
    rules = rules_in_force(topology)
    return tuple(
        PoolSpec(
            name=pool.name,
            group=group.name,
            role=pool.role,
            gpu_type=pool.gpu_type,
            gpus_per_replica=pool.gpus_per_replica,
            dgd=pool.dgd_name,
            component=pool.component_name,
            namespace=topology.namespace_of(group),
            # The arbiter applies the selectors itself, and names them; but the rollout must let a pool go as low as they say.
            min_replicas=min(pool.min_replicas, rules[pool.name].minimum),
            max_replicas=pool.max_replicas,
            guarantee_replicas=pool.guarantee_replicas,
            mode=_more_careful(pool.mode, topology.arbiter.mode),
            start_limit_s=pool.start_limit_s or topology.arbiter.start_limit_s,
        )
        for group, pool in topology.placed_pools()
    )


def _more_careful(one: Mode, other: Mode) -> Mode:
    order: tuple[Mode, ...] = ("observe", "approve", "act")
    return min(one, other, key=order.index)


def dynamo_namespace(topology: Topology, group: GroupConfig, dgd: str) -> str:
    """What the operator puts into the pods of a DGD as DYN_NAMESPACE; metrics carry it with "-" turned into "_"."""
    return f"{topology.namespace_of(group)}-{dgd}"


def virtual_pools(topology: Topology) -> tuple[VirtualPool, ...]:
    """The pools of the virtual cluster; their minima stand from the start."""
    rules = rules_in_force(topology)
    return tuple(
        VirtualPool(
            name=pool.name,
            gpu_type=pool.gpu_type,
            gpus_per_replica=pool.gpus_per_replica,
            replicas=rules[pool.name].minimum,
            nodes_per_replica=pool.nodes_per_replica,
        )
        for _, pool in topology.placed_pools()
    )


def virtual_nodes(topology: Topology) -> tuple[VirtualNode, ...]:
    """The nodes of the virtual cluster; none: it has room for everything."""
    return tuple(
        VirtualNode(name=f"{kind.gpu_type}-{number}", gpu_type=kind.gpu_type, gpus=kind.gpus)
        for kind in topology.cluster.nodes
        for number in range(kind.count)
    )


def engine_spec_of(group: GroupConfig, pool: PoolConfig, profile: Profile) -> EngineSpec:
    """The engine that each replica of a pool runs. Raises EngineSpecError when the profile lacks a curve."""
    engine = group.engine
    return EngineSpec(
        role=pool.role,
        profile=profile,
        model=group.model,
        max_model_len=engine.max_model_len,
        prefill_chunk_tokens=engine.prefill_chunk_tokens,
        max_num_seqs=engine.max_num_seqs,
        max_kv_tokens=engine.max_kv_tokens,
        tokens_per_chunk=engine.tokens_per_chunk,
        kv_transfer_ms=engine.kv_transfer_ms,
        kv_hold_s=engine.kv_hold_s,
        front_ms=engine.front_ms,
    )


def engine_specs(topology: Topology, profiles: Mapping[str, Profile]) -> Mapping[str, EngineSpec]:
    """By pool name; `profiles` likewise."""
    return {pool.name: engine_spec_of(group, pool, profiles[pool.name]) for group, pool in topology.placed_pools()}


def planner_setups_of(topology: Topology, profiles: Mapping[str, Profile]) -> Mapping[str, PlannerSetup]:
    """What each planner that is started here plans, by DGD; `profiles` by pool name. The budget is shared, so it bounds
    single pools here and their sum nowhere: that is the arbiter's."""
    draft, rules = draft_of(topology), rules_in_force(topology)
    return {
        dgd: PlannerSetup(
            config=planner_config_of(draft, group, pools),
            pools=tuple(
                _pool_setup(topology, group.config, pool.config, profiles[pool.config.name], rules[pool.config.name])
                for pool in pools
            ),
        )
        for group in draft.groups
        for dgd, pools in dgds_of(group).items()
        if any(pool.config.planned == "inside" for pool in pools)
    }


def _pool_setup(topology: Topology, group: GroupConfig, pool: PoolConfig, profile: Profile, rules: PoolRules) -> PoolSetup:
    budget = topology.budget.gpus[pool.gpu_type].max
    limits = [rules.maximum, None if budget is None else budget // pool.gpus_per_replica]
    offset_ms = _ttft_offset_ms(group, pool)
    return PoolSetup(
        name=pool.name,
        role=pool.role,
        ttft_ms=group.sla.ttft_ms,
        itl_ms=group.sla.itl_ms,
        gpus_per_replica=pool.gpus_per_replica,
        min_replicas=rules.minimum,
        max_replicas=min((limit for limit in limits if limit is not None), default=MOST_REPLICAS),
        profile=profile,
        cold_start_s=topology.cluster.cold_start_s,
        ttft_offset_ms=offset_ms,
        max_num_seqs=group.engine.max_num_seqs,
        prefill_chunk_tokens=group.engine.prefill_chunk_tokens,
        isl_max_tokens=pool.isl_max_tokens,
        shortest_first=topology.arbiter.admission == "sla",
    )


def _ttft_offset_ms(group: GroupConfig, pool: PoolConfig) -> float:
    """What a request is known to pay of its TTFT beside waiting for the pool's prefill work and that work itself.

    After its prefill it waits for the transfer of its KV blocks, then half a decode step on average for the running one to end,
    then one step for the token that the client sees first; decode runs at its SLA at most. Every engine on its way has a front.
    """
    if pool.role == "prefill":
        return 2 * group.engine.front_ms + group.engine.kv_transfer_ms + 1.5 * group.sla.itl_ms
    return group.engine.front_ms if pool.role == "agg" else 0.0


def _room_tokens(group: GroupConfig, pool: PoolConfig, profile: Profile) -> int | None:
    """The prompt tokens at an engine before a newcomer that make it wait for BEGIN_BY of what its TTFT leaves; None where that
    is not a matter of prompts. At least one token, so that an idle engine takes any prompt."""
    curve = profile.prefill
    if pool.role != "prefill" or curve is None:
        return None
    most_ms = BEGIN_BY * (group.sla.ttft_ms - _ttft_offset_ms(group, pool))
    low, high = 1, MOST_TOKENS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if curve.ttft_ms(middle) <= most_ms else (low, middle)
    return low


def router_config_of(
    topology: Topology,
    *,
    profiles: Mapping[str, Profile] | None = None,
    admin_token_file: str | None = None,
    planner_url: str | None = None,
    planner_token_file: str | None = None,
) -> router.RouterConfig:
    """The router's whole configuration; `model_dump_json()` of it is what `python -m router --config FILE` reads.

    The prefill pool of a request follows from the pools' `isl_max_tokens`, or from `router.selection`. `planner_url`: where
    the router asks for a pool that is at zero, with the token in `planner_token_file`.
    """
    total_s = topology.router.request_timeout_s
    timeouts = router.TimeoutConfig()
    known = profiles if profiles is not None and topology.arbiter.admission == "sla" else {}
    return router.RouterConfig(
        listen=router.ListenConfig(host=topology.router.host, port=topology.router.port),
        admin=router.AdminConfig(port=topology.router.admin_port, token_file=admin_token_file),
        models=tuple(
            router.ModelConfig(
                model=group.model,
                group=group.name,
                priority_class=group.priority,
                patience_s=PATIENCE * group.sla.ttft_ms / 1e3 if known else None,
                waiting_order="shortest" if known else "arrival",
                selection=topology.router.selection,
                default_ttft_ms=group.sla.ttft_ms,
                default_itl_ms=group.sla.itl_ms,
                pools=tuple(
                    router.PoolConfig(
                        name=pool.name,
                        role=pool.role,
                        dynamo_namespace=dynamo_namespace(topology, group, pool.dgd_name),
                        isl_max_tokens=pool.isl_max_tokens,
                        max_in_flight=pool.max_in_flight,
                        max_outstanding_tokens=_room_tokens(group, pool, known[pool.name]) if known else None,
                        profile=pool.profile,
                        # Without prices all GPUs cost the same.
                        cost_per_hour=pool.gpus_per_replica * (topology.budget.gpus[pool.gpu_type].price_per_hour or 1.0),
                    )
                    for pool in group.pools
                ),
            )
            for group in topology.groups
        ),
        timeouts=timeouts.model_copy(
            update={
                "total_s": total_s,
                "prefill_s": min(timeouts.prefill_s, total_s),
                "first_byte_s": min(timeouts.first_byte_s, total_s),
                "idle_s": min(timeouts.idle_s, total_s),
            }
        ),
        queue=router.QueueConfig(
            limit=topology.router.queue_limit,
            deadline_s=topology.router.queue_deadline_s,
            # A client that meets a pool at zero is told to come back when a replica can have started.
            starting_retry_after_s=max(1.0, topology.cluster.cold_start_s),
            plan_valid_s=PLAN_VALID_ROUNDS * topology.arbiter.round_interval_s,
        ),
        planner_url=planner_url,
        planner_token_file=planner_token_file,
    )
