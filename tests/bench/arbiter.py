"""Benchmark of the arbiter: `python -m tests.bench.arbiter --json FILE`.

Series of rounds over many models whose peaks together exceed the budget (see `arbiter_instances`, which also says what
attainment means here). Ours runs with its stability rules on, and what it grants is there in the same round. Beside it, on the
same rounds: the optimum of each round solved from nothing; whoever asks first; the same share for everybody; a common water
level; and HiGHS on some rounds. Goodputs are means over the rounds in which demand exceeds the budget. Times are of the
processor, on one core, with Python's garbage collected between decisions: p50_ms of whole decisions, choose_ms of the choice
alone, which is what HiGHS does.

Live planners ask for more than they expect, and a round in which GPUs are short is then decided twice: first what everybody
needs for sure, then the doubts. So every instance is also played by planners that doubt (see `Instance.asked`), which leads to
another course of grants: live_p50_ms and live_p99_ms are its times, live_goodput is the share of the true load that it serves
in the rounds that goodput is about. contended_p50_ms and live_contended_p50_ms are of these rounds alone.

The arbiter runs compiled where `global-planner compile arbiter` built it (PLANNER_COMPILED=no: plain Python); the file says so
too.

half_granted_gpus are those that a stage is granted, holds included, though its partner could not use them at any load (the most
of a contended round; the first replica that carries all of its partner's is of use). idle_gpus are those that what is attained
at the load of the round does not need: what a hold keeps of both stages for a load that may come back.

The file holds `instances`, of which each has the KEYS alone, and beside them, in the same order, `details`: what was measured
there and how. With --peer also `peer`: the mediator of ai-dynamo on the same instances (see `arbiter_peer`). While it is not
whole, what is measured lies beside it (FILE.kept, an instance a line): the same command goes on from there, unless the
arbiter's sources or the environment have changed.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from global_planner import compiled_arbiter
from global_planner.arbiter import ArbiterPolicy, ArbiterState, arbitrate, menu
from global_planner.arbiter.choose import Options
from global_planner.arbiter.knapsack import Choice
from global_planner.types import Allocation, RoundInputs
from tests.bench.arbiter_instances import ROUNDS, Instance, make
from tests.bench.arbiter_kept import Kept
from tests.bench.arbiter_peer import MOST_POOLS, peer_figures
from tests.bench.arbiter_report import misses, told

Counts = NDArray[np.int64]

POLICY = ArbiterPolicy(hold_s=360.0, move_horizon_s=900.0)
AT_ONCE = replace(POLICY, stability=False)
MILP_LIMIT_S = 60.0
PROGRESS_S = 15.0
SIZES = (20, 200, 1000, 5000)
PLAN = dict.fromkeys(SIZES, (ROUNDS, (1, 3), (0.45, 0.60, 0.75, 0.90)))
"""By pools: rounds, numbers of GPU types, budgets as shares of the sum of peaks."""


KEYS = (
    *("pools", "groups", "gpus", "p50_ms", "p99_ms", "gap_to_bound", "milp_ms", "milp_gap", "goodput", "optimum_goodput"),
    *("first_come_goodput", "proportional_goodput", "waterfill_goodput", "worst_group_attainment", "moves_per_round"),
    "half_granted_gpus",
)


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Processor seconds that the arbiter's choice alone takes, in the one entry of the list."""
    spent = [0.0]
    choose = menu.choose  # type: ignore[attr-defined]

    def timed(options: Options, capacity: NDArray[np.float64]) -> Choice:
        started = time.process_time()
        result = choose(options, capacity)
        spent[0] += time.process_time() - started
        return result

    menu.choose = timed  # type: ignore[attr-defined]
    try:
        yield spent
    finally:
        menu.choose = choose  # type: ignore[attr-defined]


def counts_of(allocation: Allocation) -> Counts:
    return np.array([grant.granted for grant in allocation.pools], dtype=np.int64)


