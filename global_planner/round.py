"""One round: observe, decide, write down, apply, tell the router, record. Pure: the world is reached through ports only.

    1. read the ledger, then observe the cluster and the router, and take the reports of the pools that are still in force;
    2. merge them with what is remembered, arbitrate, and plan the steps that may be taken now;
    3. write the orders down, and reserve what is to grow, before any of them leaves;
    4. apply them one by one: endpoints, releases, growth; a failure is an outcome, not an end;
    5. tell the router the whole state of the endpoints and what each group may admit;
    6. record what happened.

Whatever part of the world does not answer, the round goes on with what it safely can, and its conditions say so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from global_planner.charge import account
from global_planner.compile import budget_of, group_specs, pool_specs
from global_planner.conditions import conditions
from global_planner.config import Topology
from global_planner.custody import by_hand, custody_conditions, in_custody
from global_planner.memory import Orders, PlannerMemory, Policies, decide
from global_planner.policies import overrides_in_force, overrides_of, policies_of
from global_planner.ports import (
    Clock,
    Cluster,
    Controls,
    GroupAdmission,
    Journal,
    Ledger,
    Nodes,
    Operators,
    Pools,
    Reservations,
    Router,
    RouterState,
    Together,
)
from global_planner.reports import believable
from global_planner.rollout import acting, after_apply, effective_pools, with_memory
from global_planner.rollout_state import Order, RolloutState, endpoints, reservations
from global_planner.types import (
    Allocation,
    Budget,
    Drain,
    Freeze,
    GroupSpec,
    Grow,
    Holding,
    NodeRoom,
    Override,
    PoolSpec,
    PriorityRate,
    Round,
    RoundInputs,
    Step,
    StepOutcome,
    Undrain,
)
from pool_planner.types import Conflict, WorldError

HURRIED_SHARE = 0.2
"""Share of the round interval that lies between two rounds at least, however much somebody hurries."""
UNSEEN = (
    "no router of ours is in front, so nobody sees requests in flight: a replica that is released finishes what it serves "
    "within its own termination grace period, or does not"
)

__all__ = ["PlannerMemory", "Ports", "RoundConfig", "admission", "run_round"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The world as a round sees it. Without `operators` nobody can freeze, approve or override at run time. Without a `ledger`
    nobody else may write: the journal's lock sees to that on one machine. Without `nodes` places are not known."""

    cluster: Cluster
    router: Router
    pools: Pools
    journal: Journal
    clock: Clock
    operators: Operators | None = None
    ledger: Ledger | None = None
    nodes: Nodes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundConfig:
    """What a round is configured with. The policies must be those that the journal's segment names.

    `admission_burst_s`: seconds' worth of the admitted rate that may come at once (None: the router's default).
    `admit_by_sla`: the router turns away who cannot be in time, and needs no rate for it. `overrides`: those that stand in
    the topology; one that is set at run time goes over its like. `people_scale`: people can set replicas at the cluster;
    where they cannot, another number than the one ordered is a cluster that was started anew."""

    budget: Budget
    groups: tuple[GroupSpec, ...]
    pools: tuple[PoolSpec, ...]
    policies: Policies = field(default_factory=Policies)
    admission_burst_s: float | None = None
    admit_by_sla: bool = False
    overrides: tuple[Override, ...] = ()
    people_scale: bool = False

    @classmethod
    def of(cls, topology: Topology, *, unix_at_zero_s: float) -> RoundConfig:
        """What a topology says about rounds. `unix_at_zero_s`: Unix time of schedules at model time 0."""
        return cls(
            budget=budget_of(topology),
            groups=group_specs(topology),
            pools=pool_specs(topology),
            policies=policies_of(topology, unix_at_zero_s=unix_at_zero_s),
            admission_burst_s=topology.arbiter.admission_burst_s,
            # One process of several sees only its own part of what an engine has to begin.
            admit_by_sla=topology.arbiter.admission == "sla" and len(topology.router.admin_urls) <= 1,
            overrides=overrides_of(topology, unix_at_zero_s=unix_at_zero_s),
            people_scale=topology.cluster.kind == "kubernetes",
        )


