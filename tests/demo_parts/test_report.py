"""The report: everything is in the page, nothing is loaded, nothing that came from outside is taken for HTML or script."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import orjson
import pytest

from global_planner.demo.report import render
from global_planner.demo.series import Line, bin_s, forecasts, offered, quantiles, steps
from global_planner.demo.summary import RunParameters, summarise
from global_planner.types import Grow, Round, StepOutcome
from pool_planner.types import PlannerStatus
from tests.demo_parts import story

RUN = RunParameters(topology=story.topology(), speed=20.0, wall_s=130.0, minutes=40.0)
JOURNAL = story.journal()
RECORDS = story.records()
ROUNDS = [record for record in JOURNAL if isinstance(record, Round)]
EVIL = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """Elements, their text, and what they would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0
        self.ids: list[str] = []
        self.rows: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.scripts += tag == "script"
        if tag != "a":
            self.loads += [value for name in ("src", "href") if (value := named.get(name))]
        if named.get("id"):
            self.ids.append(str(named["id"]))
        if tag == "tr" and "data-pool" in named:
            self.rows.append(named)


def page(records: list[object] | None = None, **changes: object) -> str:
    told = JOURNAL if records is None else records
    run = replace(RUN, **changes)  # type: ignore[arg-type]
    return render(RECORDS, told, summarise(RECORDS, told, run), run, [(500.0, f"engine x died {EVIL}")])


WHOLE = page()


def figures(text: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.S)
    assert found is not None
    return {figure["id"]: figure for figure in orjson.loads(found.group(1))}


def test_the_page_loads_nothing() -> None:
    read = Page(WHOLE)
    assert read.loads == []
    assert "Plotly.newPlot" in WHOLE and len(WHOLE) > 2_000_000
    assert len(read.ids) == len(set(read.ids))


def test_every_figure_has_a_place_and_a_name() -> None:
    read = Page(WHOLE)
    drawn = figures(WHOLE)
    assert set(drawn) <= set(read.ids)
    assert {f"title-{name}" for name in drawn} <= set(read.ids)
    pools = ["chat-prefill-short", "chat-decode", "chat-prefill-long", "code-prefill-short", "code-decode", "code-prefill-long"]
    expected = {"plot-traffic", "plot-gpus-h100"}
    expected |= {f"plot-{kind}-{pool}" for kind in ("replicas", "forecast") for pool in pools}
    expected |= {f"plot-{metric}-{group}" for metric in ("ttft", "itl") for group in ("chat", "code")}
    assert set(drawn) == expected
    for figure in drawn.values():
        for line in figure["data"]:  # type: ignore[attr-defined]
            assert len(line["x"]) == len(line["y"]) > 0, (figure["id"], line["name"])


def test_decisions_stand_with_their_reasons_and_outcomes() -> None:
    made = [outcome for done in ROUNDS for outcome in done.outcomes]
    read = Page(WHOLE)
    assert len(read.rows) == len(made)
    assert [row["data-pool"] for row in read.rows] == [outcome.step.pool for outcome in made]
    for outcome in made:
        assert outcome.step.reason.replace(">", "&gt;") in WHOLE


def test_what_came_from_outside_stays_text() -> None:
    step = Grow(pool="chat-decode", before=1, after=2, version=None, reason=EVIL)
    outcome = StepOutcome(step=step, applied=False, error=EVIL)
    told = [*ROUNDS[:30], replace(ROUNDS[30], steps=(step,), outcomes=(outcome,))]
    text = page(told, trace=EVIL)
    assert Page(text).scripts == 3
    assert "alert(1)</script>" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text


def test_a_run_that_hardly_began_has_a_report_too() -> None:
    for records, told in (([], []), ([], ROUNDS[:1]), (RECORDS[:1], []), (RECORDS[:1], ROUNDS[:1])):
        summary = summarise(records, told, RUN)
        assert "Numbers" in render(records, told, summary, RUN)


# ---- series ----------------------------------------------------------------------------------------------------------


def test_offered_rates_count_every_request_once() -> None:
    width_s = bin_s(story.SPAN_S)
    line = offered(RECORDS, "demo/chat", width_s, story.SPAN_S)
    total = sum(rate * width_s for rate in line.y if rate is not None)
    assert total == pytest.approx(sum(record.model == "demo/chat" for record in RECORDS))
    assert len(line.x) == 80


def test_quantiles_leave_gaps_where_nothing_was_measured() -> None:
    some = [replace(RECORDS[0], at_s=at_s, ttft_ms=value) for at_s, value in ((1.0, 100.0), (2.0, 300.0), (95.0, 50.0))]
    (median,) = quantiles(some, lambda record: record.ttft_ms, 30.0, (50,))
    assert median == Line(x=(0.25, 0.75, 1.25, 1.75), y=(200.0, None, None, 50.0))
    assert quantiles([], lambda record: record.ttft_ms, 30.0, (50,)) == (Line(x=(), y=()),)


def test_a_forecast_stands_where_it_is_about() -> None:
    statuses = [record for record in JOURNAL if isinstance(record, PlannerStatus) and record.pool == "chat-decode"]
    actual, mean, high = forecasts(statuses, story.START_S, 20.0)
    first = statuses[0]
    assert first.forecast is not None and first.observation is not None and first.observation.requests is not None
    assert actual.x[0] == pytest.approx((first.at_s - story.START_S) / 60.0)
    assert mean.x[0] == pytest.approx(actual.x[0] + first.forecast.horizon_s / 60.0)
    assert actual.y[0] == pytest.approx(first.observation.requests / 20.0)
    assert len(forecasts(statuses, story.START_S, 120.0)[0].x) == pytest.approx(len(actual.x) / 6, abs=1.0)
    assert all(top > middle for top, middle in zip(high.y, mean.y, strict=True))  # type: ignore[operator]


def test_steps_keep_the_changes_and_the_end() -> None:
    line = steps(ROUNDS, lambda done: float(done.inputs.round_no // 100), 0.0)
    assert line.y == (0.0, 1.0, 2.0, 3.0, 4.0, 4.0)
    assert line.x[-1] == ROUNDS[-1].inputs.at_s / 60.0
