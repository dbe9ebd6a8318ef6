"""The benchmark's own arithmetic, its protocol and its behaviour without data."""

from __future__ import annotations

import gzip
import json
import math
import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.bench.forecast import main
from tests.bench.forecast_scores import Issued, holm_rejections, judged, naive_forecasts, scores, totals, worse_than_naive
from tests.bench.forecast_series import read_series

KEYS = {"rmae_h1", "rmae_h3", "mase", "wape", "pinball_q80", "pinball_q90", "coverage_q90", "bias", "asym_cost"}
KEYS |= {"update_ms_p50", "update_ms_p99"}


def write_traces(folder: Path) -> None:
    """Small traces of every format that the benchmark reads."""
    rng = random.Random(1)

    def packed(name: str, lines: list[str]) -> None:
        with gzip.open(folder / name, "wt") as file:
            file.write("\n".join(lines) + "\n")

    for name in ("azure2023_conv", "azure2023_code"):
        start, now, rows = datetime(2023, 11, 16, 18, 0), 0.0, ["TIMESTAMP,ContextTokens,GeneratedTokens"]
        while now < 1500.0:
            now += rng.expovariate(0.5)
            stamp = (start + timedelta(seconds=now)).strftime("%Y-%m-%d %H:%M:%S.%f") + "0"
            rows.append(f"{stamp},{rng.randint(10, 4000)},{rng.randint(1, 500)}")
        packed(f"{name}.csv.gz", rows)
    packed(
        "mooncake_conversation.jsonl.gz",
        [
            json.dumps({"timestamp": 700 * i, "input_length": rng.randint(9, 9000), "output_length": 5, "hash_ids": []})
            for i in range(2000)
        ],
    )
    for name in ("servegen_m-large", "servegen_deepseek-r1"):
        rates = [f"{600 * i},{20.0 + 5.0 * math.sin(i) + rng.random()},7" for i in range(150)]
        packed(f"{name}_10min.csv.gz", ["t_s,rate_rps_sum,active_clients", *rates])
        tokens = [f"{21600 * i},100,{rng.randint(300, 900)},{rng.randint(90, 200)}" for i in range(5)]
        packed(f"{name}_tokens.csv.gz", ["t_s,weight_requests,mean_input,mean_output", *tokens])
    week = [f"{7.2 * i},1,2,3,{1500 + rng.randint(0, 200)}" for i in range(150)]
    packed("azure2024_conv_week_digitised.csv.gz", ["# digitised", "minute,rpm_low,rpm_mid,rpm_high,rpm_mid_scaled", *week])


def test_the_benchmark_reports_every_key_for_every_predictor_and_series(tmp_path: Path) -> None:
    write_traces(tmp_path)
    report = tmp_path / "report.json"
    main(["--data", str(tmp_path), "--json", str(report), "--predictors", "constant,kalman"])
    told = json.loads(report.read_text())["predictors"]
    assert set(told) == {"constant", "kalman"}
    names = {series.name for series in read_series(tmp_path)}
    assert "azure2023_conv/isl/10s" in names and "servegen_m-large/requests/600s" in names
    assert "servegen_m-large/isl/21600s" not in names, "five bins cannot be scored"
    for result in told.values():
        assert set(result["series"]) == names
        for row in (*result["series"].values(), result["total"]):
            assert set(row) >= KEYS
    assert told["constant"]["total"]["rmae_h1"] == pytest.approx(1.0)
    assert told["constant"]["worse_than_naive"] == []
    assert told["kalman"]["total"]["rmae_h1"] < 0.95


@pytest.mark.parametrize("made", [False, True], ids=["no folder", "empty folder"])
def test_without_data_it_is_skipped_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: bool
) -> None:
    folder = tmp_path / "traces"
    if made:
        folder.mkdir()
    assert main(["--data", str(folder)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("skipped: ") and "azure2023_conv.csv.gz" in told


def test_only_known_bins_of_the_later_two_thirds_are_judged() -> None:
    series = [1.0, 2.0, None, 4.0, 5.0, None, 7.0, 8.0, 9.0]
    assert judged(series, 1) == [3, 5, 6, 7]
    assert judged(series, 3) == [3, 4, 5]
    assert naive_forecasts(series) == [1.0, 2.0, 2.0, 4.0, 5.0, 5.0, 7.0, 8.0, 9.0]


def test_scores_by_hand() -> None:
    """Need 10, 10, 20, 10, 20, 10, …; planned 15 at every bin: one too few five times, one too many five times."""
    series = [10.0, 20.0] * 6
    issued = Issued(mean=[15.0] * 12, q80=[15.0] * 12, q90=[20.0] * 12)
    told = scores(series, {1: issued})
    assert told["rmae_h1"] == pytest.approx(0.5)
    assert told["mase"] == pytest.approx(0.5)
    assert told["coverage_q90"] == 1.0
    origins = judged(series, 1)
    short = sum(series[t + 1] == 20.0 for t in origins)
    cost = (4.0 * 5.0 * short + 5.0 * (len(origins) - short)) / sum(series[t + 1] or 0.0 for t in origins)
    assert told["asym_cost"] == pytest.approx(cost)
    assert told["asym_cost"] == pytest.approx(5.0 * told["pinball_q80"])


def test_totals_are_geometric_for_ratios_and_arithmetic_for_shares() -> None:
    rows = [{"rmae_h1": 0.5, "coverage_q90": 0.8, "asym_cost": 1.0}, {"rmae_h1": 2.0, "coverage_q90": 1.0, "asym_cost": 4.0}]
    told = totals(rows)
    assert told["rmae_h1"] == pytest.approx(1.0)
    assert told["coverage_q90"] == pytest.approx(0.9)
    assert told["asym_cost"] == pytest.approx(2.0) and told["asym_cost_mean"] == pytest.approx(2.5)


def test_a_forecast_with_added_noise_is_found_significantly_worse_and_the_naive_one_is_not() -> None:
    rng = random.Random(8)
    series = [500.0]
    for _ in range(300):
        series.append(series[-1] + rng.gauss(0.0, 3.0))
    noisy = [value + rng.gauss(0.0, 6.0) for value in series]
    for steps in (1, 3):
        assert worse_than_naive(series, noisy, steps) < 0.001
        assert worse_than_naive(series, series, steps) == 1.0
        assert worse_than_naive(series, [value + 0.01 * rng.random() for value in series], steps) > 0.01


def test_holm_rejects_in_steps() -> None:
    assert holm_rejections({"a": 0.011, "b": 0.02, "c": 0.04, "d": 0.2}) == ["a"]
    assert holm_rejections({"a": 0.01, "b": 0.015, "c": 0.02, "d": 0.2}) == ["a", "b", "c"]
    assert holm_rejections({"a": 0.03, "b": 0.04}) == []
