"""[I/O] One policy in one scenario of the judge, in a process of its own: `python -m tests.bench.outcome_play SCENARIO POLICY`.

Lines of JSON come out: {"done": share} while it runs, and at last {"figures", "sources", "versions"} (or, of a peer that was
stopped at its limit, {"unfinished": {"after_s", "played"}}): the figures, and the digests of the project's files that made
them, so that whoever keeps the figures knows when they are no longer true. With `--compiled` the hot path runs compiled (it
must be built); nothing of it may be imported before, which is why imports stand where they do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from global_planner.replay.contenders import Contender
    from global_planner.replay.scenario import Outcome

ROOT = Path(__file__).resolve().parents[2]
OURS, FRUGAL, ANCHOR = "goodput", "frugal", "static_anchor"
# Fleets that never move, for less than the peak, behind our door: the best of them is what can be had where no forecast helps.
STATIC = {f"static_p{percent}": percent / 100.0 for percent in (75, 80, 85, 90, 95, 98)}
PEER = "dynamo:"  # before the name of a mode, among policies
# Whoever pays for every GPU: a lower target, the forecast's mean instead of its upper quantile, late answers that cost less.
FRUGAL_SETTINGS = {"attainment_target": 0.8, "forecast_quantile": 0.5, "violation_price": 10.0}
LIBRARIES = ("numpy", "statsmodels")
KEYS = (
    "ttft_attainment", "itl_attainment", "attainment", "gpu_hours", "violations", "moves", "reconfigurations_per_hour",
    "budget_violations", "half_granted_gpu_hours", "jain_fairness",
)  # fmt: skip
TOLD_EVERY_S = 1.0


def contender(name: str) -> Contender:
    """One of the replay's policies; `frugal`: ours with the settings of who pays for every GPU; `static_anchor`: the fleet of
    the anchor's own static run, which the scenario starts with; those of `STATIC`: fixed fleets for that quantile of 10 s."""
    from global_planner.replay.baselines import static
    from global_planner.replay.contenders import objective
    from global_planner.replay.policies import policy

    if name == ANCHOR:
        return replace(policy("static_start"), name=ANCHOR)
    if name in STATIC:
        return replace(static(name, peak=True, quantile=STATIC[name]), admission=True)
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


def run_one(
    name: str, who: str, quick: bool, progress: Callable[[float], None] | None = None, *, limit_s: float | None = None
) -> dict[str, Any]:
    """The figures of one policy in one scenario, or of a mode of the peer, for which `limit_s` counts (NotFinished).
    `progress` is told the share that is done."""
    from tests.bench.outcome_scenarios import case

    if who.startswith(PEER):
        from tests.bench.outcome_peer import LIMIT_S, peer_figures

        mode, limit = who.removeprefix(PEER), LIMIT_S if limit_s is None else limit_s
        return peer_figures(case(name), mode, quick=quick, limit_s=limit, progress=progress)
    from global_planner.replay.simulator import simulate
    from global_planner.replay.summary import summarise

    each = case(name)
    scenario = each.scenario(quick=quick)
    if who == ANCHOR:
        assert each.anchor is not None
        [model] = scenario.topology.groups
        scenario = replace(scenario, start=dict(zip([pool.name for pool in model.pools], each.anchor.fleet, strict=True)))
    window_s, began = scenario.window_s or scenario.workload.span_s, time.process_time()
    outcome = simulate(
        scenario, contender(who), progress=None if progress is None else lambda now, _: progress(min(1.0, now / window_s))
    )
    figures = summarise(outcome, scenario.profiles, scenario.workload)
    return {
        **{key: figures[key] for key in KEYS},
        "gpu_hours": round(sum(outcome.gpu_hours.values()), 4),
        "requests": outcome.total().requests,
        "shed": outcome.total().shed,
        "violations_by_priority": violations_by_priority(outcome),
        "weighted_violations": sum(
            group.weight * outcome.of_model(group.model).violations for group in outcome.topology.groups
        ),
        "cpu_s": round(time.process_time() - began, 1),
    }


def violations_by_priority(outcome: Outcome) -> dict[str, int]:
    """Violations by the priority class of the models, the highest first: who pays where there is not enough for all."""
    told: dict[int, int] = {}
    for group in outcome.topology.groups:
        told[group.priority] = told.get(group.priority, 0) + outcome.of_model(group.model).violations
    return {str(rank): told[rank] for rank in sorted(told, reverse=True)}


class Sources:
    """The project's files behind what this process has imported, with the digest that each had when it was first seen."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.look()

    def look(self) -> None:
        for name in list(sys.modules):
            path = ROOT / f"{name.replace('.', '/')}.py"
            self.add(path if path.exists() else path.with_suffix("") / "__init__.py")

    def add(self, path: Path) -> None:
        place = str(path.relative_to(ROOT))
        if place not in self.digests and path.exists():
            self.digests[place] = digest(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """What else decides what comes out, to the last digit."""
    told = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            told[name] = ""
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario")
    parser.add_argument("policy")
    parser.add_argument("--quick", action="store_true", help="a part of the scenario")
    parser.add_argument("--compiled", action="store_true", help="the hot path compiled; it must be built")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of a peer: how long it may take")
    options = parser.parse_args()
    if options.compiled:
        from global_planner.compiled_sets import REPLAY

        REPLAY.use()
    # So that their files are digested as they run.
    import_module("global_planner.replay.simulator")
    import_module("tests.bench.outcome_scenarios")
    sources, told_at = Sources(), 0.0
    sources.add(Path(__file__))
    if options.policy.startswith(PEER):
        sources.add(import_module("tests.bench.outcome_peer").WORKER)

    def progress(share: float) -> None:
        nonlocal told_at
        if time.monotonic() >= told_at + TOLD_EVERY_S:
            told_at = time.monotonic()
            print(json.dumps({"done": round(share, 4)}), flush=True)

    from tests.bench.outcome_peer import NotFinished

    try:
        figures = run_one(options.scenario, options.policy, options.quick, progress, limit_s=options.limit)
    except NotFinished as stopped:
        print(
            json.dumps({"unfinished": {"after_s": round(stopped.after_s, 1), "played": round(stopped.played, 4)}}), flush=True
        )
        return
    sources.look()
    print(json.dumps({"figures": figures, "sources": sources.digests, "versions": versions()}), flush=True)


if __name__ == "__main__":
    main()
