"""The command line's answers to bad input, asked in this process: status 2, where and why, and nothing started or written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from global_planner import site, system
from global_planner.__main__ import EXAMPLE, main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory, in which nothing can be started."""

    def start(*arguments: object, **more: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(site, "begin", start)
    monkeypatch.setattr(system, "prepare", start)
    return tmp_path


def refused(*arguments: str, said: tuple[str, ...]) -> Result:
    """`global-planner ARGUMENTS` ends with status 2 and says all of these."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    missing = [word for word in said if word.lower() not in result.output.lower()]
    assert not missing, f"{missing} not in:\n{result.output}"
    return result


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:17:03.9799600,374,44\n"
MOONCAKE = '{"timestamp": 0, "input_length": 10, "output_length": 5}\n'

BAD_TRACES = {
    "empty": ("t.csv", b"", ("t.csv", "is empty")),
    "no column": (
        "t.csv",
        b"TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,374\n",
        ("t.csv", "line 1", "GeneratedTokens", "has: TIMESTAMP, ContextTokens"),
    ),
    "only a header": ("t.csv", AZURE.encode(), ("t.csv", "no row follows")),
    "unsorted": ("t.csv", (AZURE + ROW + "2023-11-16 18:17:01,1,1\n").encode(), ("t.csv", "line 3", "sorted")),
    "negative length": ("t.csv", (AZURE + "2023-11-16 18:17:03,-5,44\n").encode(), ("t.csv", "line 2", "ContextTokens", "-5")),
    "no number": ("t.csv", (AZURE + "2023-11-16 18:17:03,many,44\n").encode(), ("t.csv", "line 2", "many")),
    "truncated gzip": ("t.csv.gz", gzip.compress((AZURE + ROW * 500).encode())[:-20], ("t.csv.gz", "truncated")),
    "no key": (
        "t.jsonl",
        (MOONCAKE + '{"timestamp": 1, "input_length": 3}\n').encode(),
        ("t.jsonl", "line 2", "output_length"),
    ),
    "neither format": ("t.txt", b"hello\nworld\n", ("t.txt", "line 1", "hello")),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD_TRACES.values(), ids=BAD_TRACES)
def test_a_bad_trace(here: Path, name: str, content: bytes, said: tuple[str, ...]) -> None:
    """Named by file, line and reason; nothing was started and nothing written."""
    (here / name).write_bytes(content)
    refused("demo", "--trace", name, "--out", "report", said=said)
    assert [path.name for path in here.iterdir()] == [name]


def test_a_trace_that_is_not_there(here: Path) -> None:
    refused("demo", "--trace", "gone.csv", said=("gone.csv", "No such file"))


BAD_TOPOLOGIES = {
    "unknown key": ("round_interval_s: 5", "round_intervall_s: 5", ("arbiter.round_intervall_s", "round_interval_s")),
    "unknown GPU type": ("gpu_type: h100", "gpu_type: h20", ("groups[0].pools[0].gpu_type", "'h20'", "h100")),
    "impossible minima": ("h100: {max: 16,", "h100: {max: 3,", ("budget.gpus.h100.max", "3", "8")),
    "no decode": (
        "name: chat-decode\n        role: decode",
        "name: chat-decode\n        role: prefill",
        ("groups[0]", "decode"),
    ),
    "two pools of one name": ("name: chat-decode", "name: chat-prefill-short", ("chat-prefill-short",)),
    "not YAML": ("groups:", "groups: [", ("topology.yaml:", "not YAML")),
}


@pytest.mark.parametrize(("old", "new", "said"), BAD_TOPOLOGIES.values(), ids=BAD_TOPOLOGIES)
@pytest.mark.parametrize("command", ["demo", "run", "plan"])
def test_a_bad_topology(here: Path, command: str, old: str, new: str, said: tuple[str, ...]) -> None:
    text = EXAMPLE.read_text()
    assert old in text
    (here / "topology.yaml").write_text(text.replace(old, new, 1))
    (here / "profile").symlink_to(EXAMPLE.parent / "profile")
    refused(command, "--topology", "topology.yaml", said=("topology.yaml", *said))
    assert {path.name for path in here.iterdir()} == {"topology.yaml", "profile"}


def test_all_problems_at_once(here: Path) -> None:
    text = EXAMPLE.read_text().replace("gpu_type: h100", "gpu_type: h20", 1).replace("min_replicas: 2", "min_replicas: -2", 1)
    (here / "topology.yaml").write_text(text)
    (here / "profile").symlink_to(EXAMPLE.parent / "profile")
    result = refused("demo", "--topology", "topology.yaml", said=("'h20'", "min_replicas"))
    assert len(result.output.splitlines()) >= 2


OPTIONS = {
    "speed 0": ("--speed", "0"),
    "speed nan": ("--speed", "nan"),
    "minutes 0": ("--minutes", "0"),
    "minutes nan": ("--minutes", "nan"),
    "minutes inf": ("--minutes", "inf"),
    "scale -1": ("--scale", "-1"),
    "scale nan": ("--scale", "nan"),
    "scale inf": ("--scale", "inf"),
    "budget 0": ("--budget", "0"),
    "budget below the minima": ("--budget", "5"),
    "seed -1": ("--seed", "-1"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option(here: Path, options: tuple[str, ...]) -> None:
    refused("demo", *options, "--out", "report", said=(options[0].strip("-"),))
    assert list(here.iterdir()) == []


def test_a_folder_of_somebody_else_is_not_touched(here: Path) -> None:
    (here / "report").mkdir()
    (here / "report" / "thesis.txt").write_text("mine")
    refused("demo", "--minutes", "1", "--out", "report", said=("report", "no demo wrote"))
    assert (here / "report" / "thesis.txt").read_text() == "mine"


def test_a_bad_load(here: Path) -> None:
    refused("plan", "--topology", str(EXAMPLE), "--load", "demo/nope=1", said=("demo/nope", "demo/chat, demo/code"))


@pytest.mark.parametrize("command", ["demo", "run", "plan"])
def test_help_of_a_command(here: Path, command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert "--topology" in result.output
    assert list(here.iterdir()) == []
