"""Traces: both formats, every way in which a file can be bad, and what playing one at a scale means."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from global_planner.replay.trace import COPY_JITTER_S, Trace, TraceError, parse_trace, play
from global_planner.replay.trace_file import load_trace, read_workload, write_workload
from global_planner.replay.workload import WorkloadParameters, generate

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:50.0000000,879,0
"""
MOONCAKE = """{"timestamp": 27000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 30500, "input_length": 0, "output_length": 490, "hash_ids": [0]}
"""
REAL = Path(__file__).parents[3] / "shared/data/traces"


def parsed(text: str, **options: float) -> Trace:
    return parse_trace(text.splitlines(keepends=True), name="t", **options)


# ---- formats ---------------------------------------------------------------------------------------------------------


def test_azure_is_read_from_its_first_row_on() -> None:
    trace = parsed(AZURE)
    assert (trace.kind, trace.rows) == ("azure", 3)
    assert [arrival.at_s for arrival in trace.arrivals] == pytest.approx([0.0, 4.314579, 63.31941])
    assert [(arrival.isl_tokens, arrival.osl_tokens) for arrival in trace.arrivals] == [(374, 44), (396, 109), (879, 1)]


def test_mooncake_is_read_from_its_first_row_on() -> None:
    trace = parsed(MOONCAKE)
    assert (trace.kind, trace.rows, trace.span_s) == ("mooncake", 2, 3.5)
    assert [(arrival.at_s, arrival.isl_tokens, arrival.osl_tokens) for arrival in trace.arrivals] == [
        (0, 6758, 500),
        (3.5, 1, 490),
    ]


@pytest.mark.parametrize(
    "text",
    [
        AZURE.replace("\n", "\r\n"),
        "\n" + AZURE + "\n\n",
        "ContextTokens,x,TIMESTAMP,GeneratedTokens\n"
        "374,?,2023-11-16T18:15:46Z,44\n396,?,2023-11-16 18:15:50.9+00:00,1\n1,,2023-11-17,1\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        '"2023-11-16 18:15:46",374,"44"\n2023-11-16 18:15:46, 1 ,2\n2023-11-16 18:15:46,1,2\n',
    ],
    ids=["CRLF", "blank lines", "other columns, other order, zones", "quotes"],
)
def test_what_spreadsheets_make_of_it_is_read_too(text: str) -> None:
    trace = parsed(text)
    assert trace.rows == 3
    assert (trace.arrivals[0].isl_tokens, trace.arrivals[0].osl_tokens) == (374, 44)


def test_only_the_minutes_are_kept_but_every_row_is_checked() -> None:
    assert len(parsed(AZURE, span_s=60.0).arrivals) == 2
    with pytest.raises(TraceError, match="line 5: GeneratedTokens is -1"):
        parsed(AZURE + "2023-11-16 18:16:51,1,-1\n", span_s=10.0)


# ---- refusals --------------------------------------------------------------------------------------------------------

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:15:46,374,44\n"
GOOD = '{"timestamp": 5, "input_length": 1, "output_length": 1}\n'


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", None, "is empty"),
        ("\n \n", None, "is empty"),
        (HEAD, 1, "no row follows"),
        ("when,how many\n1,2\n", 1, "neither of the known formats"),
        ("TIMESTAMP,ContextTokens\n" + ROW, 1, "column GeneratedTokens is missing (has: TIMESTAMP, ContextTokens)"),
        (HEAD + ROW + "2023-11-16 18:15:47,374\n", 3, "has 2 values, the header has 3 columns"),
        (HEAD + ROW + "yesterday,374,44\n", 3, "TIMESTAMP 'yesterday' is not a date and time"),
        (HEAD + ROW + "2023-11-16 18:15:45,374,44\n", 3, "is 1 s before the row above it"),
        (HEAD + ROW + "2023-11-16 18:15:47,-5,44\n", 3, "ContextTokens is -5"),
        (HEAD + ROW + "2023-11-16 18:15:47,5,44.5\n", 3, "GeneratedTokens '44.5' is not a whole number"),
        (HEAD + ROW + "2023-11-16 18:15:47,5,\n", 3, "GeneratedTokens '' is not a whole number"),
        (HEAD + ROW + "2023-11-16 18:15:47,99999999999,1\n", 3, "ContextTokens is 99999999999, must be"),
        (HEAD + ROW + '2023-11-16 18:15:47,"5"5,1\n', 3, "is not CSV"),
        (GOOD + '{"timestamp": 5, "input_length": 1}\n', 2, "output_length is missing"),
        (GOOD + '{"timestamp": 5, "input_length": 1, "output\n', 2, "is not JSON"),
        (GOOD + "[5, 1, 1]\n", 2, "is not an object"),
        (GOOD + '{"timestamp": 4, "input_length": 1, "output_length": 1}\n', 2, "is 0.001 s before the row above it"),
        (GOOD + '{"timestamp": "5", "input_length": 1, "output_length": 1}\n', 2, "timestamp '5' is not a number"),
        (GOOD + '{"timestamp": 5, "input_length": -1, "output_length": 1}\n', 2, "input_length is -1"),
        (GOOD + '{"timestamp": 5, "input_length": 1.5, "output_length": 1}\n', 2, "input_length 1.5 is not a whole number"),
        (GOOD + '{"timestamp": 5, "input_length": 1, "output_length": true}\n', 2, "output_length True is not a whole number"),
        (GOOD + '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', 2, "is not JSON"),
    ],
)
def test_a_bad_trace_is_refused_with_line_and_reason(text: str, line: int | None, reason: str) -> None:
    with pytest.raises(TraceError) as refusal:
        parsed(text)
    assert (refusal.value.name, refusal.value.line) == ("t", line)
    assert reason in refusal.value.reason


