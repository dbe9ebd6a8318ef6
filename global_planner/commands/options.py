"""Options that the commands share: durations and moments as people write them, and the folder of a system."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from pool_planner.compiled import ENV_CHOICE, CannotCompile, CompiledSet, tell_children

HOME = Path(".global-planner")
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def duration(text: str) -> float:
    """Seconds, above 0, of `90`, `90s`, `15m`, `2h`, `1.5d`. Raises click.BadParameter.

    >>> duration("1.5h")
    5400.0
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", text.strip())
    seconds = float(found[1]) * _UNITS[found[2] or "s"] if found else 0.0
    if not 0.0 < seconds < math.inf:
        raise click.BadParameter(f"{text!r} is not a duration like 90s, 15m, 2h or 1d")
    return seconds


def moment(text: str) -> datetime:
    """`2026-07-01T18:00` or with an offset (`+02:00`), or `18:00` for today; without an offset, in the zone of this machine.
    Raises click.BadParameter."""
    written = text.strip()
    if re.fullmatch(r"\d\d?:\d\d", written):
        written = f"{datetime.now().astimezone():%Y-%m-%d}T{written.zfill(5)}"
    try:
        return datetime.fromisoformat(written).astimezone()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a time like 18:00 or 2026-07-01T18:00+02:00") from None


def journal_option(help_text: str) -> Decorator:
    """`--journal`: the journal that a command reads."""
    return click.option(
        "--journal",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        show_default="that of the only system under .global-planner",
        help=help_text,
    )


def folder_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--folder`: the system that a command is about."""
    return click.option(
        "--folder",
        type=click.Path(path_type=Path),
        show_default="the only one under .global-planner",
        help="The folder of the system, as `global-planner run --folder` was given it; of one in a Kubernetes cluster its "
        "topology file will do.",
    )(command)


def compiled_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--compiled/--no-compiled`: whether hot paths run as compiled code."""
    return click.option(
        "--compiled/--no-compiled",
        default=None,
        show_default="compiled where `global-planner compile` has built it for these sources",
        help="Run hot paths as compiled code (built when it is not: extra fast, C compiler), or as plain Python; "
        f"the results are the same. {ENV_CHOICE}=yes or no says so for every command.",
    )(command)


def chosen(group: CompiledSet, compiled: bool | None) -> str:
    """Choose before any of the set's modules is imported: what people should read of it. Ends the process where compiled code
    was asked for and cannot be had."""
    try:
        return group.choose(tell_children(compiled))
    except (CannotCompile, ValueError) as error:
        click.echo(f"error: {'' if isinstance(error, ValueError) else '--compiled: '}{error}", err=True)
        sys.exit(2)


def built(groups: Sequence[CompiledSet], compiled: bool | None) -> None:
    """For a command whose processes choose for themselves: tell them, and build what was asked for. Ends this process where it
    cannot be had."""
    try:
        if tell_children(compiled) == "yes":
            for group in groups:
                if not group.available():
                    click.echo(f"compiling the {group.name} …", err=True)
                    group.build()
    except (CannotCompile, ValueError) as error:
        click.echo(f"error: {'' if isinstance(error, ValueError) else '--compiled: '}{error}", err=True)
        sys.exit(2)


def by_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--by` and `--reason`: kept with the order, and told wherever it decides."""
    command = click.option("--reason", default="", metavar="TEXT", help="Why; told in every round in which it decides.")(
        command
    )
    return click.option("--by", metavar="NAME", show_default="your user name", help="Who says so.")(command)


def time_options(default_s: float | None, what: str) -> Decorator:
    """`--for` and `--until`, of which one at most; see `System.expiry`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        ends = "until it is cleared" if default_s is None else f"for {default_s / 3600:g}h"
        command = click.option(
            "--until", type=moment, metavar="TIME", help=f"{what} ends then: 18:00 or 2026-07-01T18:00+02:00."
        )(command)
        return click.option(
            "--for",
            "for_s",
            type=duration,
            metavar="DURATION",
            show_default=ends,
            help=f"{what} ends after this: 90s, 15m, 2h, 1d (model time).",
        )(command)

    return decorate
