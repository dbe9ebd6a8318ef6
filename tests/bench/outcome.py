"""Who decides better? `python -m tests.bench.outcome --json FILE [--scenario NAME,…] [--policies A,B,…] [--quick]
[--compiled] [--jobs N]`

The scenarios of `outcome_scenarios`, each with every policy, in virtual time: engines, router, cluster and rollout are the
same for all; who decides differs. Told for each are the shares of requests within TTFT, ITL and both, GPU-hours, violations
(requests that missed something or were not answered), moves, GPU-hours of half grants, and fairness between models.

Targets, each in the scenarios where it applies: attainment and GPU-hours (the anchored ones, as measured elsewhere), GPU-hours
against a fleet for the peak, violations under contention, and violations plus cost against an oracle that knows the trace.

Under contention there are four to compare with. `first_come` is the mediator that is in use elsewhere: planners (ours) ask
one after the other and get all or nothing, and no door knows what fits. `first_come_door` decides the same behind our door, so
what is between it and ours is arbitration alone. `existing` is such a system as a whole: its planner, too, is the existing one,
as its guide describes it. `hpa` is Kubernetes' autoscaler. Beside each ratio stands the oracle's: where that is below what is
asked, nobody who shares these GPUs could reach it.

Against the oracle a violated request counts four times the GPU time that a request takes. Who holds for bursts pays more than
that by default (`violation_price`), because attainment is judged beside it. Budget violations must be 0 everywhere. The same
seeds, so the same figures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from global_planner.compiled_sets import REPLAY
from global_planner.replay.policies import POLICIES
from pool_planner.compiled import CannotCompile
from tests.bench.outcome_kept import KEPT, Job, Kept, Runs
from tests.bench.outcome_peer import LIMIT_S, MODES, has_peer
from tests.bench.outcome_play import ANCHOR, FRUGAL, OURS, PEER, STATIC
from tests.bench.outcome_scenarios import CASES, Case, case
from tests.bench.outcome_traces import TRACES

ORDER = (
    OURS, FRUGAL, "max_min", "proportional", "first_come", "first_come_door", "existing", "independent", "hpa", "static_peak",
    *STATIC, "static_mean", ANCHOR, "oracle",
)  # fmt: skip
RIVALS = {
    "first_come": "the mediator as it is, without a door", "first_come_door": "arbitration alone, behind the same door",
    "existing": "the whole of an existing system", "hpa": "Kubernetes' autoscaler",
}  # fmt: skip
# What else a target is told beside, so that a miss says how much of it is in reach of anybody.
BESIDE = {
    "oracle": "the oracle, which knows the trace",
    "best_static": "the best of the fleets that never move, each sized by the trace",
}
VIOLATION_PRICE = 4.0
WITHIN_ORACLE = 0.10


def judge(each: Case, told: Mapping[str, Mapping[str, Any]], *, quick: bool) -> list[dict[str, Any]]:
    """The targets of a scenario: what was asked, what came, and whether it was reached (None: that policy was not run)."""
    judged, ours = {} if quick or each.judged is None else each.judged, told.get(OURS)
    rows: list[dict[str, Any]] = []

    def row(target: str, asked: str, got: float | None, good: bool | None, **beside: float | None) -> None:
        one = {"target": target, "asked": asked, "got": None if got is None else round(got, 3), "reached": good}
        rows.append({**one, **{who: round(value, 3) for who, value in beside.items() if value is not None}})

    for who, figures in told.items():
        if who in (OURS, FRUGAL) and figures["budget_violations"]:
            row(f"{who}: budget violations", "0", figures["budget_violations"], False)
    if ours is None:
        return rows
    frugal = told.get(FRUGAL)
    for prefix, figures in (("", ours), ("frugal_", frugal)):
        for limit in ("attainment", "gpu_hours"):
            bound = judged.get(prefix + limit)
            if bound is not None and figures is not None:
                got = figures[limit]
                good = got >= bound if limit == "attainment" else got <= bound
                row(prefix + limit, f"{'>=' if limit == 'attainment' else '<='} {bound}", got, good)
    peak = told.get("static_peak")
    if "saved" in judged and peak is not None:
        saved = 1 - ours["gpu_hours"] / peak["gpu_hours"]
        row("GPU-hours saved against static_peak", f">= {judged['saved']:.0%}", saved, saved >= judged["saved"])
    best = told.get("oracle")
    for other, what in RIVALS.items():
        if "contention" in judged and other in told:
            theirs, asked = told[other]["violations"], judged["contention"]
            ratio = theirs / max(1, ours["violations"])
            at_best = None if best is None else theirs / max(1, best["violations"])
            row(f"violations of {other} over ours ({what})", f">= {asked}", ratio, ratio >= asked, oracle=at_best)
    if best is not None:
        price = VIOLATION_PRICE * best["gpu_hours"] / max(1, best["requests"])

        def paid(figures: Mapping[str, Any]) -> float:
            return float(figures["gpu_hours"] + price * figures["violations"])

        ratio = paid(ours) / paid(best)
        still = min((paid(told[who]) / paid(best) for who in told if who.startswith("static_")), default=None)
        target, asked = "violations plus cost over the oracle's", f"<= {1 + WITHIN_ORACLE}"
        row(target, asked, ratio, ratio <= 1 + WITHIN_ORACLE, best_static=still)
    return rows


def applies(name: str, who: str) -> bool:
    """Whether a policy can be played in a scenario: a peer plays one model, and only anchors have a fleet of their own."""
    if who.startswith(PEER):
        return has_peer(case(name))
    if who in STATIC:
        return len(case(name).models) == 1
    return who != ANCHOR or case(name).anchor is not None


def run(
    names: Sequence[str], policies: Sequence[str], *, quick: bool, jobs: int, fast: bool, kept: Kept | None,
    peer_limit_s: float = LIMIT_S,
) -> dict[str, Any]:  # fmt: skip
    """Play what is not kept yet. A run that fails is left out, and told on standard error; of a peer that was stopped at its
    limit it is told how far it came."""
    told: dict[str, dict[str, Any]] = {name: {} for name in names}
    todo: list[Job] = []
    for name in names:
        for who in policies:
            if applies(name, who):
                known = None if kept is None else kept.get((name, who))
                if known is None:
                    todo.append((name, who))
                else:
                    told[name][who] = known
    failed: list[str] = []
    unfinished: dict[str, dict[str, Any]] = {name: {} for name in names}
    runs = partial(Runs, quick=quick, compiled=fast, at_once=jobs, peer_limit_s=peer_limit_s)
    for job, answer in _with_progress(todo, runs, known=sum(map(len, told.values()))):
        if answer is None:
            failed.append(" ".join(job))
            continue
        if "unfinished" in answer:
            unfinished[job[0]][job[1]] = answer["unfinished"]
            continue
        told[job[0]][job[1]] = answer["figures"]
        if kept is not None:
            kept.put(job, answer)
    scenarios = {}
    for name in names:
        ordered = {who: told[name][who] for who in policies if who in told[name]}
        scenarios[name] = {
            "about": case(name).about,
            "policies": ordered,
            "targets": judge(case(name), ordered, quick=quick),
            "unfinished": unfinished[name],
        }
    return {"quick": quick, "scenarios": scenarios, "failed": failed}


def _with_progress(todo: Sequence[Job], runs: Callable[..., Runs], *, known: int) -> Any:
    """(job, what it told) as they end, with a bar for all and one for each that runs; lines where no terminal looks."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    if known:
        console.print(f"{known} kept from before, {len(todo)} to play")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        whole = progress.add_task("all", total=len(todo))
        bars: dict[Job, TaskID] = {}

        def hear(job: Job, share: float) -> None:
            if job not in bars:
                bars[job] = progress.add_task(" ".join(job), total=1.0)
            progress.update(bars[job], completed=share)

        began = time.monotonic()
        for count, (job, answer) in enumerate(runs(told=hear).results(todo), start=1):
            if job in bars:
                progress.remove_task(bars.pop(job))
            progress.update(whole, completed=count)
            said = "FAILED" if answer is None else _line(answer)
            console.print(
                f"[{count}/{len(todo)}, {time.monotonic() - began:.0f} s] {' '.join(job)}: {said}",
                highlight=False,
                markup=False,
            )
            yield job, answer


