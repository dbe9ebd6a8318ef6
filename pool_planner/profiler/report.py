"""[I/O: reads Plotly's script] The report of a profile: one HTML page that needs nothing else, also offline.

Curves with the points that they go through and the SLA as a line, the candidates in a table and in a figure. Colours are Okabe
and Ito's, which also people with colour-blindness tell apart; lines that share a figure also differ in their dashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from pool_planner.performance.interpolation import DecodeCurve, PrefillCurve
from pool_planner.performance.profile import Profile
from pool_planner.profiler.rapid import Profiled
from pool_planner.profiler.request import ProfileRequest
from pool_planner.profiler.shapes import Candidate, Phase

Figure = dict[str, Any]
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LIMIT = "#a8200d"
STEPS = 120

_STYLE = """
:root { color-scheme: light; --ink: #1b2330; --quiet: #566274; --line: #d8dee6; --warn: #8f3f00; --paper: #fff;
        --good: #00523b; }
body { margin: 0 auto; max-width: 1180px; padding: 1.5rem; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper); }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p, li { max-width: 75ch } .quiet { color: var(--quiet) } .warn { color: var(--warn) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem }
.figure { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; min-height: 360px }
.figure h3 { font-size: .95rem; margin: .25rem .5rem } .plot { height: 340px }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin-bottom: 1rem }
caption { text-align: left; font-weight: 600; padding: .25rem .75rem } th, td { padding: .25rem .75rem; text-align: right;
border-bottom: 1px solid var(--line) } th:first-child, td:first-child, td:last-child { text-align: left }
tr.chosen td { font-weight: 600; color: var(--good) }
"""
_SCRIPT = """
for (const figure of JSON.parse(document.getElementById("figures").textContent)) {
  const layout = Object.assign({
    margin: {l: 60, r: 12, t: 8, b: 46}, font: {family: "system-ui, sans-serif", size: 12}, hovermode: "closest",
    legend: {orientation: "h", y: -0.28}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)"}, figure.layout);
  Plotly.newPlot(figure.id, figure.data, layout, {displayModeBar: false, responsive: true});
}
"""


def render(request: ProfileRequest, profiled: Profiled | None, profile: Profile | None, warnings: Sequence[str]) -> str:
    """The page. `profile`: the curves as the planner reads them."""
    from plotly.offline import get_plotlyjs  # here, because commands that draw nothing start sooner without it

    figures: list[tuple[str, Figure]] = []
    if profiled is not None and profile is not None:
        if profile.prefill is not None:
            figures += _prefill(profile.prefill, profiled)
        if profile.decode is not None:
            figures += _decode(profile.decode, profiled)
        figures += _queue(profiled.extras)
        figures += [_candidates(phase, choice.ranking, profiled) for phase, choice in profiled.choices.items()]
    drawn = json.dumps([figure for _, figure in figures]).replace("<", "\\u003c")
    blocks = "\n".join(
        f'<div class="figure"><h3>{escape(title)}</h3><div class="plot" id="{figure["id"]}"></div></div>'
        for title, figure in figures
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(request.name)}: engine profile</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(request.model)} on {escape(request.gpu)}: engine profile</h1>
{_head(request, profiled)}
{_warnings(warnings)}
{_tables(profiled)}
<h2>Curves</h2>
<p class="quiet">Lines are the curves as the planner reads them, dots what they were made of, dashed red the SLA.</p>
<div class="figures">
{blocks or "<p>No curves: pre_deployment_sweeping_mode is none, so only load-based scaling is possible.</p>"}
</div>
{_outliers(profiled)}
<p class="quiet">This page holds everything that it shows; it loads nothing.</p>
<script type="application/json" id="figures">{drawn}</script>
<script>{get_plotlyjs() if figures else ""}</script>
<script>{_SCRIPT if figures else ""}</script>
</body>
</html>
"""


def _head(request: ProfileRequest, profiled: Profiled | None) -> str:
    how = {"rapid": "estimated by aiconfigurator", "thorough": "measured on running engines", "none": "not profiled"}
    target = profiled.target if profiled is not None else None
    if target is not None:
        sla = f"TTFT {target.ttft_ms:.0f} ms, ITL {target.itl_ms:.1f} ms"
    elif request.e2e_ms is not None:
        sla = f"{request.e2e_ms:g} ms end to end"
    else:
        sla = f"TTFT {request.ttft_ms:g} ms, ITL {request.itl_ms:g} ms"
    if target is not None and request.e2e_ms is not None:
        sla += f" (split of {request.e2e_ms:g} ms end to end)"
    lines = [f"{how[request.sweeping]}; prompts of {request.isl} and answers of {request.osl} tokens; SLA: {sla}."]
    if profiled is not None:
        for phase, choice in profiled.choices.items():
            best = choice.candidate
            gpus = f"{best.shape.gpus} GPU{'s' if best.shape.gpus > 1 else ''} a replica"
            lines.append(
                f"{phase}: {best.shape}, {gpus}, {best.latency_ms:.1f} ms, "
                f"{best.thpt_per_gpu:.0f} tokens/s/GPU" + (f" at {best.batch} sequences" if phase == "decode" else "") + "."
            )
        sent = profiled.extras.get("requests_sent")
        if sent is not None:
            lines.append(f"{sent} requests were sent.")
    return "\n".join(f"<p>{escape(line)}</p>" for line in lines)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return '<h2>Warnings</h2><ul class="warn">' + "".join(f"<li>{escape(text)}</li>" for text in warnings) + "</ul>"


def _tables(profiled: Profiled | None) -> str:
    if profiled is None:
        return ""
    parts = ["<h2>Candidates</h2>"]
    for phase, choice in profiled.choices.items():
        latency = "TTFT ms" if phase == "prefill" else "ITL ms"
        rows = "".join(_row(candidate, choice.candidate) for candidate in choice.ranking)
        parts.append(
            f'<div class="scroll"><table><caption>{phase}</caption><thead><tr><th scope="col">engine</th>'
            f'<th scope="col">GPUs</th><th scope="col">{latency}</th><th scope="col">sequences</th>'
            f'<th scope="col">tokens/s/GPU</th><th scope="col">SLA</th></tr></thead><tbody>{rows}</tbody></table></div>'
        )
    return "\n".join(parts)


def _row(candidate: Candidate, chosen: Candidate) -> str:
    mark = ' class="chosen"' if candidate == chosen else ""
    shape = f"<td>{escape(str(candidate.shape))}{' (chosen)' if candidate == chosen else ''}</td>"
    if candidate.problem is not None:
        return f'<tr{mark}>{shape}<td>{candidate.shape.gpus}</td><td colspan="4">{escape(candidate.problem)}</td></tr>'
    met = "met" if candidate.meets_sla else "missed"
    return (
        f"<tr{mark}>{shape}<td>{candidate.shape.gpus}</td><td>{candidate.latency_ms:.1f}</td><td>{candidate.batch}</td>"
        f"<td>{candidate.thpt_per_gpu:.1f}</td><td>{met}</td></tr>"
    )


def _outliers(profiled: Profiled | None) -> str:
    found = profiled.extras.get("outliers") if profiled is not None else None
    if not isinstance(found, Mapping) or not found:
        return ""
    items = "".join(
        f"<li>{escape(name)}: {', '.join(f'{value:.1f} ms' for value in values)}</li>" for name, values in found.items()
    )
    text = "Single repetitions far from the median of their point; the medians do not follow them."
    return f"<h2>Outliers</h2><p>{text}</p><ul>{items}</ul>"


# ---- figures -------------------------------------------------------------------------------------------------------


def _prefill(curve: PrefillCurve, profiled: Profiled) -> list[tuple[str, Figure]]:
    low, high = curve.isl_tokens[0], curve.isl_tokens[-1]
    xs = [low + (high - low) * i / STEPS for i in range(STEPS + 1)]
    ttft = [
        _line("curve", xs, [curve.ttft_ms(x) for x in xs], 0),
        _dots("points", curve.isl_tokens, curve.raw_ttft_ms, 0),
        _limit("SLA", low, high, profiled.target.ttft_ms),
    ]
    thpt = [
        _line("curve", xs, [curve.thpt_per_gpu(x) for x in xs], 0),
        _dots("points", curve.isl_tokens, curve.raw_thpt_per_gpu, 0),
    ]
    return [
        ("Prefill: TTFT over prompt length", _figure("ttft", ttft, "prompt tokens", "TTFT, ms")),
        ("Prefill: throughput over prompt length", _figure("pthpt", thpt, "prompt tokens", "prompt tokens/s/GPU")),
    ]


def _decode(curve: DecodeCurve, profiled: Profiled) -> list[tuple[str, Figure]]:
    contexts = sorted({point[1] for point in curve.raw})
    itl: list[Figure] = []
    thpt: list[Figure] = []
    for number, context in enumerate(contexts):
        points = sorted(point for point in curve.raw if point[1] == context)
        top = points[-1][0]
        xs = [top * i / STEPS for i in range(1, STEPS + 1)]
        name = f"context {context:.0f}"
        itl += [
            _line(name, xs, [curve.itl_ms(x, context) for x in xs], number),
            _dots(name, [p[0] for p in points], [p[2] for p in points], number),
        ]
        thpt += [
            _line(name, xs, [curve.thpt_per_gpu(x, context) for x in xs], number),
            _dots(name, [p[0] for p in points], [p[3] for p in points], number),
        ]
    itl.append(_limit("SLA", 0.0, max(point[0] for point in curve.raw), profiled.target.itl_ms))
    return [
        ("Decode: ITL over KV usage", _figure("itl", itl, "KV usage", "ITL, ms")),
        ("Decode: throughput over KV usage", _figure("dthpt", thpt, "KV usage", "output tokens/s/GPU")),
    ]


def _queue(extras: Mapping[str, object]) -> list[tuple[str, Figure]]:
    queue = extras.get("queue")
    if not isinstance(queue, Mapping) or not queue:
        return []
    depths = sorted(int(depth) for depth in queue)
    data: list[Figure] = []
    for number, (key, name) in enumerate((("mean_ttft_ms", "mean"), ("slowest_ttft_ms", "slowest"))):
        values = [queue[str(depth)].get(key) for depth in depths]
        data.append({**_line(name, depths, values, number), "mode": "lines+markers"})
    title = f"Prefill: TTFT of {extras.get('queue_isl')} tokens over prompts sent at once"
    return [(title, _figure("queue", data, "prompts at once", "TTFT, ms"))]


def _candidates(phase: Phase, ranking: Sequence[Candidate], profiled: Profiled) -> tuple[str, Figure]:
    usable = [candidate for candidate in ranking if candidate.problem is None]
    limit = profiled.target.ttft_ms if phase == "prefill" else profiled.target.itl_ms
    what = "TTFT" if phase == "prefill" else "ITL"
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "candidates",
            "x": [round(candidate.latency_ms, 3) for candidate in usable],
            "y": [round(candidate.thpt_per_gpu, 2) for candidate in usable],
            "text": [str(candidate.shape) for candidate in usable],
            "textposition": "top center",
            "cliponaxis": False,
            "marker": {"size": 10, "color": COLORS[0], "symbol": ["star", *["circle"] * (len(usable) - 1)]},
            "showlegend": False,
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "SLA",
            "x": [limit, limit],
            "y": [0, max((candidate.thpt_per_gpu for candidate in usable), default=1.0)],
            "line": {"color": LIMIT, "dash": "dash", "width": 2},
        },
    ]
    figure = _figure(f"candidates-{phase}", data, f"{what}, ms", "tokens/s/GPU")
    return f"{phase.capitalize()}: candidates (star: chosen)", figure


def _line(name: str, xs: Sequence[float], ys: Sequence[float | None], number: int) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [round(x, 6) for x in xs],
        "y": [None if y is None else round(y, 4) for y in ys],
        "line": {"color": COLORS[number % len(COLORS)], "dash": DASHES[number % len(DASHES)], "width": 2},
    }


def _dots(name: str, xs: Sequence[float], ys: Sequence[float], number: int) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "showlegend": False,
        "x": [round(x, 6) for x in xs],
        "y": [round(y, 4) for y in ys],
        "marker": {"color": COLORS[number % len(COLORS)], "size": 6},
    }


def _limit(name: str, low: float, high: float, value: float) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [low, high],
        "y": [value, value],
        "line": {"color": LIMIT, "dash": "dash", "width": 2},
    }


def _figure(name: str, data: list[Figure], x: str, y: str) -> Figure:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}, "rangemode": "tozero"}}
    return {"id": f"plot-{name}", "data": data, "layout": axes}
