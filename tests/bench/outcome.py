"""Who decides better? `python -m tests.bench.outcome --json FILE [--scenario NAME,…] [--policies A,B,…] [--quick] [--jobs N]`

The scenarios of `outcome_scenarios`, each with every policy, in virtual time: engines, router, cluster and rollout are the
same for all; who decides differs. Told for each are the shares of requests within TTFT, ITL and both, GPU-hours, violations
(requests that missed something or were not answered), moves, GPU-hours of half grants, and fairness between models.

Targets, each in the scenarios where it applies: attainment and GPU-hours (the anchored ones, as measured elsewhere), GPU-hours
against a fleet for the peak, violations against those who ask one by one under contention, and violations plus cost against an
oracle that knows the trace. There a violated request counts four times the GPU time that a request takes: the price at which
the planners' default, the 0.8 quantile, is right. Budget violations must be 0 everywhere. The same seeds, so the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from global_planner.replay.contenders import Contender, objective
from global_planner.replay.policies import POLICIES, policy
from global_planner.replay.scenario import Outcome
from global_planner.replay.simulator import simulate
from global_planner.replay.summary import summarise
from tests.bench.outcome_peer import MODES, PEER, has_peer, peer_figures
from tests.bench.outcome_scenarios import CASES, Case, case
from tests.bench.outcome_traces import TRACES

OURS, FRUGAL = "goodput", "frugal"
# Whoever pays for every GPU: a lower target, and the forecast's mean instead of its upper quantile.
FRUGAL_SETTINGS = {"attainment_target": 0.8, "forecast_quantile": 0.5}
ORDER = (OURS, FRUGAL, "max_min", "proportional", "first_come", "independent", "hpa", "static_peak", "static_mean", "oracle")
VIOLATION_PRICE = 4.0
WITHIN_ORACLE = 0.10
KEYS = (
    "ttft_attainment", "itl_attainment", "attainment", "gpu_hours", "violations", "moves", "reconfigurations_per_hour",
    "budget_violations", "half_granted_gpu_hours", "jain_fairness",
)  # fmt: skip


def contender(name: str) -> Contender:
    """One of the replay's policies, or `frugal`: ours with the settings of who pays for every GPU."""
    if name != FRUGAL:
        return policy(name)
    ours = objective(OURS)
    assert ours.deploy is not None
    deploy = ours.deploy

    def frugal(topology: Any, profiles: Any, workload: Any) -> Any:
        extensions = {**topology.planner.get("extensions", {}), **FRUGAL_SETTINGS}
        return deploy(
            topology.model_copy(update={"planner": {**topology.planner, "extensions": extensions}}), profiles, workload
        )

    return replace(ours, name=FRUGAL, deploy=frugal)


def run_one(name: str, who: str, quick: bool) -> dict[str, Any]:
    """The figures of one policy in one scenario, or of a mode of the peer."""
    if who.startswith(PEER):
        return peer_figures(case(name), who.removeprefix(PEER), quick=quick)
    scenario = case(name).scenario(quick=quick)
    began = time.process_time()
    outcome = simulate(scenario, contender(who))
    figures = summarise(outcome, scenario.profiles, scenario.workload)
    return {
        **{key: figures[key] for key in KEYS},
        "gpu_hours": round(sum(outcome.gpu_hours.values()), 4),
        "requests": outcome.total().requests,
        "shed": outcome.total().shed,
        "violations_by_priority": violations_by_priority(outcome),
        "cpu_s": round(time.process_time() - began, 1),
    }


def violations_by_priority(outcome: Outcome) -> dict[str, int]:
    """Violations by the priority class of the models, the highest first: who pays where there is not enough for all."""
    told: dict[int, int] = {}
    for group in outcome.topology.groups:
        told[group.priority] = told.get(group.priority, 0) + outcome.of_model(group.model).violations
    return {str(rank): told[rank] for rank in sorted(told, reverse=True)}


def judge(each: Case, told: Mapping[str, Mapping[str, Any]], *, quick: bool) -> list[dict[str, Any]]:
    """The targets of a scenario: what was asked, what came, and whether it was reached (None: that policy was not run)."""
    judged, ours = {} if quick or each.judged is None else each.judged, told.get(OURS)
    rows: list[dict[str, Any]] = []

    def row(target: str, asked: str, got: float | None, good: bool | None) -> None:
        rows.append({"target": target, "asked": asked, "got": None if got is None else round(got, 3), "reached": good})

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
    for other in ("first_come", "hpa"):
        if "contention" in judged and other in told:
            ratio = told[other]["violations"] / max(1, ours["violations"])
            row(f"violations of {other} over ours", f">= {judged['contention']}", ratio, ratio >= judged["contention"])
    best = told.get("oracle")
    if best is not None:
        price = VIOLATION_PRICE * best["gpu_hours"] / max(1, best["requests"])
        ratio = (ours["gpu_hours"] + price * ours["violations"]) / (best["gpu_hours"] + price * best["violations"])
        row("violations plus cost over the oracle's", f"<= {1 + WITHIN_ORACLE}", ratio, ratio <= 1 + WITHIN_ORACLE)
    return rows


