"""[I/O: reads its own style, script and Plotly's] The report of a run: one HTML page that needs nothing else, also offline.

Everything that came from outside (names, reasons, notes) is escaped, in the page and in the data that its script reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

import orjson

from global_planner.compile import pool_specs
from global_planner.demo import figures
from global_planner.demo.figures import Figure
from global_planner.demo.snapshot import change
from global_planner.demo.summary import RunParameters, Summary, load_window
from global_planner.demo.view import clock_text
from global_planner.demo.words import percent_text, source_text, words
from global_planner.mocker.load_record import LoadRecord
from global_planner.types import Round
from pool_planner.types import PlannerStatus

KINDS = {"Grow": "raised", "Shrink": "lowered", "Drain": "drained", "Cancel": "start cancelled"}
DONE = "done"
MAX_DECISIONS = 2000
MANY_ROWS = 12  # a longer table scrolls, so that what comes after it is not out of sight
LEAD_SHARE = 0.02  # how much of the time before the load the figures show

_TRAFFIC = "What the load offered, whatever became of it."
_GPUS = "Running, starting and still ending replicas count, and orders under way. Stacked by pool; diamonds are events."
_REPLICAS = "What each pool's planner wanted, what the arbiter granted, and what was ready to serve."
_FORECAST = "Each forecast stands at the moment that it is about. Planners plan for the upper quantile."
_ORDERS = "Every order of the arbiter, with the reason that it was given with."
_LATENCY = "As clients saw it, by the time of sending. Streams only: an answer in one piece shows no first token."


class Section(NamedTuple):
    """A heading with figures; `shape` is how they stand: one `wide`, by `two`, or as many as fit."""

    anchor: str
    title: str
    note: str
    shape: str
    figures: list[Figure]


def render(
    records: Sequence[LoadRecord],
    journal: Iterable[object],
    summary: Summary,
    parameters: RunParameters,
    notes: Sequence[tuple[float, str]] = (),
) -> str:
    """The page. `notes` are (model time, what happened)."""
    told = list(journal)
    rounds = [record for record in told if isinstance(record, Round)]
    statuses = [record for record in told if isinstance(record, PlannerStatus)]
    start_s, end_s = load_window(records, rounds)
    topology, span_s = parameters.topology, end_s - start_s
    sent_s = max((record.at_s for record in records), default=0.0)
    noted = sorted(notes)
    sections = (
        Section("traffic", "Traffic", _TRAFFIC, "wide", figures.traffic(topology, records, sent_s)),
        Section("gpus", "Charged GPUs against the budget", _GPUS, "wide", figures.charged(topology, rounds, noted, start_s)),
        Section("replicas", "Replicas", _REPLICAS, "", figures.replicas(topology, rounds, start_s)),
        Section("forecast", "Forecast and what came", _FORECAST, "", figures.expectations(topology, statuses, start_s, span_s)),
        Section("latency", "Latency against the SLA", _LATENCY, "two", figures.latencies(topology, records, sent_s)),
    )
    drawn = [figure for section in sections for figure in section.figures]
    for figure in drawn:
        figure["layout"]["xaxis"] = {"range": [-LEAD_SHARE * span_s / 60.0, span_s / 60.0]}
    body = [
        _head(summary),
        *map(section, sections),
        decisions([spec.name for spec in pool_specs(topology)], orders(rounds, start_s), _ORDERS),
        _events(noted, start_s),
        _numbers(summary),
    ]
    return page(f"{summary.topology}: run report", "\n".join(body), drawn)


# ---- the page ------------------------------------------------------------------------------------------------------


def page(title: str, body: str, drawn: Sequence[Figure]) -> str:
    """A whole page that loads nothing: `body` is HTML, `drawn` are the figures whose places it holds."""
    from plotly.offline import get_plotlyjs  # here, because a run draws at its end, and everybody waits for its beginning

    folder = files("global_planner.demo")
    style = (folder / "report.css").read_text(encoding="utf-8")
    script = (folder / "report.js").read_text(encoding="utf-8")
    # "</" must not appear inside a script element, whatever a reason or a name contains.
    figures_json = orjson.dumps(drawn).decode().replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<footer>All times are model time unless they say wall. This page holds everything that it shows; it loads nothing.</footer>
<script type="application/json" id="figures">{figures_json}</script>
<script>{get_plotlyjs()}</script>
<script>{script}</script>
</body>
</html>
"""


