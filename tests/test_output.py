"""The folder of a demo: its own, cleared of what an earlier demo left, and never somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from global_planner.demo import output
from global_planner.demo.output import MARKER, MAX_FOLDERS, OutputTaken, claim


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    claimed = claim(tmp_path / "a" / "report")
    assert claimed.folder == tmp_path / "a" / "report"
    assert claimed.run == tmp_path / "a" / "report" / "run"
    assert names(claimed.folder) == {MARKER}
    claimed.release()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    claim(tmp_path / "report").release()


def test_the_next_run_clears_what_the_last_one_left(tmp_path: Path) -> None:
    first = claim(tmp_path / "report")
    (first.folder / "summary.json").write_text("{}")
    first.run.mkdir()
    (first.run / "load.jsonl").write_text("{}")
    (first.folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept")
    first.release()
    second = claim(tmp_path / "report")
    assert second.folder == first.folder
    assert names(second.folder) == {MARKER}
    assert (tmp_path / "elsewhere" / "precious").read_text() == "kept"
    second.release()


def test_runs_at_once_get_folders_beside(tmp_path: Path) -> None:
    """And a folder that is free again is used again, the nearest first."""
    claims = [claim(tmp_path / "report") for _ in range(3)]
    assert [claimed.folder.name for claimed in claims] == ["report", "report-2", "report-3"]
    (claims[1].folder / "mine").write_text("in use")
    claims[0].release()
    again = claim(tmp_path / "report")
    assert again.folder.name == "report"
    assert names(claims[1].folder) == {MARKER, "mine"}
    for claimed in (again, *claims[1:]):
        claimed.release()


@pytest.mark.parametrize("wanted", ["report", "report-2"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, wanted: str) -> None:
    """The one that was asked for, or the one beside it."""
    claimed = claim(tmp_path / "report") if wanted == "report-2" else None
    (tmp_path / wanted).mkdir(exist_ok=True)
    (tmp_path / wanted / "thesis").write_text("mine")
    with pytest.raises(OutputTaken, match=f"{wanted} holds files that no demo wrote; name another folder"):
        claim(tmp_path / "report")
    assert names(tmp_path / wanted) == {"thesis"}
    if claimed is not None:
        claimed.release()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("text")
    with pytest.raises(OutputTaken, match="is a file"):
        claim(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "text"


def test_a_place_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputTaken, match="file/report"):
        claim(tmp_path / "file" / "report")


def test_after_so_many_folders_it_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_FOLDERS", 2)
    claims = [claim(tmp_path / "report") for _ in range(2)]
    with pytest.raises(OutputTaken, match="1 folders beside it are in use"):
        claim(tmp_path / "report")
    for claimed in claims:
        claimed.release()
    assert MAX_FOLDERS >= 10


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["claim", "release"]), max_size=12))
def test_no_two_runs_share_a_folder(tmp_path_factory: pytest.TempPathFactory, story: list[str]) -> None:
    """Whatever the order of starts and ends; and the lowest free number is taken."""
    home = tmp_path_factory.mktemp("out")
    held: dict[int, output.Output] = {}
    for event in story:
        if event == "claim":
            claimed = claim(home / "r")
            number = int(claimed.folder.name.partition("-")[2] or 1)
            assert number == min(set(range(1, 20)) - set(held))
            held[number] = claimed
        elif held:
            held.pop(min(held)).release()
    for claimed in held.values():
        claimed.release()


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    """A child that outlives us must not keep the folder."""
    claimed = claim(tmp_path / "report")
    assert not os.get_inheritable(claimed.lock)
    claimed.release()
