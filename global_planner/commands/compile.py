"""[I/O] compile: build the compiled hot paths for the sources that are here."""

from __future__ import annotations

import sys
import time

import click


@click.command(name="compile")
@click.argument("names", nargs=-1, metavar="[SET]...")
@click.option("--check", is_flag=True, help="Build nothing: say what is built; exit status 1 unless all is.")
def compile_(names: tuple[str, ...], check: bool) -> None:
    """Compile the hot paths (router, arbiter, replay), which run as plain Python otherwise.

    mypyc turns the very sources that Python runs into machine code, in the user's cache (or in PLANNER_COMPILED_HOME).
    `pool-router`, `run` and `replay` use it from then on, until the sources change: then they are plain Python again and say
    so. The results are the same. Only this needs a C compiler and the extra fast (pip install 'global-planner[fast]').

    \b
    Examples:
      global-planner compile              # all: some minutes
      global-planner compile router       # one
      global-planner compile --check      # what is built?
    """
    from global_planner.compiled_sets import SETS
    from pool_planner.compiled import CannotCompile

    known = {group.name: group for group in SETS}
    if strangers := [name for name in names if name not in known]:
        raise click.UsageError(f"no set {strangers[0]!r} (has: {', '.join(known)})")
    asked = [known[name] for name in names or known]
    if check:
        missing = [group for group in asked if not group.available()]
        for group in asked:
            click.echo(f"{group.name}: {'not built for these sources' if group in missing else group.folder()}")
        sys.exit(1 if missing else 0)
    for group in asked:
        click.echo(f"{group.name}: {len(group.modules)} modules …", err=True)
        began = time.monotonic()
        try:
            built = group.build()
        except CannotCompile as error:
            click.echo(f"error: {group.name}: {error}", err=True)
            sys.exit(2)
        click.echo(f"{group.name}: {f'built in {time.monotonic() - began:.0f} s' if built else 'is built already'}")
