"""The figures of a replay's report, over the runs of one or several policies: what `demo.figures` has is used, the rest is
here. Pure."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from global_planner.config import Topology
from global_planner.demo.figures import HUES, LIMIT, QUIET, Figure, figure, hue, pale, pool_colors, trace
from global_planner.demo.series import Line
from global_planner.replay.labels import across, placed
from global_planner.replay.scenario import Outcome
from global_planner.replay.scores import EDGES_S, OverTime
from global_planner.types import Budget

POINTS = 600
MANY_POOLS = 12  # more are told apart by nobody: then a model's are one area
MANY_LINES = 6
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8f3f00", "#566274")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross")  # of points, once all colours are used
PATTERNS = ("", "/", "x", ".", "-", "\\", "+", "|")  # bars differ in more than colour, as lines do


def traffic(topology: Topology, outcome: Outcome) -> list[Figure]:
    """Offered requests/s of every model, in one figure; of many models stacked, so that their sum is seen."""
    stacked, data = len(topology.groups) > MANY_LINES, []
    for index, group in enumerate(topology.groups):
        over_time = outcome.over_time[group.model]
        line = _binned(over_time, over_time.requests / over_time.width_s)
        if stacked:
            data.append(_area(line, group.model, _shade(index)))
        else:
            data.append(trace(line, group.model, color=hue(index), dash=("solid", "dash")[index % 2]))
    return [figure("traffic", "Offered requests/s", data, y="requests/s")]


def expectations(outcome: Outcome) -> list[Figure]:
    """Forecast against what came, a figure for each pool whose planner forecasts."""
    colors, figures = pool_colors(outcome.topology), []
    for pool, columns in outcome.timeline.expected.items():
        if not len(columns["at_s"]):
            continue
        about = [
            (at_s, mean, high)
            for at_s, mean, high in zip(columns["about_s"], columns["mean_rps"], columns["high_rps"], strict=True)
            if math.isfinite(at_s)
        ]
        mean = _thinned([at_s for at_s, _, _ in about], [value for _, value, _ in about])
        high = _thinned([at_s for at_s, _, _ in about], [value for _, _, value in about])
        data = [
            trace(mean, "forecast", color="#000000", dash="dash", width=1.5),
            trace(high, "upper quantile", color=QUIET, dash="dot", width=0.8, fill="tonexty", fillcolor=pale(QUIET)),
            trace(_thinned(columns["at_s"], columns["requests_per_s"]), "came", color=colors[pool], width=2),
        ]
        figures.append(figure(f"forecast-{outcome.policy}-{pool}", f"{pool} ({outcome.policy})", data, y="requests/s"))
    return figures


def charged(outcome: Outcome, budget: Budget) -> list[Figure]:
    """GPUs charged by pool (of many pools: by model), stacked, against the budget that was asked for: a figure for each GPU
    type. A fixed fleet brings a budget of its own, and may stand above."""
    topology, timeline, figures = outcome.topology, outcome.timeline, []
    colors, limits = pool_colors(topology), budget.max_gpus
    numbers = {group.name: index for index, group in enumerate(topology.groups)}
    for gpu_type in topology.budget.gpus:
        pools = [(group, pool) for group, pool in topology.placed_pools() if pool.gpu_type == gpu_type]
        if len(pools) > MANY_POOLS:
            together: dict[str, np.ndarray] = {}
            for group, pool in pools:
                column = np.asarray(timeline.pools[pool.name]["charged_gpus"], dtype=np.float64)
                together[group.name] = together.get(group.name, np.zeros_like(column)) + column
            areas = [(name, array("d", gpus), _shade(numbers[name])) for name, gpus in together.items()]
        else:
            areas = [(pool.name, timeline.pools[pool.name]["charged_gpus"], colors[pool.name]) for _, pool in pools]
        data = [_area(_thinned(timeline.at_s, column), name, color, shape="hv") for name, column, color in areas]
        if gpu_type in limits and len(timeline.at_s):
            ends = Line(x=(0.0, timeline.at_s[-1] / 60.0), y=(limits[gpu_type], limits[gpu_type]))
            data.append(trace(ends, "budget", color=LIMIT, dash="dash", width=2.5))
        drawn = figure(f"gpus-{outcome.policy}-{gpu_type}", f"{gpu_type} ({outcome.policy})", data, y="GPUs")
        stacked = [sum(y or 0.0 for y in column) for column in zip(*(line["y"] for line in data[: len(areas)]), strict=True)]
        drawn["layout"]["yaxis"]["range"] = [0, 1.04 * max(1.0, limits.get(gpu_type) or 0.0, *stacked)]
        figures.append(drawn)
    return figures


def replicas(outcome: Outcome) -> list[Figure]:
    """Wanted, granted and ready replicas, a figure for each pool."""
    timeline, colors, figures = outcome.timeline, pool_colors(outcome.topology), []
    for pool, columns in timeline.pools.items():
        color = colors[pool]
        data = [
            trace(_thinned(timeline.at_s, columns["ready"]), "ready", color=color, shape="hv", width=0.5)
            | {"fill": "tozeroy", "fillcolor": pale(color)},
            trace(_thinned(timeline.at_s, columns["granted"]), "granted", color=color, shape="hv", width=2.5),
            trace(_thinned(timeline.at_s, columns["wanted"]), "wanted", color="#000000", dash="dot", shape="hv", width=1.5),
        ]
        figures.append(
            figure(f"replicas-{outcome.policy}-{pool}", f"{pool} ({outcome.policy})", data, y="replicas", whole=True)
        )
    return figures


def attainment(topology: Topology, outcomes: Sequence[Outcome]) -> list[Figure]:
    """The share of requests within both SLAs over time, a figure for each model, a line for each policy."""
    figures = []
    for group in topology.groups:
        data = []
        for index, outcome in enumerate(outcomes):
            over_time = outcome.over_time[group.model]
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.where(over_time.requests > 0, over_time.met / np.maximum(over_time.requests, 1), np.nan)
            data.append(trace(_binned(over_time, share), outcome.policy, color=_color(index), dash=_dash(index)))
        figures.append(_percent(figure(f"attainment-{group.name}", group.model, data, y="share within both SLAs")))
    return figures


def priorities(topology: Topology, outcomes: Sequence[Outcome]) -> list[Figure]:
    """The share of requests within both SLAs of every group, those that are served first on the left, and within a group of
    every request priority: a bar for each policy. Nothing where there is only one group and one priority."""
    rows = [
        (group, priority)
        for group in sorted(topology.groups, key=lambda group: -group.priority)
        for priority in sorted({each for outcome in outcomes for each in outcome.scores[group.model]}, reverse=True)
    ]
    if len(rows) < 2:
        return []
    classes = {
        group.name: "/".join(
            dict.fromkeys(
                str(each.priority) for outcome in outcomes for each in outcome.topology.groups if each.model == group.model
            )
        )
        for group in topology.groups
    }
    several = {group.name for group, _ in rows if sum(other.name == group.name for other, _ in rows) > 1}
    labels = [
        f"{group.name}<br>class {classes[group.name]}" + (f", requests of {priority}" if group.name in several else "")
        for group, priority in rows
    ]
    data = []
    for index, outcome in enumerate(outcomes):
        scores = [outcome.scores[group.model].get(priority) for group, priority in rows]
        shares = [None if score is None else score.attainment for score in scores]
        data.append({
            "type": "bar",
            "name": outcome.policy,
            "x": labels,
            "y": [None if share is None else round(share, 4) for share in shares],
            "marker": {"color": _color(index), "pattern": {"shape": PATTERNS[index % len(PATTERNS)], "solidity": 0.25}},
            "text": [None if share is None else f"{100 * share:.0f}" for share in shares],
            "textposition": "outside",
            "cliponaxis": False,
            "customdata": [0 if score is None else score.requests for score in scores],
            "hovertemplate": "%{y:.1%} of %{customdata:,} requests",
        })  # fmt: skip
    drawn = figure("priorities", "Attainment by priority", data, y="share within both SLAs")
    drawn["layout"]["xaxis"] = {
        "title": {"text": "served first \u2192 served last", "standoff": 6},
        "type": "category",
        "automargin": True,
    }
    drawn["layout"]["yaxis"] |= {"range": [0, 1.08], "tickformat": ".0%"}
    drawn["layout"] |= {"barmode": "group", "bargap": 0.25, "hovermode": "closest"}
    return [drawn]


def latencies(topology: Topology, outcomes: Sequence[Outcome]) -> list[Figure]:
    """p50 and p95 (of many policies: p95) of TTFT and ITL over time against the SLA: two figures for each model."""
    figures = []
    shares = [(0.95, "dot")] if 2 * len(outcomes) > MANY_LINES else [(0.5, "solid"), (0.95, "dot")]
    alike = len(shares) > 1  # dashes tell the quantiles, else the policies
    for group in topology.groups:
        for metric, limit in (("ttft", group.sla.ttft_ms), ("itl", group.sla.itl_ms)):
            data, end = [], 0.0
            for index, outcome in enumerate(outcomes):
                over_time = outcome.over_time[group.model]
                counts = over_time.ttft if metric == "ttft" else over_time.itl
                for share, dash in shares:
                    line = _binned(over_time, 1e3 * _quantiles(counts, share))
                    end = max(end, line.x[-1] if line.x else 0.0)
                    data.append(
                        trace(
                            line,
                            f"{outcome.policy} p{100 * share:.0f}",
                            color=_color(index),
                            dash=dash if alike else _dash(index),
                        )
                    )
            data.append(trace(Line(x=(0.0, end), y=(limit, limit)), "SLA", color=LIMIT, dash="dash"))
            figures.append(figure(f"{metric}-{group.name}", f"{group.model}: {metric.upper()}", data, y="ms"))
    return figures


def distributions(topology: Topology, outcomes: Sequence[Outcome]) -> list[Figure]:
    """How many answered requests were faster than so much: TTFT and ITL of each model, a line for each policy."""
    figures = []
    for group in topology.groups:
        for metric, limit in (("ttft", group.sla.ttft_ms), ("itl", group.sla.itl_ms)):
            data, most = [], limit
            for index, outcome in enumerate(outcomes):
                over_time = outcome.over_time[group.model]
                counts = (over_time.ttft if metric == "ttft" else over_time.itl).sum(axis=0)
                whole = counts.sum()
                if not whole:
                    continue
                shares = np.cumsum(counts)[:-1] / whole
                kept = (shares > 0.001) & (shares < 0.9995)
                x = 1e3 * EDGES_S[kept]
                most = max(most, float(x[-1]) if x.size else 0.0)
                line = Line(x=tuple(x.tolist()), y=tuple(shares[kept].tolist()))
                data.append(trace(line, outcome.policy, color=_color(index), dash=_dash(index)))
            data.append(trace(Line(x=(limit, limit), y=(0.0, 1.0)), "SLA", color=LIMIT, dash="dash"))
            drawn = figure(f"cdf-{metric}-{group.name}", f"{group.model}: {metric.upper()}", data, y="share of answers")
            ends = [float(x) for line in data for x in line["x"]]
            ticks = decade_ticks(min(ends), max(ends))
            drawn["layout"]["xaxis"] = {
                "title": {"text": "ms", "standoff": 6}, "type": "log",
                "tickvals": ticks, "ticktext": [f"{tick:,.4g}" if tick < 1000 else f"{tick:,.0f}" for tick in ticks],
            }  # fmt: skip
            figures.append(_percent(drawn))
    return figures


def decade_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2 and 5 of each decade, or more where that would leave fewer than three.

    >>> decade_ticks(400.0, 11_000.0), decade_ticks(260.0, 640.0)
    ([500.0, 1000.0, 2000.0, 5000.0, 10000.0], [300.0, 400.0, 500.0, 600.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [float(step * 10**decade) for decade in decades for step in steps if low <= step * 10**decade <= high]
        if len(ticks) >= 3:
            break
    return ticks


def cost(outcomes: Sequence[Outcome]) -> list[Figure]:
    """GPU-hours against attainment, a point for each policy."""
    points = [(outcome, sum(outcome.gpu_hours.values()), outcome.total().attainment) for outcome in outcomes]
    known = [(outcome.policy, hours, share) for outcome, hours, share in points if share is not None]
    return [frontier("cost", known)] if known else []


def frontier(name: str, points: Sequence[tuple[str, float, float]]) -> Figure:
    """(label, GPU-hours, attainment) as labelled points; a line joins those that nobody beats in both. Where a label finds no
    room, the legend has them all."""
    best, front = -1.0, []
    for _, hours, share in sorted(points, key=lambda point: (point[1], -point[2])):
        if share > best:
            front.append((hours, share))
            best = share
    line = Line(x=tuple(hours for hours, _ in front), y=tuple(share for _, share in front))
    data = [trace(line, "nobody is better in both", color=QUIET, dash="dot", width=1.2, shape="hv")]
    labels = placed(points)
    for index, ((label, hours, share), near) in enumerate(zip(points, labels, strict=True)):
        data.append(
            trace(Line(x=(hours,), y=(share,)), label, color=_color(index))
            | {"mode": "markers+text", "text": [near.text or ""], "textposition": near.position, "cliponaxis": False}
            | {"marker": {"size": 11, "symbol": SYMBOLS[index // len(LINES) % len(SYMBOLS)]}}
            | {"hovertemplate": "%{x:.4~g} GPU-hours: %{y:.4~f}"}
        )
    crowded = any(near.text is None for near in labels)
    drawn = figure(name, "Attainment against GPU-hours", data, y="share within both SLAs")
    along = {"title": {"text": "GPU-hours", "standoff": 6}, "range": across([hours for _, hours, _ in points])}
    drawn["layout"] |= {"xaxis": along, "hovermode": "closest", "showlegend": crowded}
    drawn["layout"]["yaxis"] |= {"rangemode": "normal", "tickformat": ".3~p"}
    if len({share for _, _, share in points}) == 1:
        return _percent(drawn)  # around one value an axis of its own would begin below 0 and end above 100 %
    return drawn


def _percent(drawn: Figure) -> Figure:
    """With an axis of shares from 0 to 100 %."""
    drawn["layout"]["yaxis"] |= {"range": [0, 1.02], "tickformat": ".0%"}
    return drawn


def _area(line: Line, name: str, color: str, *, shape: str = "linear") -> dict[str, Any]:
    """One layer of a stack."""
    return trace(line, name, color=color, shape=shape, width=0.8, stackgroup="one", fillcolor=color)


def _shade(index: int) -> str:
    """Colours for many layers: the darkest of each hue, then the next."""
    return HUES[index % len(HUES)][index // len(HUES) % len(HUES[0])]


def _color(index: int) -> str:
    return LINES[index % len(LINES)]


def _dash(index: int) -> str:
    return DASHES[index % len(DASHES)]


def _binned(over_time: OverTime, values: np.ndarray) -> Line:
    """A point in the middle of each bin; NaN is a gap."""
    middles = (np.arange(values.size) + 0.5) * over_time.width_s / 60.0
    return Line(x=tuple(middles.tolist()), y=tuple(None if math.isnan(value) else value for value in values.tolist()))


def _quantiles(counts: np.ndarray, share: float) -> np.ndarray:
    """Of each bin (s); NaN where it is empty."""
    sums = np.cumsum(counts, axis=1)
    whole = sums[:, -1]
    places = (sums < (share * whole)[:, None]).sum(axis=1)
    upper = EDGES_S[np.clip(places, 1, EDGES_S.size - 1)]
    lower = EDGES_S[np.clip(places, 1, EDGES_S.size - 1) - 1]
    return np.where(whole > 0, (lower + upper) / 2.0, np.nan)


def _thinned(at_s: Sequence[float] | array[float], values: Sequence[float] | array[float]) -> Line:
    """At most `POINTS` points: of neighbours that are thinned out the largest, so that no peak disappears."""
    stride = max(1, math.ceil(len(at_s) / POINTS))
    x, y = [], []
    for begin in range(0, len(at_s), stride):
        group = [value for value in values[begin : begin + stride] if math.isfinite(value)]
        x.append(at_s[begin] / 60.0)
        y.append(max(group) if group else None)
    return Line(x=tuple(x), y=tuple(y))
