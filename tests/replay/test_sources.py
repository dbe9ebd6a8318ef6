"""Where a replay's requests come from: traces, rates, clients, journals, a Prometheus; and what is refused, with file and
line."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest

from global_planner.journal import Journal
from global_planner.replay.arrivals import Arrivals
from global_planner.replay.contenders import objective
from global_planner.replay.simulator import simulate
from global_planner.replay.sources import load, parse_source
from global_planner.replay.trace import TraceError
from tests.replay.scenes import scenario, steady, topology


def read(text: str, seed: int = 1) -> Arrivals:
    return load(parse_source(text), np.random.default_rng(seed))


@pytest.fixture
def azure(tmp_path: Path) -> Path:
    """A request every 10 s for 100 s."""
    path = tmp_path / "azure.csv"
    rows = [f"2023-11-16 18:{15 + at // 60}:{at % 60:02d}.0,{100 + at},{10 + at}" for at in range(0, 100, 10)]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


def test_a_trace_is_cut_shifted_and_repeated(azure: Path) -> None:
    whole = read(f"m={azure}")
    assert whole.at_s.tolist() == [float(at) for at in range(0, 100, 10)] and whole.isl[3] == 130
    part = read(f"m={azure},start=20s,duration=35s,shift=1m,repeat=2,priority=7")
    assert part.at_s.tolist() == [60.0, 70.0, 80.0, 90.0, 95.0, 105.0, 115.0, 125.0]
    assert part.isl.tolist() == 2 * [120, 130, 140, 150] and set(part.priority.tolist()) == {7}


def test_a_scale_thins_or_copies_and_copies_stay_near(azure: Path) -> None:
    three = read(f"m={azure},scale=3")
    assert len(three) == 30 and three.at_s.min() >= 0.0 and three.at_s.max() <= 90.0
    assert sorted(three.isl.tolist()) == sorted(3 * read(f"m={azure}").isl.tolist())
    assert 0 < len(read(f"m={azure},scale=0.5")) < 10
    assert read(f"m={azure},scale=2").at_s.tolist() == read(f"m={azure},scale=2").at_s.tolist()


def test_mooncake_prefixes_are_kept_apart_between_copies(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl.gz"
    rows = [{"timestamp": 1000 * at, "input_length": 1024, "output_length": 5, "hash_ids": [0, at + 1]} for at in range(4)]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    blocks = read(f"m={path},scale=2").blocks
    assert blocks is not None and len({each[0] for each in blocks}) == 2
    assert read(f"m={path},prefixes=off").blocks is None


def test_rates_of_any_csv_become_as_many_requests(tmp_path: Path) -> None:
    path = tmp_path / "week.csv"
    path.write_text("# digitised\nminute,rpm\n" + "".join(f"{10 * bin_},{600 if bin_ % 2 else 1200}\n" for bin_ in range(12)))
    got = read(f"m={path},isl=500:0.5,osl=80")
    assert len(got) == pytest.approx(12 * 600 * 15, rel=0.02)  # 10 and 20 requests/s in turn
    first, second = (got.at_s < 600).sum(), ((got.at_s >= 600) & (got.at_s < 1200)).sum()
    assert first == pytest.approx(12_000, rel=0.05) and second == pytest.approx(6_000, rel=0.05)
    assert got.isl.mean() == pytest.approx(500, rel=0.03) and got.isl.std() == pytest.approx(250, rel=0.05)
    # Bursty gaps keep the count and spread it.
    bursty = read(f"m={path},cv=4")
    counts = [np.bincount((each.at_s / 5).astype(int), minlength=1440) for each in (got, bursty)]
    assert len(bursty) == pytest.approx(len(got), rel=0.1) and counts[1].var() > 2 * counts[0].var()


@pytest.mark.parametrize("pattern", ["Gamma", "Weibull"])
def test_clients_come_at_their_rate_with_their_burstiness(tmp_path: Path, pattern: str) -> None:
    """The fit's own scale does not decide: the rate that was counted does."""
    path = tmp_path / "clients.csv"
    rows = "".join(f"{client},{t},2.0,5.0,{pattern},0.4,99.0\n" for client in range(20) for t in (0, 600))
    path.write_text("client,t_s,rate_rps,cv,pattern,param1,param2\n" + rows)
    assert len(read(f"m={path}")) == pytest.approx(20 * 2 * 1200, rel=0.05)


def test_clients_are_cut_within_a_window(tmp_path: Path) -> None:
    """Two windows of ten minutes: of five minutes from the middle of the first on, none of which begins a window, all come."""
    path = tmp_path / "clients.csv"
    rows = "".join(f"{client},{t},2.0,1.0,Gamma,1.0,1.0\n" for client in range(20) for t in (0, 600))
    path.write_text("client,t_s,rate_rps,cv,pattern,param1,param2\n" + rows)
    for begin_s in (240, 500):
        got = read(f"m={path},start={begin_s}s,duration=300s")
        assert len(got) == pytest.approx(20 * 2 * 300, rel=0.05)
        assert got.at_s.min() >= 0.0 and got.at_s.max() < 300.0
    assert read(f"m={path},duration=300s,repeat=2").at_s.max() < 600.0


