"""Writes dashboard.json, for Grafana 9 and later: `python deploy/monitoring/dashboard.py`. A panel is a line here; JSON is not
edited by hand."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("dashboard.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH = 24
GROUPS = 'group=~"$group"'
MODELS = 'model=~"$model"'
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """`lines`: (PromQL, legend) each; `most`: the top of the axis, where it is known."""

    title: str
    about: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    most: float | None = None
    stacked: bool = False
    red_above: float | None = None
    red_below: float | None = None


def quantile(share: float, name: str) -> str:
    return f"histogram_quantile({share}, sum by (le, model) (rate({name}_bucket{{{MODELS}}}{RATE})))"


def outcomes(outcome: str) -> str:
    return f'sum by (model, priority) (rate(global_planner_router_requests_total{{{MODELS},outcome="{outcome}"}}{RATE}))'


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel(
                title="GPUs charged, of the budget",
                about="What is ordered, starting or still ending counts.",
                lines=(
                    (
                        "max by (gpu_type) (global_planner_charged_gpus) / max by (gpu_type) (global_planner_budget_gpus)",
                        "{{gpu_type}}",
                    ),
                ),
                unit="percentunit",
                kind="gauge",
                width=6,
                height=5,
                most=1.0,
                red_above=1.0001,
            ),
            Panel(
                title="Worst group's attainment",
                about="The share of its load that the group with the least is given capacity for.",
                lines=((f"min(global_planner_group_attainment{{{GROUPS}}})", "worst"),),
                unit="percentunit",
                kind="stat",
                width=4,
                height=5,
                red_below=0.9,
            ),
            Panel(
                title="Deciding",
                about="Processes that decide; it should be 1.",
                lines=(("sum(global_planner_leading)", "leading"),),
                kind="stat",
                width=3,
                height=5,
                red_below=1.0,
            ),
            Panel(
                title="Last round",
                about="Its age.",
                lines=(("min(global_planner_round_age_s)", "age"),),
                unit="s",
                kind="stat",
                width=3,
                height=5,
                red_above=300.0,
            ),
            Panel(
                title="Conditions",
                about="Things that people should know: global-planner status tells them.",
                lines=(("max(global_planner_conditions)", "conditions"),),
                kind="stat",
                width=4,
                height=5,
            ),
            Panel(
                title="Pools that cannot be read",
                about="They are held at what they have.",
                lines=(("sum(1 - global_planner_pool_known) or vector(0)", "unknown"),),
                kind="stat",
                width=4,
                height=5,
                red_above=1.0,
            ),
        ),
    ),
    (
        "Budget and groups",
        (
            Panel(
                title="GPUs: charged and budget",
                about="By type.",
                lines=(
                    ("max by (gpu_type) (global_planner_charged_gpus)", "{{gpu_type}} charged"),
                    ("max by (gpu_type) (global_planner_budget_gpus)", "{{gpu_type}} budget"),
                ),
            ),
            Panel(
                title="Attainment that is planned",
                about="The share of a group's load that what it is granted serves within the SLA.",
                lines=((f"global_planner_group_attainment{{{GROUPS}}}", "{{group}}"),),
                unit="percentunit",
                most=1.0,
            ),
            Panel(
                title="Load and admission",
                about="Load planned for, and what routers may admit (no line: everything).",
                lines=(
                    (f"global_planner_group_load_rps{{{GROUPS}}}", "{{group}} load"),
                    (f"global_planner_group_admitted_rps{{{GROUPS}}}", "{{group}} admitted"),
                ),
                unit="reqps",
            ),
        ),
    ),
    (
        "Pools",
        (
            Panel(
                title="Replicas by state",
                about="Starting, ready, draining, terminating.",
                lines=((f"sum by (pool, state) (global_planner_pool_replicas{{{GROUPS}}}) > 0", "{{pool}} {{state}}"),),
                stacked=True,
            ),
            Panel(
                title="Wanted and granted",
                about="What the planners want and what the arbiter gives them.",
                lines=(
                    (f"max by (pool) (global_planner_pool_wanted{{{GROUPS}}})", "{{pool}} wanted"),
                    (f"max by (pool) (global_planner_pool_granted{{{GROUPS}}})", "{{pool}} granted"),
                ),
            ),
            Panel(
                title="Worth of the next GPU",
                about="Weight x requests/s that would be served within the SLA: where the next GPU would go.",
                lines=((f"max by (pool) (global_planner_pool_marginal_value{{{GROUPS}}})", "{{pool}}"),),
            ),
            Panel(
                title="Held, unschedulable",
                about="1 while nothing is decided for a pool; replicas that no node takes.",
                lines=(
                    (f"global_planner_pool_held{{{GROUPS}}} > 0", "{{pool}} held"),
                    (f"global_planner_pool_unschedulable{{{GROUPS}}} > 0", "{{pool}} unschedulable"),
                ),
            ),
            Panel(
                title="Time to decide",
                about="What the last round took to decide.",
                lines=(("max(global_planner_decide_ms)", "decide"),),
                unit="ms",
            ),
            Panel(
                title="Steps not applied",
                about="Of the last round: conflicts, faults of the API, missing rights.",
                lines=(("max(global_planner_steps_failed)", "steps"),),
            ),
        ),
    ),
    (
        "Forecast",
        (
            Panel(
                title="Traffic and forecast",
                about="Observed arrivals, and what is forecast for the horizon with its upper quantile.",
                lines=(
                    (f"max by (pool) (global_planner_pool_observed_rps{{{GROUPS}}})", "{{pool}} observed"),
                    (f"max by (pool) (global_planner_pool_forecast_rps{{{GROUPS}}})", "{{pool}} forecast"),
                    (f"max by (pool) (global_planner_pool_forecast_high_rps{{{GROUPS}}})", "{{pool}} high"),
                ),
                unit="reqps",
            ),
            Panel(
                title="Error of the forecast",
                about="Over that of repeating the last value: below 1 it earns its keep.",
                lines=((f"max by (pool) (global_planner_pool_forecast_rmae{{{GROUPS}}})", "{{pool}}"),),
            ),
            Panel(
                title="Cold start and horizon",
                about="Measured time from order to ready; how far ahead is planned.",
                lines=(
                    (f"max by (pool) (global_planner_pool_cold_start_s{{{GROUPS}}})", "{{pool}} cold start"),
                    (f"max by (pool) (global_planner_pool_horizon_s{{{GROUPS}}})", "{{pool}} horizon"),
                ),
                unit="s",
            ),
        ),
    ),
    (
        "Traffic at the endpoint",
        (
            Panel(
                title="Requests completed and shed",
                about="By model and priority.",
                lines=(
                    (outcomes("completed"), "{{model}} p{{priority}} completed"),
                    (outcomes("shed") + " > 0", "{{model}} p{{priority}} shed"),
                    (outcomes("failed") + " > 0", "{{model}} p{{priority}} failed"),
                ),
                unit="reqps",
            ),
            Panel(
                title="Time to first token",
                about="Median and 95th percentile, by model.",
                lines=(
                    (quantile(0.5, "dynamo_frontend_time_to_first_token_seconds"), "{{model}} p50"),
                    (quantile(0.95, "dynamo_frontend_time_to_first_token_seconds"), "{{model}} p95"),
                ),
                unit="s",
            ),
            Panel(
                title="Time between tokens",
                about="Median and 95th percentile of the answers' means, by model.",
                lines=(
                    (quantile(0.5, "dynamo_frontend_inter_token_latency_seconds"), "{{model}} p50"),
                    (quantile(0.95, "dynamo_frontend_inter_token_latency_seconds"), "{{model}} p95"),
                ),
                unit="s",
            ),
            Panel(
                title="Waiting",
                about="Requests that wait for their turn.",
                lines=(
                    (
                        f"sum by (model, priority) (global_planner_router_waiting_requests{{{MODELS}}})",
                        "{{model}} p{{priority}}",
                    ),
                ),
            ),
            Panel(
                title="Endpoints by state",
                about="As the routers see them.",
                lines=((f"max by (pool, state) (global_planner_router_endpoints{{{MODELS}}}) > 0", "{{pool}} {{state}}"),),
            ),
            Panel(
                title="Plan in force",
                about="0: a router admits by its own limits, because no plan reached it.",
                lines=(("global_planner_router_plan_in_force", "{{instance}}"),),
                most=1.0,
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for name, row in ROWS:
        panels.append({"type": "row", "title": name, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1), "panels": []})
        y += 1
        x = 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y = 0, y + panel.height
            panels.append(_panel(panel, x, y))
            x += panel.width
        y += row[-1].height
    for number, each in enumerate(panels, start=1):
        each["id"] = number
    return {
        "uid": "global-planner",
        "title": "Global planner",
        "description": "One GPU budget, many pools: who has what, why, and what users get.",
        "tags": ["global-planner"],
        "schemaVersion": 37,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                _variable("group", "Group", "label_values(global_planner_group_load_rps, group)"),
                _variable("model", "Model", "label_values(global_planner_router_requests_total, model)"),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, x: int, y: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.most is not None:
        defaults["max"] = panel.most
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stacked else 0,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": stacking,
        }
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": _place(x, y, panel.width, panel.height),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.lines)
        ],
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=1) + "\n")
    sys.stdout.write(f"{OUT.name}: {len(dashboard()['panels'])} panels and rows\n")
