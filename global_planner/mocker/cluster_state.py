"""The virtual cluster's books: what was ordered, which replicas there are, and what is to be done next. Pure.

It plays API server, operator and kubelet at once. Events come in as calls with `now` (model seconds), commands for the
process shell come out, and a call that is refused changes nothing. Two facts hold after every event: the live replicas of a
pool are exactly as many as its spec says, and a replica's GPUs are held until its process is really gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from global_planner.mocker.cluster_records import (
    ClusterEvent,
    Command,
    Faults,
    Kill,
    Launch,
    Nonsense,
    Replica,
    StaleVersion,
    Terminate,
    VirtualNode,
    VirtualPool,
)

MAX_REPLICAS = 512  # of one pool: they are processes on one machine
COLD_STARTS_KEPT = 5
EVENTS_KEPT = 5000
# A replica that ends before it was ever ready is replaced later and later, as kubelets do: 1, 2, 4 … 64 s.
MAX_BACKOFF_S = 64.0


@dataclass(slots=True)
class _Pool:
    config: VirtualPool
    spec: int
    version: int = 1
    started: int = 0
    failed_starts: int = 0
    faults: Faults = field(default_factory=Faults)
    replicas: dict[str, Replica] = field(default_factory=dict)
    cold_starts_s: deque[float] = field(default_factory=lambda: deque(maxlen=COLD_STARTS_KEPT))

    def live(self) -> list[Replica]:
        return [replica for replica in self.replicas.values() if replica.state != "terminating"]


class ClusterState:
    """See the module. `cold_start_s` (or what it gives, for each start anew) counts from the launch (at once, unless there is
    no place), `termination_s` from the order to end."""

    def __init__(
        self,
        pools: Iterable[VirtualPool],
        *,
        cold_start_s: float | Callable[[], float],
        initial_cold_start_s: float,
        termination_s: float,
        nodes: Sequence[VirtualNode] = (),
    ) -> None:
        self._pools = {pool.name: _Pool(config=pool, spec=pool.replicas) for pool in pools}
        self._cold_start_s: Callable[[], float] = cold_start_s if callable(cold_start_s) else lambda: cold_start_s
        self._initial_cold_start_s = initial_cold_start_s
        self._termination_s = termination_s
        self._nodes = {node.name: node for node in nodes}
        self._events: deque[ClusterEvent] = deque(maxlen=EVENTS_KEPT)
        self._event_no = 0
        self._peak_gpus: dict[str, int] = {pool.config.gpu_type: 0 for pool in self._pools.values()}

    # ---- events in, commands out ----------------------------------------------------------------------------------

    def start(self, now: float) -> list[Command]:
        """The replicas that stand from the start."""
        for pool in self._pools.values():
            for _ in range(pool.spec):
                self._order(pool, now, cold_start_s=self._initial_cold_start_s, measured=False)
        return self.tick(now)

    def scale(self, name: str, replicas: int, victims: Sequence[str], version: str | None, now: float) -> list[Command]:
        """Order `replicas` for a pool; of those that are too many, `victims` go first, then the youngest.

        Raises KeyError for an unknown pool, StaleVersion when `version` (None: whatever it is) is no longer the pool's or a
        victim is gone, Nonsense otherwise.
        """
        pool = self._pools[name]
        if not 0 <= replicas <= MAX_REPLICAS:
            raise Nonsense(f"replicas: {replicas} is not within 0..{MAX_REPLICAS}")
        if len(set(victims)) != len(victims):
            raise Nonsense("victims: a replica is named twice")
        if version is not None and version != str(pool.version):
            raise StaleVersion(f"{name} is at version {pool.version}, not {version}")
        surplus = pool.spec - replicas
        if len(victims) > max(0, surplus):
            raise Nonsense(f"victims: {len(victims)} named, but from {pool.spec} to {replicas} replicas {max(0, surplus)} go")
        live = {replica.id: replica for replica in pool.live()}
        gone = [victim for victim in victims if victim not in live]
        if gone:
            raise StaleVersion(f"{', '.join(gone)}: not a live replica of {name}")
        # Also when the count stays: an order that took another one back must be seen to have won.
        pool.version += 1
        if surplus == 0:
            return []
        self._log(now, name, None, f"scaled from {pool.spec} to {replicas}")
        pool.spec = replicas
        for _ in range(-surplus):
            self._order(pool, now, cold_start_s=self._cold_start_s(), measured=True)
        others = sorted((replica for id_, replica in live.items() if id_ not in victims), key=lambda r: -r.number)
        commands: list[Command] = []
        for victim in [*(live[victim] for victim in victims), *others][: max(0, surplus)]:
            commands += self._end(pool, victim, now, "told to end")
        return commands + self.tick(now)

    def healthy(self, replica: str, url: str, now: float) -> list[Command]:
        """The replica's process answers that it can serve. Late news of a replica that is ending or gone is ignored."""
        found = self._find(replica)
        if found is not None and found.state == "starting" and not found.healthy:
            found.healthy, found.url, found.progress_at_s = True, url, now
        return self.tick(now)

    def exited(self, replica: str, how: str, now: float) -> list[Command]:
        """The replica's process is gone. One that nobody told to end is replaced: new id, new cold start."""
        found = self._find(replica)
        if found is None:
            return []
        pool = self._pools[found.pool]
        del pool.replicas[replica]
        if found.state == "terminating":
            self._log(now, pool.config.name, replica, f"ended ({how})")
            return self.tick(now)
        self._log(now, pool.config.name, replica, f"died while {found.state} ({how})")
        wait_s = 0.0
        if found.state == "starting":
            wait_s = min(MAX_BACKOFF_S, 2.0**pool.failed_starts)
            pool.failed_starts += 1
        successor = self._order(pool, now, cold_start_s=self._cold_start_s(), measured=True, wait_s=wait_s)
        self._log(now, pool.config.name, successor.id, f"replaces {replica}")
        return self.tick(now)

    def tick(self, now: float) -> list[Command]:
        """Whatever is due: launches, replicas that became ready, graces that are over."""
        commands: list[Command] = []
        self._place_waiting(now)
        for pool in self._pools.values():
            for replica in list(pool.replicas.values()):
                commands += self._due(pool, replica, now)
        for gpu_type, held in self.held_gpus().items():
            self._peak_gpus[gpu_type] = max(self._peak_gpus[gpu_type], held)
        return commands

    def next_due_s(self) -> float | None:
        """When `tick` has something to do next (None: nothing waits for time)."""
        times: list[float] = []
        for pool in self._pools.values():
            for replica in pool.replicas.values():
                if replica.kill_at_s is not None:
                    times.append(replica.kill_at_s)
                elif replica.state == "starting" and not replica.launched and replica.launch_at_s is not None:
                    times.append(replica.launch_at_s)
                elif replica.state == "starting" and replica.healthy and replica.ready_at_s and not pool.faults.hang:
                    times.append(replica.ready_at_s)
        return min(times, default=None)

    def trouble(self, name: str, faults: Faults, now: float) -> list[Command]:
        """Put a pool's troubles in force (and end those that were). Raises KeyError for an unknown pool."""
        pool = self._pools[name]
        pool.faults = faults
        for replica in pool.live():
            if replica.launched:
                continue
            replica.unschedulable = faults.unschedulable
            if faults.unschedulable is not None:
                replica.launch_at_s = None
            elif replica.launch_at_s is None:
                replica.launch_at_s = now
        return self.tick(now)

    def stop(self, now: float) -> list[Command]:
        """Everything ends, and nothing is replaced any more."""
        commands: list[Command] = []
        for pool in self._pools.values():
            pool.spec = 0
            for replica in pool.live():
                commands += self._end(pool, replica, now, "told to end: the cluster stops")
        return commands

    # ---- what there is --------------------------------------------------------------------------------------------

    def replicas(self, name: str) -> tuple[Replica, ...]:
        return tuple(self._pools[name].replicas.values())

    def names(self) -> tuple[str, ...]:
        return tuple(self._pools)

    def spec(self, name: str) -> int:
        return self._pools[name].spec

    def version(self, name: str) -> str:
        return str(self._pools[name].version)

    def config(self, name: str) -> VirtualPool:
        return self._pools[name].config

    def cold_starts_s(self, name: str) -> tuple[float, ...]:
        """The last measured times from order to ready, oldest first."""
        return tuple(self._pools[name].cold_starts_s)

    def held_gpus(self) -> Mapping[str, int]:
        """GPUs by type of all replicas there are, those that are ending included."""
        held = dict.fromkeys(self._peak_gpus, 0)
        for pool in self._pools.values():
            held[pool.config.gpu_type] += len(pool.replicas) * pool.config.gpus_per_replica
        return held

    def nodes(self) -> tuple[VirtualNode, ...]:
        return tuple(self._nodes.values())

    def free_on_nodes(self) -> Mapping[str, int]:
        """Free GPUs by node: what no replica holds, ending ones included."""
        free = {name: node.gpus for name, node in self._nodes.items()}
        for pool in self._pools.values():
            for replica in pool.replicas.values():
                for name in replica.nodes:
                    free[name] -= pool.config.gpus_on_a_node
        return free

    def peak_gpus(self) -> Mapping[str, int]:
        """The most GPUs of each type that were ever held at once."""
        return dict(self._peak_gpus)

    def events(self, after: int = 0) -> tuple[ClusterEvent, ...]:
        return tuple(event for event in self._events if event.no > after)

    # ---- one replica ----------------------------------------------------------------------------------------------

    def _find(self, replica: str) -> Replica | None:
        return next((pool.replicas[replica] for pool in self._pools.values() if replica in pool.replicas), None)

    def _order(self, pool: _Pool, now: float, *, cold_start_s: float, measured: bool, wait_s: float = 0.0) -> Replica:
        pool.started += 1
        stuck = pool.faults.unschedulable
        replica = Replica(
            id=f"{pool.config.name}-{pool.started}",
            number=pool.started,
            pool=pool.config.name,
            state="starting",
            since_s=now,
            ordered_at_s=now,
            cold_start_s=cold_start_s,
            launch_at_s=None if stuck else now + wait_s,
            measured=measured and stuck is None and not wait_s,
            progress_at_s=now,
            unschedulable=stuck,
        )
        pool.replicas[replica.id] = replica
        return replica

    def _place_waiting(self, now: float) -> None:
        """Set replicas without a place on nodes, the oldest first; the fullest nodes that can take one, so that large gaps stay
        whole."""
        if not self._nodes:
            return
        waiting = [
            (replica.ordered_at_s, pool.config.name, replica.number, pool, replica)
            for pool in self._pools.values()
            for replica in pool.live()
            if not replica.nodes and not replica.launched and pool.faults.unschedulable is None
        ]
        free = dict(self.free_on_nodes()) if waiting else {}
        for _, _, _, pool, replica in sorted(waiting, key=lambda item: item[:3]):
            config = pool.config
            each, spread = config.gpus_on_a_node, config.nodes_per_replica
            fits = sorted(
                (gpus, name) for name, gpus in free.items() if gpus >= each and self._nodes[name].gpu_type == config.gpu_type
            )[:spread]
            if len(fits) < spread:
                many = f"no {spread} nodes have" if spread > 1 else "no node has"
                replica.unschedulable = f"{many} {each} free GPUs of {config.gpu_type}"
                replica.launch_at_s, replica.measured = None, False
                continue
            for _, name in fits:
                free[name] -= each
            replica.nodes = tuple(name for _, name in fits)
            replica.unschedulable = None
            if replica.launch_at_s is None:
                replica.launch_at_s = now

    def _due(self, pool: _Pool, replica: Replica, now: float) -> list[Command]:
        if replica.state == "terminating":
            if replica.kill_at_s is None or now < replica.kill_at_s:
                return []
            replica.kill_at_s = None
            self._log(now, pool.config.name, replica.id, "killed: its grace was over")
            return [Kill(replica=replica.id)]
        if not replica.launched:
            if replica.launch_at_s is None or now < replica.launch_at_s:
                return []
            replica.launched, replica.progress_at_s = True, now
            replica.ready_at_s = now + replica.cold_start_s
            return [Launch(pool=pool.config.name, replica=replica.id)]
        if replica.state == "starting" and replica.healthy and not pool.faults.hang and now >= (replica.ready_at_s or now):
            replica.state, replica.since_s, replica.progress_at_s = "ready", now, now
            pool.failed_starts = 0
            if replica.measured:
                pool.cold_starts_s.append(now - replica.ordered_at_s)
            self._log(now, pool.config.name, replica.id, "ready")
        return []

    def _end(self, pool: _Pool, replica: Replica, now: float, why: str) -> list[Command]:
        self._log(now, pool.config.name, replica.id, why)
        if not replica.launched:
            del pool.replicas[replica.id]
            return []
        replica.state, replica.since_s, replica.kill_at_s = "terminating", now, now + self._termination_s
        return [Terminate(replica=replica.id)]

    def _log(self, now: float, pool: str, replica: str | None, what: str) -> None:
        self._event_no += 1
        self._events.append(ClusterEvent(no=self._event_no, at_s=now, pool=pool, replica=replica, what=what))
