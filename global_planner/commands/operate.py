"""[I/O] approve, refuse, freeze, unfreeze, override: what people order, written into the folder of a system.

The arbiter reads the folder at the beginning of every round, and the freeze again before every single write; so an order
holds from its next write on, through restarts, and one that is given while the arbiter is down waits for it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from global_planner.commands.look import told_errors
from global_planner.commands.options import by_options, folder_option, time_options

if TYPE_CHECKING:  # imports happen in the commands, so that --help is quick
    from global_planner.ports import Controls
    from global_planner.types import Round

APPROVAL_S = 3600.0


# ---- approve, refuse -------------------------------------------------------------------------------------------------


@click.command()
@click.argument("pool", required=False)
@click.option(
    "--replicas", type=click.IntRange(0), metavar="N", show_default="what the last round granted", help="Approve this."
)
@time_options(APPROVAL_S, "The approval")
@by_options
@folder_option
def approve(
    pool: str | None,
    replicas: int | None,
    for_s: float | None,
    until: datetime | None,
    by: str | None,
    reason: str,
    folder: Path | None,
) -> None:
    """Let the steps of a POOL in mode approve be applied; without POOL, show what waits.

    An approval covers one number of replicas. When a later round grants the pool another one, it asks again.

    \b
    Examples:
      global-planner approve
      global-planner approve chat-decode --for 30m --reason "seen the forecast"
      global-planner approve chat-decode --replicas 6
    """
    _decide(pool, "approve", replicas, for_s, until, by, reason, folder)


@click.command()
@click.argument("pool", required=False)
@click.option(
    "--replicas", type=click.IntRange(0), metavar="N", show_default="what the last round granted", help="Refuse this."
)
@time_options(APPROVAL_S, "The refusal")
@by_options
@folder_option
def refuse(
    pool: str | None,
    replicas: int | None,
    for_s: float | None,
    until: datetime | None,
    by: str | None,
    reason: str,
    folder: Path | None,
) -> None:
    """Refuse the steps of a POOL in mode approve; without POOL, show what waits.

    A refusal takes an approval back. It is told in every round in which the pool would go there again, until it ends.

    \b
    Example:
      global-planner refuse chat-decode --until 18:00 --reason "keep it as it is until the launch is over"
    """
    _decide(pool, "refuse", replicas, for_s, until, by, reason, folder)


def _decide(
    pool: str | None,
    verdict: Literal["approve", "refuse"],
    replicas: int | None,
    for_s: float | None,
    until: datetime | None,
    by: str | None,
    reason: str,
    folder: Path | None,
) -> None:
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system, somebody
    from global_planner.operator_orders import approval_of, waiting
    from global_planner.status_page import waiting_text

    with told_errors():
        system = open_system(folder)
        done = system.last_round()
        before = system.controls.read()
        asked = () if done is None else waiting(done, before.approvals, system.now_s)
        if pool is None:
            show([waiting_text(asked) if asked else "Nothing waits for approval."])
            return
        ends_s = system.expiry(for_s, until, APPROVAL_S)
        assert ends_s is not None
        approval = approval_of(
            system.pools,
            done,
            pool=pool,
            replicas=replicas,
            verdict=verdict,
            expires_at_s=ends_s,
            by=somebody(by),
            reason=reason,
        )
        system.controls.decide(approval)
        system.controls.drop_expired(system.now_s)
        steps = [step for item in asked if item.pool == pool and item.granted == approval.replicas for step in item.steps]
        word = "Approved" if verdict == "approve" else "Refused"
        lines = [
            f"{word}: {pool} at {approval.replicas} replicas, until {system.calendar(ends_s)}.",
            *(f"  {s}" for s in steps),
        ]
        if not steps:
            lines.append("  Nothing of that waits now.")
        others = [item for item in before.approvals if item.pool == pool and item.replicas == approval.replicas]
        taken_back = [item for item in others if item.verdict != verdict and item.expires_at_s > system.now_s]
        lines += [f"  It takes back what {item.by} {_SAID[item.verdict]}." for item in taken_back]
        lines += _not_yet(done, before, system.now_s, system.topology.arbiter.round_interval_s)
        show(["\n".join(lines)])


_SAID = {"approve": "approved", "refuse": "refused"}


def _not_yet(done: Round | None, controls: Controls, now_s: float, interval_s: float) -> list[str]:
    """Why what was just said has no effect yet."""
    from global_planner.status_page import silent_s

    lines = []
    if silent_s(done, now_s, interval_s) is not None:
        lines.append("  The arbiter is down: it is told when it runs again.")
    if controls.freeze is not None:
        lines.append("  Everything is frozen: no step is applied before global-planner unfreeze.")
    return lines


# ---- freeze, unfreeze ------------------------------------------------------------------------------------------------


@click.command()
@by_options
@folder_option
def freeze(by: str | None, reason: str, folder: Path | None) -> None:
    """Stop all writes at once, until unfreeze.

    From its next step on the arbiter orders nothing and drains nothing; the rounds go on and record what they would do. The
    router goes on serving. A freeze holds through restarts, and can be set while the arbiter is down.

    \b
    Example:
      global-planner freeze --reason "the network is being rewired"
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system, somebody
    from global_planner.types import Freeze

    with told_errors():
        system = open_system(folder)
        system.controls.freeze(Freeze(at_s=system.now_s, by=somebody(by), reason=reason))
        show([f"Frozen: {system.topology.name} orders and drains nothing from now on, until: global-planner unfreeze"])


