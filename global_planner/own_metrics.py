"""What the arbiter exposes of itself, and what the planners that report to it know of their pools, as Prometheus text: one
scrape has the whole deployment. Pure; `api` answers it over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from global_planner.explain import known_groups
from global_planner.types import Holding, Round
from pool_planner.metrics.own import gauges_of
from pool_planner.metrics.text import MetricsText
from pool_planner.types import PlannerStatus

_OWN = "global_planner_"
REASON_CHARACTERS = 200
"""Of a reason in a label."""
STATES = ("starting", "ready", "draining", "terminating")


def render(done: Round | None, *, statuses: Sequence[PlannerStatus] = (), now_s: float, leading: bool, code: str) -> str:
    """The exposition after the last round (None: there was none yet). What is unknown has no sample, but `pool_known` says
    so. `statuses`: the newest of each pool's planner; `code`: what kind of code the solver is."""
    text = MetricsText()
    text.gauge(_OWN + "build_info", "Whether the solver is compiled code or plain Python.", {"code": code}, 1.0)
    text.gauge(_OWN + "leading", "1 where this process decides.", {}, float(leading))
    if done is None:
        return text.done()
    text.counter(_OWN + "rounds_total", "Rounds of the whole journal.", {}, float(done.inputs.round_no))
    text.gauge(_OWN + "round_age_s", "Age of the last round, s.", {}, now_s - done.inputs.at_s)
    text.gauge(_OWN + "decide_ms", "How long deciding the last round took, ms.", {}, done.decide_ms)
    text.gauge(_OWN + "frozen", "1 while a person stopped all writes.", {}, float(done.inputs.freeze is not None))
    text.gauge(_OWN + "conditions", "Things that people should know.", {}, float(len(done.conditions)))
    failed = sum(1 for outcome in done.outcomes if not outcome.applied)
    text.gauge(_OWN + "steps_failed", "Steps of the last round that were not applied.", {}, float(failed))
    text.gauge(_OWN + "gap", "Proven relative distance of the allocation to the bound.", {}, done.allocation.gap)
    for gpu_type, charged in sorted(done.charged_gpus.items()):
        labels = {"gpu_type": gpu_type}
        text.gauge(_OWN + "charged_gpus", "GPUs that count against the budget.", labels, float(charged))
        most = done.inputs.budget.max_gpus.get(gpu_type)
        text.gauge(
            _OWN + "budget_gpus", "GPUs of the budget (absent: unlimited).", labels, None if most is None else float(most)
        )
    _pools(text, done)
    labels_of = {spec.name: {"pool": spec.name, "group": spec.group, "role": spec.role} for spec in done.inputs.pools}
    for status in statuses:
        labels = labels_of.get(status.pool, {})
        if labels:  # else of a pool that left the topology
            gauges_of(text, labels, numbers=status.numbers, seen=status.observation, now=now_s)
            text.gauge(_OWN + "pool_status_age_s", "Since its planner told of itself, s.", labels, now_s - status.at_s)
    told = known_groups(done.inputs.pools, done.allocation)
    for grant in done.allocation.groups:
        labels = {"group": grant.group}
        load, attainment = (grant.load_rps, grant.attainment) if grant.group in told else (None, None)
        text.gauge(_OWN + "group_load_rps", "Load that is planned for, requests/s (absent: unknown).", labels, load)
        text.gauge(_OWN + "group_attainment", "Share of it within its SLA (absent: unknown).", labels, attainment)
        text.gauge(
            _OWN + "group_admitted_rps", "Rate that the router may admit (absent: unlimited).", labels, grant.admitted_rps
        )
    return text.done()


def _pools(text: MetricsText, done: Round) -> None:
    holdings: Mapping[str, Holding] = {holding.pool: holding for holding in done.inputs.holdings}
    grants = {grant.pool: grant for grant in done.allocation.pools}
    for spec in done.inputs.pools:
        labels = {"pool": spec.name, "group": spec.group, "role": spec.role}
        holding, grant = holdings.get(spec.name), grants.get(spec.name)
        known = holding is not None and holding.spec is not None and holding.unknown is None
        text.gauge(_OWN + "pool_known", "0 while what the pool has cannot be read: it is held.", labels, float(known))
        if holding is not None and holding.unknown is not None:
            why = {**labels, "reason": holding.unknown[:REASON_CHARACTERS]}
            text.gauge(_OWN + "pool_unknown_info", "What of a pool was not understood.", why, 1.0)
        if holding is not None and known:
            for state in STATES:
                count = sum(1 for replica in holding.replicas if replica.state == state)
                about = "Replicas by state."
                text.gauge(_OWN + "pool_replicas", about, {**labels, "state": state}, float(count))
            stuck = sum(1 for replica in holding.replicas if replica.unschedulable is not None)
            text.gauge(_OWN + "pool_unschedulable", "Replicas that no node takes.", labels, float(stuck))
        if grant is not None:
            wanted = None if grant.wanted is None else float(grant.wanted)
            text.gauge(_OWN + "pool_wanted", "Replicas that its planner wants.", labels, wanted)
            text.gauge(_OWN + "pool_granted", "Replicas that it is granted.", labels, float(grant.granted))
            text.gauge(_OWN + "pool_held", "1 while nothing is decided for it.", labels, float(grant.held))
            value = grant.marginal_value
            text.gauge(_OWN + "pool_marginal_value", "Weight x requests/s gained per GPU by the next step.", labels, value)
