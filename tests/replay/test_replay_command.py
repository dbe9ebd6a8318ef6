"""global-planner replay as its users meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from global_planner.__main__ import EXAMPLE, main

PLAY = ("--topology", str(EXAMPLE), "--trace", "chat=RATES")
RATES = "t_s,rps\n0,0.4\n120,1.2\n240,0.4\n"


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    path = tmp_path / "rates.csv"
    path.write_text(RATES)
    return path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["replay", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def figures_of(page: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    return told


def test_two_policies_side_by_side_and_the_same_bytes_again(rates: Path, tmp_path: Path) -> None:
    words = (
        "--topology", str(EXAMPLE), "--trace", f"chat={rates},isl=600,osl=60", "--compare", "goodput,static_peak",
        "--fault", "kill:chat-decode@3m", "--fault", "slow=3:chat-decode@1m",
    )  # fmt: skip
    first, again = tmp_path / "first", tmp_path / "again"
    status, told = run(*words, "--out", str(first))
    assert status == 0 and "goodput" in told and "static_peak" in told
    summary = json.loads((first / "summary.json").read_text())
    ours = summary["policies"]["goodput"]
    assert summary["requests"] == ours["requests"] == ours["completed"] + ours["shed"] + ours["failed"] > 150
    assert {"attainment", "gpu_hours", "moves", "half_granted_gpu_hours", "jain_fairness"} <= set(ours)
    page = (first / "report.html").read_text()
    assert "<script src" not in page and "<link" not in page and "chat-decode" in page and "goodput: granted" in page
    # Side by side is on one scale, ticks are whole numbers, and what did not change is no decision.
    drawn = {figure["id"]: figure for figure in figures_of(page)}
    ours, theirs = (drawn[f"plot-replicas-{name}-chat-decode"]["layout"]["yaxis"]["range"] for name in summary["policies"])
    assert ours == theirs
    assert {"1,000", "2,000", "5,000"} <= set(drawn["plot-cdf-ttft-chat"]["layout"]["xaxis"]["ticktext"])
    # A grant that is carried out in its round is one line of the decisions, not two.
    rows = re.findall(
        r'<tr data-pool="(.*?)".*?<td class="number">(.*?)</td><td class="number">.*?</td>.*?<td>(\S+ → \S+)</td>', page
    )
    assert len(rows) == len(set(rows)) > 5
    assert "static_peak: granted" not in page and not any(f"{count} → {count}<" in page for count in range(9))
    # The journal beside it is one like any other: every round comes out again.
    assert run("--check", str(first / "goodput" / "journal"))[0] == 0
    run(*words, "--out", str(again))
    assert (again / "summary.json").read_bytes() == (first / "summary.json").read_bytes()
    assert (again / "report.html").read_bytes() == (first / "report.html").read_bytes()


def test_a_log_is_told_that_it_goes_on(rates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal there is no bar: a line comes every now and then."""
    monkeypatch.setattr("global_planner.replay.run.TELL_EVERY_S", 0.0)
    words = (*PLAY[:2], "--trace", f"chat={rates},isl=600,osl=60", "--policy", "static_mean", "--out", str(tmp_path / "out"))
    status, told = run(*words)
    assert status == 0
    shares = [int(share) for share in re.findall(r"^static_mean: (\d+)%, [\d,]+ requests$", told, re.M)]
    assert len(shares) > 3 and shares == sorted(shares) and shares[-1] <= 100
    # What it wrote is a folder with a journal in it, which is no journal.
    status, told = run(*PLAY[:2], "--trace", f"chat={tmp_path / 'out'}", "--out", str(tmp_path / "again"))
    assert status == 2 and "is a folder without a journal; there is one in static_mean/journal" in told


