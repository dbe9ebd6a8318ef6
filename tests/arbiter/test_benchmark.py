"""The benchmark of the arbiter writes what it says, and what it writes is true of a small instance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pool_planner.types import Proposal
from tests.bench import arbiter
from tests.bench.arbiter import KEYS, highs, main, water_level
from tests.bench.arbiter_instances import make
from tests.bench.arbiter_peer import _request


def test_the_file_has_the_keys_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "PLAN", {20: (4, (1, 3), (0.45,))})
    path = tmp_path / "arbiter.json"
    result = CliRunner().invoke(main, ["--pools", "20", "--rounds", "2", "--json", str(path)])
    assert result.exit_code in (0, 1), result.output  # on a busy machine a time may be missed, which is told
    written = json.loads(path.read_text())
    assert len(written["instances"]) == len(written["details"]) == 2
    for row, details in zip(written["instances"], written["details"], strict=True):
        assert set(row) == set(KEYS)
        assert row["pools"] == 20 and row["groups"] == 10 and details["rounds"] == 2
        assert 0.0 <= row["proportional_goodput"] <= row["optimum_goodput"] + 1e-9 <= 1.0 + 1e-9
        assert row["goodput"] <= row["optimum_goodput"] + 1e-9 and row["half_granted_gpus"] == 0
        if row["milp_gap"] is not None:
            assert abs(row["milp_gap"]) < 1e-4, "the optimum is HiGHS's optimum"
    assert all(str(row["pools"]) in result.output for row in written["instances"])


def test_instances_are_what_they_claim() -> None:
    instance = make(20, 3, 0.45, 6)
    assert set(instance.budget.max_gpus) <= {"h100", "h200", "l40s"}
    need = instance.need(2)
    plenty = np.ceil(need).astype(np.int64)
    assert instance.goodput(2, plenty) == 1.0 and instance.idle_gpus(2, plenty) == 0
    wide = plenty.copy()
    wide[0] += 3
    assert instance.idle_gpus(2, wide) == 3 * instance.pools[0].gpus_per_replica
    assert 0 < instance.half_granted_gpus(wide) <= instance.half_granted_gpus(wide + 2 * (np.arange(20) == 0))
    assert instance.half_granted_gpus(np.ones(20, dtype=np.int64)) == 0, "minima are apart"
    level = water_level(instance, 2)
    for kind, most in instance.budget.max_gpus.items():
        mine = [int(n) * s.gpus_per_replica for n, s in zip(level, instance.pools, strict=True) if s.gpu_type == kind]
        assert sum(mine) <= most
    best, _, ended = highs(instance, 2)
    assert ended and instance.goodput(2, level) <= best + 1e-9


def test_planners_with_doubts_ask_for_more_than_they_expect() -> None:
    instance = make(20, 3, 0.45, 6)
    counts = np.ones(20, dtype=np.int64)
    plain, doubting = instance.inputs(4, counts), instance.inputs(4, counts, doubts=True)
    for sure, report in zip(plain.reports, doubting.reports, strict=True):
        assert isinstance(sure, Proposal) and isinstance(report, Proposal)
        assert sure.expected_rps is None and report.expected_rps == sure.load_rps < report.load_rps
        assert report.wanted >= sure.wanted
    late = [r.load_rps / instance.asked(4)[place // 2] for place, r in enumerate(doubting.reports) if isinstance(r, Proposal)]
    assert late == pytest.approx([1.0] * 20)
    assert (instance.asked(4) >= instance.load[2:5].max(axis=0)).all(), "a peak is remembered for two rounds"


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arbiter, "PLAN", {20: (2, (1, 3), (0.45,))})
    path = tmp_path / "arbiter.json"
    command = ["--pools", "20", "--highs-rounds", "0", "--json", str(path)]
    measure, measured = arbiter.measure, []

    def stopped(pools: int, types: int, *rest: Any) -> dict[str, Any]:
        measured.append(types)
        if types == 3 and len(measured) == 2:
            raise KeyboardInterrupt
        return measure(pools, types, *rest)

    monkeypatch.setattr(arbiter, "measure", stopped)
    assert CliRunner().invoke(main, command).exit_code != 0 and not path.exists()
    assert CliRunner().invoke(main, command).exit_code in (0, 1)
    assert measured == [1, 3, 3], "the first instance is not measured again"
    assert len(json.loads(path.read_text())["instances"]) == 2
    assert list(tmp_path.iterdir()) == [path], "a whole run leaves nothing beside it"


def test_the_peer_is_asked_for_what_the_planners_want() -> None:
    instance = make(20, 1, 0.45, 3)
    request = _request(instance, 3)
    assert len(request["groups"]) == 10 and len(request["rounds"]) == 3
    wanted = np.array(request["rounds"][1]["want"]).reshape(-1)
    assert (wanted == np.maximum(1, np.ceil(instance.need(1) - 1e-9))).all()
    assert sorted(request["rounds"][1]["order"]) == list(range(10))