# ---- files -----------------------------------------------------------------------------------------------------------


def test_gzip_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(gzip.compress(AZURE.encode()))
    (tmp_path / "b.gz").write_bytes(MOONCAKE.encode())
    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbf" + AZURE.encode())
    assert [load_trace(tmp_path / name).kind for name in ("a.csv", "b.gz", "c.csv")] == ["azure", "mooncake", "azure"]
    assert len(load_trace(tmp_path / "a.csv", minutes=1.0).arrivals) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (gzip.compress((HEAD + ROW * 5000).encode(), mtime=0)[:-12], "gzip file is truncated"),
        (gzip.compress(AZURE.encode())[:-6] + b"abcdef", "gzip file is damaged"),
        (b"\x1f\x8b but no more", "gzip file is damaged"),
        (bytes(range(128, 256)) * 40, "line 1: is not text (byte 0x80"),
        (HEAD.encode() + b"2023-11-16 18:15:46\0,1,2\n", "line 2: is not text (a zero byte)"),
        (b"x" * (17 * 2**20), "line 1: is longer than 16 MiB"),
    ],
    ids=["empty", "truncated gzip", "bad checksum", "no gzip", "binary", "zero byte", "one endless line"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(TraceError) as refusal:
        load_trace(path, minutes=10.0)
    assert str(refusal.value).startswith(f"{path}: ")
    assert reason in str(refusal.value)


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_what_cannot_be_opened_is_refused_alike(tmp_path: Path, name: str) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        load_trace(tmp_path / name)


def test_a_workload_file_gives_back_what_was_written(tmp_path: Path) -> None:
    requests = generate(("a", "b"), WorkloadParameters(span_s=60.0), np.random.default_rng(1))
    write_workload(tmp_path / "w.jsonl", requests)
    assert read_workload(tmp_path / "w.jsonl") == requests
    (tmp_path / "w.jsonl").write_text('{"at_s": 1, "model": "a"}\n')
    with pytest.raises(ValueError, match=r"w.jsonl: line 1: not a request"):
        read_workload(tmp_path / "w.jsonl")


# ---- playing ---------------------------------------------------------------------------------------------------------


def steady(rows: int = 4000) -> Trace:
    return parsed("".join(f'{{"timestamp": {n * 500}, "input_length": {n + 1}, "output_length": 9}}\n' for n in range(rows)))


def test_scale_one_plays_every_row_once() -> None:
    trace = steady()
    played = play(trace, ("a", "b"), np.random.default_rng(1))
    assert [(request.at_s, request.isl_tokens) for request in played.requests] == [
        (arrival.at_s, arrival.isl_tokens) for arrival in trace.arrivals
    ]
    to_a = sum(request.model == "a" for request in played.requests)
    assert to_a == pytest.approx(2000, abs=130)  # four standard deviations of an even draw


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.5, 3.0])
def test_scale_multiplies_the_rate(scale: float) -> None:
    requests = play(steady(), ("a",), np.random.default_rng(1), scale=scale).requests
    assert len(requests) == pytest.approx(4000 * scale, abs=130)
    times = np.array([request.at_s for request in requests])
    assert (np.diff(times) >= 0).all() and times[0] >= 0.0 and times[-1] <= 1999.5
    halves = np.histogram(times, 2)[0]
    assert halves[0] / halves[1] == pytest.approx(1.0, abs=0.2)


def test_copies_stay_near_their_original_and_originals_where_they_were() -> None:
    trace = steady(100)
    requests = play(trace, ("a",), np.random.default_rng(1), scale=4.0).requests
    for arrival in trace.arrivals:
        times = [request.at_s for request in requests if request.isl_tokens == arrival.isl_tokens]
        assert len(times) == 4
        assert arrival.at_s in times
        assert all(abs(at_s - arrival.at_s) <= COPY_JITTER_S for at_s in times)


def test_one_seed_plays_one_way() -> None:
    first, again, other = (play(steady(50), ("a", "b"), np.random.default_rng(seed), scale=1.5) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_is_too_long_for_the_model_is_cut_and_counted() -> None:
    played = play(parsed(MOONCAKE), ("a",), np.random.default_rng(1), max_model_len=6000)
    assert [(request.isl_tokens, request.osl_tokens) for request in played.requests] == [(5999, 1), (1, 490)]
    assert played.shortened == 1


def test_a_scale_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(TraceError, match="no request is left of 3 at scale 1e-09"):
        play(parsed(AZURE), ("a",), np.random.default_rng(1), scale=1e-9)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(TraceError, match="must be a number above 0"):
            play(parsed(AZURE), ("a",), np.random.default_rng(1), scale=scale)


# ---- the real ones ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "rows", "in_ten_minutes"),
    [
        ("azure2023_conv.csv.gz", "azure", 19_366, 2_867),
        ("azure2023_code.csv.gz", "azure", 8_819, 1_482),
        ("mooncake_conversation.jsonl.gz", "mooncake", 12_031, 1_750),
    ],
)
def test_published_traces_are_read_whole(name: str, kind: str, rows: int, in_ten_minutes: int) -> None:
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    trace = load_trace(path, minutes=10.0)
    assert (trace.kind, trace.rows, len(trace.arrivals)) == (kind, rows, in_ten_minutes)
    assert trace.arrivals[-1].at_s < 600.0
