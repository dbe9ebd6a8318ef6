"""[I/O] Leadership: a Lease in the API server says who decides, and holds the ledger of what may grow.

Who holds it renews it before every round, which is the only call of an idle one. Whether somebody else's has run out is
measured on our own clock, from when we first saw it in its present state, so clocks need not agree. A new leader waits until no
write of the one before can be under way any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from global_planner.lease_record import LeaseRecord, NoLease, lease_body, read_lease
from global_planner.ports import Reservation, Reservations
from pool_planner.connectors.dgd_write import Request
from pool_planner.connectors.kubernetes_api import KubernetesApi, NotFound
from pool_planner.types import ClusterUnavailable, Conflict

RESOURCE = "leases.coordination.k8s.io"
MANAGER = "global-planner"
CALL_DEADLINE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`leader`: we decide. `waiting`: the lease is ours, but a write of the one before may be under way. `standby`: another
    decides. `new`: we have become the leader just now, and have to look at everything first. `note` says why."""

    kind: Literal["leader", "waiting", "standby"]
    note: str
    new: bool = False


class LeaderLease:
    """The lease of one deployment; the port Ledger is in it. `identity` is one of this process alone."""

    def __init__(
        self,
        api: KubernetesApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_s: float,
        write_deadline_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._namespace, self._name, self._identity = api, namespace, name, identity
        self._lease_s, self._write_deadline_s = lease_s, write_deadline_s
        self._monotonic, self._unix_now = monotonic, unix_now
        self._raw: Mapping[str, Any] | None = None
        self._record: LeaseRecord | None = None
        self._seen: tuple[object, float] | None = None
        self._valid_until = self._wait_until = float("-inf")
        self._leads = False

    # ---- who decides -------------------------------------------------------------------------------------------------

    def left_s(self) -> float:
        """Seconds for which the lease is certainly ours; 0: it is not."""
        return max(0.0, self._valid_until - self._monotonic())

    async def stand(self) -> Standing:
        """Renew the lease, or take it when nobody has it. Raises nothing of the world: without an answer we decide nothing."""
        try:
            return await asyncio.to_thread(self._stand)
        except (ClusterUnavailable, Conflict, NoLease) as error:
            self._record = self._raw = None
            if self.left_s() == 0.0:
                self._leads = False
            return Standing(kind="standby", note=f"the lease cannot be renewed: {error}")

    async def give_up(self) -> None:
        """Hand the lease back, so that the next leader need not wait. No write of ours may be under way."""
        if self.left_s() > 0.0 and self._record is not None:
            self._valid_until = float("-inf")
            self._leads = False
            record = replace(self._record, holder=None, write_deadline_s=0.0)
            await asyncio.to_thread(self._write, record, False)

    def _stand(self) -> Standing:
        record = self._record
        if record is None or record.holder != self._identity:
            record = self._read()
        if record is not None and record.holder == self._identity:
            try:
                self._write(replace(record, write_deadline_s=self._write_deadline_s), acquired=False)
            except Conflict:
                record = self._read()
                if record is None or record.holder != self._identity:
                    return self._standby(record)
                self._write(record, acquired=False)
            return self._leading()
        if record is not None and record.holder is not None:
            now = self._monotonic()
            state = (record.holder, record.renewed, record.transitions, record.version)
            if self._seen is None or self._seen[0] != state:
                self._seen = (state, now)
            if now - self._seen[1] < record.duration_s:
                return self._standby(record)
        waits_s = 0.0 if record is None else record.write_deadline_s
        mine = LeaseRecord(
            holder=self._identity,
            duration_s=self._lease_s,
            renewed="",
            transitions=0 if record is None else record.transitions + 1,
            write_deadline_s=self._write_deadline_s,
            ledger_version=0 if record is None else record.ledger_version,
            entries=() if record is None else record.entries,
            version="" if record is None else record.version,
        )
        try:
            self._write(mine, acquired=True)
        except Conflict:
            return self._standby(self._read())
        self._wait_until, self._leads = self._monotonic() + waits_s, False
        return self._leading()

    def _leading(self) -> Standing:
        wait_s = self._wait_until - self._monotonic()
        if wait_s > 0.0:
            note = f"the lease is ours; a write of the leader before may be under way for another {wait_s:.1f} s"
            return Standing(kind="waiting", note=note)
        new, self._leads = not self._leads, True
        return Standing(kind="leader", note=f"{self._identity} decides", new=new)

    def _standby(self, record: LeaseRecord | None) -> Standing:
        self._leads, self._valid_until = False, float("-inf")
        return Standing(kind="standby", note=f"{(record and record.holder) or 'another'} decides")

    # ---- the ledger --------------------------------------------------------------------------------------------------

    async def read(self) -> Reservations:
        """The ledger as the lease had it when it was last read or written: no call. Raises ClusterUnavailable."""
        if self._record is None:
            raise ClusterUnavailable(f"lease {self._name}: not read")
        return Reservations(version=str(self._record.ledger_version), entries=self._record.entries)

    async def swap(self, version: str, entries: Sequence[Reservation]) -> None:
        """Replace the entries if the lease is still ours and its ledger still at `version`. Raises Conflict otherwise."""
        record = self._record
        if record is None or self.left_s() == 0.0:
            raise Conflict(f"lease {self._name} is not ours any more, so nothing can be reserved")
        if str(record.ledger_version) != version:
            raise Conflict(f"the ledger is at {record.ledger_version}, not {version}")
        changed = replace(record, entries=tuple(entries), ledger_version=record.ledger_version + 1)
        try:
            await asyncio.to_thread(self._write, changed, False)
        except (Conflict, ClusterUnavailable):
            self._record = self._raw = None  # what it holds now is read before the next round
            raise

    # ---- calls -------------------------------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return f"/apis/coordination.k8s.io/v1/namespaces/{self._namespace}/leases"

    def _read(self) -> LeaseRecord | None:
        try:
            self._raw = self._api.get(f"{self._path}/{self._name}", resource=RESOURCE, deadline_s=CALL_DEADLINE_S)
        except NotFound:
            self._raw = self._record = None
            return None
        self._record = read_lease(self._raw)
        return self._record

    def _write(self, record: LeaseRecord, acquired: bool) -> None:
        """Write our record on the version that was read. The lease is ours from before the call on: no later."""
        began = self._monotonic()
        body = lease_body(self._name, self._namespace, record, now_unix_s=self._unix_now(), acquired=acquired, before=self._raw)
        made = self._raw is None
        request = Request(
            method="POST" if made else "PUT",
            path=self._path if made else f"{self._path}/{self._name}",
            content_type="application/json",
            body=body,
            verb="create" if made else "update",
            resource=RESOURCE,
            namespace=self._namespace,
        )
        self._raw = self._api.send(request, manager=MANAGER, deadline_s=CALL_DEADLINE_S)
        self._record = read_lease(self._raw)
        if record.holder == self._identity:
            self._valid_until = began + record.duration_s
