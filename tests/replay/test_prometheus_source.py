"""A replay's traffic from a real Prometheus (Debian's, where it is installed), whose history is written before it starts."""

from __future__ import annotations

import math
import shutil
import subprocess
import time
from collections.abc import Iterator

import numpy as np
import pytest

from global_planner.replay.sources import load, parse_source
from global_planner.replay.trace import TraceError
from tests.planner.test_prometheus import BINARY, Server

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(BINARY is None or PROMTOOL is None, reason="no prometheus (apt-get install prometheus)")
STEP_S, SPAN_S = 15, 3600
QUERY = 'sum(rate(dynamo_frontend_requests_total{model="m"}[1m]))'


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """(address, Unix time of the beginning): an hour of two frontends of model m, which answer 2 requests/s together at first
    and 8 in the second half; the counter of one starts anew in between. Another model is there too."""
    folder = tmp_path_factory.mktemp("history")
    begin = int(time.time()) // 60 * 60 - 2 * SPAN_S
    lines = ["# TYPE dynamo_frontend_requests counter"]
    for series, reset_s in (("a", None), ("b", 2400)):
        total = 0.0
        for at in range(-120, SPAN_S + 60, STEP_S):
            total = 0.0 if at == reset_s else total + STEP_S * (1.0 if at <= SPAN_S / 2 else 4.0)
            lines.append(f'dynamo_frontend_requests_total{{model="m",instance="{series}"}} {total} {begin + at}')
    for at in range(-120, SPAN_S + 60, STEP_S):
        lines.append(f'dynamo_frontend_requests_total{{model="other",instance="a"}} {1000 * (at + 120)} {begin + at}')
    (folder / "history.txt").write_text("\n".join([*lines, "# EOF\n"]))
    assert PROMTOOL is not None
    made = [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", str(folder / "history.txt"), str(folder / "data")]
    subprocess.run(made, check=True, capture_output=True)
    server = Server(folder)
    yield server.url, begin
    server.stop()


def test_an_hour_of_counters_becomes_an_hour_of_requests(history: tuple[str, int]) -> None:
    url, begin = history
    text = f"m=prometheus:{url}?query={QUERY}&start={begin}&end={begin + SPAN_S}&step=30,isl=500,osl=20"
    got = load(parse_source(text), np.random.default_rng(1))
    halves = np.histogram(got.at_s, bins=[0.0, SPAN_S / 2, SPAN_S])[0]
    for count, expected in zip(halves, (2 * SPAN_S / 2, 8 * SPAN_S / 2), strict=True):
        # Poisson arrivals; and a rate over a minute sees the step half a minute late.
        assert abs(count - expected) < 5 * math.sqrt(expected) + 0.02 * expected, halves
    assert 400 < got.isl.mean() < 600


def test_what_the_server_says_of_a_wrong_question_is_passed_on(history: tuple[str, int]) -> None:
    url, begin = history
    for query, told in (
        ("sum(rate(x[1m])", "unclosed left parenthesis"),
        ("nothing_of_that_name", "has no value in that time"),
    ):
        source = parse_source(f"m=prometheus:{url}?query={query}&start={begin}&end={begin + SPAN_S}")
        with pytest.raises(TraceError, match=told):
            load(source, np.random.default_rng(1))