def test_two_deployments_side_by_side(rates: Path, tmp_path: Path) -> None:
    """The same requests for the example, and for the example with 9 GPUs and other priorities: two runs in one report."""
    text = (
        EXAMPLE.read_text().replace("max: 16", "max: 9").replace("profile: profile", f"profile: {EXAMPLE.parent / 'profile'}")
    )
    (tmp_path / "nine.yaml").write_text(text.replace("priority: 0", "priority: 4"))
    out, trace = tmp_path / "out", f"chat={rates},isl=600,osl=60"
    both = ("--trace", trace, "--trace", f"code={rates},isl=300,osl=20,scale=0.3")
    words = ("--topology", str(EXAMPLE), "--beside", str(tmp_path / "nine.yaml"), *both, "--out", str(out))
    status, told = run(*words)
    assert status == 0, told
    numbers = json.loads((out / "summary.json").read_text())["policies"]
    assert list(numbers) == ["goodput@topology", "goodput@nine"]
    assert (
        numbers["goodput@nine"]["gpu_types"]["h100"]["budget"] == 9 >= numbers["goodput@nine"]["gpu_types"]["h100"]["most_held"]
    )
    drawn = {figure["id"]: figure for figure in figures_of((out / "report.html").read_text())}
    budgets = [set(drawn[f"plot-gpus-{label}-h100"]["data"][-1]["y"]) for label in numbers]
    scales = [drawn[f"plot-gpus-{label}-h100"]["layout"]["yaxis"]["range"] for label in numbers]
    assert scales[0] == scales[1] and {f"plot-forecast-{label}-chat-decode" for label in numbers} <= set(drawn)
    assert budgets == [{16}, {9}] and {"plot-replicas-goodput@nine-chat-decode", "plot-attainment-chat"} <= set(drawn)
    assert drawn["plot-priorities"]["data"][0]["x"][0].endswith("class 0/4")
    # Each is what it is alone.
    alone = tmp_path / "alone"
    assert run("--topology", str(EXAMPLE), *both, "--out", str(alone))[0] == 0
    assert json.loads((alone / "summary.json").read_text())["policies"]["goodput"] == numbers["goodput@topology"]
    for changed, expected in (
        ("ttft_ms: 600", "not the models and SLAs of topology: demo/chat"),
        ("", "neither the files' names"),
    ):
        other = tmp_path / ("other.yaml" if changed else "topology.yaml")
        other.write_text(text.replace("ttft_ms: 6000", changed or "ttft_ms: 6000", 1))
        status, told = run("--topology", str(EXAMPLE), "--beside", str(other), "--trace", trace, "--out", str(tmp_path / "no"))
        assert status == 2 and expected in told and not (tmp_path / "no").exists()


def test_the_report_of_many_pools_and_of_a_fleet_beyond_the_budget(rates: Path, tmp_path: Path) -> None:
    """Seven models: traffic and GPUs are stacked by model. A fleet for the peak stands above the budget that was asked for."""
    profile = EXAMPLE.parent / "profile"
    pools = [("prefill", 6), ("decode", 8)]
    groups = [
        {
            "name": f"m{number}", "model": f"made/m{number}", "sla": {"ttft_ms": 6000, "itl_ms": 500},
            "pools": [
                {"name": f"m{number}-{role}", "role": role, "dgd": f"m{number}", "gpu_type": "h100", "min_replicas": 1,
                 "max_replicas": most, "profile": str(profile)}
                for role, most in pools
            ],
        }
        for number in range(7)
    ]  # fmt: skip
    topology = tmp_path / "seven.json"
    topology.write_text(json.dumps({"name": "seven", "budget": {"gpus": {"h100": {"max": 14}}}, "groups": groups}))
    traces = [word for number in range(7) for word in ("--trace", f"m{number}={rates},isl=300,osl=60,scale=3")]
    status, told = run("--topology", str(topology), *traces, "--policy", "static_peak", "--out", str(tmp_path / "out"))
    assert status == 0, told
    drawn = {figure["id"]: figure for figure in figures_of((tmp_path / "out" / "report.html").read_text())}
    areas, budget = (drawn["plot-gpus-static_peak-h100"]["data"][part] for part in (slice(None, -1), -1))
    assert [area["name"] for area in areas] == [f"m{number}" for number in range(7)]
    assert budget["name"] == "budget" and set(budget["y"]) == {14}
    most = json.loads((tmp_path / "out" / "summary.json").read_text())["policies"]["static_peak"]["gpu_types"]["h100"]
    assert sum(area["y"][0] for area in areas) == most["most_held"] > 14 and f" {most['most_held']} " in told
    assert all(line["stackgroup"] for line in drawn["plot-traffic"]["data"])


