"""The report of a replay: one HTML page for one or several policies, with the demo's page around it. Pure but for that page's
files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from global_planner.demo.figures import Figure
from global_planner.demo.report import Decision, Section, decisions, page, section, table
from global_planner.demo.words import percent_text
from global_planner.replay import figures
from global_planner.replay.scenario import Outcome
from global_planner.replay.summary import Numbers
from global_planner.types import Budget

MANY_SOURCES = 6

_TRAFFIC = "What the workload offers, whatever became of it."
_COST = "GPU-hours over the whole time, starting and ending replicas included, against the share of all offered requests."
_GPUS = (
    "Running, starting and still ending replicas count. The dashed line is the budget that was asked for; fleets that never "
    "move are sized without one, and may stand above it."
)
_ATTAINMENT = "By the time of arrival, over all offered requests: who is shed or fails misses."
_PRIORITIES = (
    "Over all offered requests of the whole time. Classes that are served first stand on the left; with requests of several "
    "priorities in one group, each has its own bar."
)
_LATENCY = "Of answered requests, by the time of arrival: median and 95 % (of many policies 95 % only)."
_CDF = "Of answered requests. The dashed line is the SLA."
_REPLICAS = "What each pool's planner wanted, what the arbiter granted, and what was ready to serve."
_FORECAST = "Each forecast stands at the moment that it is about. Planners plan for the upper quantile."
_WHY = (
    "Every order and every grant that changed, with its reason. The journals beside this page hold all rounds: "
    "global-planner explain --journal DIR."
)


def render(
    outcomes: Sequence[Outcome],
    numbers: Mapping[str, Numbers],
    why: Sequence[Decision],
    *,
    title: str,
    sources: Sequence[str],
    budgets: Sequence[Budget],
) -> str:
    """The page. `numbers` by policy, as in summary.json; `budgets`: what was asked for, of each outcome."""
    first = outcomes[0]
    beside = "two" if len(outcomes) > 1 else "wide"
    gpus = _side_by_side([figures.charged(*pair) for pair in zip(outcomes, budgets, strict=True)])
    replicas = _side_by_side([figures.replicas(outcome) for outcome in outcomes])
    forecasts = [drawn for each in (outcomes if len(outcomes) == 2 else outcomes[:1]) if (drawn := figures.expectations(each))]
    expected = _side_by_side(forecasts)
    sections = (
        Section("traffic", "Traffic", _TRAFFIC, "wide", figures.traffic(first.topology, first)),
        Section("cost", "What it costs and what it gives", _COST, "wide", figures.cost(outcomes)),
        Section("gpus", "Charged GPUs against the budget", _GPUS, beside, gpus),
        Section("attainment", "Attainment over time", _ATTAINMENT, "two", figures.attainment(first.topology, outcomes)),
        Section("priorities", "Attainment by priority", _PRIORITIES, "wide", figures.priorities(first.topology, outcomes)),
        Section("latency", "Latency against the SLA", _LATENCY, "two", figures.latencies(first.topology, outcomes)),
        Section("cdf", "How latencies are distributed", _CDF, "two", figures.distributions(first.topology, outcomes)),
        Section("replicas", "Replicas", _REPLICAS, "two" if len(outcomes) == 2 else "", replicas),
        Section("forecast", "Forecast and what came", _FORECAST, "two" if len(forecasts) == 2 else "", expected),
    )
    shown = [each for each in sections if each.figures]
    drawn = [figure for each in shown for figure in each.figures]
    for figure in drawn:
        figure["layout"].setdefault("xaxis", {"range": [0, first.window_s / 60.0]})
    links = " ".join(f'<a href="#{each.anchor}">{escape(each.title)}</a>' for each in shown)
    pools = list(dict.fromkeys(pool.name for each in outcomes for _, pool in each.topology.placed_pools()))
    body = [
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(_words(first, sources))}</p>",
        f'<nav aria-label="Sections">{links} <a href="#decisions">Decisions</a></nav>\n</header>\n<main>',
        _policies(numbers),
        _models(numbers),
        _curves(numbers),
        *map(section, shown),
        decisions(pools, why, _WHY),
        "</main>",
    ]
    return page(title, "\n".join(body), drawn)


def _words(outcome: Outcome, sources: Sequence[str]) -> str:
    told = "; ".join(sources)
    if len(sources) > MANY_SOURCES:
        told = f"{len(sources)} traces, the first of them {sources[0]} (all are in summary.json)"
    return f"{outcome.total().requests:,} requests in {outcome.window_s / 60.0:,.0f} minutes, from {told}."


def _side_by_side(columns: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Of every policy's figures, called `WHAT (POLICY)`: those of one thing beside each other, and on the same scale."""
    rows: dict[str, list[Figure]] = {}
    for drawn in (figure for column in columns for figure in column):
        rows.setdefault(drawn["title"].rpartition(" (")[0], []).append(drawn)
    for row in rows.values():
        axes = [figure["layout"]["yaxis"] for figure in row if "range" in figure["layout"]["yaxis"]]
        tallest: Figure = max(axes, key=lambda axis: axis["range"][1], default={})
        for axis in axes:
            axis |= {key: tallest[key] for key in ("range", "dtick") if key in tallest}
    return [figure for row in rows.values() for figure in row]


