"""The same page in a pipe and on terminals of any width: no cell is cut, no line is longer than the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from global_planner.commands.page import fits, records, show, wrapped
from global_planner.explain import Table
from global_planner.status_page import planner_status
from global_planner.types import Round
from pool_planner.types import Forecast, Hold
from tests.arbiter.builders import proposal

TABLE = Table(
    title="Pools",
    columns=("pool", "granted", "why"),
    rows=(
        ("chat-decode", "12", "raised 2 -> 12: 3.2 req/s needs 12; paid from free GPUs and by lowering code-decode"),
        ("code-decode", "1", "kept at 1"),
    ),
)
SENTENCE = "Why\n  chat-decode: raised from two replicas to twelve, because that is what three requests a second need"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    show([SENTENCE, TABLE], out)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


def test_a_pipe_gets_plain_columns_however_wide() -> None:
    out = io.StringIO()
    show([SENTENCE, TABLE], out)
    assert out.getvalue() == f"{SENTENCE}\n\n{TABLE.text()}\n"
    assert "\x1b" not in out.getvalue() and max(map(len, out.getvalue().splitlines())) > 100


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200])
def test_a_terminal_gets_every_word_within_its_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = on_terminal(width, monkeypatch)
    assert max(len(line) for line in told.splitlines()) <= width
    for cell in (cell for row in TABLE.rows for cell in row):
        assert set(cell.split()) <= set(told.split())
    assert fits(TABLE, width) == (width >= 60)


def test_what_is_too_wide_is_told_row_by_row() -> None:
    assert records(TABLE).splitlines()[:3] == ["Pools", "  chat-decode", "    granted: 12"]


def test_broken_lines_are_indented_beyond_their_first() -> None:
    assert wrapped("  one two three four", 20) == "  one two three four"
    assert wrapped("  one two three fours", 20) == "  one two three\n    fours"


def test_status_shows_what_the_planners_say() -> None:
    ahead = Forecast(
        at_s=0.0,
        horizon_s=90.0,
        requests_per_s=3.0,
        requests_per_s_high=4.5,
        quantile=0.8,
        isl_tokens=900.0,
        osl_tokens=60.0,
        predictor="auto",
    )
    known = replace(proposal("chat", 4.0, 1.0), forecast=ahead, reasons=("5 replicas carry 5.1 requests/s", "more"))
    blind = Hold(pool="code", at_s=0.0, reason="the last observation is 90 s old", expires_at_s=60.0)
    done = cast(Round, SimpleNamespace(inputs=SimpleNamespace(reports=(blind, known))))
    chat, code = planner_status(done).rows
    assert chat == ("chat", str(known.wanted), "4.00", "3.00 (80%: 4.50)", "90 s", "auto", "5 replicas carry 5.1 requests/s")
    assert code == ("code", "hold", "", "", "", "", "the last observation is 90 s old")
