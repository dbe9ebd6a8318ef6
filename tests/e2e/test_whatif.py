"""global-planner whatif on a real Ray: the sweep gives what single replays give, and a frontier to look at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from global_planner.__main__ import EXAMPLE, main

# The command with one more variant, which fails where it runs.
ONE_FAILS = """
from global_planner.replay import sweep
from global_planner.__main__ import main
made = sweep.variants
sweep.variants = lambda *asked: (sweep.Variant(policy="nobody", budget=None, priorities={}), *made(*asked))
main()
"""


def test_a_sweep_of_budgets_and_priorities_gives_what_single_replays_give(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("t_s,rps\n0,0.4\n120,1.2\n240,0.4\n")
    trace = ["--trace", f"chat={rates},isl=600,osl=60", "--trace", f"code={rates},isl=900,osl=20"]
    tried = ("--budget", "8,12", "--priority", "chat=0,5", "--out", str(tmp_path / "whatif"))
    swept = subprocess.run(
        [sys.executable, "-c", ONE_FAILS, "whatif", "--topology", str(EXAMPLE), *trace, *tried],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert swept.returncode == 1, swept.stderr[-2000:]
    assert "[5/5] " in swept.stderr, "where no terminal shows a bar, each that ends is a line"
    assert "error: nobody: ValueError: no policy 'nobody' (has: goodput" in swept.stderr
    told = json.loads((tmp_path / "whatif" / "summary.json").read_text())
    variants = told["variants"]
    assert list(told["failed"]) == ["nobody"], "one that fails stops no other"
    assert list(variants) == [f"goodput, {gpus} GPUs, chat {priority}" for gpus in (8, 12) for priority in (0, 5)]
    assert all(label in swept.stdout for label in variants)

    single = CliRunner().invoke(
        main, ["replay", "--topology", str(EXAMPLE), *trace, "--budget", "8", "--out", str(tmp_path / "replay")]
    )
    assert single.exit_code == 0, single.output
    alone = json.loads((tmp_path / "replay" / "summary.json").read_text())["policies"]["goodput"]
    # The example's own priority of chat is 0: the same deployment, so the same numbers, wherever it ran.
    assert variants["goodput, 8 GPUs, chat 0"] == alone

    page = (tmp_path / "whatif" / "report.html").read_text()
    assert "<script src" not in page and "The frontier" in page and "goodput, 12 GPUs, chat 5" in page


def test_bad_input_is_refused_before_ray_is_started(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("t_s,rps\n0,0.4\n60,0.4\n")
    for words, expected in (
        (("--out", str(rates / "x")), "cannot be written: Not a directory"),
        (("--priority", "chat=1", "--priority", "chat=2"), "--priority chat=…: is given twice"),
        (("--policy", "goodput,best"), "no policy 'best' (has: goodput"),
        (("--budget", "3"), "3 is less than the 8 GPUs of the minima together"),
    ):
        result = CliRunner().invoke(main, ["whatif", "--topology", str(EXAMPLE), "--trace", f"chat={rates}", *words])
        assert result.exit_code == 2 and expected in result.output
    assert sorted(tmp_path.iterdir()) == [rates]
