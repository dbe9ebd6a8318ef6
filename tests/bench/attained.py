"""[I/O] Is it true what planners say? `python -m tests.bench.attained [--json FILE] [--jobs N] [--others] [--only WHICH]`

Fleets that stay, from room enough to twice the load that they carry, behind the router's door and without it: the share of
requests that the proposals' curve says to be served within the SLA, beside what replay attains. The target is 10 % of what was
said. Where nearly everybody is late, 10 % of next to nothing is no measure: what is off by less than 0.02 is told apart.

`--others`: shapes and fleets that nothing was derived from, aggregated ones among them.

Planners begin without knowing anything of the requests, so what they say while they learn counts, too. A case takes as long as
REQUESTS need, from one hour to four. JSON keys: with_admission, without_admission (each: cases, within_a_tenth,
else_within_0.02), rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from tests.replay.attaining import Case, attain

REQUESTS, MINUTES = 4000.0, (60.0, 240.0)
WITHIN, NOTHING = 0.10, 0.02
SHAPES = {(700, 20): 6.0, (700, 200): 6.0, (3000, 200): 12.0, (3000, 20): 12.0, (8000, 300): 30.0}  # and the TTFT, s
FLEETS = ((1, 1), (3, 3), (2, 4), (4, 2))
TIMES = (0.8, 1.0, 1.3, 2.0)
OTHER_SHAPES = {(5000, 100): 20.0, (1500, 400): 8.0, (12000, 150): 45.0, (300, 60): 6.0}
OTHER_FLEETS: tuple[dict[str, int], ...] = ({"prefill": 1, "decode": 2}, {"prefill": 5, "decode": 2}, {"agg": 3})
OTHER_TIMES = (1.0, 1.3, 2.0)


def cases(*, others: bool, doors: tuple[bool, ...]) -> list[Case]:
    shapes, times = (OTHER_SHAPES, OTHER_TIMES) if others else (SHAPES, TIMES)
    fleets = OTHER_FLEETS if others else tuple({"prefill": prefill, "decode": decode} for prefill, decode in FLEETS)
    return [
        Case(**fleet, isl=isl, osl=osl, ttft_s=ttft_s, times=each, door=door)
        for door in doors
        for (isl, osl), ttft_s in shapes.items()
        for fleet in fleets
        for each in times
    ]


def told(case: Case) -> dict[str, Any]:
    """One row."""
    one = attain(case, requests=REQUESTS, minutes=MINUTES)
    return {
        "fleet": case.fleet,
        "isl": case.isl,
        "osl": case.osl,
        "times": case.times,
        "door": case.door,
        "said": round(one.said, 4),
        "attained": round(one.attained, 4),
        "error": None if one.error is None else round(one.error, 4),
        "requests": one.requests,
    }


def shown(row: Mapping[str, Any]) -> str:
    verdict = "" if _within(row) else "~" if _next_to_nothing(row) else "***"
    error = "" if row["error"] is None else f"{100 * row['error']:+8.1f} %"
    return (
        f"{'door' if row['door'] else 'open':6s}{row['isl']:6d}/{row['osl']:<6d}{row['fleet']:8s}{row['times']:4.1f}"
        f"{row['said']:9.3f}{row['attained']:10.3f}{error:>10s} {verdict}"
    )


def _within(row: Mapping[str, Any]) -> bool:
    return bool(abs(row["attained"] - row["said"]) <= WITHIN * row["said"])


def _next_to_nothing(row: Mapping[str, Any]) -> bool:
    return bool(abs(row["attained"] - row["said"]) < NOTHING)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the rows go")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    parser.add_argument("--others", action="store_true", help="shapes and fleets that nothing was derived from")
    parser.add_argument("--only", choices=("with", "without"), help="behind the door, or without it (default: both)")
    given = parser.parse_args(argv)
    if given.jobs < 1:
        parser.error(f"--jobs: {given.jobs} must be 1 or more")
    doors = {"with": (True,), "without": (False,), None: (True, False)}[given.only]
    wanted, console, rows = cases(others=given.others, doors=doors), Console(stderr=True), []
    print(f"{'':6s}{'prompt/answer':>13s} {'fleet':7s}load{'said':>9s}{'attained':>10s}{'error':>8s}", flush=True)
    with ProcessPoolExecutor(max_workers=given.jobs) as pool:
        for row in track(pool.map(told, wanted), total=len(wanted), console=console, disable=not console.is_terminal):
            rows.append(row)
            print(shown(row), flush=True)
    summary: dict[str, Any] = {}
    for door in doors:
        mine = [row for row in rows if row["door"] is door]
        good = sum(_within(row) for row in mine)
        nearly = sum(not _within(row) and _next_to_nothing(row) for row in mine)
        name = "with_admission" if door else "without_admission"
        summary[name] = {"cases": len(mine), "within_a_tenth": good, "else_within_0.02": nearly}
        print(f"{name}: {good} of {len(mine)} within 10 %" + (f", {nearly} more within {NOTHING}" if nearly else ""))
    if given.json:
        given.json.write_text(json.dumps({**summary, "rows": rows}, indent=1) + "\n")
    return 0 if all(each["within_a_tenth"] + each["else_within_0.02"] == each["cases"] for each in summary.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