def water_level(instance: Instance, number: int) -> Counts:
    """The same attainment for every stage, as high as the budget allows, rounded down to replicas (at least one)."""
    need, gpus = instance.need(number), instance.gpus
    kinds = np.array([spec.gpu_type for spec in instance.pools])
    counts = np.ones(len(need), dtype=np.int64)
    for kind, most in instance.budget.max_gpus.items():
        mine = kinds == kind
        low, high = 0.0, 1.0
        for _ in range(40):
            level = (low + high) / 2
            tried = np.maximum(1, np.floor(level * np.ceil(need[mine] - 1e-9) + 1e-9)).astype(np.int64)
            low, high = (level, high) if tried @ gpus[mine] <= most else (low, level)
        counts[mine] = np.maximum(1, np.floor(low * np.ceil(need[mine] - 1e-9) + 1e-9)).astype(np.int64)
    return counts


def highs(instance: Instance, number: int) -> tuple[float, float, bool]:
    """(goodput, processor ms, ended in time) of HiGHS on one round: a choice of one attainment level for each model."""
    need = instance.need(number)
    kinds = sorted(instance.budget.max_gpus)
    owners, values, drawn = [], [], []
    for model, load in enumerate(instance.load[number].tolist()):
        pair = slice(2 * model, 2 * model + 2)
        most = np.maximum(1, np.ceil(need[pair] - 1e-9))
        levels = np.unique(
            np.concatenate([np.minimum(1.0, np.arange(1, top + 1) / n) for top, n in zip(most, need[pair], strict=True)])
        )
        levels = levels[levels <= min(1.0, float((most / need[pair]).min())) + 1e-12]
        for level in levels.tolist():
            replicas = np.maximum(1, np.ceil(level * need[pair] - 1e-9))
            row = np.zeros(len(kinds))
            for spec, count in zip(instance.pools[pair], replicas.tolist(), strict=True):
                row[kinds.index(spec.gpu_type)] += count * spec.gpus_per_replica
            owners.append(model)
            values.append(load * level)
            drawn.append(row)
    one_each = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))))
    most_gpus = [instance.budget.max_gpus[kind] for kind in kinds]
    started = time.process_time()
    result = milp(
        -np.array(values),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(np.array(drawn).T, -np.inf, most_gpus)],
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
        options={"time_limit": MILP_LIMIT_S, "mip_rel_gap": 1e-6},
    )
    took_ms = (time.process_time() - started) * 1e3
    value = -result.fun / instance.load[number].sum() if result.fun is not None else float("nan")
    return float(value), took_ms, result.status == 0


def decide(state: ArbiterState, told: RoundInputs) -> tuple[ArbiterState, Allocation, float]:
    """A round as live ones are decided, and the processor's milliseconds for it."""
    gc.collect()
    gc.disable()
    started = time.process_time()
    state, allocation = arbitrate(state, told, POLICY)
    took_ms = (time.process_time() - started) * 1e3
    gc.enable()
    return state, allocation, took_ms


