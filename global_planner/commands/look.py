"""[I/O] status, explain, compare: what was decided and why. They read, and change nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from global_planner.commands.options import folder_option, journal_option


@contextmanager
def told_errors() -> Iterator[None]:
    """What is wrong with the input, in one line, and status 2; a journal that is damaged: status 1."""
    from global_planner.journal_format import JournalCorrupt
    from pool_planner.types import WorldError

    try:
        yield
    except (JournalCorrupt, WorldError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyError as error:
        click.echo(f"error: {error.args[0]}", err=True)
        sys.exit(2)
    except (FileNotFoundError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@click.command()
@folder_option
def status(folder: Path | None) -> None:
    """Show a system as its files tell it: last round, pools, what operators set, what to know.

    Works while the arbiter is down, and says so: then the exit status is 1.

    \b
    Example:
      global-planner status --folder .global-planner/two-models
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system
    from global_planner.ports import Controls
    from global_planner.status_page import silent_s, status_parts
    from pool_planner.types import ClusterUnavailable

    with told_errors():
        system = open_system(folder)
        done, now_s = system.last_round(), system.now_s
        controls: Controls | str
        try:
            controls = system.orders()
        except ClusterUnavailable as error:
            controls = str(error)
        interval_s = system.topology.arbiter.round_interval_s
        name = system.topology.name
        show(status_parts(name, done, controls, now_s=now_s, interval_s=interval_s, calendar=system.calendar))
        if system.clock.speed != 1.0:
            click.echo(f"\nThis system runs at speed {system.clock.speed:g}: its times and durations are model time.")
        if silent_s(done, now_s, interval_s) is not None:
            sys.exit(1)


@click.command()
@journal_option("Of a running system, or of one that ran; its folder will do.")
@click.option("--round", "number", type=click.IntRange(1), metavar="N", show_default="the last", help="The round to explain.")
@click.option("--pool", metavar="P", help="One pool only; without --round also how it came to where it is.")
@click.option(
    "--price-of-priority", is_flag=True, help="Also solve the round with equal priorities: who would gain what, and who pays."
)
def explain(journal: Path | None, number: int | None, pool: str | None, price_of_priority: bool) -> None:
    """Tell why a round decided what it did, from its record.

    Each pool's line says what it wanted, what it was granted and why, what bound it, what the next GPU would be worth there,
    and who else would have got it; and, where its planner asks for more than it expects, how much of that is a need, and what
    of the doubt beyond was lent or withheld.

    \b
    Examples:
      global-planner explain --journal demo-report/run/journal
      global-planner explain --journal demo-report/run/journal --round 17 --pool chat-decode
      global-planner explain --journal demo-report/run/journal --price-of-priority
    """
    from global_planner import answers
    from global_planner.commands.page import show
    from global_planner.commands.place import journal_of

    with told_errors():
        show(answers.explain(journal_of(journal), number=number, pool=pool, price_of_priorities=price_of_priority))


@click.command()
@journal_option("Of a time in which pools were in mode observe (or approve); a system's folder will do.")
def compare(journal: Path | None) -> None:
    """Compare what the cluster did with what we would have done.

    For pools in mode `observe`: GPU-hours and attainment of both, from the recorded rounds. Where pools acted, the two are the
    same but for the time that growth takes.

    \b
    Example: watch for a day with `arbiter: {mode: observe}` in the topology, then
      global-planner compare --journal .global-planner/two-models/journal
    """
    from global_planner import answers
    from global_planner.commands.page import show
    from global_planner.commands.place import journal_of

    with told_errors():
        show(answers.compare_watched(journal_of(journal)))
