"""What the arbiter's benchmark says of its figures: one instance in words, and what was to be reached and is not. Pure."""

from __future__ import annotations

from typing import Any

MOST_MS = {200: 10.0, 1000: 100.0}
"""Median milliseconds of a decision, by pools."""


def misses(instances: list[dict[str, Any]], fairness: dict[str, Any]) -> list[str]:
    """What was to be reached and is not, in words."""
    found = []

    def expect(ok: bool, text: str) -> None:
        if not ok:
            found.append(text)

    for row in instances:
        name = f"{row['pools']} pools, {row['gpu_types']} GPU types, {row['budget_share']:.0%}"
        if row["contended_rounds"]:
            expect(row["share_of_optimum"] >= 0.98, f"{name}: {row['share_of_optimum']:.3f} of the optimum, not .98")
        expect(row["half_granted_gpus"] == 0, f"{name}: {row['half_granted_gpus']} half-granted GPUs")
        expect(row["rounds_over_budget"] == 0, f"{name}: over the budget")
        proven = row["milp_gap"] is not None and not row["milp_unfinished"]
        expect(proven or row["gap_to_bound"] <= 0.01, f"{name}: {row['gap_to_bound']:.2%} from the bound")
        if row["milp_gap"] is not None:
            expect(row["milp_gap"] <= 0.005, f"{name}: {row['milp_gap']:.2%} behind HiGHS")
        most_ms = MOST_MS.get(row["pools"])
        if most_ms is not None:
            expect(row["p50_ms"] <= most_ms, f"{name}: {row['p50_ms']:.1f} ms, not {most_ms:.0f}")
            live_ms = row["live_p50_ms"]
            expect(live_ms <= most_ms, f"{name}: {live_ms:.1f} ms with doubts in the proposals, not {most_ms:.0f}")
        if row["pools"] == 200:
            expect(row["moves_per_round"] <= 40.0, f"{name}: {row['moves_per_round']:.0f} moves a round")
            if row["milp_ms"] is not None:
                expect(row["milp_ms"] >= 20 * row["choose_ms"], f"{name}: HiGHS took only {row['milp_ms']:.0f} ms")
    per_pool = {(row["pools"], row["gpu_types"], row["budget_share"]): row["p50_ms"] / row["pools"] for row in instances}
    for (pools, types, share), spent in per_pool.items():
        small = per_pool.get((1000, types, share))
        if pools == 5000 and small is not None:
            expect(spent <= 1.5 * small, f"{types} GPU types: {spent / small:.2f} times the time per pool at 5 times the pools")
    if fairness:
        worst = fairness["max_min_worst_group_attainment"]
        expect(worst >= 0.5, f"max_min leaves the worst-off model at {worst:.2f}, not .5")
    return found


def told(row: dict[str, Any]) -> str:
    """One instance in a few lines."""
    text = (
        f"{row['pools']:5d} pools, {row['gpu_types']} GPU types, {row['budget_share']:.0%} of peaks, {row['gpus']} GPUs: "
        f"{row['p50_ms']:.1f} ms p50, {row['p99_ms']:.1f} p99, with doubts {row['live_p50_ms']:.1f} and "
        f"{row['live_p99_ms']:.1f}; goodput {row['goodput']:.3f} of {row['optimum_goodput']:.3f} "
        f"(first come {row['first_come_goodput']:.3f}, proportional {row['proportional_goodput']:.3f}, water "
        f"{row['waterfill_goodput']:.3f}); {row['moves_per_round']:.1f} moves a round; half-granted "
        f"{row['half_granted_gpus']}, idle by holds {row['idle_gpus']}; gap {row['gap_to_bound']:.2%}; "
        f"choice {row['choose_ms']:.2f} ms"
    )
    if row["milp_ms"] is not None:
        ahead = "did not end" if row["milp_gap"] is None else f"{row['milp_gap']:.3%} ahead"
        text += (
            f", HiGHS {row['milp_ms']:.1f} ms, {ahead} (rounds {', '.join(map(str, row['milp_rounds']))} of {row['rounds']})"
        )
    if "peer" in row:
        peer = row["peer"]
        text += (
            f"\n      ai-dynamo: goodput {peer['goodput']:.3f}, {peer['moves_per_round']:.1f} moves a round, half-granted "
            f"{peer['half_granted_gpus']}, {peer['refused_share']:.0%} of requests refused, {peer['p50_ms']:.1f} ms p50, "
            f"{peer['rounds']} rounds"
        )
    return text
