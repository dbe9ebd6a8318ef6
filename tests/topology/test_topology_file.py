"""A topology is read whole or refused whole: every problem at once, each with its path, its value and what is allowed."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from global_planner.config import Topology
from global_planner.topology_file import TopologyError, load_profiles, load_topology, parse_topology, with_budget
from tests.topology.refusals import EXAMPLE, P0, P1, P2, PROFILE, RAW, REFUSED, both, changed, put


def refused(raw: object, *, folder: Path = EXAMPLE.parent, name: str = "topology.yaml") -> tuple[str, ...]:
    with pytest.raises(TopologyError) as caught:
        parse_topology(raw if isinstance(raw, str) else json.dumps(raw), source=name, folder=folder)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# ---- what is accepted ------------------------------------------------------------------------------------------------


def test_the_example_reads_the_same_as_yaml_and_as_json(tmp_path: Path) -> None:
    topology = load_topology(EXAMPLE)
    raw = yaml.safe_load(EXAMPLE.read_text())
    assert [group.model for group in topology.groups] == ["demo/chat", "demo/code"]
    assert topology == parse_topology(json.dumps(raw), source="x.json", folder=EXAMPLE.parent)
    chat = topology.groups[0]
    assert [(pool.role, pool.dgd_name, pool.component_name) for pool in chat.pools] == [
        ("prefill", "chat-main", "prefill"),
        ("decode", "chat-main", "decode"),
        ("prefill", "chat-long", "prefill"),
    ]


def test_times_may_stand_without_quotes_where_yaml_leaves_them_what_they_are() -> None:
    text = json.dumps({**RAW, "schedules": []}).replace(
        '"schedules": []',
        '"schedules": [{name: fair, start: 09:00, date: 2026-07-01, duration_s: 60, set: {load_factor: 2.0}}]',
    )
    read = parse_topology(f"# YAML\n{text}", source="x.yaml", folder=EXAMPLE.parent)
    assert (read.schedules[0].start, read.schedules[0].date) == ("09:00", "2026-07-01")
    assert parse_topology(read.model_dump_json(), source="x.json", folder=EXAMPLE.parent) == read


def test_profiles_are_found_beside_the_file_wherever_it_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    topology = load_topology(EXAMPLE)
    assert {pool.profile for _, pool in topology.placed_pools()} == {str(PROFILE)}
    profiles = load_profiles(topology)
    assert set(profiles) == {pool.name for _, pool in topology.placed_pools()}
    assert all(profile.prefill and profile.decode for profile in profiles.values())


def test_the_budget_of_a_topology_can_be_changed_as_long_as_the_minima_fit() -> None:
    topology = parse_topology(json.dumps(RAW), source="x.json", folder=EXAMPLE.parent)
    assert with_budget(topology, 9).budget.gpus["h100"].max == 9
    assert with_budget(topology, {"h100": 9}) == with_budget(topology, 9)
    assert with_budget(topology, 9).budget.gpus["h100"].price_per_hour == topology.budget.gpus["h100"].price_per_hour
    with pytest.raises(TopologyError, match=r"two-models: budget.gpus.h100.max: 5 is less than the 6 GPUs of the minima"):
        with_budget(topology, 5)
    with pytest.raises(TopologyError, match=r"budget.gpus.h20: not in budget.gpus \(has: h100\)"):
        with_budget(topology, {"h20": 9})
    with pytest.raises(TopologyError, match=r"budget.gpus.h100.max: 0: must be greater than 0"):
        with_budget(topology, 0)
    two = parse_topology(json.dumps(changed(put("budget.gpus.h200", {"max": 4}))), source="two.json", folder=EXAMPLE.parent)
    with pytest.raises(TopologyError, match=r"a budget of 9 GPUs: of which type\? \(has: h100, h200\)"):
        with_budget(two, 9)


def test_aggregated_pools_alone_or_beside_disaggregated_ones_are_a_group() -> None:
    agg = {"name": "chat-agg", "role": "agg", "gpu_type": "h100", "profile": "profile"}
    beside = changed(lambda raw: raw["groups"][0]["pools"].append(agg))
    parse_topology(json.dumps(beside), source="x", folder=EXAMPLE.parent)
    alone = changed(put("groups.0.pools", [agg]))
    parse_topology(json.dumps(alone), source="x", folder=EXAMPLE.parent)


def test_the_schema_describes_every_section() -> None:
    schema = Topology.model_json_schema()
    assert set(schema["properties"]) == set(Topology.model_fields)
    assert {"PoolConfig", "GroupConfig", "GpuBudget", "RouterConfig"} <= set(schema["$defs"])


def test_a_setting_that_says_what_the_topology_says_is_no_contradiction() -> None:
    same = {"ttft": 6000, "itl_ms": 500.0, "min_endpoint": 1, "max_gpu_budget": 14, "mode": "disagg", "backend": "mocker"}
    parse_topology(json.dumps(changed(put("groups.0.pools.0.planner", same))), source="x", folder=EXAMPLE.parent)
    unlimited = both(put("budget.gpus.h100", {}), put("planner.max_gpu_budget", -1))
    parse_topology(json.dumps(changed(unlimited)), source="x", folder=EXAMPLE.parent)


@pytest.mark.parametrize("name", REFUSED)
def test_one_problem_is_told_as_one_line_with_its_path(name: str) -> None:
    change, line = REFUSED[name]
    problems = refused(changed(change))
    assert [problem for problem in problems if problem.startswith(f"topology.yaml: {line}")], problems
    # One mistake is one line.
    assert len(problems) == 1, problems


def test_profiles_must_hold_the_curves_that_their_pools_need(tmp_path: Path) -> None:
    for name, kept in (("no-decode", "prefill_raw_data.json"), ("no-prefill", "decode_raw_data.json")):
        (tmp_path / name).mkdir()
        shutil.copy(PROFILE / kept, tmp_path / name)
    (tmp_path / "empty").mkdir()
    shutil.copytree(PROFILE, tmp_path / "profile")
    raw = changed(both(put(f"{P0}.profile", "no-prefill"), put(f"{P1}.profile", "no-decode"), put(f"{P2}.profile", "empty")))
    problems = refused(raw, folder=tmp_path)
    assert len(problems) == 3
    assert f"groups[0].pools[2].profile: {tmp_path / 'empty'}: no profile data" in problems[0]
    assert problems[1].endswith("pools[0].profile: 'no-prefill' has no prefill curve, and every engine computes prompts")
    assert problems[2].endswith("pools[1].profile: 'no-decode' has no decode curve, which a decode pool needs")


# ---- all at once ----------------------------------------------------------------------------------------------------


def test_problems_of_fields_and_between_sections_are_told_together() -> None:
    raw = changed(
        both(
            put("name", "Two Models"),
            put(f"{P0}.role", "prefil"),
            put(f"{P1}.gpu_type", "h20"),
            put("groups.1.pools.1", None),
            put("groups.1.sla.itl_ms", -1),
            put("router.host", "0.0.0.0"),
            put("planner.load_predicter", "kalman"),
        )
    )
    told = "\n".join(refused(raw))
    for path in ("name", "groups[0].pools[0].role", "groups[0].pools[1].gpu_type", "groups[1].pools", "groups[1].sla.itl_ms"):
        assert f"topology.yaml: {path}: " in told
    assert "router.host: " in told and "planner.load_predicter: " in told


def test_a_field_that_cannot_be_read_starts_no_second_complaint() -> None:
    """What depends on a broken field is left alone: its group is not said to lack a decode pool, nor its pool a GPU type."""
    assert len(refused(changed(put(f"{P1}.role", "decod")))) == 1
    assert len(refused(changed(put(f"{P2}.isl_max_tokens", "long")))) == 1
    assert len(refused(changed(put("budget.gpus", 3)))) == 1
    assert len(refused(changed(put("groups.0.pools", 3)))) == 1
    assert len(refused(changed(put(f"{P1}.dgd", 7)))) == 1


leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.just([]), st.just({}))


def _paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, item in inner for path in _paths(item, (*at, key)))]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_whatever_stands_anywhere_is_read_or_refused_in_our_words(data: st.DataObject) -> None:
    raw = copy.deepcopy(RAW)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in _paths(raw) if path]))
        at: Any = raw
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = data.draw(leaves)
    try:
        parse_topology(yaml.safe_dump(raw), source="t.yaml", folder=EXAMPLE.parent)
    except TopologyError as error:
        assert error.problems and len(set(error.problems)) == len(error.problems)
        assert all(problem.startswith("t.yaml: ") for problem in error.problems)


# ---- files that are no topology at all ---------------------------------------------------------------------------------

NOT_READ = {
    "a key twice": ("name: a\nbudget: {}\nname: b\n", "topology.yaml:3:1: not YAML: key 'name' stands twice in one mapping"),
    "a key twice in JSON": (
        '{"name": "a", "name": "b"}',
        "topology.yaml: not YAML or JSON: key 'name' stands twice in one object",
    ),
    "broken YAML": ("name: [1\n", "topology.yaml:2:1: not YAML: "),
    "broken JSON": ('{"name": }', "topology.yaml:1:10: not JSON: Expecting value"),
    "a list": ("- 1\n", "topology.yaml: must be a mapping with the keys name, budget"),
    "nothing": ("", "topology.yaml: must be a mapping with the keys name, budget"),
    "code": (
        "name: !!python/object/apply:os.system ['true']\n",
        "topology.yaml:1:7: not YAML: could not determine a constructor",
    ),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_a_text_that_is_no_topology_is_refused_with_its_place(name: str) -> None:
    text, line = NOT_READ[name]
    (problem,) = refused(text)
    assert problem.startswith(line)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read"):
        load_topology(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match="cannot be read"):
        load_topology(tmp_path / "bytes.yaml")


def test_what_the_example_shows_in_comments_can_be_used_as_it_stands() -> None:
    text = re.sub(r"^#(?=\S|  )", "", EXAMPLE.read_text(), flags=re.M)
    shown = parse_topology(text, source="x.yaml", folder=EXAMPLE.parent)
    assert [limit.name for limit in shown.budget.limits] == ["spend", "demo-quota"]
    assert [rule.name for rule in shown.selectors] == ["warm-decode", "chat-first"]
    assert [event.name for event in shown.schedules] == ["office-hours"]