def _head(summary: Summary) -> str:
    saved = 1 - summary.gpu_hours / summary.gpu_hours_static_peak if summary.gpu_hours_static_peak else 0.0
    budget = "∞" if summary.budget_gpus is None else str(summary.budget_gpus)
    less = f"{saved:.0%} fewer" if saved >= 0 else f"{-saved:.0%} more"
    cards = [
        (f"{summary.completed:,} / {summary.requests:,}", "requests answered in full", None),
        (str(summary.lost), "lost", summary.lost == 0),
        (percent_text(summary.ttft_attainment), "met their TTFT", None),
        (percent_text(summary.itl_attainment), "met their ITL", None),
        (f"{summary.max_charged_gpus} / {budget}", "most GPUs charged, of the budget", summary.budget_violations == 0),
        (less, "GPU-hours than with every pool at its own peak", saved > 0),
        (f"{summary.scale_ups} / {summary.scale_downs}", "scale-ups / scale-downs", None),
        (str(summary.rounds), "rounds" + _decided(summary), None),
    ]
    items = "\n".join(
        f'<li class="{"" if good is None else "good" if good else "bad"}"><span class="value">{escape(value)}</span>'
        f'<span class="label">{escape(label)}</span></li>'
        for value, label, good in cards
    )
    links = " ".join(
        f'<a href="#{anchor}">{text}</a>'
        for anchor, text in (
            ("traffic", "Traffic"), ("gpus", "GPUs"), ("replicas", "Replicas"), ("forecast", "Forecast"),
            ("latency", "Latency"), ("decisions", "Decisions"), ("events", "Events"), ("numbers", "Numbers"),
        )
    )  # fmt: skip
    return f"""<header>
<h1>{escape(summary.topology)}: {escape(source_text(summary))}</h1>
<p>{escape(words(summary))}</p>
<nav aria-label="Sections">{links}</nav>
<ul class="cards">
{items}
</ul>
</header>
<main>"""


def _decided(summary: Summary) -> str:
    return "" if summary.decisions_p99_ms is None else f", decided in {summary.decisions_p99_ms:.1f} wall ms (p99)"


def section(section: Section) -> str:
    """The HTML of a section."""
    plots = "\n".join(
        f'<figure><h3 id="title-{name}">{escape(figure["title"])}</h3>'
        f'<div class="plot" role="img" aria-labelledby="title-{name}" id="{name}"></div></figure>'
        for figure in section.figures
        for name in (escape(figure["id"]),)
    )
    return f"""<section id="{section.anchor}">
<h2>{escape(section.title)}</h2>
<p class="note">{escape(section.note)}</p>
<div class="plots {section.shape}">
{plots}
</div>
</section>"""


class Decision(NamedTuple):
    """One line of the table of decisions: when (s since the start), in which round, and what of which pool and why."""

    at_s: float
    round_no: int
    pool: str
    kind: str
    change: str
    reason: str
    became: str


def orders(rounds: Iterable[Round], start_s: float) -> list[Decision]:
    """Every order of the arbiter, with the reason that it was given with, and what became of it."""
    return [
        Decision(
            at_s=done.inputs.at_s - start_s,
            round_no=done.inputs.round_no,
            pool=outcome.step.pool,
            kind=KINDS[type(outcome.step).__name__],
            change=change(outcome.step) or "",
            reason=outcome.step.reason,
            became=DONE if outcome.applied else f"not done: {outcome.error or 'unknown'}",
        )
        for done in rounds
        for outcome in done.outcomes
        if type(outcome.step).__name__ in KINDS and change(outcome.step) is not None
    ]


