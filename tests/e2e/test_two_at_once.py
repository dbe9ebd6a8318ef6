"""Two demos at once in one folder, with one name for their reports: each plays a real trace, and neither meets the other."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.e2e.runs import ROOT, Run, started

TRACES = Path(os.environ.get("PLANNER_TEST_TRACES", ROOT.parent / "shared" / "data" / "traces"))
AZURE, MOONCAKE = "azure2023_conv.csv.gz", "mooncake_conversation.jsonl.gz"
# The rates of the two are 5.5 and 3.4 requests/s; the demo's engines are slow on purpose.
SCALES = {AZURE: "0.2", MOONCAKE: "0.1"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Run, dict[str, Any], Path]]]:
    """Both ran to their end: run, summary, report folder, by trace. Where a trace is missing, the built-in workload plays."""
    home = tmp_path_factory.mktemp("two")
    with contextlib.ExitStack() as stack:
        runs = {}
        for trace in (AZURE, MOONCAKE):
            file = TRACES / trace
            source = ("--trace", str(file), "--scale", SCALES[trace]) if file.exists() else ("--seed", str(len(runs)))
            arguments = ("demo", "--minutes", "1", "--speed", "20", "--out", "demo-report", *source)
            runs[trace] = stack.enter_context(started(*arguments, folder=home))
        for run in runs.values():
            assert run.end(150) == 0, run.text
        found = {}
        for trace, run in runs.items():
            where = re.search(r"numbers: (\S+)/summary\.json", run.text)
            assert where is not None, run.text
            found[trace] = (run, orjson.loads((home / where.group(1) / "summary.json").read_bytes()), home / where.group(1))
        yield found


def test_they_do_not_meet(both: dict[str, tuple[Run, dict[str, Any], Path]]) -> None:
    (first, _, folder), (second, _, other) = both.values()
    assert {folder.name, other.name} == {"demo-report", "demo-report-2"}
    assert any("demo-report is in use by another run; writing to demo-report-2" in run.text for run in (first, second))
    endpoints = [re.search(r"endpoint: (http://127\.0\.0\.1:\d+)/v1", run.text) for run in (first, second)]
    assert endpoints[0] is not None and endpoints[1] is not None
    assert endpoints[0].group(1) != endpoints[1].group(1)
    assert (folder / "index.html").exists() and (other / "index.html").exists()
    for run in (first, second):
        run.wait_gone(3)


@pytest.mark.parametrize("trace", [AZURE, MOONCAKE])
def test_a_real_trace_is_played_without_loss(both: dict[str, tuple[Run, dict[str, Any], Path]], trace: str) -> None:
    if not (TRACES / trace).exists():
        pytest.skip(f"{TRACES / trace} is not there (set PLANNER_TEST_TRACES to where the traces are)")
    run, summary, _ = both[trace]
    assert summary["trace"].endswith(trace)
    assert trace in run.text
    assert summary["requests"] > 5
    assert (summary["lost"], summary["budget_violations"], summary["abandoned"]) == (0, 0, 0)
    assert summary["completed"] + summary["rejected"] == summary["requests"]
    assert sum(model["requests"] for model in summary["models"].values()) == summary["requests"]