def _line(answer: Mapping[str, Any]) -> str:
    if "unfinished" in answer:
        return _stopped(answer["unfinished"])
    figures = answer["figures"]
    return f"{figures['attainment']:.3f} at {figures['gpu_hours']:.2f} GPU-hours ({figures['cpu_s']:.0f} CPU s)"


def _stopped(unfinished: Mapping[str, float]) -> str:
    return f"not finished after {unfinished['after_s']:.0f} s, {unfinished['played']:.0%} of the trace (--peer-limit)"


def table(result: Mapping[str, Any]) -> str:
    lines = []
    for name, scenario in result["scenarios"].items():
        lines += ["", f"{name}: {scenario['about']}"]
        lines.append("  policy            TTFT    ITL   both    GPU-h violations  moves   half   Jain")
        for who, figures in scenario["policies"].items():
            shares = " ".join(
                f"{'-' if figures[key] is None else format(figures[key], '.3f'):>6}"
                for key in ("ttft_attainment", "itl_attainment", "attainment")
            )
            jain, half = figures["jain_fairness"], figures["half_granted_gpu_hours"]
            lines.append(
                f"  {who:15} {shares} {figures['gpu_hours']:8.2f} {figures['violations']:10d} {figures['moves']:6d} "
                f"{'-' if half is None else format(half, '.2f'):>6} {'-' if jain is None else format(jain, '.3f'):>6}"
            )
        lines += [f"  {who:15} {_stopped(one)}" for who, one in scenario.get("unfinished", {}).items()]
        told = {who: figures["violations_by_priority"] for who, figures in scenario["policies"].items()}
        if any(len(by_class) > 1 for by_class in told.values()):
            lines.append(
                f"  violations by priority class ({', '.join(next(iter(told.values())))}), and all by the weight of the models:"
            )
            lines += [
                f"  {who:15} {' '.join(f'{count:6d}' for count in by_class.values())} "
                f"{scenario['policies'][who]['weighted_violations']:8.0f}"
                for who, by_class in told.items()
            ]
        for target in scenario["targets"]:
            mark = "reached" if target["reached"] else "MISSED"
            beside = "".join(f"; {words}: {target[who]}" for who, words in BESIDE.items() if who in target)
            lines.append(f"  {mark:8} {target['target']}: {target['got']} (asked: {target['asked']}{beside})")
    if result["failed"]:
        lines += ["", f"FAILED: {', '.join(result['failed'])} (why: above)"]
    return "\n".join(lines)


