"""What counts against the budget: the GPUs a pool may be using now, or may come to use by what was ordered. Pure.

A charge is never an estimate of use; it is an upper bound that holds while orders are on their way, while pods start and
while they end. Unknown is `None` and stays so: a pool whose spec or GPUs per replica cannot be read is charged what it was
last known to hold, and a GPU type with a pool of which nothing was ever known has no free GPUs at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from global_planner.types import Budget, Holding, PoolSpec


def ordered_replicas(holding: Holding) -> int | None:
    """The replica count in force: the scaling adapter's where there is one (it is the only writer then), else the spec.
    None: unknown."""
    if holding.unknown is not None or holding.spec is None:
        return None
    return holding.spec if holding.adapter_spec is None else holding.adapter_spec


def live_replicas(holding: Holding) -> int:
    """Replicas that exist and are not on their way out."""
    return sum(1 for replica in holding.replicas if replica.state != "terminating")


def leaving_replicas(holding: Holding) -> int:
    """Replicas whose GPUs are not free yet although nobody counts on them: terminating, or released where the cluster
    cannot show terminating ones."""
    return len(holding.replicas) - live_replicas(holding) + holding.lingering


def replicas_charged(holding: Holding, *, ordering: int | None = None) -> int | None:
    """Replicas that count for this holding; None: unknown. With `ordering`, what would count once that many are ordered.

    (max(spec, adapter spec, our last write not yet observed) + surge, or the replicas that live, whichever is more) + those
    that are leaving. An order upwards is dearer than it looks while more replicas live than are ordered: the surplus is about
    to leave, so it stays charged beside the new ones.
    """
    ordered = ordered_replicas(holding)
    if ordered is None or holding.spec is None:
        return None
    live = live_replicas(holding)
    in_force = max(holding.spec, ordered)
    expected = max(ordering or 0, holding.last_write or 0)
    surplus = max(0, live - ordered - holding.surge) if expected > in_force else 0
    return max(max(in_force, expected) + holding.surge + surplus, live) + leaving_replicas(holding)


def charge(holding: Holding, spec: PoolSpec, *, ordering: int | None = None) -> int | None:
    """GPUs that `holding` counts against the budget; None: unknown, which is never 0.

    `spec` names the pool. The GPUs per replica are the observed ones: what the topology claims is not what the pods take.
    """
    if holding.pool != spec.name:
        raise ValueError(f"holding of {holding.pool!r} charged as pool {spec.name!r}")
    replicas = replicas_charged(holding, ordering=ordering)
    if replicas is None or holding.gpus_per_replica is None:
        return None
    return replicas * holding.gpus_per_replica


def charge_or_last_known(holding: Holding, spec: PoolSpec) -> int | None:
    """`charge`, else the GPUs that the pool was last known to be charged; None: nothing was ever known."""
    now = charge(holding, spec)
    return holding.last_known_gpus if now is None else now


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeCharge:
    """The account of one GPU type. `max_gpus` None: unlimited. `unknown_pools` were never known: what they hold is not in
    `charged_gpus`. `stale_pools` are charged what they last were."""

    gpu_type: str
    max_gpus: int | None
    charged_gpus: int
    unknown_pools: tuple[str, ...] = ()
    stale_pools: tuple[str, ...] = ()

    @property
    def free_gpus(self) -> int | None:
        """GPUs that may be ordered now; negative: over budget; None: unlimited. 0 at most while a pool's charge is unknown."""
        if self.max_gpus is None:
            return None
        free = self.max_gpus - self.charged_gpus
        return min(free, 0) if self.unknown_pools else free


def account(budget: Budget, pools: Iterable[PoolSpec], holdings: Iterable[Holding]) -> Mapping[str, TypeCharge]:
    """The account of every GPU type that the pools or the budget name. A pool without a holding is an unknown one."""
    by_pool = {holding.pool: holding for holding in holdings}
    charged = dict.fromkeys(budget.max_gpus, 0)
    unknown: dict[str, list[str]] = {}
    stale: dict[str, list[str]] = {}
    for spec in pools:
        charged.setdefault(spec.gpu_type, 0)
        holding = by_pool.get(spec.name)
        gpus = None if holding is None else charge_or_last_known(holding, spec)
        if gpus is None or holding is None:
            unknown.setdefault(spec.gpu_type, []).append(spec.name)
            continue
        charged[spec.gpu_type] += gpus
        if charge(holding, spec) is None:
            stale.setdefault(spec.gpu_type, []).append(spec.name)
    return {
        gpu_type: TypeCharge(
            gpu_type=gpu_type,
            max_gpus=budget.max_gpus.get(gpu_type),
            charged_gpus=gpus,
            unknown_pools=tuple(unknown.get(gpu_type, ())),
            stale_pools=tuple(stale.get(gpu_type, ())),
        )
        for gpu_type, gpus in charged.items()
    }