async def run_round(
    ports: Ports, memory: PlannerMemory, config: RoundConfig, *, timer: Callable[[], float]
) -> tuple[PlannerMemory, Round]:
    """One round from `memory`; the memory after it, and its record. Raises nothing of the world. A round whose orders could not
    be written down leaves the memory as it was.

    `timer` gives seconds of some monotonic clock: it measures how long deciding took and decides nothing.
    """
    troubles: list[str] = []
    at_s = ports.clock.now()
    # Before the cluster: what was taken out of the ledger by then is seen in it, what is put in later fails the swap.
    ledger = await _reserved(ports.ledger, troubles)
    observed, missing = await _observe(ports.cluster, troubles)
    router = await _router_state(ports.router, troubles)
    controls = await _controls(ports.operators, at_s)
    reserved = () if ledger is None else ledger.entries
    holdings = with_memory(memory.rollout, config.pools, observed or (), router, at_s, missing, reserved)
    overrides = overrides_in_force(config.overrides, controls.overrides)
    troubles += custody_conditions(config.pools, holdings, controls.custody)
    inputs = RoundInputs(
        round_no=memory.round_no + 1,
        at_s=at_s,
        budget=config.budget,
        groups=config.groups,
        pools=in_custody(effective_pools(memory.rollout, config.pools, holdings, at_s), holdings, controls.custody),
        holdings=holdings,
        reports=believable(ports.pools.reports(), config.pools, at_s),
        overrides=by_hand(memory.rollout, holdings, overrides, at_s) if config.people_scale else overrides,
        approvals=controls.approvals,
        freeze=controls.freeze,
        schedules=controls.schedules,
        nodes=await _nodes(ports.nodes, troubles),
    )

    started = timer()
    decided, allocation, steps = decide(memory, inputs, config.policies)
    decide_ms = (timer() - started) * 1000.0

    acted = acting(steps, inputs, allocation)
    written = _written_down(ports.journal, decided, inputs, acted, troubles)
    grows = written and await _reserve(ports.ledger, ledger, decided.rollout, inputs, acted, troubles)
    possible = acted if grows else tuple(step for step in acted if not isinstance(step, Grow))
    outcomes = await _apply(ports, possible if written else _without_orders(acted), at_s)
    settled = replace(decided, rollout=after_apply(decided.rollout, acted, outcomes))
    if observed is not None:
        admitted = admission(inputs.groups, inputs.pools, allocation, config.admission_burst_s, by_sla=config.admit_by_sla)
        outcomes += await _tell_router(ports.router, settled.rollout, inputs, admitted, acted, troubles)

    done = Round(
        inputs=inputs,
        allocation=allocation,
        steps=steps,
        outcomes=outcomes,
        charged_gpus={name: entry.charged_gpus for name, entry in account(inputs.budget, inputs.pools, holdings).items()},
        conditions=conditions(settled.rollout, inputs, allocation, steps, outcomes, troubles),
        decide_ms=decide_ms,
    )
    return _recorded(ports.journal, done, decided=decided, settled=settled) if written else (memory, done)


async def _observe(cluster: Cluster, troubles: list[str]) -> tuple[tuple[Holding, ...] | None, str]:
    """The holdings (None: the cluster does not answer), and why a pool that is not among them is unknown."""
    try:
        return await cluster.observe(), "the cluster does not show this pool"
    except WorldError as error:
        troubles.append(f"the cluster cannot be observed, so nothing is ordered: {error}")
        return None, f"the cluster cannot be observed: {error}"


async def _nodes(nodes: Nodes | None, troubles: list[str]) -> tuple[NodeRoom, ...] | None:
    if nodes is None:
        return None
    try:
        return await nodes.nodes()
    except WorldError as error:
        troubles.append(f"the nodes cannot be read, so nobody checks whether replicas find a place: {error}")
        return None


