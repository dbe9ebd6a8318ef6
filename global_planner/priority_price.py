"""What priorities cost: a recorded round decided again with every group in one class, and who would gain what. Pure.

Both sides are solved from nothing (no holds, no cost of moves), so that only the priorities differ: a hold that happens to be
under way is not the price of anybody's priority.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from global_planner.arbiter.effective import group_rules
from global_planner.arbiter.settle import view_of
from global_planner.arbiter.solve import arbitrate
from global_planner.explain import Table
from global_planner.memory import PlannerMemory, Policies
from global_planner.types import Allocation, GroupGrant, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityPrice:
    """One group with the priorities as they are (those that selectors set included), and with equal ones. `served_rps` is its
    load that is attained, None like its attainment where nothing is known of its demand; `gpus` what its pools are granted."""

    group: str
    priority_class: int
    served_rps: float | None
    served_rps_equal: float | None
    attainment: float | None
    attainment_equal: float | None
    gpus: int
    gpus_equal: int

    @property
    def would_gain_rps(self) -> float | None:
        """Requests/s within their SLA that it would have more with equal priorities."""
        if self.served_rps is None or self.served_rps_equal is None:
            return None
        return self.served_rps_equal - self.served_rps


def price_of_priority(done: Round, before: PlannerMemory, policies: Policies) -> tuple[PriorityPrice, ...]:
    """Every group of a round, those that lose most by the priorities first. `before` is the memory before the round."""
    fresh = replace(policies.arbiter, stability=False)
    _, actual = arbitrate(before.arbiter, done.inputs, fresh)
    equal_groups = tuple(replace(group, priority_class=0) for group in done.inputs.groups)
    unranked = replace(fresh, selectors=tuple(replace(line, priority_class=None) for line in fresh.selectors))
    _, equal = arbitrate(before.arbiter, replace(done.inputs, groups=equal_groups), unranked)
    pools = {group.name: [spec for spec in done.inputs.pools if spec.group == group.name] for group in done.inputs.groups}
    ranks = {group.name: group_rules(group, pools[group.name], fresh.selectors).priority_class for group in done.inputs.groups}
    with_it, without = _by_group(actual), _by_group(equal)
    gpus, gpus_equal = _gpus(done, actual), _gpus(done, equal)
    known = {
        group.spec.name for group in view_of(before.arbiter, done.inputs, fresh).groups if any(pool.now for pool in group.pools)
    }
    prices = []
    for group in done.inputs.groups:
        now, then = with_it[group.name], without[group.name]
        told = group.name in known
        prices.append(
            PriorityPrice(
                group=group.name,
                priority_class=ranks[group.name],
                served_rps=now.load_rps * now.attainment if told else None,
                served_rps_equal=then.load_rps * then.attainment if told else None,
                attainment=now.attainment if told else None,
                attainment_equal=then.attainment if told else None,
                gpus=gpus.get(group.name, 0),
                gpus_equal=gpus_equal.get(group.name, 0),
            )
        )
    return tuple(sorted(prices, key=lambda price: (-(price.would_gain_rps or 0.0), price.group)))


def price_table(prices: tuple[PriorityPrice, ...]) -> Table:
    """The prices as rows, with the sum of served requests last: what the priorities cost everybody together."""
    rows = [
        (
            price.group,
            str(price.priority_class),
            f"{price.gpus}",
            f"{price.gpus_equal}",
            _share(price.attainment),
            _share(price.attainment_equal),
            "unknown" if price.would_gain_rps is None else _signed(price.would_gain_rps),
        )
        for price in prices
    ]
    gain = sum(price.would_gain_rps or 0.0 for price in prices)
    rows.append(("all", "", "", "", "", "", _signed(gain)))
    columns = ("group", "class", "GPUs", "GPUs if equal", "attains", "attains if equal", "would gain req/s")
    title = "With equal priorities (both decided from nothing: without holds and costs of moves)"
    return Table(title=title, columns=columns, rows=tuple(rows))


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"


def _by_group(allocation: Allocation) -> Mapping[str, GroupGrant]:
    return {grant.group: grant for grant in allocation.groups}


def _gpus(done: Round, allocation: Allocation) -> Mapping[str, int]:
    specs = {spec.name: spec for spec in done.inputs.pools}
    gpus: dict[str, int] = {}
    for grant in allocation.pools:
        spec = specs[grant.pool]
        gpus[spec.group] = gpus.get(spec.group, 0) + grant.granted * spec.gpus_per_replica
    return gpus
