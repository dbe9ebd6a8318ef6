"""Orders of replicas: what makes one impossible, and how its victims are named. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pool_planner.connectors.component_state import ComponentState, Target
from pool_planner.connectors.dgd_pods import DELETION_COST
from pool_planner.types import Conflict

FIRST_TO_GO = -1000
"""The deletion cost of a victim's pods; any other pod has 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`replicas` for a component if it is still at `version`; `victims` are replica ids. An order of the number that is in
    force settles earlier ones: it only moves the version on."""

    target: Target
    before: int
    replicas: int
    version: str | None
    victims: tuple[str, ...] = ()


def check_order(order: Order, state: ComponentState) -> None:
    """Raises Conflict when an order is not for what is there now, or for what its workload cannot do: nothing is written."""
    if state.unknown is not None or state.component is None:
        raise Conflict(f"{order.target.dgd}/{order.target.component} cannot be read any more: {state.unknown}")
    if order.version != state.version:
        raise Conflict(f"{order.target.dgd}/{state.component} is at version {state.version}, not {order.version}")
    if order.replicas < state.least_replicas:
        least = state.least_replicas
        raise Conflict(f"{order.target.dgd}/{state.component}: a {state.workload} has {least} replicas at least")
    alive = {item.id: item for item in state.replicas if item.state != "terminating"}
    gone = sorted(set(order.victims) - set(alive))
    if gone:
        raise Conflict(f"{order.target.dgd}/{state.component}: {', '.join(gone)} is not there any more")
    if state.victims == "last" and order.victims:
        going = max(0, len(alive) - order.replicas)
        others = sorted(id_ for id_ in order.victims if (rank := alive[id_].rank) is None or rank >= going)
        if others:
            raise Conflict(
                f"{order.target.dgd}/{state.component}: a {state.workload} removes its last replicas, and "
                f"{', '.join(others)} is not among the last {going}"
            )


def deletion_costs(
    order: Order, state: ComponentState, pods: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, int | None]]:
    """The pods whose deletion cost must change (None: to none) so that exactly the victims of an order go first; nothing where
    the workload takes no names. `pods` by name, as they were last seen."""
    if not order.victims or state.victims != "named":
        return
    for replica in state.replicas:
        wanted = FIRST_TO_GO if replica.id in order.victims else None
        for pod in replica.pods:
            has = _cost(pods.get(pod))
            if has != wanted and (wanted is not None or has == FIRST_TO_GO):
                yield pod, wanted


def _cost(pod: Mapping[str, Any] | None) -> int | None:
    text = "" if pod is None else (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "")
    try:
        return int(text)
    except ValueError:
        return None
