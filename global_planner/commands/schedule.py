"""[I/O] schedule: known events, set while the system runs, beside those of the topology."""

from __future__ import annotations

from pathlib import Path

import click

from global_planner.commands.look import told_errors
from global_planner.commands.options import duration, folder_option


@click.group()
def schedule() -> None:
    """Announce a known event: a floor, or a factor on the load, while it lasts.

    \b
    Examples:
      global-planner schedule add launch --start 09:00 --date 2026-07-01 --lasts 3h --group chat --load-factor 2
      global-planner schedule list
      global-planner schedule remove launch
    """


@schedule.command()
@click.argument("name")
@click.option("--start", required=True, metavar="HH:MM", help="When it starts, in the time zone.")
@click.option("--lasts", "duration_s", type=duration, required=True, metavar="DURATION", help="How long: 90s, 15m, 2h, 1d.")
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="Like Europe/Berlin.")
@click.option("--days", metavar="DAY,…", help="mon,tue,wed,thu,fri,sat,sun.  [default: every day]")
@click.option("--date", metavar="YYYY-MM-DD", help="Once, instead of on days of the week.")
@click.option(
    "--lead", "lead_s", type=duration, metavar="DURATION", show_default="the cluster's cold start",
    help="It takes effect so much earlier, so that replicas are warm in time.",
)  # fmt: skip
@click.option("--pool", metavar="P", help="Only these pools: a name or a pattern with *.")
@click.option("--group", metavar="G", help="Only pools of these groups: a name or a pattern with *.")
@click.option("--min-replicas", type=click.IntRange(1), metavar="N", help="Each pool has at least so many while it lasts.")
@click.option("--load-factor", type=float, metavar="X", help="Their load counts so many times while it lasts.")
@folder_option
def add(
    name: str,
    start: str,
    duration_s: float,
    timezone: str,
    days: str | None,
    date: str | None,
    lead_s: float | None,
    pool: str | None,
    group: str | None,
    min_replicas: int | None,
    load_factor: float | None,
    folder: Path | None,
) -> None:
    """Add the event NAME, or replace one of that name that was added before.

    \b
    Example:
      global-planner schedule add office --start 09:00 --timezone Europe/Berlin --days mon,tue,wed,thu,fri \\
        --lasts 8h --group chat --min-replicas 3
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system
    from global_planner.operator_orders import schedule_order

    with told_errors():
        system = open_system(folder)
        made = schedule_order(
            system.topology,
            name=name,
            start=start,
            duration_s=duration_s,
            timezone=timezone,
            days=tuple(day.strip() for day in days.split(",")) if days else (),
            date=date,
            lead_s=lead_s,
            pool=pool,
            group=group,
            min_replicas=min_replicas,
            load_factor=load_factor,
        )
        system.controls.schedule(made)
        show([f"Added: {name}, which takes effect {made.lead_s:.0f} s before it starts."])


@schedule.command()
@click.argument("name")
@folder_option
def remove(name: str, folder: Path | None) -> None:
    """Remove the event NAME that was added at run time.

    \b
    Example:
      global-planner schedule remove launch
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system

    with told_errors():
        system = open_system(folder)
        if name in {event.name for event in system.topology.schedules}:
            raise ValueError(f"{name!r} stands in the topology; take it out there, and start the system again")
        if name not in {event.name for event in system.controls.read().schedules}:
            raise ValueError(f"no schedule {name!r} was added")
        system.controls.unschedule(name)
        show([f"Removed: {name}."])


@schedule.command("list")
@folder_option
def list_(folder: Path | None) -> None:
    """Show the events of the topology and those that were added, and which last now.

    \b
    Example:
      global-planner schedule list
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system
    from global_planner.policies import policies_of
    from global_planner.status_page import schedule_table

    with told_errors():
        system = open_system(folder)
        configured = policies_of(system.topology, unix_at_zero_s=0.0).arbiter.schedules
        unix_s = system.clock.unix_at_zero_s + system.now_s
        events = [(event, "topology") for event in configured]
        events += [(event, "added") for event in system.controls.read().schedules]
        show([schedule_table(events, unix_s)] if events else ["No event is known."])