async def _router_state(router: Router, troubles: list[str]) -> RouterState | None:
    try:
        state = await router.state()
        if state.processes == 0:
            troubles.append(UNSEEN)
        return state
    except WorldError as error:
        troubles.append(f"the router does not answer, so no replica that serves can be released: {error}")
        return None


async def _reserved(ledger: Ledger | None, troubles: list[str]) -> Reservations | None:
    if ledger is None:
        return None
    try:
        return await ledger.read()
    except WorldError as error:
        troubles.append(f"the ledger cannot be read, so nothing grows: {error}")
        return None


async def _reserve(
    ledger: Ledger | None,
    seen: Reservations | None,
    state: RolloutState,
    inputs: RoundInputs,
    acted: Sequence[Step],
    troubles: list[str],
) -> bool:
    """Whether growth may be ordered: every order upwards is in the ledger, and nobody else reserved since we looked."""
    if ledger is None:
        return True
    if seen is None:
        return False
    entries = reservations(state, inputs.holdings, seen.entries)
    if entries == seen.entries and not any(isinstance(step, Grow) for step in acted):
        return True
    try:
        await ledger.swap(seen.version, entries)
    except Conflict:
        troubles.append("another leader has reserved GPUs since this round began, so nothing grows in it")
        return False
    except WorldError as error:
        troubles.append(f"the ledger cannot be written, so nothing grows: {error}")
        return False
    return True


async def _controls(operators: Operators | None, at_s: float) -> Controls:
    """What operators set; when that cannot be read, everything is frozen: they may have said stop."""
    if operators is None:
        return Controls()
    try:
        return await operators.controls()
    except WorldError as error:
        return Controls(freeze=Freeze(at_s=at_s, reason=f"what operators set cannot be read: {error}"))


def _written_down(
    journal: Journal, decided: PlannerMemory, inputs: RoundInputs, acted: tuple[Step, ...], troubles: list[str]
) -> bool:
    """Whether the orders are in the journal: one that is not must not leave, because a crash would forget it."""
    try:
        journal.append(Orders(round_no=inputs.round_no, at_s=inputs.at_s, memory=decided, steps=acted))
    except WorldError as error:
        troubles.append(f"the journal cannot be written, so nothing is ordered: {error}")
        return False
    return True


def _recorded(journal: Journal, done: Round, *, decided: PlannerMemory, settled: PlannerMemory) -> tuple[PlannerMemory, Round]:
    """Record the round. The memory goes on with what the journal says, so that a restart would not know better or worse: when
    the record cannot be written, what became of the orders stays open."""
    try:
        journal.append(done)
    except WorldError as error:
        return decided, replace(done, conditions=(*done.conditions, f"this round is not recorded: {error}"))
    return settled, done


def _without_orders(acted: tuple[Step, ...]) -> tuple[Step, ...]:
    return tuple(step for step in acted if isinstance(step, Drain | Undrain))


async def _apply(ports: Ports, acted: Sequence[Step], at_s: float) -> tuple[StepOutcome, ...]:
    """The outcomes of drains and orders, in the order of the steps; a freeze stops before the next ones. An Undrain happens by
    telling the router the endpoints."""
    outcomes: list[StepOutcome] = []
    for batch in _batches(ports.cluster, acted):
        if (await _controls(ports.operators, at_s)).freeze is not None:
            break
        if isinstance(batch, Drain):
            outcomes.append(await _outcome(batch, ports.router.drain(batch.pool, batch.replicas, batch.deadline_s)))
        elif isinstance(ports.cluster, Together):
            results = await ports.cluster.apply_together(batch)
            outcomes += (_became(step, error) for step, error in zip(batch, results, strict=True))
        else:
            outcomes += [await _outcome(step, ports.cluster.apply(step)) for step in batch]
    return tuple(outcomes)


