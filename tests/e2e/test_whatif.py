"""global-planner whatif on a real Ray: the sweep gives what single replays give, and a frontier to look at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from global_planner.__main__ import EXAMPLE, main


def test_a_sweep_of_budgets_and_priorities_gives_what_single_replays_give(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("t_s,rps\n0,0.4\n120,1.2\n240,0.4\n")
    trace = ["--trace", f"chat={rates},isl=600,osl=60", "--trace", f"code={rates},isl=900,osl=20"]
    tried = ("--budget", "8,12", "--priority", "chat=0,5", "--out", str(tmp_path / "whatif"))
    swept = subprocess.run(
        [sys.executable, "-m", "global_planner", "whatif", "--topology", str(EXAMPLE), *trace, *tried],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert swept.returncode == 0, swept.stderr[-2000:]
    variants = json.loads((tmp_path / "whatif" / "summary.json").read_text())["variants"]
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
