"""[I/O] What `pool-router` can do besides serving: `grid`, a selection grid from the pools' curves, and `settings`, what can be
configured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import orjson

from pool_planner.types import Role
from router import reference
from router.config import ConfigError, RouterConfig
from router.config_pools import GridConfig, ModelConfig
from router.forms import every_predictor, load
from router.grid import MARGIN, RESOLUTION, as_global_router, grids


@click.command(
    epilog="""\b
  pool-router grid --topology topology.yaml                     # all groups, as our own `grids`
  pool-router grid --topology topology.yaml --model demo/chat --form global-router > chat.json
\b
The first form goes into a model of the router's configuration; the second is the configuration of existing global
routers. On standard error the grid is shown as a table: rows are prompt lengths, columns are targets.
"""
)
@click.option(
    "--topology",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A topology, or a router configuration whose pools name their profiles.",
)
@click.option("--model", help="Only this model (needed for --form global-router where there are several).")
@click.option(
    "--form", type=click.Choice(["grids", "global-router"]), default="grids", show_default=True, help="What to write."
)
@click.option("--resolution", type=click.IntRange(1, 64), default=RESOLUTION, show_default=True, help="Cells of each axis.")
@click.option(
    "--margin",
    type=click.FloatRange(1.0, 10.0),
    default=MARGIN,
    show_default=True,
    help="Latency alone times this must meet the target: room for what waits in front.",
)
@click.option(
    "--isl-max",
    type=click.FloatRange(1),
    help="End of the length axis, tokens; longer prompts belong to its last cell. [default: so that the first cell ends at the "
    "smallest isl_max_tokens; without any, the longest that was profiled]",
)
@click.option("--osl", type=click.FloatRange(1), default=256.0, show_default=True, help="Mean answer, tokens.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write here instead of standard output.")
def grid(
    path: Path,
    model: str | None,
    form: str,
    resolution: int,
    margin: float,
    isl_max: float | None,
    osl: float,
    output: Path | None,
) -> None:
    """Write a selection grid from the pools' curves.

    Each cell names the cheapest pool that serves everything in it within its target, or the fastest where none does.
    """
    try:
        config = load(path)
        chosen = [one for one in config.models if model in (None, one.model)]
        if not chosen:
            known = ", ".join(one.model for one in config.models)
            raise ConfigError(f"--model: {model!r} is not in {path.name} (has: {known})")
        if form == "global-router" and len(chosen) > 1:
            known = ", ".join(one.model for one in chosen)
            raise ConfigError(f"--form global-router describes one model: choose it with --model (has: {known})")
        written: dict[str, Any] = {}
        for one in chosen:
            made = _grids(one, resolution=resolution, margin=margin, isl_max=isl_max, osl=osl)
            _show(one, made)
            written[one.model] = (
                as_global_router(one, made)
                if form == "global-router"
                else {"grids": {role: grid.model_dump() for role, grid in made.items()}}
            )
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    value = written[chosen[0].model] if form == "global-router" else written
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")


def _grids(
    model: ModelConfig, *, resolution: int, margin: float, isl_max: float | None, osl: float
) -> Mapping[Role, GridConfig]:
    if model.default_ttft_ms is None or model.default_itl_ms is None:
        raise ConfigError(f"model {model.model!r}: a grid is drawn around default_ttft_ms and default_itl_ms; set both")
    predictors = every_predictor(model)
    measured = [one.prefill.isl_tokens[-1] for one in predictors.values() if one.prefill is not None]
    longest = max([*measured, isl_max or 1.0])
    limits = [pool.isl_max_tokens for pool in model.pools if pool.isl_max_tokens is not None]
    return grids(
        model,
        predictors,
        isl_max_tokens=isl_max or (float(min(limits) * resolution) if limits else longest),
        longest_tokens=longest,
        ttft_ms=model.default_ttft_ms,
        itl_ms=model.default_itl_ms,
        osl_tokens=osl,
        resolution=resolution,
        margin=margin,
    )


def _show(model: ModelConfig, made: Mapping[Role, GridConfig]) -> None:
    """The grids as tables; of three axes the first two, at the shortest prompts."""
    for role, grid in made.items():
        rows, columns = grid.axes[0], grid.axes[1]
        names = [pool.name for pool in model.role_pools(role)]
        legend = "  ".join(f"{number}={name}" for number, name in enumerate(names))
        click.echo(f"{model.model} {role}: {rows.by} down, {columns.by} across; {legend}", err=True)
        head = "".join(f"{_edge(columns, j):>9.0f}" for j in range(columns.resolution))
        click.echo(f"{'':>9}{head}", err=True)
        for i in range(rows.resolution):
            cells = []
            for j in range(columns.resolution):
                cell = grid.cells[i][j]
                cells.append(cell if isinstance(cell, str) else cell[0])
            click.echo(f"{_edge(rows, i):>9.0f}" + "".join(f"{names.index(cell):>9}" for cell in cells), err=True)


def _edge(axis: Any, index: int) -> float:
    low: float = axis.min + (axis.max - axis.min) * index / axis.resolution
    return low


@click.command(
    epilog="""\b
  pool-router settings                      # everything
  pool-router settings models[].pools[]     # one section
  pool-router settings --schema > router.schema.json    # for editors that check YAML by a JSON Schema
"""
)
@click.argument("section", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the configuration instead.")
def settings(section: str | None, schema: bool) -> None:
    """Every key of the configuration: what it means, its type and its default."""
    if schema:
        click.echo(orjson.dumps(RouterConfig.model_json_schema(), option=orjson.OPT_INDENT_2))
        return
    known = reference.sections()
    if section is not None and section not in known:
        near = [path for path in known if path and section.strip("[]") in path]
        raise click.UsageError(f"{section!r} is no section; there are {', '.join(near or filter(None, known))}")
    click.echo("\n".join(reference.whole()) if section is None else reference.described(section), nl=False)
