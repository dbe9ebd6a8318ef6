"""[I/O] A planner that stands alone scales its own DGD: what its components have, and orders for what the plan wants.

Nobody else has a say here: no arbiter, and no router of ours that could drain a replica. Which replica goes is its controller's
choice, and what it still serves ends with its pod's grace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pool_planner.connectors.component_state import ComponentState, Target
from pool_planner.connectors.kubernetes import Deployments, Order
from pool_planner.types import ClusterUnavailable, Grant, PlannerStatus, Proposal, Report, Role, WorldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A DGD and its namespace; `components` by role: the names that are looked for where no type says which is meant."""

    namespace: str
    dgd: str
    components: Mapping[Role, str]

    def target(self, role: Role) -> Target:
        return Target(namespace=self.namespace, dgd=self.dgd, role=role, component=self.components[role])


class OwnDgd:
    """`roles` by pool name. `deployments` is open, and is closed with this. `note` is told of what was ordered, and of what
    could not be."""

    def __init__(
        self, deployments: Deployments, place: Place, roles: Mapping[str, Role], *, note: Callable[[str], None]
    ) -> None:
        self._deployments = deployments
        self._targets = {pool: place.target(role) for pool, role in roles.items()}
        self._note = note
        self._said: dict[str, str] = {}

    async def grants(self, now_s: float) -> Mapping[str, Grant]:
        """Raises ClusterUnavailable when the cluster was not seen for too long."""
        self._deployments.check()
        found = {}
        for pool, target in self._targets.items():
            state = self._deployments.state(target)
            ordered = ordered_of(state)
            if state.unknown is not None or ordered is None:
                self._once(pool, f"{pool}: unknown, so it is held: {state.unknown or 'the ordered replicas cannot be read'}")
                continue
            states = [replica.state for replica in state.replicas]
            found[pool] = Grant(
                pool=pool,
                at_s=now_s,
                replicas_spec=ordered,
                replicas_ready=states.count("ready"),
                replicas_starting=states.count("starting"),
                replicas_draining=0,
                cold_start_s=state.cold_start_s,
            )
        return found

    async def carry_out(self, reports: Sequence[Report], statuses: Sequence[PlannerStatus], now_s: float) -> None:
        """Raises the first failure, after all orders were tried."""
        orders: list[tuple[str, Order]] = []
        for report in reports:
            if isinstance(report, Proposal):
                order = self._order(report)
                if order is not None:
                    orders.append((report.pool, order))
        if not orders:
            return
        results = await asyncio.to_thread(self._deployments.set_replicas, [order for _, order in orders])
        failures: list[WorldError] = []
        for (pool, order), failure in zip(orders, results, strict=True):
            if failure is None:
                self._said.pop(pool, None)
                self._note(f"{pool}: ordered {order.before} -> {order.replicas}")
            else:
                failures.append(failure)
        if failures:
            raise failures[0]

    def _order(self, report: Proposal) -> Order | None:
        """What to order for a pool; None: nothing, which is said once where there is a reason."""
        pool = report.pool
        state = self._deployments.state(self._targets[pool])
        ordered = ordered_of(state)
        if state.unknown is not None or ordered is None:
            return None
        wanted = max(report.wanted, state.least_replicas)
        foreign = self._deployments.foreign(state)
        if wanted == ordered:
            return None
        if foreign is not None:
            self._once(pool, f"{pool}: only observed, {wanted} would be ordered: {foreign.manager} sets its replicas too")
            return None
        if state.updating:
            self._once(pool, f"{pool}: held, {wanted} would be ordered: a rolling update is under way")
            return None
        return Order(target=self._targets[pool], before=ordered, replicas=wanted, version=state.version)

    def _once(self, pool: str, text: str) -> None:
        if self._said.get(pool) != text:
            self._said[pool] = text
            self._note(text)

    async def close(self) -> None:
        self._deployments.close()


def ordered_of(state: ComponentState) -> int | None:
    """Replicas that are ordered: through the adapter where there is one."""
    return state.spec if state.adapter_spec is None else state.adapter_spec


def observed_gpus(deployments: Deployments, place: Place, roles: Sequence[Role]) -> Mapping[Role, int]:
    """GPUs of a replica, by role, as the DGD says; a role whose GPUs cannot be read is absent. Raises ClusterUnavailable
    when the DGD has not such a component."""
    found: dict[Role, int] = {}
    for role in roles:
        state = deployments.state(place.target(role))
        if state.component is None:
            raise ClusterUnavailable(f"DGD {place.dgd} in {place.namespace}: {state.unknown or f'no {role} component'}")
        if state.gpus_per_replica is not None:
            found[role] = state.gpus_per_replica
    return found
