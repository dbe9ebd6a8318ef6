"""`global-planner plan`: what one round would do, told from assumed traffic or a recorded round, with nothing touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from global_planner.__main__ import EXAMPLE
from global_planner.config import Topology
from global_planner.dry_run import describe, dry_run, parse_model_load
from global_planner.topology_file import load_topology, with_budget
from global_planner.types import Drain, Grow
from pool_planner.assume import AssumedLoad

MODELS = ["demo/chat", "demo/code"]

GOOD: Mapping[str, tuple[str, AssumedLoad]] = {
    "demo/chat=1.5": ("demo/chat", AssumedLoad(rps=1.5, isl_tokens=700.0, osl_tokens=60.0)),
    "demo/chat=1.5,900": ("demo/chat", AssumedLoad(rps=1.5, isl_tokens=900.0, osl_tokens=60.0)),
    "demo/code=2,900,40": ("demo/code", AssumedLoad(rps=2.0, isl_tokens=900.0, osl_tokens=40.0)),
    "demo/code=0": ("demo/code", AssumedLoad(rps=0.0, isl_tokens=700.0, osl_tokens=60.0)),
    "demo/chat= 1e1 , 1 , 1": ("demo/chat", AssumedLoad(rps=10.0, isl_tokens=1.0, osl_tokens=1.0)),
}
BAD = {
    "demo/chat": "RPS[,ISL[,OSL]]",
    "demo/chat=": "RPS[,ISL[,OSL]]",
    "demo/chat=much": "RPS[,ISL[,OSL]]",
    "demo/chat=1,,3": "RPS[,ISL[,OSL]]",
    "demo/chat=1,2,3,4": "nothing may follow",
    "demo/chat=-1": "RPS must be 0 or more",
    "demo/chat=nan": "RPS must be 0 or more",
    "demo/chat=inf": "RPS must be 0 or more",
    "demo/chat=1,0": "ISL and OSL 1 or more",
    "demo/chat=1,nan": "ISL and OSL 1 or more",
    "demo/chat=1,900,0.5": "ISL and OSL 1 or more",
    "demo/nope=1": "no model 'demo/nope' (has: demo/chat, demo/code)",
    "=1": "no model ''",
    "": "no model ''",
}


@pytest.mark.parametrize("text", GOOD)
def test_a_load_is_read(text: str) -> None:
    assert parse_model_load(text, MODELS) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_a_bad_load_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_model_load(text, MODELS)
    assert str(error.value).startswith(f"--load {text}: ")
    assert BAD[text] in str(error.value)


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load_topology(EXAMPLE)


def told(topology: Topology, folder: Path, *loads: str) -> tuple[str, dict[str, list[str]]]:
    """The text, and the table's first six columns by pool: role, has, wants, gets, GPUs."""
    text = dry_run(topology, folder=folder, loads=loads)
    assert list(folder.iterdir()) == []
    pools = {pool.name for _, pool in topology.placed_pools()}
    rows = [line.split() for line in text.splitlines()]
    return text, {row[0]: row[1:6] for row in rows if row and row[0] in pools and row[1:2] in (["prefill"], ["decode"])}


def test_without_traffic_the_minima_stay(topology: Topology, tmp_path: Path) -> None:
    text, rows = told(topology, tmp_path)
    assert len(rows) == 6
    for _, pool in topology.placed_pools():
        assert rows[pool.name] == [pool.role, *[str(pool.min_replicas)] * 3, str(pool.min_replicas * pool.gpus_per_replica)]
    assert "assumed traffic: none" in text
    assert "h100: 8 of 16 GPUs" in text
    assert "Steps that would be taken now: none" in text
    assert text.endswith("Nothing was changed.")


def test_traffic_goes_to_the_pools_that_its_prompts_go_to(topology: Topology, tmp_path: Path) -> None:
    _, short = told(topology, tmp_path, "demo/chat=3,900,20")
    _, long = told(topology, tmp_path, "demo/chat=3,5000,20")
    assert int(short["chat-prefill-short"][2]) > 1
    assert short["chat-prefill-long"][2] == "1"
    assert int(long["chat-prefill-long"][2]) > 1
    assert long["chat-prefill-short"][2] == "1"
    for rows in (short, long):
        assert int(rows["chat-decode"][2]) >= 2
        assert all(rows[pool][1:4] == [rows[pool][1]] * 3 for pool in rows if pool.startswith("code"))


def test_the_steps_are_those_of_the_table(topology: Topology, tmp_path: Path) -> None:
    text, rows = told(topology, tmp_path, "demo/chat=1.5,900,60")
    grown = {pool: row for pool, row in rows.items() if int(row[3]) > int(row[1])}
    assert grown
    steps = [line for line in text.splitlines() if line.startswith("  Grow ")]
    assert {line.split(":")[0] for line in steps} == {f"  Grow {pool} {row[1]} -> {row[3]}" for pool, row in grown.items()}
    assert "chat: 100% of 1.50 requests/s within their SLA" in text


def test_two_loads_of_one_model_add_up(topology: Topology, tmp_path: Path) -> None:
    """Short and long prompts of one model: each fills its own prefill pool, decode serves both."""
    _, rows = told(topology, tmp_path, "demo/code=1,900,10", "demo/code=1,5000,10")
    _, one = told(topology, tmp_path, "demo/code=1,900,10")
    assert int(rows["code-prefill-long"][2]) > int(one["code-prefill-long"][2])
    assert rows["code-prefill-short"][2] == one["code-prefill-short"][2]
    assert int(rows["code-decode"][2]) >= int(one["code-decode"][2])


def test_a_load_beyond_the_budget_is_shared_within_it(topology: Topology, tmp_path: Path) -> None:
    for gpus in (9, 16, 30):
        text, rows = told(with_budget(topology, gpus), tmp_path, "demo/chat=20,900,60", "demo/code=20,900,60")
        used = sum(int(row[4]) for row in rows.values())
        assert used <= gpus
        assert f"h100: {used} of {gpus} GPUs" in text
        assert all(int(row[3]) >= int(row[1]) for row in rows.values())
        assert ("budget h100" in text) == (gpus < 30)


def test_prompts_that_no_pool_takes_are_refused(topology: Topology, tmp_path: Path) -> None:
    groups = tuple(
        group.model_copy(
            update={
                "pools": tuple(
                    pool.model_copy(update={"isl_max_tokens": 8192}) if pool.name.endswith("prefill-long") else pool
                    for pool in group.pools
                )
            }
        )
        for group in topology.groups
    )
    limited = topology.model_copy(update={"groups": groups})
    with pytest.raises(ValueError, match="no prefill pool of demo/chat takes prompts of 9000 tokens"):
        dry_run(limited, folder=tmp_path, loads=["demo/chat=1,9000"])


def test_a_folder_without_a_journal_is_as_no_folder(topology: Topology, tmp_path: Path) -> None:
    assert dry_run(topology, folder=tmp_path / "gone", loads=[]) == dry_run(topology, folder=tmp_path, loads=[])
    assert list(tmp_path.iterdir()) == []


def test_it_says_the_same_twice(topology: Topology, tmp_path: Path) -> None:
    assert told(topology, tmp_path, "demo/chat=2") == told(topology, tmp_path, "demo/chat=2")


def test_a_step_in_a_line() -> None:
    grow = Grow(pool="p", before=1, after=3, version=None, reason="forecast")
    drain = Drain(pool="p", replicas=("a", "b"), deadline_s=9.0, reason="less load")
    assert describe(grow) == "Grow p 1 -> 3: forecast"
    assert describe(drain) == "Drain p a, b: less load"
