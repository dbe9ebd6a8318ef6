"""The figures of the report as Plotly describes them: plain dictionaries, ready for JSON. Pure.

Colours are Okabe and Ito's, which also people with colour-blindness tell apart, and no meaning hangs on colour alone: lines
that share a figure also differ in their dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from global_planner.compile import budget_of, pool_specs
from global_planner.config import Topology
from global_planner.demo.series import Line, bin_s, forecasts, offered, pool_series, quantiles
from global_planner.mocker.load_record import LoadRecord
from global_planner.types import Round
from pool_planner.types import PlannerStatus

Figure = dict[str, Any]

# One hue a group, from dark to light over its pools.
HUES = (
    ("#004c7a", "#0072b2", "#56b4e9", "#a6d8f7"),
    ("#8f3f00", "#d55e00", "#f0984d", "#fbd0a8"),
    ("#00523b", "#009e73", "#5fc7a8", "#b5e5d7"),
    ("#7a3a5e", "#cc79a7", "#dfa7c5", "#f1d6e4"),
)
LIMIT = "#a8200d"
QUIET = "#566274"


def traffic(topology: Topology, records: Sequence[LoadRecord], span_s: float) -> list[Figure]:
    """Offered requests/s of every model, in one figure."""
    width_s = bin_s(span_s)
    data = [
        trace(offered(records, group.model, width_s, span_s), group.model, color=hue(index), dash=("solid", "dash")[index % 2])
        for index, group in enumerate(topology.groups)
    ]
    return [figure("traffic", f"Offered requests/s, bins of {width_s:g} s", data, y="requests/s")]


def charged(topology: Topology, rounds: Sequence[Round], notes: Sequence[tuple[float, str]], start_s: float) -> list[Figure]:
    """GPUs charged by pool, stacked, against the budget: a figure for each GPU type. Notes are marks on the axis."""
    figures = []
    specs = pool_specs(topology)
    colors = pool_colors(topology)
    limits = budget_of(topology).max_gpus
    for gpu_type in sorted({spec.gpu_type for spec in specs}):
        data = [
            trace(
                pool_series(rounds, spec, start_s).charged,
                spec.name,
                color=colors[spec.name],
                shape="hv",
                width=0.8,
                stackgroup="gpus",
                fillcolor=colors[spec.name],
            )
            for spec in specs
            if spec.gpu_type == gpu_type
        ]
        limit = limits.get(gpu_type)
        if limit is not None and rounds:
            ends = ((rounds[0].inputs.at_s - start_s) / 60.0, (rounds[-1].inputs.at_s - start_s) / 60.0)
            data.append(trace(Line(x=ends, y=(limit, limit)), "budget", color=LIMIT, dash="dash", width=2.5))
        if notes:
            moments = Line(x=tuple((at_s - start_s) / 60.0 for at_s, _ in notes), y=(0.0,) * len(notes))
            data.append(
                trace(moments, "event", color="#000000")
                | {"mode": "markers", "cliponaxis": False, "marker": {"symbol": "diamond", "size": 9, "color": "#000000"}}
                | {"text": [text for _, text in notes], "hovertemplate": "%{text}"}
            )
        figures.append(figure(f"gpus-{gpu_type}", f"{gpu_type}: GPUs charged", data, y="GPUs"))
    return figures


def replicas(topology: Topology, rounds: Sequence[Round], start_s: float) -> list[Figure]:
    """Wanted, granted and ready replicas, a figure for each pool."""
    colors = pool_colors(topology)
    figures = []
    for spec in pool_specs(topology):
        series = pool_series(rounds, spec, start_s)
        color = colors[spec.name]
        data = [
            trace(series.ready, "ready", color=color, shape="hv", width=0.5, fill="tozeroy", fillcolor=pale(color)),
            trace(series.granted, "granted", color=color, shape="hv", width=2.5),
            trace(series.wanted, "wanted", color="#000000", dash="dot", shape="hv", width=1.5),
        ]
        figures.append(figure(f"replicas-{spec.name}", spec.name, data, y="replicas", whole=True))
    return figures


def expectations(topology: Topology, statuses: Sequence[PlannerStatus], start_s: float, span_s: float) -> list[Figure]:
    """Forecast against what came, a figure for each pool."""
    colors = pool_colors(topology)
    figures = []
    for spec in pool_specs(topology):
        mine = [status for status in statuses if status.pool == spec.name]
        actual, mean, high = forecasts(mine, start_s, bin_s(span_s))
        color = colors[spec.name]
        data = [
            trace(mean, "forecast", color="#000000", dash="dash", width=1.5),
            trace(high, "upper quantile", color=QUIET, dash="dot", width=0.8, fill="tonexty", fillcolor="rgba(86,98,116,0.14)"),
            trace(actual, "came", color=color, width=2),
        ]
        figures.append(figure(f"forecast-{spec.name}", spec.name, data, y="requests/s"))
    return figures


def latencies(topology: Topology, records: Sequence[LoadRecord], span_s: float) -> list[Figure]:
    """p50 and p95 of TTFT and ITL as clients saw them, against the SLA: two figures for each model."""
    width_s = bin_s(span_s)
    figures = []
    for index, group in enumerate(topology.groups):
        mine = [record for record in records if record.model == group.model]
        for metric, limit, (median, tail) in (
            ("TTFT", group.sla.ttft_ms, quantiles(mine, lambda record: record.ttft_ms, width_s, (50, 95))),
            ("ITL", group.sla.itl_ms, quantiles(mine, lambda record: record.itl_ms, width_s, (50, 95))),
        ):
            ends = (median.x[0], median.x[-1]) if median.x else (0.0, span_s / 60.0)
            data = [
                trace(median, "p50", color=hue(index), width=2),
                trace(tail, "p95", color=hue(index), dash="dot", width=2),
                trace(Line(x=ends, y=(limit, limit)), "SLA", color=LIMIT, dash="dash"),
            ]
            figures.append(figure(f"{metric.lower()}-{group.name}", f"{group.model}: {metric}", data, y="ms"))
    return figures


def hue(index: int) -> str:
    return HUES[index % len(HUES)][1]


def pool_colors(topology: Topology) -> Mapping[str, str]:
    return {
        pool.name: HUES[index % len(HUES)][place % len(HUES[0])]
        for index, group in enumerate(topology.groups)
        for place, pool in enumerate(group.pools)
    }


def pale(color: str) -> str:
    """The colour of an area below a line of `color`."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"


def trace(
    line: Line, name: str, *, color: str, dash: str = "solid", width: float = 2.0, shape: str = "linear", **more: Any
) -> dict[str, Any]:
    """One line of a figure; `more` is Plotly's."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [round(x, 4) for x in line.x],
        "y": [None if y is None else round(y, 4) for y in line.y],
        "line": {"color": color, "dash": dash, "width": width, "shape": shape},
        "hovertemplate": "%{y:.4~g}",
        **more,
    }


def figure(name: str, title: str, data: list[dict[str, Any]], *, y: str, whole: bool = False) -> Figure:
    """A figure with its lines and the title of its y axis; `whole`: y counts things."""
    axis: dict[str, Any] = {"title": {"text": y, "standoff": 6}}
    if whole:
        most = max((value for line in data for value in line["y"] if value is not None), default=0)
        axis |= {"range": [0, most + 0.4], "dtick": 1 if most <= 8 else None}
    return {"id": f"plot-{name}", "title": title, "data": data, "layout": {"yaxis": axis}}
