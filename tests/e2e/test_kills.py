"""One demo, as a user starts it, that loses its arbiter, a planner and a busy engine on the way: it goes on, says so, and
nothing is lost. What it leaves behind is looked at afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from global_planner.demo.run import read_records
from global_planner.demo.snapshot import over_budget
from global_planner.journal_reader import read
from global_planner.mocker.load_record import LoadRecord
from global_planner.replay.check import check
from global_planner.types import Round
from tests.e2e.runs import Inside, Process, Run, busiest, console, finished, look, started, until

PREFILL_POOLS = ("chat-prefill-short", "code-prefill-short", "chat-prefill-long", "code-prefill-long")


@dataclass(slots=True)
class Story:
    """What was done to the demo, and how it ended."""

    run: Run
    folder: Path
    killed: dict[str, Process] = field(default_factory=dict)
    engine: str = ""
    engine_had: int = 0
    retried: float = 0.0
    status: int | None = None
    text: str = ""

    @property
    def inside(self) -> Inside:
        return Inside(self.folder / "run")

    def kill(self, what: str, process: Process) -> None:
        process.kill()
        self.killed[what] = process

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((self.folder / "summary.json").read_bytes())
        return found

    @property
    def rounds(self) -> list[Round]:
        return [record for record in read(self.folder / "run" / "journal") if isinstance(record, Round)]

    @property
    def records(self) -> list[LoadRecord]:
        return read_records(self.folder / "run" / "load.jsonl")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Ten model minutes; each kill waits until the one before was noticed."""
    home = tmp_path_factory.mktemp("demo")
    with started("demo", "--minutes", "10", "--speed", "20", "--out", "report", folder=home) as run:
        story = Story(run, home / "report")
        run.wait_for(r"endpoint: http://127\.0\.0\.1:\d+/v1", 90)
        run.wait_for(r"[1-9]\d*/\d+ completed", 60)
        _kill_an_engine(story)
        run.wait_for(rf"engine {story.engine} died", 10)
        [arbiter] = run.titled("ray::GlobalPlannerActor")
        story.kill("arbiter", arbiter)
        run.wait_for(rf"the arbiter went on after round \d+ as process (?!{arbiter.pid}\b)\d+", 30)
        planner = run.titled("ray::PoolPlannerActor")[0]
        story.kill("planner", planner)
        run.wait_for(rf"the planner of \S+ came back as process (?!{planner.pid}\b)\d+", 30)
        story.status = run.end(120)
        story.text = run.text
        yield story


def _kill_an_engine(story: Story) -> None:
    """A prefill engine with work: nothing of its requests was streamed yet."""
    found: list[tuple[str, int]] = []

    def one_is_busy() -> bool:
        for pool in PREFILL_POOLS:
            load = story.inside.in_flight(pool)
            ready = [engine["id"] for engine in story.inside.engines(pool) if engine["state"] == "ready" and engine["pid"]]
            if ready and load.get(busiest(load, ready), 0) >= 2:
                found.append((pool, load[busiest(load, ready)]))
                story.engine = busiest(load, ready)
                return True
        return False

    story.retried = story.inside.metric("global_planner_router_requests_total", outcome="retried")
    until(one_is_busy, 30, "a busy prefill engine")
    pool, story.engine_had = found[0]
    process = look(next(engine["pid"] for engine in story.inside.engines(pool) if engine["id"] == story.engine))
    assert process is not None
    story.kill("engine", process)
    until(
        lambda: story.inside.metric("global_planner_router_requests_total", outcome="retried") > story.retried,
        5,
        "its requests are tried again",
    )


def test_the_demo_goes_on_and_loses_nothing(story: Story) -> None:
    summary = story.summary
    assert story.status == 0, story.text
    assert set(story.killed) == {"arbiter", "planner", "engine"}
    assert (summary["lost"], summary["abandoned"], summary["budget_violations"]) == (0, 0, 0)
    assert summary["completed"] + summary["rejected"] == summary["requests"]
    assert summary["completed"] >= 0.99 * summary["requests"]
    assert summary["max_charged_gpus"] <= summary["budget_gpus"] == 16
    assert summary["scale_ups"] >= 4
    assert summary["scale_downs"] >= 4


def test_it_says_what_happened(story: Story) -> None:
    """In its output, and in the report, in our words and once; nothing of Ray's own is in between."""
    told = [line for line in story.text.splitlines() if re.match(r"\[ *\d+\.\d s\]", line)]
    about_engine = [line for line in told if f"engine {story.engine} died" in line]
    assert len(about_engine) == 1
    assert len([line for line in told if "the arbiter went on after round" in line]) == 1
    assert len([line for line in told if "came back as process" in line]) == 1
    assert "(raylet)" not in story.text
    assert "Traceback" not in story.text
    page = (story.folder / "index.html").read_text()
    assert f"engine {story.engine} died" in page
    assert "the arbiter went on after round" in page