def test_a_journal_gives_back_the_traffic_that_its_planners_saw(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal", at_s=0.0, forced=False) as journal:
        outcome = simulate(scenario(topology(), steady(rps=1.0, minutes=6)), objective("goodput"), journal=journal)
    got = read(f"m0={tmp_path},pool=m0-prefill")
    assert len(got) == pytest.approx(outcome.total().requests, rel=0.15)
    with pytest.raises(TraceError, match=r"say pool=NAME.* \(has: m0-decode, m0-prefill\)"):
        read(f"m0={tmp_path}")


class _Prometheus(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = parse_qs(urlparse(self.path).query)
        assert asked["query"] == ['sum(rate(x{a="b",c="d"}[1m]))'] and asked["step"] == ["60"]
        series = [{"values": [[at, "2.5"] for at in range(0, 600, 60)]}, {"values": [[0, "NaN"], [60, "1"]]}]
        body = json.dumps({"status": "success", "data": {"result": series}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def prometheus() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Prometheus)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_range_query_becomes_requests(prometheus: str) -> None:
    got = read(f'm=prometheus:{prometheus}?query=sum(rate(x{{a="b",c="d"}}[1m]))&start=0&end=600,scale=10')
    assert len(got) == pytest.approx(10 * (600 * 2.5 + 60), rel=0.05)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m", "must be MODEL=FILE"),
        ("m=f.csv,scal=2", "no option 'scal'; did you mean 'scale'"),
        ("m=f.csv,scale=0", "scale=0: must be a number above 0"),
        ("m=f.csv,start=soon", "start=soon: must be a duration like 90s"),
        ("m=f.csv,scale=much", "scale=much: must be a number above 0"),
        ("m=f.csv,priority=x", "priority=x: must be a whole number"),
        ("m=f.csv,repeat=0", "repeat=0: must be a whole number above 0"),
        ("m=f.csv,duration=0s", "duration=0s: must be longer than nothing"),
        ("m=f.csv,repeat=1,repeat=2", "repeat is given twice"),
        ("m=f.csv,prefixes=maybe", "must be on or off"),
    ],
)
def test_options_are_refused_with_what_is_allowed(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_source(text)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1,2\n", "line 1: has no time column"),
        ("t_s,b\n1,2\n", "line 1: has no rate column"),
        ("t_s,rps\n0,1\n0,1\n", "line 3: times must grow"),
        ("t_s,rps\n0,1\n5,-1\n", "line 3: rate -1 is below 0"),
        ("t_s,rps\n0,1\n5,x\n", "line 3: 'x' is not a number"),
        ("t_s,rps\n0,1\n5\n", "line 3: has 1 values, the header has 2 columns"),
        ("client,t_s,rate_rps,cv,pattern,param1\n0,0,1,1,Pareto,1\n", "line 2: pattern 'Pareto' is neither"),
        ("client,t_s,rate_rps,cv,pattern,param1\n0,0,-3,1,Gamma,1\n", "line 2: rate_rps -3 is below 0"),
        ("client,t_s,rate_rps,cv,pattern\n0,0,1,1,Gamma\n", "line 1: column param1 of ServeGen's client rates is missing"),
        ("TIMESTAMP,GeneratedTokens\n2023-11-16 18:15:46,4\n", "line 1: column ContextTokens is missing"),
        ("t_s,rps\n0,1e12\n60,1e12\n", r"would be about 1.2e\+14 requests, more than 50,000,000"),
        ("", "is empty"),
    ],
)
def test_files_are_refused_with_the_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(TraceError, match=expected):
        read(f"m={path}")


def test_options_that_a_source_has_no_use_for_are_refused(azure: Path, tmp_path: Path) -> None:
    (tmp_path / "rates.csv").write_text("t_s,rps\n0,1\n60,1\n")
    for text, expected in (
        (f"m={azure},isl=500,cv=2", "isl= and cv= says nothing of a trace of requests"),
        (f"m={tmp_path / 'rates.csv'},prefixes=off", "prefixes= says nothing of a CSV of rates"),
        ("m=prometheus:http://127.0.0.1:1?query=x&start=0&end=1,rate=rps", "rate= says nothing of a Prometheus"),
        ("m=prometheus:http://127.0.0.1:1?query=x&start=0&end=1&step=often", "step=often: must be a duration"),
        (f"m={azure},scale=1e9", "more than 50,000,000"),
    ):
        with pytest.raises(TraceError, match=expected):
            read(text)


def test_nothing_left_is_said(azure: Path) -> None:
    with pytest.raises(TraceError, match=r"no request of 10, which take [0-9.]+ minutes, is left"):
        read(f"m={azure},start=95s")
