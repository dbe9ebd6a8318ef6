"""[I/O] adopt, release: whose the replicas of a pool are, ours or another controller's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from global_planner.commands.look import told_errors
from global_planner.commands.options import by_options, folder_option


@click.command()
@click.argument("pools", nargs=-1, metavar="POOL...")
@click.option("--all", "everything", is_flag=True, help="Every pool of the topology.")
@by_options
@folder_option
def adopt(pools: tuple[str, ...], everything: bool, by: str | None, reason: str, folder: Path | None) -> None:
    """Set the replicas of POOLs although another controller did so until now.

    Where an old planner, an HPA or a GitOps controller sets the replicas of a pool, we only watch it: two controllers would
    undo each other's work. Stop the other one first, then adopt the pool. If it goes on nevertheless, the pool is only watched
    again.

    \b
    Examples:
      global-planner adopt chat-decode --reason "the old planner is gone"
      global-planner adopt --all --folder topology.yaml
    """
    _say("ours", pools, everything, by, reason, folder)


@click.command()
@click.argument("pools", nargs=-1, metavar="POOL...")
@click.option("--all", "everything", is_flag=True, help="Every pool of the topology.")
@by_options
@folder_option
def release(pools: tuple[str, ...], everything: bool, by: str | None, reason: str, folder: Path | None) -> None:
    """Hand POOLs back: from the next round on their replicas are never set, and what they hold stays charged.

    What a pool has then stays as it is until somebody else changes it. `adopt` takes it again.

    \b
    Examples:
      global-planner release chat-decode --reason "an HPA takes over"
      global-planner release --all --folder topology.yaml
    """
    _say("theirs", pools, everything, by, reason, folder)


def _say(
    whose: Literal["ours", "theirs"],
    names: tuple[str, ...],
    everything: bool,
    by: str | None,
    reason: str,
    folder: Path | None,
) -> None:
    from global_planner.commands.page import show
    from global_planner.commands.place import open_system, somebody
    from global_planner.operator_orders import OrderRefused, known_pool
    from global_planner.types import Custody

    with told_errors():
        system = open_system(folder)
        if bool(names) == everything:
            raise OrderRefused("say which pools, or --all")
        chosen = system.pools if everything else tuple(known_pool(system.pools, name) for name in names)
        controls, now_s = system.controls, system.now_s
        for pool in chosen:
            controls.take(
                Custody(
                    pool=pool.name, whose="ours" if whose == "ours" else "theirs", at_s=now_s, by=somebody(by), reason=reason
                )
            )
        done = "are ours to set" if whose == "ours" else "are not touched any more"
        show([f"From the next round on {done}: {', '.join(pool.name for pool in chosen)}."])