def run(names: Sequence[str], policies: Sequence[str], *, quick: bool, jobs: int) -> dict[str, Any]:
    told: dict[str, dict[str, Any]] = {name: {} for name in names}
    todo = [(name, who) for name in names for who in policies if not who.startswith(PEER) or has_peer(case(name))]
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        doing = {pool.submit(run_one, name, who, quick): (name, who) for name, who in todo}
        for count, done in enumerate(as_completed(doing), start=1):
            name, who = doing[done]
            figures = told[name][who] = done.result()
            print(
                f"[{count}/{len(todo)}] {name} {who}: {figures['attainment']:.3f} at {figures['gpu_hours']:.2f} GPU-hours "
                f"({figures['cpu_s']:.0f} s)", file=sys.stderr, flush=True,
            )  # fmt: skip
    scenarios = {}
    for name in names:
        ordered = {who: told[name][who] for who in policies if who in told[name]}
        scenarios[name] = {
            "about": case(name).about,
            "policies": ordered,
            "targets": judge(case(name), ordered, quick=quick),
        }
    return {"quick": quick, "scenarios": scenarios}


def table(result: Mapping[str, Any]) -> str:
    lines = []
    for name, scenario in result["scenarios"].items():
        lines += ["", f"{name}: {scenario['about']}"]
        lines.append("  policy           TTFT    ITL   both    GPU-h violations  moves   half   Jain")
        for who, figures in scenario["policies"].items():
            shares = " ".join(
                f"{'-' if figures[key] is None else format(figures[key], '.3f'):>6}"
                for key in ("ttft_attainment", "itl_attainment", "attainment")
            )
            jain, half = figures["jain_fairness"], figures["half_granted_gpu_hours"]
            lines.append(
                f"  {who:14} {shares} {figures['gpu_hours']:8.2f} {figures['violations']:10d} {figures['moves']:6d} "
                f"{'-' if half is None else format(half, '.2f'):>6} {'-' if jain is None else format(jain, '.3f'):>6}"
            )
        told = {who: figures["violations_by_priority"] for who, figures in scenario["policies"].items()}
        if any(len(by_class) > 1 for by_class in told.values()):
            lines.append(f"  violations by priority class ({', '.join(next(iter(told.values())))}):")
            lines += [f"  {who:14} {' '.join(f'{count:6d}' for count in by_class.values())}" for who, by_class in told.items()]
        for target in scenario["targets"]:
            mark = "reached" if target["reached"] else "MISSED"
            lines.append(f"  {mark:8} {target['target']}: {target['got']} (asked: {target['asked']})")
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
    parser.add_argument("--policies", default=",".join(ORDER), metavar="A,B", help=f"of {', '.join((FRUGAL, *POLICIES))}")
    parser.add_argument("--quick", action="store_true", help="a part of each scenario; fewer targets are judged")
    parser.add_argument(
        "--peer", nargs="?", const=",".join(MODES), metavar="MODE,…",
        help=f"also ai-dynamo's own replay and planner, in scenarios of one model (default: all its modes, {', '.join(MODES)})",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (default: 1)")
    options = parser.parse_args()
    asked, policies = options.scenario.split(","), options.policies.split(",")
    for chosen, known, what in ((asked, names, "--scenario"), (policies, [FRUGAL, *POLICIES], "--policies")):
        strangers = [name for name in chosen if name not in known]
        if strangers:
            parser.error(f"{what}: no {strangers[0]!r} (has: {', '.join(known)})")
    modes = options.peer.split(",") if options.peer else []
    if strange := [mode for mode in modes if mode not in MODES]:
        parser.error(f"--peer: no mode {strange[0]!r} (has: {', '.join(MODES)})")
    if options.jobs < 1:
        parser.error(f"--jobs: {options.jobs} must be 1 or more")
    if not TRACES.is_dir():
        parser.error(f"the public traces are not at {TRACES}")
    result = run(asked, [*policies, *(PEER + mode for mode in modes)], quick=options.quick, jobs=options.jobs)
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = [row for scenario in result["scenarios"].values() for row in scenario["targets"] if not row["reached"]]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