def measure(
    pools: int, types: int, share: float, rounds: int, peer: Path | None = None, highs_rounds: int | None = None
) -> dict[str, Any]:
    """All figures of one instance. `peer`: where the environment of the peer is."""
    instance = make(pools, types, share, rounds)
    kept = ("ms", "choose_ms", "ours", "best", "first", "proportional", "water", "gap", "live_ms", "live")
    rows: dict[str, list[float]] = {name: [] for name in kept}
    moves: list[int] = []
    half: list[int] = []
    idle: list[int] = []
    over = 0
    attained = np.zeros((rounds, pools // 2))
    state, first_state, live_state = ArbiterState(), ArbiterState(), ArbiterState()
    counts = first = live = np.ones(pools, dtype=np.int64)
    shown = time.monotonic()
    for number in range(rounds):
        if time.monotonic() - shown > PROGRESS_S:
            shown = time.monotonic()
            print(f"  {pools} pools, {types} GPU types, {share:.0%}: round {number} of {rounds}", file=sys.stderr, flush=True)
        told = instance.inputs(number, counts)
        state, allocation, took_ms = decide(state, told)
        rows["ms"].append(took_ms)
        granted = counts_of(allocation)
        if number:
            moves.append(int((granted != counts).sum()))
        counts = granted
        with stopwatch() as spent:
            _, best = arbitrate(ArbiterState(), told, AT_ONCE)
        rows["choose_ms"].append(spent[0] * 1e3)
        rows["gap"].append(best.gap)
        live_state, allocation, took_ms = decide(live_state, instance.inputs(number, live, doubts=True))
        rows["live_ms"].append(took_ms)
        live = counts_of(allocation)
        first_state, came = arbitrate(first_state, instance.inputs(number, first), replace(AT_ONCE, objective="first_come"))
        first = counts_of(came)
        _, even = arbitrate(ArbiterState(), told, replace(AT_ONCE, objective="proportional"))
        for name, there in (
            ("ours", counts), ("best", counts_of(best)), ("first", first), ("proportional", counts_of(even)),
            ("water", water_level(instance, number)), ("live", live),
        ):  # fmt: skip
            rows[name].append(instance.goodput(number, there))
        attained[number] = instance.attainment(number, counts)
        contended = rows["best"][-1] < 1.0 - 1e-6
        half.append(instance.half_granted_gpus(counts) if contended else 0)
        idle.append(instance.idle_gpus(number, counts) if contended else 0)
        over += any(
            sum(int(n) * s.gpus_per_replica for n, s in zip(counts, instance.pools, strict=True) if s.gpu_type == kind) > most
            for kind, most in instance.budget.max_gpus.items()
        )
    tight = np.array(rows["best"]) < 1.0 - 1e-6
    where = tight if tight.any() else np.ones(rounds, dtype=bool)
    courses = ("ours", "best", "first", "proportional", "water", "live")
    mean = {name: float(np.mean(np.array(rows[name])[where])) for name in courses}
    figures: dict[str, Any] = {
        "pools": pools,
        "groups": pools // 2,
        "gpus": sum(instance.budget.max_gpus.values()),
        "gpu_types": types,
        "budget_share": share,
        "rounds": rounds,
        "contended_rounds": int(tight.sum()),
        "demand": instance.source,
        "p50_ms": float(np.median(rows["ms"])),
        "p99_ms": float(np.quantile(rows["ms"], 0.99)),
        "contended_p50_ms": float(np.median(np.array(rows["ms"])[where])),
        "live_p50_ms": float(np.median(rows["live_ms"])),
        "live_p99_ms": float(np.quantile(rows["live_ms"], 0.99)),
        "live_contended_p50_ms": float(np.median(np.array(rows["live_ms"])[where])),
        "live_goodput": mean["live"],
        "choose_ms": float(np.median(np.array(rows["choose_ms"])[where])),
        "gap_to_bound": float(np.max(rows["gap"])),
        "milp_ms": None,
        "milp_gap": None,
        "goodput": mean["ours"],
        "optimum_goodput": mean["best"],
        "share_of_optimum": mean["ours"] / mean["best"],
        "first_come_goodput": mean["first"],
        "proportional_goodput": mean["proportional"],
        "waterfill_goodput": mean["water"],
        "worst_group_attainment": float(attained[where].mean(axis=0).min()),
        "moves_per_round": float(np.mean(moves)) if moves else 0.0,
        "half_granted_gpus": int(np.max(half)),
        "idle_gpus": int(np.max(idle)),
        "rounds_over_budget": over,
    }
    if pools <= 1000:
        few = 3 if pools < 1000 else 1
        figures |= beside_highs(instance, tight, rows, few if highs_rounds is None else highs_rounds)
    if peer is not None and pools <= MOST_POOLS:
        figures["peer"] = peer_figures(instance, rounds, tight, peer)
    return figures


def beside_highs(instance: Instance, tight: NDArray[np.bool_], rows: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    """HiGHS on up to so many contended rounds: its median time, and by how much its best exceeds ours, at most."""
    chosen = np.flatnonzero(tight)
    if not len(chosen) or not rounds:
        return {}
    times, gaps, unfinished = [], [], 0
    asked = sorted({int(chosen[place]) for place in np.linspace(0, len(chosen) - 1, rounds).round().astype(int)})
    for number in asked:
        value, took_ms, ended = highs(instance, number)
        times.append(took_ms)
        if ended:
            gaps.append(value / rows["best"][number] - 1.0)
        else:
            unfinished += 1
    gap = max(gaps) if gaps else None
    return {"milp_ms": float(np.median(times)), "milp_gap": gap, "milp_unfinished": unfinished, "milp_rounds": asked}


def worst_off(pools: int, share: float, rounds: int) -> dict[str, Any]:
    """What `max_min` keeps for the worst-off model, and what that costs in goodput."""
    instance = make(pools, 1, share, rounds)
    policies = {"max_min": replace(POLICY, objective="max_min"), "goodput": AT_ONCE}
    figures: dict[str, Any] = {"pools": pools, "budget_share": share, "rounds": rounds}
    for name, policy in policies.items():
        state, counts = ArbiterState(), np.ones(pools, dtype=np.int64)
        attained, served, moves = np.zeros((rounds, pools // 2)), [], 0
        for number in range(rounds):
            state, allocation = arbitrate(state, instance.inputs(number, counts), policy)
            moves += int((counts_of(allocation) != counts).sum())
            counts = counts_of(allocation)
            attained[number] = instance.attainment(number, counts)
            served.append(instance.goodput(number, counts))
        figures[f"{name}_worst_group_attainment"] = float(attained.mean(axis=0).min())
        figures[f"{name}_goodput"] = float(np.mean(served))
        figures[f"{name}_moves_per_round"] = moves / rounds
    level = np.array([instance.attainment(number, water_level(instance, number)) for number in range(rounds)])
    figures["waterfill_worst_group_attainment"] = float(level.mean(axis=0).min())
    figures["goodput_given_up"] = figures["goodput_goodput"] - figures["max_min_goodput"]
    return figures


def by_priority(pools: int, share: float, rounds: int) -> dict[str, Any]:
    """A budget that two priority classes share, class by class, beside the optimum without classes: what the priority is worth
    to who has it, and what it costs all (the anchor with priorities: .73 of an attainable .94)."""
    instance = make(pools, 1, share, rounds, classes=2)
    alike = replace(instance, groups=tuple(replace(group, priority_class=0) for group in instance.groups))
    rows: dict[str, list[float]] = {
        name: [] for name in ("goodput", "optimum_goodput", "equal_goodput", "high", "low", "first")
    }
    state, first_state = ArbiterState(), ArbiterState()
    counts = first = np.ones(pools, dtype=np.int64)
    for number in range(rounds):
        told = instance.inputs(number, counts)
        state, allocation = arbitrate(state, told, POLICY)
        counts = counts_of(allocation)
        best = counts_of(arbitrate(ArbiterState(), told, AT_ONCE)[1])
        even = counts_of(arbitrate(ArbiterState(), alike.inputs(number, counts), AT_ONCE)[1])
        first_state, came = arbitrate(first_state, instance.inputs(number, first), replace(AT_ONCE, objective="first_come"))
        first = counts_of(came)
        if instance.goodput(number, even) >= 1.0 - 1e-6:
            continue
        rows["goodput"].append(instance.goodput(number, counts))
        rows["optimum_goodput"].append(instance.goodput(number, best))
        rows["equal_goodput"].append(instance.goodput(number, even))
        rows["high"].append(instance.goodput(number, counts, priority=1))
        rows["low"].append(instance.goodput(number, counts, priority=0))
        rows["first"].append(instance.goodput(number, first))
    mean = {name: float(np.mean(values)) if values else 1.0 for name, values in rows.items()}
    return {
        "pools": pools,
        "budget_share": share,
        "rounds": rounds,
        "contended_rounds": len(rows["goodput"]),
        "goodput": mean["goodput"],
        "optimum_goodput": mean["optimum_goodput"],
        "goodput_without_priorities": mean["equal_goodput"],
        "first_come_goodput": mean["first"],
        "high_class_goodput": mean["high"],
        "low_class_goodput": mean["low"],
    }


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default=None, help="Write all figures here.")
@click.option("--rounds", type=int, default=None, help="Rounds of every instance (default: 240).")
@click.option("--pools", "sizes", type=int, multiple=True, help="Only these sizes.")
@click.option("--types", "only_types", type=click.Choice(["1", "3"]), multiple=True, help="Only so many GPU types.")
@click.option("--share", "only_shares", type=float, multiple=True, help="Only budgets of this share of the peaks (0.45, ...).")
@click.option("--highs-rounds", type=click.IntRange(0), default=None, help="Rounds for HiGHS (default: 3; 1 of 1,000 pools).")
@click.option("--fresh", is_flag=True, help="Measure again what an earlier, unfinished run kept.")
@click.option("--peer", is_flag=True, help="Also the mediator of ai-dynamo, in a virtual environment that is made for it.")
@click.option(
    "--environments", type=click.Path(path_type=Path, file_okay=False), default=Path(".cache/peers"), show_default=True,
    help="Where --peer makes it.",
)  # fmt: skip
def main(
    path: Path | None,
    rounds: int | None,
    sizes: tuple[int, ...],
    only_types: tuple[str, ...],
    only_shares: tuple[float, ...],
    highs_rounds: int | None,
    fresh: bool,
    peer: bool,
    environments: Path,
) -> None:
    """Measure, print, and end with 1 where something is not reached.

    \b
    Examples:
      python -m tests.bench.arbiter --json arbiter.json             # everything: about three hours, kept as it goes
      python -m tests.bench.arbiter --pools 200 --rounds 40 --peer  # one size, beside ai-dynamo's mediator
      python -m tests.bench.arbiter --pools 1000 --types 3 --share 0.45 --highs-rounds 3
    """
    print(compiled_arbiter.CHOSEN, flush=True)
    asked = f"peer {peer}, HiGHS rounds {highs_rounds}"
    kept = Kept(None if path is None else path.with_name(f"{path.name}.kept"), f"{compiled_arbiter.CHOSEN}, {asked}")
    if fresh:
        kept.forget()
    rows = []
    for pools, (usual, kinds, shares) in PLAN.items():
        if sizes and pools not in sizes:
            continue
        for types, share in product(kinds, shares):
            if (only_types and str(types) not in only_types) or (only_shares and share not in only_shares):
                continue
            which = (pools, types, share, rounds or usual)
            row = kept.get(which)
            if row is None:
                row = measure(*which, environments.absolute() if peer else None, highs_rounds)
                kept.put(which, row)
            rows.append(row)
            print(told(row), flush=True)
    if not rows:
        raise click.UsageError(f"no instance is left (sizes: {', '.join(map(str, PLAN))}; shares: 0.45, 0.6, 0.75, 0.9)")
    fairness = worst_off(200, 0.45, rounds or ROUNDS) if not sizes or 200 in sizes else {}
    priorities = by_priority(200, 0.45, rounds or ROUNDS) if not sizes or 200 in sizes else {}
    for title, found_there in (("max_min", fairness), ("two priority classes", priorities)):
        if found_there:
            print(f"{title}: {json.dumps(found_there, indent=1)}")
    missed = misses(rows, fairness)
    print("\n".join(missed) or "everything that was to be reached is reached")
    if path is not None:
        found: dict[str, Any] = {
            "instances": [{key: row[key] for key in KEYS} for row in rows],
            "details": [{key: value for key, value in row.items() if key not in (*KEYS, "peer")} for row in rows],
            "max_min": fairness,
            "priorities": priorities,
            "missed": missed,
            "code": compiled_arbiter.CHOSEN,
        }
        if peer:
            found["peer"] = [row.get("peer") for row in rows]
        path.write_text(json.dumps(found, indent=1))
        kept.forget()
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