def decisions(pools: Sequence[str], rows: Sequence[Decision], note: str) -> str:
    """The table of decisions, with its filters by pool and kind."""
    dropped = max(0, len(rows) - MAX_DECISIONS)
    lines = [
        f'<tr data-pool="{escape(row.pool)}" data-kind="{escape(row.kind)}">'
        f'<td class="number">{clock_text(row.at_s)}</td><td class="number">{row.round_no}</td>'
        f"<td>{escape(row.pool)}</td><td>{escape(row.kind)}</td>"
        f'<td>{escape(row.change)}</td><td class="reason">{escape(row.reason)}</td>'
        f'<td class="{"" if row.became == DONE else "reason"}">{escape(row.became)}</td></tr>'
        for row in rows[dropped:]
    ]
    options = "".join(f"<option>{escape(pool)}</option>" for pool in pools)
    kinds = "".join(f"<option>{escape(kind)}</option>" for kind in dict.fromkeys(row.kind for row in rows))
    first = f"<p class='note'>The first {dropped} are left out here; the journal has them.</p>" if dropped else ""
    return f"""<section id="decisions">
<h2>Decisions</h2>
<p class="note">{escape(note)}</p>
{first}
<p class="filters"><label>Pool <select id="pool"><option value="">all</option>{options}</select></label>
<label>Kind <select id="kind"><option value="">all</option>{kinds}</select></label> <span id="shown" role="status"></span></p>
<div class="scroll tall" tabindex="0" role="region" aria-label="Decisions">
<table><thead><tr><th class="number" scope="col">minute</th><th class="number" scope="col">round</th><th scope="col">pool</th>
<th scope="col">decision</th><th scope="col">change</th><th scope="col">reason</th><th scope="col">outcome</th></tr></thead>
<tbody>
{chr(10).join(lines)}
</tbody></table>
</div>
</section>"""


def _events(notes: Sequence[tuple[float, str]], start_s: float) -> str:
    lines = "\n".join(
        f'<tr><td class="number">{clock_text(at_s - start_s)}</td><td class="reason">{escape(text)}</td></tr>'
        for at_s, text in notes
    )
    listed = f"<div class='scroll'><table><tbody>{lines}</tbody></table></div>" if notes else "<p class='note'>None.</p>"
    return f'<section id="events">\n<h2>Events</h2>\n{listed}\n</section>'


def _numbers(summary: Summary) -> str:
    models = [
        (
            model, f"{one.requests:,}", f"{one.completed:,}", str(one.rejected), str(one.lost),
            percent_text(one.ttft_attainment), _ms(one.ttft_ms_p50), _ms(one.ttft_ms_p95), _ms(one.ttft_sla_ms),
            percent_text(one.itl_attainment), _ms(one.itl_ms_p50), _ms(one.itl_ms_p95), _ms(one.itl_sla_ms),
        )
        for model, one in summary.models.items()
    ]  # fmt: skip
    pools = [
        (
            name, pool.role, f"{pool.requests:,}", percent_text(pool.attainment), str(pool.max_wanted), str(pool.max_granted),
            str(pool.max_ready), str(pool.scale_ups), str(pool.scale_downs), f"{pool.gpu_hours:.2f}",
            f"{pool.gpu_hours_static_peak:.2f}",
        )
        for name, pool in summary.pools.items()
    ]  # fmt: skip
    run = [(name, _plain(value)) for name, value in summary.as_json().items() if isinstance(value, str | int | float | None)]
    model_heads = (
        "model",
        "requests",
        "completed",
        "rejected",
        "lost",
        "TTFT met",
        "p50",
        "p95",
        "SLA",
        "ITL met",
        "p50",
        "p95",
        "SLA",
    )
    pool_heads = (
        "pool", "role", "requests", "met SLA", "most wanted", "most granted", "most ready", "ups", "downs", "GPU-hours",
        "GPU-hours at its peak",
    )  # fmt: skip
    return f"""<section id="numbers">
<h2>Numbers</h2>
{table("Models", model_heads, models, left=1)}
{table("Pools", pool_heads, pools, left=2)}
{table("The run, as in summary.json", ("field", "value"), run, left=1)}
</section>
</main>"""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """The HTML of a table; the first `left` columns are words."""

    def kind(column: int) -> str:
        return "" if column < left else ' class="number"'

    head = "".join(f'<th scope="col"{kind(column)}>{escape(text)}</th>' for column, text in enumerate(heads))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind(column)}>{escape(cell)}</td>" for column, cell in enumerate(row)) + "</tr>" for row in rows
    )
    name, low = escape(caption), " low" if len(rows) > MANY_ROWS else ""
    return (
        f'<div class="scroll{low}" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _ms(value_ms: float | None) -> str:
    return "–" if value_ms is None else f"{value_ms:,.0f} ms"


def _plain(value: object) -> str:
    return "–" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)