def _policies(numbers: Mapping[str, Numbers]) -> str:
    heads = (
        "policy", "attainment", "TTFT met", "ITL met", "violations", "shed", "GPU-hours", "most GPUs", "cost", "moves",
        "budget violations", "half-granted GPU-hours", "fairness",
    )  # fmt: skip
    rows = [
        (
            name, percent(one["attainment"]), percent(one["ttft_attainment"]), percent(one["itl_attainment"]),
            f"{one['violations']:,}", f"{one['shed']:,}", f"{one['gpu_hours']:.2f}", most_gpus(one), number(one["cost"]),
            str(one["moves"]), str(one["budget_violations"]), f"{one['half_granted_gpu_hours']:.2f}",
            number(one["jain_fairness"]),
        )
        for name, one in numbers.items()
    ]  # fmt: skip
    return table("Policies", heads, rows, left=1)


def _models(numbers: Mapping[str, Numbers]) -> str:
    heads = ("policy", "model", "priority", "requests", "attainment", "TTFT met", "ITL met", "shed", "failed")
    rows = []
    for name, one in numbers.items():
        for model, its in one["models"].items():  # type: ignore[attr-defined]
            for priority, score in its["priorities"].items():
                rows.append(
                    (
                        name,
                        model,
                        priority,
                        f"{score['requests']:,}",
                        percent(score["attainment"]),
                        percent(score["ttft_attainment"]),
                        percent(score["itl_attainment"]),
                        f"{score['shed']:,}",
                        f"{score['failed']:,}",
                    )
                )
    return table("Models, by request priority", heads, rows, left=3)


def _curves(numbers: Mapping[str, Numbers]) -> str:
    heads = ("policy", "model", "planned with admission", "planned without", "attained")
    rows = [
        (name, model, *(percent(its["curves"][key]) for key in ("with_admission", "without_admission", "attained")))
        for name, one in numbers.items()
        for model, its in one["models"].items()  # type: ignore[attr-defined]
        if its["curves"]["with_admission"] is not None
    ]
    return table("What the planners' curves said of the ready replicas, and what came", heads, rows, left=2) if rows else ""


def most_gpus(one: Numbers) -> str:
    """The most that was charged at any moment: of each GPU type, added up."""
    return str(sum(held["most_held"] for held in one["gpu_types"].values()))  # type: ignore[attr-defined]


def percent(value: object) -> str:
    return percent_text(value if isinstance(value, float) else None)


def number(value: object) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else "–"
