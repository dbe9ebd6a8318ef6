"""A summary in words: a paragraph, and a small table. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from global_planner.demo.summary import Summary


def words(summary: Summary) -> str:
    """The run in a paragraph."""
    played = (
        f"the trace {source_text(summary)}" if summary.trace is not None else f"the built-in workload (seed {summary.seed})"
    )
    saved = 1.0 - summary.gpu_hours / summary.gpu_hours_static_peak if summary.gpu_hours_static_peak > 0 else 0.0
    budget = "no limit" if summary.budget_gpus is None else f"{summary.budget_gpus} GPUs"
    kept = (
        f"never exceeded: at most {summary.max_charged_gpus} were charged"
        if summary.budget_violations == 0
        else f"exceeded in {summary.budget_violations} rounds, by up to {_excess(summary)}"
    )
    lost = "none was lost" if summary.lost == 0 else f"{summary.lost} WERE LOST"
    parts = [
        f"{summary.topology} served {played} for {summary.span_s / 60:.1f} model minutes in {summary.wall_s:.0f} s "
        f"(speed {summary.speed:g}).",
        f"Of {summary.requests:,} requests {summary.completed:,} were answered in full and {lost}"
        + (f"; {summary.rejected} were turned away" if summary.rejected else "")
        + (f", {summary.abandoned} were cut off when the run was stopped" if summary.abandoned else "")
        + f"; {summary.retried} attempts were repeated.",
        f"{percent_text(summary.ttft_attainment)} met their TTFT and {percent_text(summary.itl_attainment)} their ITL.",
        f"The budget of {budget} was {kept}.",
        f"{summary.scale_ups} scale-ups and {summary.scale_downs} scale-downs in {summary.rounds} rounds used "
        f"{summary.gpu_hours:.2f} GPU-hours, {_less(saved)} the {summary.gpu_hours_static_peak:.2f} of a fleet that holds "
        f"every pool at its own peak{_whole_budget(summary)}.",
    ]
    if summary.overhead_ms_p05 is not None and summary.overhead_wall_ms_p05 is not None:
        parts.append(
            f"The stack's own work shows as {summary.overhead_ms_p05:.0f} ms of model time in the quickest requests "
            f"({summary.overhead_wall_ms_p05:.1f} ms of wall time at this speed), and as {summary.overhead_ms_p50:.0f} ms "
            "in the median one, waiting at the router included; TTFT and ITL contain it."
        )
    return " ".join(parts)


def _whole_budget(summary: Summary) -> str:
    """The harder comparison: a fleet as large as the budget, which may serve less than every pool's peak."""
    whole = summary.gpu_hours_whole_budget
    return f" ({_less(1.0 - summary.gpu_hours / whole)} the {whole:.2f} of the whole budget held all the time)" if whole else ""


def source_text(summary: Summary) -> str:
    """What was played, without its folder."""
    return "built-in workload" if summary.trace is None else summary.trace.rsplit("/", 1)[-1]


def _excess(summary: Summary) -> str:
    over = [
        f"{(limits['max_charged'] or 0) - limits['budget']} {gpu_type}"
        for gpu_type, limits in summary.gpu_types.items()
        if limits["budget"] is not None and (limits["max_charged"] or 0) > limits["budget"]
    ]
    return ", ".join(over)


def _less(saved: float) -> str:
    return f"{saved:.0%} less than" if saved >= 0 else f"{-saved:.0%} MORE than"


def percent_text(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def table(summary: Summary) -> str:
    """Models and pools as lines of equal width."""
    rows = [("model", "requests", "lost", "TTFT met", "p50", "p95", "SLA", "ITL met", "p50", "p95", "SLA")]
    for model, one in summary.models.items():
        ttft = (percent_text(one.ttft_attainment), _ms(one.ttft_ms_p50), _ms(one.ttft_ms_p95), _ms(one.ttft_sla_ms))
        itl = (percent_text(one.itl_attainment), _ms(one.itl_ms_p50), _ms(one.itl_ms_p95), _ms(one.itl_sla_ms))
        rows.append((model, f"{one.requests:,}", str(one.lost), *ttft, *itl))
    pools = [("pool", "role", "wanted", "granted", "ready", "up", "down", "met SLA", "GPU-hours", "at its peak")]
    for name, pool in summary.pools.items():
        most = (str(pool.max_wanted), str(pool.max_granted), str(pool.max_ready))
        gpus = (f"{pool.gpu_hours:.2f}", f"{pool.gpu_hours_static_peak:.2f}")
        pools.append((name, pool.role, *most, str(pool.scale_ups), str(pool.scale_downs), percent_text(pool.attainment), *gpus))
    return _aligned(rows, left=1) + "\n\n" + _aligned(pools, left=2)


def _ms(value_ms: float | None) -> str:
    return "–" if value_ms is None else f"{value_ms:.0f} ms"


def _aligned(rows: Sequence[tuple[str, ...]], *, left: int) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        sized = enumerate(zip(row, widths, strict=True))
        return "  ".join(cell.ljust(width) if column < left else cell.rjust(width) for column, (cell, width) in sized)

    return "\n".join(map(line, rows))
