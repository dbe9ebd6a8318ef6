"""One decision for everybody at once: from what is remembered, observed and proposed to an allocation. Pure.

1. settle what is doubtful: rules in force, who is held, what each pool's demand is (settle);
2. reserve minima of every class, then guarantees (plan);
3. choose counts by the objective (goodput, max_min, baselines), then what to do with what is left over; where the cluster
   tells its nodes, choose again without the replicas that would find no place on them;
4. tell every pool why, and remember what stability needs (grants, remember).
"""

from __future__ import annotations

from collections.abc import Mapping

from global_planner.arbiter.baselines import solve_first_come, solve_proportional
from global_planner.arbiter.goodput import solve_goodput
from global_planner.arbiter.grants import allocation_of
from global_planner.arbiter.leftovers import fill_wanted, keep_fleet
from global_planner.arbiter.limits import limits_of
from global_planner.arbiter.maxmin import solve_max_min
from global_planner.arbiter.placement import MOST_TRIES, without_place
from global_planner.arbiter.plan import Plan, start_plan
from global_planner.arbiter.remember import moves_left, remember, tie_ranks
from global_planner.arbiter.settle import view_of
from global_planner.arbiter.state import ArbiterPolicy, ArbiterState
from global_planner.types import Allocation, RoundInputs

__all__ = ["ArbiterPolicy", "ArbiterState", "arbitrate"]


def arbitrate(state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy) -> tuple[ArbiterState, Allocation]:
    """The allocation of a round and the state after it. Equal arguments give equal results, whatever the order of reports,
    holdings, pools and groups in `inputs`."""
    view = view_of(state, inputs, policy)
    limits = limits_of(inputs.budget, policy, tuple(view.pools.values()))
    ceilings: dict[str, tuple[int, str]] = {}
    for _ in range(MOST_TRIES):
        plan = _decided(start_plan(view, limits, ceilings), state, inputs, policy)
        crowded_out = without_place(plan, inputs.nodes)
        if not crowded_out:
            break
        ceilings.update(crowded_out)
    return remember(state, plan, policy), allocation_of(plan, inputs, policy)


def _decided(plan: Plan, state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy) -> Plan:
    if not plan.infeasible:
        ranks = tie_ranks(state, plan)
        _solve(plan, state, inputs, policy, ranks)
        if policy.objective in ("goodput", "max_min"):
            fill_wanted(plan, ranks)
        keep_fleet(plan, inputs.budget, ranks, policy.surplus_pools)
    return plan


def _solve(plan: Plan, state: ArbiterState, inputs: RoundInputs, policy: ArbiterPolicy, ranks: Mapping[str, int]) -> None:
    if policy.objective == "goodput":
        solve_goodput(plan, policy, ranks, moves_left(state, policy, inputs.at_s))
    elif policy.objective == "max_min":
        solve_max_min(plan, policy, ranks, moves_left(state, policy, inputs.at_s))
    elif policy.objective == "proportional":
        solve_proportional(plan)
    else:
        solve_first_come(plan, {report.pool: report.at_s for report in inputs.reports})
