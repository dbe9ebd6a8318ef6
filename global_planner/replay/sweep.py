"""What-if: one workload under several budgets and priorities, and the frontier of GPU-hours against attainment. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product

from global_planner.config import Topology
from global_planner.demo.report import Section, page, section, table
from global_planner.replay.contenders import Contender
from global_planner.replay.figures import frontier
from global_planner.replay.labels import placed
from global_planner.replay.report import number, percent
from global_planner.replay.scenario import Scenario
from global_planner.replay.simulator import simulate
from global_planner.replay.summary import Numbers, summarise
from global_planner.topology_file import with_budget

_NOTE = (
    "Each point is one run over the whole workload. Nothing to the left of the dotted line attains more for less. Numbers are "
    "those of the table."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One combination. `budget` None: the topology's; `priorities` by group: instead of the topology's."""

    policy: str
    budget: int | None
    priorities: Mapping[str, int]

    @property
    def label(self) -> str:
        """As it stands in tables and figures."""
        words = [] if self.budget is None else [f"{self.budget} GPUs"]
        words += [f"{group} {priority}" for group, priority in self.priorities.items()]
        return ", ".join([self.policy, *words])


def variants(policies: Sequence[str], budgets: Sequence[int], priorities: Mapping[str, Sequence[int]]) -> tuple[Variant, ...]:
    """Every combination; without a budget (a priority) the topology's."""
    tried: Sequence[int | None] = budgets or (None,)
    return tuple(
        Variant(policy=policy, budget=budget, priorities=dict(zip(priorities, chosen, strict=True)))
        for policy in policies
        for budget in tried
        for chosen in product(*priorities.values())
    )


def varied(topology: Topology, variant: Variant) -> Topology:
    """The deployment of a variant. Raises ValueError for a group that is not there, TopologyError for a budget that cannot
    be."""
    known = {group.name for group in topology.groups}
    for group in variant.priorities:
        if group not in known:
            raise ValueError(f"no group {group!r} (has: {', '.join(sorted(known))})")
    changed = topology if variant.budget is None else with_budget(topology, variant.budget)
    groups = tuple(
        group.model_copy(update={"priority": variant.priorities[group.name]}) if group.name in variant.priorities else group
        for group in changed.groups
    )
    return changed.model_copy(update={"groups": groups})


def run(scenario: Scenario, contender: Contender) -> Numbers:
    """The numbers of one variant."""
    return summarise(simulate(scenario, contender), scenario.profiles, scenario.workload)


def rows_of(topology: Topology, results: Mapping[str, Numbers]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(heads, rows) of the comparison, with each group's attainment."""
    models = [group.model for group in topology.groups]
    heads = ("no.", "variant", "attainment", *models, "GPU-hours", "cost", "moves", "over budget")
    rows = [
        (
            str(row_no),
            label,
            percent(one["attainment"]),
            *(percent(one["models"][model]["attainment"]) for model in models),  # type: ignore[index]
            f"{one['gpu_hours']:.2f}",
            number(one["cost"]),
            str(one["moves"]),
            str(one["budget_violations"]),
        )
        for row_no, (label, one) in enumerate(results.items(), start=1)
    ]
    return heads, rows


def shortened(labels: Sequence[str]) -> Mapping[str, str]:
    """Each label without the words that all have.

    >>> shortened(("goodput, 8 GPUs, chat 9", "goodput, 8 GPUs, chat 5"))
    {'goodput, 8 GPUs, chat 9': 'chat 9', 'goodput, 8 GPUs, chat 5': 'chat 5'}
    """
    words = {label: label.split(", ") for label in labels}
    common = set.intersection(*(set(each) for each in words.values()))
    return {label: ", ".join(word for word in each if word not in common) or label for label, each in words.items()}


def _on_the_plot(views: Sequence[tuple[str, Mapping[str, object]]], results: Mapping[str, Numbers]) -> Mapping[str, str]:
    """What stands beside each variant's points: what is its own, or its number in the table where that does not fit."""
    short = shortened(tuple(results))
    for _, shares in views:
        shown = [(short[label], float(results[label]["gpu_hours"]), share) for label, share in shares.items()]  # type: ignore[arg-type]
        if any(near.text is None for near in placed([point for point in shown if point[2] is not None])):  # type: ignore[misc]
            return {label: str(number) for number, label in enumerate(results, start=1)}
    return short


def render(topology: Topology, results: Mapping[str, Numbers], *, sources: Sequence[str]) -> str:
    """The page with the frontier, over all models and for each."""
    views = [("all models", {label: one["attainment"] for label, one in results.items()})]
    views += [
        (group.model, {label: one["models"][group.model]["attainment"] for label, one in results.items()})  # type: ignore[index]
        for group in topology.groups
    ]
    drawn, short = [], _on_the_plot(views, results)
    for index, (name, shares) in enumerate(views):
        points = [
            (short[label], float(results[label]["gpu_hours"]), share)  # type: ignore[arg-type]
            for label, share in shares.items()
            if share is not None
        ]
        figure = frontier(f"frontier-{index}", points)  # type: ignore[arg-type]
        figure["title"] = f"{name}: attainment against GPU-hours"
        drawn.append(figure)
    heads, rows = rows_of(topology, results)
    title = f"What if: {topology.name}"
    body = [
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape('; '.join(sources))}</p>\n</header>\n<main>",
        section(Section("frontier", "The frontier", _NOTE, "wide", drawn)),
        table("Variants", heads, rows, left=2),
        "</main>",
    ]
    return page(title, "\n".join(body), drawn)