def main() -> None:
    names = [each.name for each in CASES]
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.outcome",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n" + "\n".join(f"  {each.name:10} {each.about}" for each in CASES)
        + "\n\nExample: python -m tests.bench.outcome --scenario conv-90s,code-90s --policies goodput,hpa,static_peak",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures are written")
    parser.add_argument("--scenario", default=",".join(names), metavar="A,B", help="default: all")
    parser.add_argument(
        "--policies", default=",".join(ORDER), metavar="A,B", help=f"of {', '.join((FRUGAL, ANCHOR, *STATIC, *POLICIES))}"
    )
    parser.add_argument("--quick", action="store_true", help="a part of each scenario; fewer targets are judged")
    parser.add_argument(
        "--peer", nargs="?", const=",".join(MODES), metavar="MODE,…",
        help=f"also ai-dynamo's own replay and planner, in scenarios of one model (default: all its modes, {', '.join(MODES)})",
    )  # fmt: skip
    parser.add_argument(
        "--peer-limit", type=float, default=LIMIT_S, metavar="SECONDS",
        help="how long one of its runs may take before it is stopped, and told how far it came (default: %(default).0f)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (default: 1)")
    parser.add_argument("--compiled", action="store_true", help="the hot path compiled, built on first use (extra: fast)")
    parser.add_argument(
        "--keep", type=Path, default=KEPT, metavar="DIR",
        help="where each result is kept as it ends; what is there is used again while the sources are the same "
        "(default: .cache/outcome)",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="play everything again, whatever was kept")
    options = parser.parse_args()
    asked, policies = options.scenario.split(","), options.policies.split(",")
    for chosen, known, what in ((asked, names, "--scenario"), (policies, [FRUGAL, ANCHOR, *STATIC, *POLICIES], "--policies")):
        strangers = [name for name in chosen if name not in known]
        if strangers:
            parser.error(f"{what}: no {strangers[0]!r} (has: {', '.join(known)})")
    modes = options.peer.split(",") if options.peer else []
    if strange := [mode for mode in modes if mode not in MODES]:
        parser.error(f"--peer: no mode {strange[0]!r} (has: {', '.join(MODES)})")
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} must be 1 or more")
    if not 0.0 < options.peer_limit < math.inf:
        parser.error(f"--peer-limit: {options.peer_limit} must be a number of seconds above 0")
    if not TRACES.is_dir():
        parser.error(f"the public traces are not at {TRACES}")
    if options.compiled:
        print("compiling what is not compiled yet …", file=sys.stderr)
        try:
            REPLAY.build()
        except CannotCompile as error:
            parser.error(f"--compiled: {error}")
    kept = Kept(options.keep, quick=options.quick)
    if options.fresh:
        kept.forget()
    result = run(
        asked, [*policies, *(PEER + mode for mode in modes)], quick=options.quick, jobs=options.jobs, fast=options.compiled,
        kept=kept, peer_limit_s=options.peer_limit,
    )  # fmt: skip
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = [row for scenario in result["scenarios"].values() for row in scenario["targets"] if not row["reached"]]
    sys.exit(1 if missed or result["failed"] else 0)


if __name__ == "__main__":
    main()