@click.command()
@folder_option
def unfreeze(folder: Path | None) -> None:
    """Take a freeze back.

    The next round decides from what it then observes; nothing that was held back is applied late.

    \b
    Example:
      global-planner unfreeze --folder .global-planner/two-models
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system

    with told_errors():
        system = open_system(folder)
        was = system.controls.unfreeze()
        show(
            [f"{system.topology.name} acts again from the next round on." if was else f"{system.topology.name} was not frozen."]
        )
        system.controls.read()  # whatever else cannot be read would keep it frozen: say so


# ---- override --------------------------------------------------------------------------------------------------------


@click.group()
def override() -> None:
    """Pin, cap or hold a pool, whatever the arbiter would decide.

    An override is stronger than everything in the topology. It ends at its expiry, or when it is cleared.

    \b
    Examples:
      global-planner override pin chat-decode 6 --for 2h --reason "product launch"
      global-planner override cap code-decode 3 --until 18:00
      global-planner override hold chat-prefill-long
      global-planner override list
      global-planner override clear chat-decode
    """


@override.command()
@click.argument("pool")
@click.argument("replicas", type=click.IntRange(0))
@time_options(None, "The override")
@by_options
@folder_option
def pin(
    pool: str, replicas: int, for_s: float | None, until: datetime | None, by: str | None, reason: str, folder: Path | None
) -> None:
    """Give POOL exactly REPLICAS.

    \b
    Example:
      global-planner override pin chat-decode 6 --for 2h --reason "product launch"
    """
    _override(pool, "pin", replicas, for_s, until, by, reason, folder)


@override.command()
@click.argument("pool")
@click.argument("replicas", type=click.IntRange(0))
@time_options(None, "The override")
@by_options
@folder_option
def cap(
    pool: str, replicas: int, for_s: float | None, until: datetime | None, by: str | None, reason: str, folder: Path | None
) -> None:
    """Give POOL at most REPLICAS.

    \b
    Example:
      global-planner override cap code-decode 3 --until 18:00
    """
    _override(pool, "cap", replicas, for_s, until, by, reason, folder)


@override.command()
@click.argument("pool")
@time_options(None, "The override")
@by_options
@folder_option
def hold(pool: str, for_s: float | None, until: datetime | None, by: str | None, reason: str, folder: Path | None) -> None:
    """Leave POOL as it is: it keeps what it has, and is charged for it.

    \b
    Example:
      global-planner override hold chat-prefill-long --for 30m --reason "a profile is being measured"
    """
    _override(pool, "hold", None, for_s, until, by, reason, folder)


def _override(
    pool: str,
    kind: Literal["pin", "cap", "hold"],
    replicas: int | None,
    for_s: float | None,
    until: datetime | None,
    by: str | None,
    reason: str,
    folder: Path | None,
) -> None:
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system, somebody
    from global_planner.operator_orders import override_of

    with told_errors():
        system = open_system(folder)
        made, known = override_of(
            system.pools,
            system.budget,
            pool=pool,
            kind=kind,
            replicas=replicas,
            expires_at_s=system.expiry(for_s, until),
            by=somebody(by),
            reason=reason,
        )
        system.controls.override(made)
        system.controls.drop_expired(system.now_s)
        number = "" if replicas is None else f" {replicas}"
        ends = "it is cleared" if made.expires_at_s is None else system.calendar(made.expires_at_s)
        show(["\n".join([f"Set: {kind} {pool}{number}, until {ends}.", *(f"  Note: {text}." for text in known)])])


@override.command()
@click.argument("pool")
@click.argument("kind", type=click.Choice(["pin", "cap", "hold"]), required=False)
@folder_option
def clear(pool: str, kind: str | None, folder: Path | None) -> None:
    """Take overrides of POOL back: of one KIND (pin, cap, hold), or all three.

    \b
    Example:
      global-planner override clear chat-decode
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system
    from global_planner.operator_orders import known_pool

    with told_errors():
        system = open_system(folder)
        known_pool(system.pools, pool)
        gone = [one for one in ("pin", "cap", "hold") if kind in (None, one) and system.controls.withdraw(pool, one)]
        none = f"{pool} has no {kind or 'override'} that was set at run time."
        show([f"Cleared: {' and '.join(gone)} of {pool}." if gone else none])


@override.command("list")
@folder_option
def list_(folder: Path | None) -> None:
    """Show the overrides in force.

    \b
    Example:
      global-planner override list
    """
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system
    from global_planner.status_page import override_table

    with told_errors():
        system = open_system(folder)
        now_s = system.now_s
        found = [item for item in system.orders().overrides if item.expires_at_s is None or now_s < item.expires_at_s]
        show([override_table(found, now_s, system.calendar)] if found else ["No override is in force."])