def test_the_report_shows_who_was_served_first(rates: Path, tmp_path: Path) -> None:
    """Two groups, one with requests of two priorities: a bar for each, those served first on the left."""
    more = f"chat={rates},isl=600,osl=60,scale=0.5,priority=3"
    words = ("--topology", str(EXAMPLE), "--trace", f"chat={rates},isl=600,osl=60", "--trace", more, "--trace")
    status, told = run(*words, f"code={rates},isl=300,osl=30", "--policy", "static_mean", "--out", str(tmp_path / "out"))
    assert status == 0, told
    page = (tmp_path / "out" / "report.html").read_text()
    [drawn] = [figure for figure in figures_of(page) if figure["id"] == "plot-priorities"]
    [bars] = drawn["data"]
    assert [label.split("<br>") for label in bars["x"]] == [
        ["chat", "class 0, requests of 3"], ["chat", "class 0, requests of 0"], ["code", "class 0"],
    ]  # fmt: skip
    scores = json.loads((tmp_path / "out" / "summary.json").read_text())["policies"]["static_mean"]["models"]
    by_hand = [scores["demo/chat"]["priorities"]["3"], scores["demo/chat"]["priorities"]["0"], scores["demo/code"]]
    assert bars["y"] == pytest.approx([one["attainment"] for one in by_hand], abs=1e-4)
    assert bars["customdata"] == [one["requests"] for one in by_hand]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "Give --topology and at least one --trace"),
        (("--topology", str(EXAMPLE), "--trace", "chat=none.csv"), "none.csv: cannot be read"),
        (("--topology", str(EXAMPLE), "--trace", "talk=RATES"), "no model or group 'talk' (has: demo/chat, demo/code)"),
        (("--topology", str(EXAMPLE), "--trace", "chat=RATES", "--policy", "best"), "no policy 'best' (has: goodput"),
        (("--topology", str(EXAMPLE), "--trace", "chat=RATES", "--start", "x=1"), "no pool 'x' (has: chat-prefill-short"),
        (
            ("--topology", str(EXAMPLE), "--trace", "chat=RATES", "--fault", "burn:x@1m"),
            "KIND one of kill, slow, hang, recover",
        ),
        (
            ("--topology", str(EXAMPLE), "--trace", "chat=RATES", "--fault", "kill:chat-decode@-5m"),
            "--fault kill:chat-decode@-5m: '-5m' is not a duration",
        ),
        (("--topology", str(EXAMPLE), "--trace", "chat=RATES", "--fault", "slow=1:chat-decode@5m"), "which must be above 1"),
        (("--topology", str(EXAMPLE), "--trace", "chat=RATES", "--fault", "kill=2:chat-decode@5m"), "only slow takes a number"),
        (("--show-changes",), "--show-changes goes with --check"),
        ((*PLAY, "--compare", "hpa,", "--policy", "hpa"), "Give --policy or --compare, not both"),
        ((*PLAY, "--compare", ","), "no policy ',' (has: goodput"),
        ((*PLAY, "--start", "chat-decode=99"), "--start chat-decode=99: its max_replicas is 8"),
        ((*PLAY, "--start", "chat-decode=8", "--start", "code-decode=8"), "20 h100 together"),
        ((*PLAY, "--out", "RATES/x"), "RATES/x: cannot be written: Not a directory"),
        (("--topology", str(EXAMPLE), "--trace", "chat=ONE"), "all requests come at one moment: --window TIME"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(rates: Path, words: tuple[str, ...], expected: str) -> None:
    one = rates.with_name("one.csv")
    one.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,374,12\n")
    before = sorted(rates.parent.iterdir())
    status, told = run(*(word.replace("RATES", str(rates)).replace("ONE", str(one)) for word in words))
    assert status == 2 and expected.replace("RATES", str(rates)) in told and "Traceback" not in told
    assert sorted(rates.parent.iterdir()) == before