def _batches(cluster: Cluster, acted: Sequence[Step]) -> Iterator[Drain | Sequence[Order]]:
    """What is done at a time: one drain after the other, then the orders, one by one or as the cluster takes them together."""
    yield from (step for step in acted if isinstance(step, Drain))
    orders = [step for step in acted if not isinstance(step, Drain | Undrain)]
    yield from cluster.batches(orders) if isinstance(cluster, Together) else ([step] for step in orders)


async def _outcome(step: Step, doing: Awaitable[None]) -> StepOutcome:
    try:
        await doing
    except WorldError as error:
        return _became(step, error)
    return _became(step, None)


def _became(step: Step, error: WorldError | None) -> StepOutcome:
    if error is None:
        return StepOutcome(step=step, applied=True)
    conflict = isinstance(error, Conflict)
    return StepOutcome(step=step, applied=False, error=str(error) or type(error).__name__, conflict=conflict)


async def _tell_router(
    router: Router,
    state: RolloutState,
    inputs: RoundInputs,
    admitted: Sequence[GroupAdmission],
    acted: Sequence[Step],
    troubles: list[str],
) -> tuple[StepOutcome, ...]:
    """Push endpoints and admission; the outcomes of the Undrain steps, which the endpoints carry."""
    undrains = [step for step in acted if isinstance(step, Undrain)]
    again = [replica for step in undrains for replica in step.replicas]
    told = None
    try:
        await router.put_endpoints(endpoints(state, inputs.pools, again))
    except WorldError as error:
        told = str(error) or type(error).__name__
        troubles.append(f"the router was not told the endpoints: {told}")
    try:
        await router.put_admission(admitted)
    except WorldError as error:
        troubles.append(f"the router was not told what to admit: {error}")
    return tuple(StepOutcome(step=step, applied=told is None, error=told) for step in undrains)


def admission(
    groups: Sequence[GroupSpec],
    pools: Sequence[PoolSpec],
    allocation: Allocation,
    burst_s: float | None = None,
    *,
    by_sla: bool = False,
) -> tuple[GroupAdmission, ...]:
    """What the router may admit for each group now, and of each request priority that is to find less than that; `burst_s`
    seconds' worth of it may come at once. Groups with a pool that is not in mode `act` are not limited: to shed their requests
    would be to act.

    `by_sla`: the router's door knows how much prefill and decode engines begin in time. Then a rate, which is planned so that
    nearly nobody is late, would only turn away who could have been in time; how many may be under way is still told. Not of
    single prefill pools: what the door knows of them, it knows by the tokens of their prompts. Aggregated replicas need the
    rate, because prompts make answers late; but as many as may be under way may come at once, or chance alone would have them
    turned away (a fifth of all, where three replicas carry a request in ten seconds and as many come)."""
    grants = {grant.group: grant for grant in allocation.groups}
    mixed = {spec.group for spec in pools if spec.role == "agg"}
    prefills = {spec.name for spec in pools if spec.role == "prefill"}
    watched = {spec.group for spec in pools if spec.mode != "act"}
    admitted = []
    for group in groups:
        grant = None if group.name in watched else grants.get(group.name)
        rate = None if grant is None else grant.admitted_rps
        burst = None if rate is None or burst_s is None else rate * burst_s
        inside = None if grant is None else grant.in_flight
        if by_sla and inside is not None and group.name not in mixed:
            rate = burst = None
        elif by_sla and inside is not None and burst is not None:
            burst = max(burst, inside)
        by_pool = {} if grant is None else grant.in_flight_by_pool
        if by_sla:
            by_pool = {pool: most for pool, most in by_pool.items() if pool not in prefills}
        less = {} if grant is None or rate is None else _less_than(rate, grant.by_priority)
        admitted.append(
            GroupAdmission(
                model=group.model, admitted_rps=rate, burst=burst, in_flight=inside, in_flight_by_pool=by_pool, by_priority=less
            )
        )
    return tuple(admitted)


def _less_than(rate: float, by_priority: Sequence[PriorityRate]) -> dict[str, float]:
    return {str(item.priority): item.admitted_rps for item in by_priority if item.admitted_rps < rate}