def test_rounds_go_on_through_the_restart(story: Story) -> None:
    """The killed arbiter's unfinished round keeps its number; no number is used twice, and no other is missing."""
    numbers = [done.inputs.round_no for done in story.rounds]
    assert numbers[0] == 1
    assert all(later > before for before, later in pairwise(numbers))
    assert numbers[-1] - len(numbers) in (0, 1)
    assert not any(map(over_budget, story.rounds))
    assert story.summary["rounds"] == len(numbers)


def test_the_killed_engine_was_replaced(story: Story) -> None:
    """Its pool held a ready replica again, and the dead one's GPU was never charged twice over the budget."""
    pool = story.engine.rsplit("-", 1)[0]
    after = [holding for holding in story.rounds[-1].inputs.holdings if holding.pool == pool]
    assert [replica.id for replica in after[0].replicas if replica.state == "ready"]
    assert story.engine not in [replica.id for replica in after[0].replicas]


def test_the_journal_reproduces_every_round(story: Story) -> None:
    result = check(story.folder / "run" / "journal")
    assert result.rounds == len(story.rounds)
    assert result.reproduced, [str(difference) for difference in result.differences]


def test_the_summary_has_what_was_promised(story: Story) -> None:
    summary = story.summary
    counts = ("requests", "completed", "lost", "retried", "max_charged_gpus", "budget_violations", "rounds")
    assert all(isinstance(summary[key], int) for key in (*counts, "budget_gpus", "scale_ups", "scale_downs"))
    numbers = ("ttft_attainment", "itl_attainment", "gpu_hours", "gpu_hours_static_peak", "decisions_p99_ms")
    assert all(isinstance(summary[key], float) for key in (*numbers, "wall_s", "speed", "overhead_ms_p50"))
    assert summary["speed"] == 20.0
    assert 0 < summary["gpu_hours"] < summary["gpu_hours_static_peak"]
    assert summary["requests"] == len(story.records)
    assert sum(model["requests"] for model in summary["models"].values()) == summary["requests"]
    assert set(summary["pools"]) == {
        f"{model}-{pool}" for model in ("chat", "code") for pool in ("prefill-short", "decode", "prefill-long")
    }
    per_pool = {"requests", "attainment", "gpu_hours", "gpu_hours_static_peak", "scale_ups", "scale_downs"}
    assert all(per_pool <= set(pool) for pool in summary["pools"].values())
    for key in ("scale_ups", "scale_downs"):
        # The whole counts every round, a pool those from the load's start to its last answer.
        assert 0 < sum(pool[key] for pool in summary["pools"].values()) <= summary[key]
    assert sum(pool["gpu_hours"] for pool in summary["pools"].values()) == pytest.approx(summary["gpu_hours"])


def test_every_request_has_one_record(story: Story) -> None:
    records = story.records
    played = (story.folder / "run" / "workload.jsonl").read_bytes().splitlines()
    assert sorted(record.index for record in records) == list(range(len(played)))
    assert {record.chat for record in records} == {record.streamed for record in records} == {True, False}


class _Fetches(HTMLParser):
    """Every address that a browser would fetch on opening the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        address = named.get("src") or named.get("data") or (named.get("href") if tag in ("link", "image", "use") else None)
        if address and not address.startswith(("data:", "#")):
            self.found.append(f"<{tag}> {address}")


def test_the_report_needs_nothing_else(story: Story) -> None:
    page = (story.folder / "index.html").read_text()
    parser = _Fetches()
    parser.feed(page)
    assert parser.found == []
    styles = "".join(re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL))
    assert not re.findall(r"@import|url\(\s*['\"]?(?!data:|#)", styles)
    for title in ("chat-prefill-short", "code-decode", "demo/chat", "demo/code"):
        assert title in page


def test_the_output_names_what_it_wrote(story: Story) -> None:
    assert "report: report/index.html" in story.text
    assert (story.folder / "index.html").stat().st_size > 10_000
    assert "none was lost" in story.text


def test_no_process_stays(story: Story) -> None:
    story.run.wait_gone(3)


def test_plan_reads_its_last_round(story: Story) -> None:
    """`global-planner plan` decides the last recorded round of that demo again."""
    journal_home = story.folder / "run"
    before = {path: path.read_bytes() for path in journal_home.rglob("*") if path.is_file()}
    done = finished(
        *(console("global-planner"), "plan", "--topology", str(journal_home / "topology.json")),
        *("--folder", str(journal_home)),
        folder=story.folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert f"(round {story.rounds[-1].inputs.round_no})" in done.stdout
    assert "Nothing was changed." in done.stdout
    assert {path: path.read_bytes() for path in journal_home.rglob("*") if path.is_file()} == before
